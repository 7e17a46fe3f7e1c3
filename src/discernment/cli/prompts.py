"""`discern prompts`: list the sets at hand, look into one, check several, split one, generate and export some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.errors import DataError
from discernment.prompts.prompt import Label, Split

if TYPE_CHECKING:
    from rich.console import RenderableType

    from discernment.prompts import CatalogueEntry, CheckReport, Prompt, PromptSet

__all__ = ["app"]

app = typer.Typer(
    name="prompts", help="List, show, check, split, generate and export prompt sets.", no_args_is_help=True
)

LEGEND = (
    "\nbetter: what a good policy does with prompts of that label. at hand: in the folder that DISCERNMENT_DATA names. "
    "from the hub: downloaded when it is used. by hand: put it into that folder yourself; `discern prompts show SET` "
    "says from where. Licences are those of the makers."
)
BETTER = {"compliance": "answer", "refusal": "refuse"}
SET_HELP = "A name that `discern prompts list` shows, a path to a .jsonl or .csv file, or hub:NAME"
SetName = Annotated[str, typer.Argument(metavar="SET", help=SET_HELP, show_default=False)]


@app.command("list")
def list_sets() -> None:
    """List the built-in and the public prompt sets, and how to get them."""
    from discernment.prompts import STARTER_SETS, catalogue, load_starter
    from discernment.prompts.catalogue import data_folder, direction_of

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
            rows.append((entry.name, "\n".join(entry.labels), better, str(entry.rows), entry.licence, where))
    header = ("set", "labels", "better", "rows", "licence", "where")
    _print(_table(header, rows, right=("rows",), whole=("set", "labels", "better")))
    _print(_text(LEGEND, "dim"))


@app.command()
def show(
    name: SetName,
    label: Annotated[Label | None, typer.Option(help="Only prompts with this label.")] = None,
    split: Annotated[Split | None, typer.Option(help="Only prompts of this split.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many prompts to draw.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Show some prompts of a set."""
    prompts = _load(name)
    if label is not None:
        prompts = prompts.with_label(label)
    if split is not None:
        prompts = prompts.with_split(split)
    for p in prompts.sample(count, seed):
        _print(_text(" · ".join(part for part in (p.id, p.label, p.category, p.split) if part), "dim"))
        _print(_text(p.text), *([_text(f"→ {p.response}", "italic")] if p.response else []), "")
    origin = prompts.provenance
    about = [
        f"{len(prompts)} prompts ({_counts(prompts.counts())})",
        origin.licence,
        origin.address,
        origin.note,
    ]
    _print(_text(". ".join(part for part in about if part), "dim"))


@app.command()
def check(
    names: Annotated[
        list[str],
        typer.Argument(metavar="SET...", help=f"{SET_HELP}; NAME:train takes one split", show_default=False),
    ],
    limit: Annotated[int, typer.Option(min=0, help="Show at most this many findings of a kind.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Look for duplicates, split leaks and label leaks in sets that are to be used together.

    Exits with 1 if a held-out prompt is seen elsewhere: a split leak, or a duplicate across sets or splits.
    """
    from discernment.prompts import check_sets

    report = check_sets([_load(name).renamed(name) for name in names], seed=seed)
    _print(*_duplicates(report, limit), *_split_leaks(report, limit), *_label_leaks(report))
    if not report.is_clean:
        raise typer.Exit(1)


@app.command("split")
def split_set(
    name: SetName,
    out: Annotated[Path, typer.Option(help="Directory for train.jsonl, validation.jsonl and test.jsonl.")],
    train: Annotated[float, typer.Option(min=0, max=1, help="Share for training.")] = 0.8,
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share for validation.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share for the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Which of the equally good splits.")] = 0,
) -> None:
    """Split a set so that no frame, key word, partner or repeated text stands on two sides."""
    from discernment.prompts import assign_splits

    shares = {Split.TRAIN: train, Split.VALIDATION: validation, Split.TEST: test}
    paths = {part: out / f"{part}.jsonl" for part, share in shares.items() if share > 0}
    present = [path.name for path in paths.values() if path.exists()]
    if present:
        raise DataError(f"{out} holds {', '.join(present)} already; name another directory.")
    prompts = assign_splits(_load(name), shares, seed)
    rows = []
    for part, path in paths.items():
        chosen = prompts.with_split(part)
        chosen.to_jsonl(path)
        rows.append((str(path), str(len(chosen)), _counts(chosen.counts())))
    _print(_table(("file", "rows", "labels"), rows, right=("rows",)))


@app.command()
def generate(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for the prompts and the models' answers.")
    ],
    generator: Annotated[
        str,
        typer.Option(
            "--generator",
            "-g",
            help="Who writes: openai:NAME, openai:NAME@URL for any compatible endpoint (the key from OPENAI_API_KEY), "
            "or a local model.",
        ),
    ],
    moderators: Annotated[
        list[str],
        typer.Option("--moderator", "-m", help="Who votes, in the same notation; better three than one."),
    ],
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="SET", help="Toxic prompts to start from; without them the generator writes some."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-O", help="Option as KEY=VALUE, e.g. rewrites=3, categories=[privacy,violence]."
        ),
    ] = None,
) -> None:
    """Generate seemingly toxic prompts: seeds, rewrites, moderation by majority. Goes on where it was."""
    from discernment.cli.console import prepare_process
    from discernment.cli.generate import generate_into

    prepare_process()
    generate_into(generator, moderators, seeds, option or [], out)


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the task and its prompts.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SET]...", help=SET_HELP, show_default=False)
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A suite of benchmarks: paper, quick or full.")] = None,
    task: Annotated[str, typer.Option(help="Name of the task and its files.")] = "over_refusal",
    max_tokens: Annotated[int, typer.Option(min=1, help="Token cap of a reply.")] = 256,
) -> None:
    """Write prompt sets as a task of inspect_ai, for its models and its viewer."""
    from discernment.evaluation.inspect_export import export_inspect_task
    from discernment.prompts import load_source, load_suite

    sets = [_load(name).renamed(name) for name in names or []]
    if suite is not None:
        sets += [load_source(source).renamed(source.set) for source in load_suite(suite)]
    if not sets:
        raise DataError("There is nothing to export; name a prompt set or a suite.")
    path = export_inspect_task(sets, out, name=task, max_tokens=max_tokens)
    count = sum(map(len, sets))
    _print(
        _text(f"Task: {path}, {count} prompts; run it in {out} with: inspect eval {path.name} --model MODEL")
    )


def _load(name: str) -> PromptSet:
    """Read `NAME` or `NAME:split`."""
    from discernment.prompts import PromptSource, load_source

    return load_source(PromptSource.parse(name))


def _whereabouts(entry: CatalogueEntry, folder: Path | None) -> str:
    if folder is not None and (folder / entry.file).is_file():
        return "at hand"
    return "from the hub" if entry.hub else "by hand"


def _duplicates(report: CheckReport, limit: int) -> Iterable[RenderableType]:
    if not report.duplicates:
        yield _text("Duplicates: none.", "green")
        return
    crossing = report.crossing
    yield _text(
        f"Duplicates: {len(report.duplicates)} pairs, {len(crossing)} of them across sets or splits.",
        "red" if crossing else "yellow",
    )
    # What crosses is what matters, so it comes first.
    ordered = sorted(report.duplicates, key=lambda d: not d.crosses)
    yield _table(
        ("likeness", "first", "second", "prompts"),
        [
            (
                d.likeness if d.likeness != "near" else f"near {d.similarity:.2f}",
                _place(d.first_set, d.first),
                _place(d.second_set, d.second),
                d.first.text if d.first.text == d.second.text else f"{d.first.text}\n{d.second.text}",
            )
            for d in ordered[:limit]
        ],
    )
    yield from _more(len(ordered) - limit)


def _split_leaks(report: CheckReport, limit: int) -> Iterable[RenderableType]:
    if not report.split_leaks:
        yield _text("Split leaks: none.", "green")
        return
    yield _text(f"Split leaks: {len(report.split_leaks)}.", "red")
    yield _table(
        ("shared", "held out", "seen in", "text"),
        [
            (f"{leak.kind} {leak.value!r}", leak.held_out.id, leak.train.id, leak.train.text)
            for leak in report.split_leaks[:limit]
        ],
    )
    yield from _more(len(report.split_leaks) - limit)


def _label_leaks(report: CheckReport) -> Iterable[RenderableType]:
    if report.label_leaks is None:
        yield _text(report.unmeasured or "", "yellow")
        return
    leaks = report.label_leaks
    yield _text("Label leaks on held-out sources, toxic against seemingly toxic (0.5 is none):")
    yield _table(
        ("model", "AUROC", "95 % interval", "toxic", "seemingly toxic"),
        [
            (
                model,
                f"{score.auroc:.3f}",
                f"{score.low:.3f} to {score.high:.3f}",
                str(score.toxic),
                str(score.seemingly_toxic),
            )
            for model, score in (
                ("bag of words", leaks.bag_of_words),
                ("form only", leaks.form),
                ("form only, matched pairs", leaks.pairs),
            )
            if score is not None
        ],
        right=("AUROC", "toxic", "seemingly toxic"),
    )


def _more(count: int) -> Iterable[RenderableType]:
    if count > 0:
        yield _text(f"... and {count} more (--limit shows more).", "dim")


def _place(name: str, prompt: Prompt) -> str:
    return f"{name}\n{prompt.id}, {prompt.label}" + (f", {prompt.split}" if prompt.split else "")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {label}" for label, n in counts.items())


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in header:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in whole,
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


def _text(text: str, style: str = "") -> RenderableType:
    """Untrusted text: no markup, control characters shown by name."""
    from rich.text import Text

    from discernment.reporting.text import visible

    return Text(visible(text), style=style)


def _print(*parts: RenderableType) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)
