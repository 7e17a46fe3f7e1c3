"""The recipes and sweeps that come along, which are run by their names."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from discernment.errors import RecipeError
from discernment.files import plain_yaml

FOLDER = Path(__file__).parent / "recipes"
STARTER = "starter/"
TAKES_SETS = (
    "general", "safety", "augmentation", "contrast", "contrast_validation", "retained", "validation", "benchmarks",
    "ability", "prompts", "probes",
)  # fmt: skip
"""The keys of a recipe under which a string alone is a prompt set."""
SENTENCE = re.compile(r".+?[.?](?= [A-Z]|$)")


class BuiltIn(NamedTuple):
    """A recipe or a sweep that comes along.

    Attributes:
        name: What it is run by.
        path: The file.
        about: The first sentence of the comment that it begins with.
        verb: The verb that runs it.
        seeds: With how many training seeds.
        public: The public sets that it reads; it runs offline without any.
    """

    name: str
    path: Path
    about: str
    verb: Literal["run", "sweep"]
    seeds: int
    public: tuple[str, ...]


def built_in() -> dict[str, BuiltIn]:
    """The recipes and sweeps that come along, by name."""
    return {path.stem: _described(path) for path in sorted(FOLDER.glob("*.yaml"))}


def find_recipe(recipe: Path | str, verb: Literal["run", "sweep"] | None = None) -> Path:
    """The file of a recipe or a sweep: the user's own, or else one that comes along.

    Args:
        recipe: A path, or the name of one that comes along.
        verb: What is to be done with it; either, if it is not said.

    Raises:
        RecipeError: If there is neither, or the one that comes along is for another verb.
    """
    path, what = Path(recipe), "sweep" if verb == "sweep" else "recipe"
    if path.is_file():
        return path
    ours = built_in()
    found = ours.get(str(path))
    if found is None:
        names = ", ".join(name for name, one in ours.items() if verb in (None, one.verb))
        raise RecipeError(
            f"There is no {what} {path}: neither a file nor one of those that come along ({names}); "
            "`discern recipes` describes them."
        )
    if verb not in (None, found.verb):
        raise RecipeError(
            f"{path} is no {what}; give `discern {found.verb} {path}`, or name a file of your own."
        )
    return found.path


def _described(path: Path) -> BuiltIn:
    text = path.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in re.match(r"(#.*\n)*", text)[0].splitlines())  # type: ignore[index]
    content = plain_yaml(text)
    named = dict.fromkeys(name for name in sets_of(content) if not name.startswith(STARTER))
    first = SENTENCE.match(comment)
    return BuiltIn(
        name=path.stem,
        path=path,
        about=first[0] if first else comment,
        verb="sweep" if "space" in content else "run",
        seeds=len(content.get("seeds") or [0]),
        public=tuple(named),
    )


def sets_of(content: Any, key: str = "") -> list[str]:
    """Every prompt set that (a part of) a recipe's content names, wherever it stands, under `set` or by a string alone.

    Args:
        content: The content.
        key: What it stands under.
    """
    if isinstance(content, str):
        return [content] if key == "set" or key in TAKES_SETS else []
    if isinstance(content, list):
        return [name for item in content for name in sets_of(item, key)]
    if isinstance(content, dict):
        return [name for under, value in content.items() for name in sets_of(value, under)]
    return []
