"""`discern prompts split`: training, validation and test files from one set."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import plain_table, print_json, show
from discernment.errors import DataError
from discernment.prompts import Split, assign_splits


def split(
    name: options.SetName,
    out: Annotated[Path, typer.Option(help="Directory for train.jsonl, validation.jsonl and test.jsonl.")],
    train: Annotated[float, typer.Option(min=0, max=1, help="Share for training.")] = 0.8,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share for validation.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share for the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Which of the equally good splits.")] = 0,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    as_json: options.AsJson = False,
) -> None:
    """Split a set so that no frame, key word, partner or repeated text stands on two sides."""
    shares = {Split.TRAIN: train, Split.VALIDATION: validation, Split.TEST: test}
    paths = {part: out / f"{part}.jsonl" for part, share in shares.items() if share > 0}
    present = [path.name for path in paths.values() if path.exists()]
    if present:
        raise DataError(f"{out} holds {', '.join(present)} already; name another directory.")
    reading = options.parse_reading([name], column, fixed_label, label_map, encoding)
    prompts = assign_splits(options.load_set(name, reading), shares, seed)
    rows = []
    files = []
    for part, path in paths.items():
        chosen = prompts.with_split(part)
        chosen.to_jsonl(path)
        files.append({"file": str(path), "rows": len(chosen), "labels": chosen.counts()})
        counts = ", ".join(f"{n} {label}" for label, n in chosen.counts().items())
        rows.append((str(path), str(len(chosen)), counts))
    if as_json:
        print_json(files)
        return
    show(plain_table(("file", "rows", "labels"), rows, right=("rows",)))
