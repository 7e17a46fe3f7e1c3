"""`discern judges calibrate`: how a judge agrees with people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from discernment.cli.console import (
    console,
    notice,
    notices,
    plain_table,
    prepare_process,
    print_json,
    say,
    show,
)
from discernment.cli.options import AsJson, Labels, check_kept, out_option, parse_yaml
from discernment.errors import RecipeError
from discernment.files import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from discernment.judges import Judge, LlmUsage
    from discernment.judges.calibration import Agreement, Calibration, Estimate
    from discernment.judges.labelled import LabelledCompletion

KEYWORDS = "keywords"
CLASSIFIER = "classifier"
ENCODER = "encoder"
TRAINED = (CLASSIFIER, ENCODER)
"""Judges that are trained here, for each model on the others."""
LEGEND = "Refusal against the rest; 95 % intervals. judge: its rate of refusals. Unscored completions are in no other column."
LEFT_OUT = "Each model was judged by one trained on the others{}."


def calibrate(
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            "-j",
            help="keywords; classifier or encoder (trained on the other models); what `train` wrote; or a judge as a recipe "
            "names it, e.g. wildguard or '{kind: llm, model: m, base_url: http://...}'; may be repeated.",
        ),
    ] = None,
    labels: Labels = "xstest_human_labels",
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="What a trained judge learns from besides, e.g. starter/verdicts; may be repeated."
        ),
    ] = None,
    out: Annotated[Path, out_option("The JSON file for the numbers.", is_file=True)] = Path(
        "calibration.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Show how a judge agrees with people, by model and by type of prompt."""
    prepare_process()
    from discernment.judges.calibration import calibrate as measure
    from discernment.judges.labelled import read_labelled

    names = judge or [KEYWORDS, CLASSIFIER]
    if also and not set(TRAINED) & set(names):
        raise RecipeError(
            f"--also is for a judge that is trained here, {' or '.join(TRAINED)}; name one with --judge, or leave it out."
        )
    check_kept([out], [labels, *(also or [])])
    examples = read_labelled(labels)
    more = [example for source in also or [] for example in read_labelled(source)]
    found = []
    for name in names:
        if name in TRAINED:
            found.append(_leaving_out(name, examples, more, labels))
        else:
            judged = _judge(name, out.with_name(f"{out.stem}.judgements.jsonl"))
            with notices.status(f"{judged.name}: judging {len(examples)} completions"):
                found.append(measure(examples, judged, labels))
            _show_usage(judged)
        if not as_json:
            _show(found[-1])
        if name in TRAINED:
            notice(LEFT_OUT.format(f" and on {', '.join(also)}" if also else ""))
    numbers = [calibration.model_dump(mode="json") for calibration in found]
    write_json(out, numbers)
    if as_json:
        print_json(numbers)
    else:
        notice(LEGEND)
    notice(f"Numbers: {out}")


def _judge(name: str, cache: Path) -> Judge:
    """What `train` wrote, or a judge as a recipe names it; an LLM judge keeps its judgements in `cache`."""
    from discernment.judges import ClassifierJudge, EncoderJudge, JudgeSpec
    from discernment.judges.judge_spec import Kind

    path = Path(name)
    if name in get_args(Kind) or name.lstrip().startswith("{"):
        spec = parse_yaml(JudgeSpec, name, "--judge")
        return spec.build(cache if spec.asks_an_endpoint else None)
    if not path.exists():
        raise RecipeError(
            f"There is no judge {name!r}: it is neither a file or folder that `discern judges train` wrote nor one of "
            f"{', '.join(get_args(Kind))}; one with options is written as in a recipe, '{{kind: hub, model: ...}}'."
        )
    return EncoderJudge(path) if path.is_dir() else ClassifierJudge.load(path)


def _show_usage(judge: Judge) -> None:
    usage: LlmUsage | None = getattr(judge, "usage", None)
    if usage is not None:
        cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
        notice(
            f"{judge.name}: {usage.requests} requests ({usage.from_cache} judgements were known), "
            f"{usage.input_tokens} input tokens, {usage.output_tokens} output tokens{cost}"
        )


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
            examples, train, more, lambda model: notice(f"{name}: learning for {model}")
        )
    return tabulate(examples, said, name, labels)


def _show(calibration: Calibration) -> None:
    for title, rows in (
        ("model", [*calibration.by_model, calibration.overall]),
        ("prompt type", calibration.by_category),
        ("people's verdict", calibration.by_verdict),
    ):
        if rows:
            say(f"{calibration.judge} against {calibration.labels}, by {title}", "bold")
            show(_table(title, rows))
    if calibration.reasons:
        said = "; ".join(f"{n} {reason}" for reason, n in calibration.reasons.items())
        say(f"Unscored: {said}")
    if calibration.unlabelled:
        say(f"Left out: {calibration.unlabelled} completions that people could not judge either")
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
