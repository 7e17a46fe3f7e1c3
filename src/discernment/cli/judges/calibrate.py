"""`discern judges calibrate`: how a judge agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import console, plain_table, say
from discernment.cli.options import Labels, out_option
from discernment.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from discernment.judges import Judge
    from discernment.judges.calibration import Agreement, Calibration, Estimate

KEYWORD = "keyword"
CLASSIFIER = "classifier"
LEGEND = (
    "Refusal against the rest; 95 % intervals. raw: the judge's rate of refusals. corrected: the same, corrected by "
    "the judge's errors on the other models (Rogan-Gladen). Unscored completions are in no other column."
)
LEFT_OUT = "Each model was judged by a classifier trained on the others."


def calibrate(
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            "-j",
            help="keyword, classifier (trained on the other models), or a file that `train` wrote; may be repeated.",
        ),
    ] = None,
    labels: Labels = "xstest_human_labels",
    out: Annotated[Path, out_option("The JSON file for the numbers.")] = Path("calibration.json"),
) -> None:
    """Show how a judge agrees with people, by model and by type of prompt."""
    from discernment.judges.calibration import calibrate as measure
    from discernment.judges.labelled import read_labelled

    examples = read_labelled(labels)
    found = []
    for name in judge or [KEYWORD, CLASSIFIER]:
        with console.status(f"{name}: judging {len(examples)} completions"):
            found.append(measure(examples, _judge(name), labels))
        _show(found[-1])
    say(LEGEND)
    write_json(out, [calibration.model_dump(mode="json") for calibration in found])
    say(f"Numbers: {out}")


def _judge(name: str) -> Judge | str:
    from discernment.judges import ClassifierJudge, KeywordJudge

    if name == KEYWORD:
        return KeywordJudge()
    return name if name == CLASSIFIER else ClassifierJudge.load(Path(name))


def _show(calibration: Calibration) -> None:
    for title, rows in (
        ("model", [*calibration.by_model, calibration.overall]),
        ("prompt type", calibration.by_category),
    ):
        if rows:
            say(f"{calibration.judge} against {calibration.labels}, by {title}", "bold")
            console.print(_table(title, rows))
    if calibration.judge == CLASSIFIER:
        say(LEFT_OUT)
    console.print()


def _table(title: str, rows: Sequence[Agreement]) -> Table:
    header = ["n", "unscored", "people", "raw", "corrected", "accuracy", "precision", "recall", "F1", "kappa"]
    with_corrected = any(row.corrected for row in rows)
    if not with_corrected:
        header.remove("corrected")
    cells = []
    for row in rows:
        people = "-" if row.people is None else f"{row.people:.2f}"
        corrected = [row.corrected] if with_corrected else []
        estimates = [row.judge, *corrected, row.accuracy, row.precision, row.recall, row.f1, row.kappa]
        cells.append([row.group, str(row.n), str(row.unscored), people, *map(_estimate, estimates)])
    return plain_table([title, *header], cells, right=header)


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f} ({estimate.low:.2f}-{estimate.high:.2f})"
