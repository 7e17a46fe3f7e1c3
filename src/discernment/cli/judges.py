"""`discern judges`: measure a judge against people, train one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from discernment.judges import Judge
    from discernment.judges.calibration import Agreement, Calibration, Estimate

__all__ = ["app"]

app = typer.Typer(name="judges", help="Measure a judge against people, and train one.", no_args_is_help=True)

KEYWORD = "keyword"
CLASSIFIER = "classifier"
LEGEND = (
    "Refusal against the rest; 95 % intervals. raw: the judge's rate of refusals. corrected: the same, corrected by "
    "the judge's errors on the other models (Rogan-Gladen). Unscored completions are in no other column."
)
LEFT_OUT = "Each model was judged by a classifier trained on the others."
Labels = Annotated[
    str,
    typer.Option(help="Completions with people's verdicts: xstest_human_labels, or a JSON-lines file."),
]


@app.command()
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
    out: Annotated[Path, typer.Option("--out", "-o", help="The JSON file for the numbers.")] = Path(
        "calibration.json"
    ),
) -> None:
    """Show how a judge agrees with people, by model and by type of prompt."""
    from rich.console import Console

    from discernment.files import write_json
    from discernment.judges.calibration import calibrate as measure
    from discernment.judges.labelled import read_labelled

    console = Console()
    examples = read_labelled(labels)
    found = []
    for name in judge or [KEYWORD, CLASSIFIER]:
        with console.status(f"{name}: judging {len(examples)} completions"):
            found.append(measure(examples, _judge(name), labels))
        _show(found[-1], console)
    console.print(_line(LEGEND))
    write_json(out, [calibration.model_dump(mode="json") for calibration in found])
    console.print(_line(f"Numbers: {out}"))


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file for the classifier (safetensors).")],
    labels: Labels = "xstest_human_labels",
) -> None:
    """Train a refusal classifier on labelled completions."""
    from rich.console import Console

    from discernment.judges import train_classifier
    from discernment.judges.labelled import read_labelled

    console = Console()
    examples = read_labelled(labels)
    with console.status(f"Training on {len(examples)} completions"):
        classifier = train_classifier(examples)
    classifier.save(out)
    console.print(_line(f"Classifier: {out}, trained on {len(examples)} completions of {labels}."))
    console.print(
        _line("Its error on models that it has not seen: `discern judges calibrate --judge classifier`.")
    )


def _judge(name: str) -> Judge | str:
    from discernment.judges import ClassifierJudge, KeywordJudge

    if name == KEYWORD:
        return KeywordJudge()
    return name if name == CLASSIFIER else ClassifierJudge.load(Path(name))


def _show(calibration: Calibration, console: Console) -> None:
    for title, rows in (
        ("model", [*calibration.by_model, calibration.overall]),
        ("prompt type", calibration.by_category),
    ):
        if rows:
            console.print(_line(f"{calibration.judge} against {calibration.labels}, by {title}", "bold"))
            console.print(_table(title, rows))
    if calibration.judge == CLASSIFIER:
        console.print(_line(LEFT_OUT))
    console.print()


def _table(title: str, rows: Sequence[Agreement]) -> RenderableType:
    from rich.table import Table

    with_corrected = any(row.corrected for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    header = ("n", "unscored", "people", "raw", "corrected", "accuracy", "precision", "recall", "F1", "kappa")
    for column in header:
        if column != "corrected" or with_corrected:
            table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        cells = [str(row.n), str(row.unscored), "-" if row.people is None else f"{row.people:.2f}"]
        estimates = [row.judge, row.corrected, row.accuracy, row.precision, row.recall, row.f1, row.kappa]
        if not with_corrected:
            del estimates[1]
        table.add_row(_line(row.group), *cells, *map(_estimate, estimates))
    return table


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f} ({estimate.low:.2f}-{estimate.high:.2f})"


def _line(text: str, style: str = "") -> RenderableType:
    """Untrusted text: no markup, control characters shown by name."""
    from rich.text import Text

    from discernment.reporting.text import visible

    return Text(visible(text), style=style)
