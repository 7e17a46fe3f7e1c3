"""The descriptions of pydantic fields as their documentation, which griffe does not read by itself."""

import ast
from typing import Any

import griffe


class FieldDescriptions(griffe.Extension):
    """Takes `description` of `Field(...)` for the docstring of an attribute, and its default for the value."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Read the call that makes the field."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Field":
            return
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        said = given.get("description")
        if said is not None and attr.docstring is None:
            attr.docstring = griffe.Docstring(ast.literal_eval(said), parent=attr)
        default = call.args[0] if call.args else given.get("default")
        factory = given.get("default_factory")
        attr.value = ast.unparse(default) if default else f"{ast.unparse(factory)}()" if factory else None
