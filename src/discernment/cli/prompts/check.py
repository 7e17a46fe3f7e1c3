"""`discern prompts check`: duplicates, split leaks and label leaks."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from discernment.cli import options
from discernment.cli.console import notice, plain_table, print_json, say, show
from discernment.prompts import CheckReport, Prompt, check_sets


def check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...", help=f"{options.SET_HELP}; NAME:train takes one split", show_default=False
        ),
    ],
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many findings of a kind.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    as_json: options.AsJson = False,
) -> None:
    """Look for duplicates, split leaks and label leaks in sets that are to be used together.

    Exits with 1 if a held-out prompt is seen elsewhere: a split leak, or a duplicate across sets or splits.
    """
    reading = options.parse_reading(names, column, fixed_label, label_map, encoding)
    report = check_sets([options.load_set(name, reading).renamed(name) for name in names], seed=seed)
    if as_json:
        print_json(_document(report))
    else:
        _show_duplicates(report, limit)
        _show_split_leaks(report, limit)
        _show_label_leaks(report)
    if not report.is_clean:
        raise typer.Exit(1)


def _document(report: CheckReport) -> dict[str, Any]:
    """All findings, the prompts by their ids."""
    return {
        "sets": report.sets,
        "clean": report.is_clean,
        "duplicates": [
            {
                "likeness": d.likeness,
                "similarity": d.similarity,
                "first": {"set": d.first_set, "id": d.first.id},
                "second": {"set": d.second_set, "id": d.second.id},
                "crosses": d.crosses,
            }
            for d in report.duplicates
        ],
        "split_leaks": [
            {"kind": leak.kind, "value": leak.value, "held_out": leak.held_out.id, "seen_in": leak.train.id}
            for leak in report.split_leaks
        ],
        "label_leaks": asdict(report.label_leaks) if report.label_leaks else None,
        "unmeasured": report.unmeasured,
    }


def _show_duplicates(report: CheckReport, limit: int) -> None:
    # What crosses is what matters, so it comes first.
    rows = [
        (
            d.likeness if d.likeness != "near" else f"near {d.similarity:.2f}",
            _place(d.first_set, d.first),
            _place(d.second_set, d.second),
            d.first.whole if d.first.whole == d.second.whole else f"{d.first.whole}\n{d.second.whole}",
        )
        for d in sorted(report.duplicates, key=lambda d: not d.crosses)
    ]
    crossing = len(report.crossing)
    count = f"{len(rows)} pairs, {crossing} of them across sets or splits"
    style = "red" if crossing else "yellow"
    _show_findings("Duplicates", count, style, ("likeness", "first", "second", "prompts"), rows, limit)


def _show_split_leaks(report: CheckReport, limit: int) -> None:
    rows = [
        (f"{leak.kind} {leak.value!r}", leak.held_out.id, leak.train.id, leak.train.whole)
        for leak in report.split_leaks
    ]
    _show_findings(
        "Split leaks", str(len(rows)), "red", ("shared", "held out", "seen in", "text"), rows, limit
    )


def _show_findings(
    kind: str, count: str, style: str, header: Sequence[str], rows: Sequence[Sequence[str]], limit: int
) -> None:
    if not rows:
        say(f"{kind}: none.", "green")
        return
    say(f"{kind}: {count}.", style)
    show(plain_table(header, rows[:limit]))
    if len(rows) > limit:
        notice(f"... and {len(rows) - limit} more (--limit shows more).", "dim")


def _show_label_leaks(report: CheckReport) -> None:
    leaks = report.label_leaks
    if leaks is None:
        say(report.unmeasured or "", "yellow")
        return
    say("Label leaks on held-out sources, toxic against seemingly toxic (0.5 is none):")
    models = {
        "bag of words": leaks.bag_of_words,
        "form only": leaks.form,
        "form only, matched pairs": leaks.pairs,
    }
    rows = [
        (
            model,
            f"{score.auroc:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
            str(score.toxic),
            str(score.seemingly_toxic),
        )
        for model, score in models.items()
        if score is not None
    ]
    header = ("model", "AUROC", "95 % interval", "toxic", "seemingly toxic")
    show(plain_table(header, rows, right=("AUROC", "toxic", "seemingly toxic")))


def _place(name: str, prompt: Prompt) -> str:
    return f"{name}\n{prompt.id}, {prompt.label}" + (f", {prompt.split}" if prompt.split else "")
