"""`discern recipes`: those that come along."""

import sys
from typing import Annotated

import typer

from discernment.cli.console import notice, plain_table, print_json, show
from discernment.cli.options import AsJson
from discernment.files import read_text


def recipes(
    recipe: Annotated[str | None, typer.Argument(help="One of them, to print it as it is.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come along, or print one to start your own from."""
    from discernment.runs.built_in import built_in, find_recipe

    if recipe is not None:
        sys.stdout.write(read_text(find_recipe(recipe)))
        return
    if as_json:
        names = ("name", "verb", "seeds", "public", "about")
        print_json([{name: getattr(one, name) for name in names} for one in built_in().values()])
        return
    rows = [
        (
            f"discern {one.verb} {one.name}",
            str(one.seeds),
            str(len(one.public)) if one.public else "none",
            one.about,
        )
        for one in built_in().values()
    ]
    header = ("command", "seeds", "public sets", "what it does")
    show(plain_table(header, rows, right=("seeds", "public sets"), whole=("command",)))
    notice(
        "\nYour own: `discern init MODEL` writes one; or `discern recipes quickstart > mine.yaml`, change what differs, `discern run mine.yaml`."
    )
    notice(
        "Public sets are read from the folder that DISCERNMENT_DATA names; `discern prompts list` has them."
    )
