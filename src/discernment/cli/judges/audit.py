"""`discern judges audit`: people's verdicts on a run's replies, and the rates that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import console, plain_table, say
from discernment.errors import RecipeError
from discernment.files import write_json

if TYPE_CHECKING:
    from discernment.evaluation.audit import AuditedRate, AuditLabel
    from discernment.evaluation.sample import Sample

HELP = "r refusal, p partial refusal, c compliance, s cannot tell, u undo, q end"
LEGEND = (
    "Right: refusals of toxic prompts, compliance with the others, in %. by people: prediction-powered inference, 95 % interval; "
    "it takes in the chance in labels and in prompts, not that of prompts alike nor of another training seed. to halve: "
    "about so many more labels of this row would halve it; -: only more prompts can."
)


def audit(
    run_directory: Annotated[Path, typer.Argument(help="A directory that `run` left.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Audit this method alone; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the replies.")] = 0,
) -> None:
    """Label replies of a run, one key each, and see its rates as people see them; stops and goes on at any time."""
    from discernment.evaluation.audit import FILE, RATES, audited_rates, read_audit
    from discernment.reporting.pages.run import write_report
    from discernment.reporting.run_files import read_run

    _needs_ppi()
    run = read_run(run_directory)
    if unknown := [name for name in method or [] if name not in run.samples]:
        raise RecipeError(f"The run has no method {unknown[0]!r}; it has {', '.join(run.samples)}.")
    samples = {name: found for name, found in run.samples.items() if not method or name in method}
    path = run_directory / FILE
    labels = read_audit(path)
    _ask(samples, labels, path, seed)
    rates = audited_rates(run.samples, labels)
    write_json(run_directory / RATES, [rate.model_dump(mode="json") for rate in rates])
    _show(rates, len(labels))
    say(f"Report: {write_report(run_directory)}")


def _needs_ppi() -> None:
    try:
        import ppi_py  # noqa: F401
    except ImportError as error:
        raise RecipeError("An audit needs ppi-python; run `pip install 'discernment[audit]'`.") from error


def _ask(samples: dict[str, list[Sample]], labels: list[AuditLabel], path: Path, seed: int) -> None:
    """Ask about one reply after the other; each answer is kept before the next one is asked for."""
    from discernment.evaluation.audit import AuditLabel, audit_order, reply_key, write_audit
    from discernment.judges.verdict import Verdict

    order = audit_order(samples, seed)
    answers = {
        "r": Verdict.REFUSAL,
        "p": Verdict.PARTIAL_REFUSAL,
        "c": Verdict.COMPLIANCE,
        "s": Verdict.UNSCORED,
    }
    say(f"{len(order)} replies; method and judge's verdict are not shown. {HELP}.")
    while True:
        known = {label.key for label in labels}
        left = [(name, sample) for name, sample in order if reply_key(name, sample) not in known]
        if not left:
            say("All replies have labels.")
            return
        name, sample = left[0]
        console.rule(f"{len(labels) + 1}")
        say(sample.whole, "bold")
        console.print()
        say(sample.completion)
        key = _key({*answers, "u", "q"})
        if key == "q":
            return
        if key == "u":
            labels[-1:] = []
        else:
            labels.append(
                AuditLabel(
                    key=reply_key(name, sample),
                    method=name,
                    benchmark=sample.benchmark,
                    prompt_id=sample.prompt_id,
                    judged=sample.verdict,
                    people=answers[key],
                )
            )
        write_audit(path, labels)


def _key(known: set[str]) -> str:
    """The next key that means something; the end of what is typed ends the audit."""
    console.print(f"[dim]{HELP}[/dim] ", end="")
    while True:
        try:
            key = typer.getchar().casefold()
        except (EOFError, KeyboardInterrupt):
            key = "q"
        if key in ("", "\x03", "\x04"):
            key = "q"
        if key in known:
            console.print(key)
            return key


def _show(rates: Sequence[AuditedRate], labels: int) -> None:
    if not rates:
        say(
            f"{labels} labels; a rate needs one at least of each verdict of a method's replies, go on with the same command."
        )
        return
    header = [
        "method",
        "prompts",
        "right",
        "replies",
        "by the judge",
        "by people",
        "labels",
        "to halve",
        "kappa",
    ]
    console.print(plain_table(header, _rows(rates), right=header[3:]))
    say(LEGEND)


def _rows(rates: Sequence[AuditedRate]) -> Iterator[list[str]]:
    for rate in rates:
        yield [
            rate.method,
            rate.label.value.replace("_", " "),
            rate.right.value.replace("_", " "),
            str(rate.replies),
            f"{100 * rate.judged:.1f}",
            f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
            str(rate.labels),
            "-" if rate.to_halve is None else str(rate.to_halve),
            "-" if rate.kappa is None else f"{rate.kappa:.2f}",
        ]
