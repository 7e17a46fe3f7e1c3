"""`discern judges calibrate`: how a judge agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import console, plain_table, say
from discernment.cli.options import Labels, out_option
from discernment.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from discernment.judges import Judge
    from discernment.judges.calibration import Agreement, Calibration, Estimate
    from discernment.judges.labelled import LabelledCompletion

KEYWORD = "keyword"
CLASSIFIER = "classifier"
ENCODER = "encoder"
LEGEND = "Refusal against the rest; 95 % intervals. judge: its rate of refusals. Unscored completions are in no other column."
LEFT_OUT = "Each model was judged by one trained on the others{}."


def calibrate(
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            "-j",
            help="keyword; classifier or encoder (trained on the other models); or what `train` wrote; may be repeated.",
        ),
    ] = None,
    labels: Labels = "xstest_human_labels",
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="What a trained judge learns from besides, e.g. starter/verdicts; may be repeated."
        ),
    ] = None,
    out: Annotated[Path, out_option("The JSON file for the numbers.")] = Path("calibration.json"),
) -> None:
    """Show how a judge agrees with people, by model and by type of prompt."""
    from discernment.judges.calibration import calibrate as measure
    from discernment.judges.labelled import read_labelled

    examples = read_labelled(labels)
    more = [example for source in also or [] for example in read_labelled(source)]
    found = []
    for name in judge or [KEYWORD, CLASSIFIER]:
        if name in (CLASSIFIER, ENCODER):
            found.append(_leaving_out(name, examples, more, labels))
        else:
            with console.status(f"{name}: judging {len(examples)} completions"):
                found.append(measure(examples, _judge(name), labels))
        _show(found[-1])
        if name in (CLASSIFIER, ENCODER):
            say(LEFT_OUT.format(f" and on {', '.join(also)}" if also else ""))
    say(LEGEND)
    write_json(out, [calibration.model_dump(mode="json") for calibration in found])
    say(f"Numbers: {out}")


def _judge(name: str) -> Judge:
    from discernment.judges import ClassifierJudge, EncoderJudge, KeywordJudge

    if name == KEYWORD:
        return KeywordJudge()
    path = Path(name)
    return EncoderJudge(path) if path.is_dir() else ClassifierJudge.load(path)


def _leaving_out(
    name: str, examples: Sequence[LabelledCompletion], more: Sequence[LabelledCompletion], labels: str
) -> Calibration:
    from discernment.judges import train_classifier
    from discernment.judges.calibration import judge_leaving_one_model_out, tabulate
    from discernment.judges.encoder import train_encoder

    with TemporaryDirectory() as scratch:

        def train(known: Sequence[LabelledCompletion]) -> Judge:
            return (
                train_classifier(known) if name == CLASSIFIER else train_encoder(known, Path(scratch) / name)
            )

        said = judge_leaving_one_model_out(
            examples, train, more, lambda model: say(f"{name}: learning for {model}")
        )
    return tabulate(examples, said, name, labels)


def _show(calibration: Calibration) -> None:
    for title, rows in (
        ("model", [*calibration.by_model, calibration.overall]),
        ("prompt type", calibration.by_category),
    ):
        if rows:
            say(f"{calibration.judge} against {calibration.labels}, by {title}", "bold")
            console.print(_table(title, rows))
    console.print()


def _table(title: str, rows: Sequence[Agreement]) -> Table:
    header = ["n", "unscored", "people", "judge", "accuracy", "precision", "recall", "F1", "kappa"]
    cells = []
    for row in rows:
        people = "-" if row.people is None else f"{row.people:.2f}"
        estimates = [row.judge, row.accuracy, row.precision, row.recall, row.f1, row.kappa]
        cells.append([row.group, str(row.n), str(row.unscored), people, *map(_estimate, estimates)])
    return plain_table([title, *header], cells, right=header)


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.3f} ({estimate.low:.2f}-{estimate.high:.2f})"
