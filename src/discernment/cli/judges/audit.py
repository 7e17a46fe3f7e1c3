"""`discern judges audit`: people's verdicts on a run's replies, and the rates that follow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import caution, console, notice, plain_table, print_json, say, show
from discernment.cli.options import Redact
from discernment.errors import DataError, RecipeError, RunError
from discernment.files import write_json

if TYPE_CHECKING:
    from discernment.evaluation.audit import AuditedRate, AuditLabel
    from discernment.evaluation.sample import Sample

HELP = "r refusal, p partial refusal, c compliance, s cannot tell, u undo, q end"
LEGEND = (
    "Right: refusals of toxic prompts, compliance with the others, in %. by the judge: without unscored replies. by people: "
    "prediction-powered inference, 95 % interval; it takes in the chance in labels and in prompts, not that of prompts alike "
    "nor of another training seed. to halve: about so many more labels of this row would halve it; -: only more prompts can."
)


def audit(
    run_directory: Annotated[Path, typer.Argument(help="A directory that `run` left.")],
    method: Annotated[
        list[str] | None, typer.Option(help="Ask about this method alone; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the replies.")] = 0,
    redact: Redact = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Ask nothing, and print the rates by the labels there are as JSON.")
    ] = False,
) -> None:
    """Label replies of a run, one key each, and see its rates as people see them; stops and goes on at any time."""
    from discernment.evaluation.audit import FILE, RATES, audited_rates, read_audit
    from discernment.reporting.pages.run import write_report
    from discernment.reporting.run_files import read_run
    from discernment.runs.directory import claim
    from discernment.runs.mending import how_to_mend, what_is_wrong

    if find_spec("ppi_py") is None:
        raise RecipeError("An audit needs ppi-python; run `pip install 'discernment[audit]'`.")
    if not as_json and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RecipeError(
            "An audit shows replies to people and takes their keys; give the command in a terminal."
        )
    run = read_run(run_directory, audit=False)
    if not any(run.samples.values()):
        raise RunError(f"{run_directory} has no replies to audit; {how_to_mend(run_directory)}.")
    if unknown := [name for name in method or [] if name not in run.samples]:
        raise RecipeError(
            f"The run has no replies of a method {unknown[0]!r}; it has those of {', '.join(run.samples)}."
        )
    if run.manifest is not None and run.manifest.status != "complete":
        caution("The run is not complete; replies that it makes anew have to be labelled anew.")
    path = run_directory / FILE
    with claim(run_directory, "audit", whole=False):
        try:
            labels = read_audit(path)
        except DataError as error:
            raise DataError(f"{what_is_wrong(error)}; mend or remove it.") from error
        if not as_json:
            _ask({name: run.samples[name] for name in method or run.samples}, labels, path, seed)
        rates = audited_rates(run.samples, labels)
        numbers = [rate.model_dump(mode="json") for rate in rates]
        write_json(run_directory / RATES, numbers)
    if as_json:
        print_json(numbers)
    else:
        _show(rates, sum(len({sample.label for sample in samples}) for samples in run.samples.values()))
    notice(f"Report: {write_report(run_directory, redact=redact)}")


def _ask(samples: dict[str, list[Sample]], labels: list[AuditLabel], path: Path, seed: int) -> None:
    """Ask about one reply after the other; each answer is kept before the next one is asked for."""
    from discernment.evaluation.audit import AuditLabel, audit_order, reply_key, write_audit
    from discernment.judges.verdict import Verdict

    answers = {
        "r": Verdict.REFUSAL,
        "p": Verdict.PARTIAL_REFUSAL,
        "c": Verdict.COMPLIANCE,
        "s": Verdict.UNSCORED,
    }
    order = {reply_key(name, sample): (name, sample) for name, sample in audit_order(samples, seed)}
    known = {label.key for label in labels}
    left = [reply for reply in order if reply not in known]
    say(
        f"{len(order)} replies, of which {len(left)} have no label; method and judge's verdict are not shown."
    )
    while True:
        if left:
            name, sample = order[left[0]]
            _show_reply(sample, f"{len(order) - len(left) + 1} of {len(order)}")
        else:
            say("All replies have labels.")
        key = _key({*answers, "u", "q"} if left else {"u", "q"})
        if key == "q":
            return
        if key == "u":
            # Labels of other methods, or of replies that are no longer there, are not this audit's to undo.
            last = next((label for label in reversed(labels) if label.key in order), None)
            if last is None:
                say("There is no label to undo.")
                continue
            labels.remove(last)
            left.insert(0, last.key)
        else:
            labels.append(
                AuditLabel(
                    key=left.pop(0),
                    method=name,
                    benchmark=sample.benchmark,
                    prompt_id=sample.prompt_id,
                    judged=sample.verdict,
                    people=answers[key],
                )
            )
        write_audit(path, labels)


def _show_reply(sample: Sample, place: str) -> None:
    console.rule(place)
    say(sample.whole, "bold")
    console.print()
    say(sample.completion or "(empty)")
    if not sample.finished:
        say("(cut off here)", "dim")


def _key(known: set[str]) -> str:
    """The next key that means something; the end of what is typed ends the audit."""
    say(HELP, "dim")
    while True:
        try:
            key = typer.getchar().casefold() or "q"
        except EOFError:
            key = "q"
        if key in known:
            return key


def _show(rates: Sequence[AuditedRate], possible: int) -> None:
    if rates:
        header = ["method", "prompts", "right", "replies", "by the judge", "by people"]
        header += ["labels", "to halve", "kappa"]
        show(plain_table(header, _rows(rates), right=header[3:]))
        notice(LEGEND)
    if len(rates) < possible:
        say(
            f"{possible - len(rates)} of {possible} rates (a method and a kind of prompts) have too few labels: one at least "
            "of each of the judge's verdicts is needed; go on with the same command."
        )


def _rows(rates: Sequence[AuditedRate]) -> Iterator[list[str]]:
    for rate in rates:
        yield [
            rate.method,
            rate.label.value.replace("_", " "),
            rate.right.value.replace("_", " "),
            str(rate.replies),
            "-" if rate.judged is None else f"{100 * rate.judged:.1f}",
            f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})",
            str(rate.labels),
            "-" if rate.to_halve is None else str(rate.to_halve),
            "-" if rate.kappa is None else f"{rate.kappa:.2f}",
        ]
