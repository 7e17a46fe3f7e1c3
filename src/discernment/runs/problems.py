"""What is wrong with something that a user wrote, in one sentence."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def first_problem(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """One thing that is wrong, in words, with the nearest known name where a name is wrong.

    Args:
        error: What pydantic found.
        model: The model that was validated.
        prefix: Where in the file it stands.
    """
    # A misspelt name first: it is why another one is missing.
    problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
    name = ".".join([prefix, *location] if prefix else location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}."
        return f"`{name}` is not a known option{more}; {hint}"
    if problem["type"] == "missing":
        return f"`{name}` is missing{more}."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{f'`{name}`: ' if name else ''}{message}{more}."


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Names of the fields that the part of the recipe at `location` may have."""
    for part in location:
        if part.isdigit():
            continue
        field = model.model_fields.get(part)
        inner = None if field is None else next(_models_in(field.annotation), None)
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _models_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
