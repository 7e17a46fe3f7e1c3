"""`discern prompts list`: the sets at hand."""

from collections.abc import Sequence
from pathlib import Path

from discernment.cli.console import notice, plain_table, print_json, show
from discernment.cli.options import AsJson
from discernment.prompts import STARTER_SETS, CatalogueEntry, Label, catalogue, load_starter
from discernment.prompts.catalogue import data_folder, direction_of

LEGEND = (
    "\nbetter: what a good policy does with prompts of that label. at hand: in the folder that DISCERNMENT_DATA names. "
    "from the hub: downloaded when it is used. by hand: put it into that folder yourself; `discern prompts show SET` "
    "says from where. rows: ? where the catalogue does not know. Licences are those of the makers."
)
BETTER = {"compliance": "answer", "refusal": "refuse"}


def list_sets(as_json: AsJson = False) -> None:
    """List the built-in and the public prompt sets, and how to get them."""
    folder = data_folder()
    rows: list[Sequence[str]] = []
    for name in STARTER_SETS:
        prompts = load_starter(name)
        licence = prompts.provenance.licence or ""
        counts = prompts.counts()
        better = "\n".join(BETTER[direction_of(Label(label))] for label in counts)
        rows.append((name, "\n".join(counts), better, str(len(prompts)), licence, "built in"))
    for entry in catalogue().values():
        if entry.kind == "prompts":
            where = _whereabouts(entry, folder)
            better = "\n".join(BETTER[direction] for direction in entry.directions.values())
            count = "?" if entry.rows is None else str(entry.rows)
            rows.append((entry.name, "\n".join(entry.labels), better, count, entry.licence, where))
    header = ("set", "labels", "better", "rows", "licence", "where")
    if as_json:
        print_json([_document(dict(zip(header, row, strict=True))) for row in rows])
        return
    show(plain_table(header, rows, right=("rows",), whole=("set", "labels", "better")))
    notice(LEGEND, "dim")


def _document(row: dict[str, str]) -> dict[str, object]:
    return {
        **row,
        "labels": row["labels"].split("\n"),
        "better": row["better"].split("\n"),
        "rows": None if row["rows"] == "?" else int(row["rows"]),
    }


def _whereabouts(entry: CatalogueEntry, folder: Path | None) -> str:
    if entry.file_in(folder) is not None:
        return "at hand"
    return "from the hub" if entry.hub else "by hand"
