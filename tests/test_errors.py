"""The errors that the user can mend, and the names that modules offer each other."""

import ast
import inspect
import re
from pathlib import Path

import discernment
from discernment import errors

PACKAGE = Path(discernment.__file__).parent


def test_the_docstring_draws_the_classes_there_are():
    drawn = re.findall(r"[├└]── (\w+)  ", errors.__doc__)
    classes = {
        n: c for n, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__
    }
    assert len(drawn) > 3
    assert {*drawn, "DiscernmentError"} == set(classes) == set(errors.__all__)
    for name in drawn:
        assert classes[name].__bases__ == (errors.DiscernmentError,)
        assert classes[name].__doc__


def assigned(tree, name):
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
    return ast.literal_eval(found[0]) if found else None


def test_functions_and_classes_that_other_modules_import_are_named_in_all():
    trees = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        trees[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    defined = {
        (module, node.name)
        for module, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    imports = [
        (user, node.module, alias.name)
        for user, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in trees
        for alias in node.names
        if (node.module, alias.name) in defined
    ]
    assert len(imports) > 100
    hidden = [i for i in imports if i[2] not in (assigned(trees[i[1]], "__all__") or ())]
    assert hidden == []
