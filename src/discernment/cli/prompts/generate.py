"""`discern prompts generate`: seemingly toxic prompts, written and moderated by models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli import options
from discernment.cli.console import prepare_process, say
from discernment.errors import RecipeError
from discernment.models.model_spec import BEHIND, Address

if TYPE_CHECKING:
    from discernment.synthesis import ChatModel, GenerateSummary


def generate(
    out: Annotated[Path, options.out_option("Directory for the prompts and the models' answers.")],
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
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    option: Annotated[
        list[str] | None,
        options.stage_option("Option as KEY=VALUE, e.g. rewrites=3, categories=[privacy,violence]."),
    ] = None,
) -> None:
    """Generate seemingly toxic prompts: seeds, rewrites, moderation by majority. Goes on where it was."""
    prepare_process()
    from discernment.cli.reporter import ConsoleReporter
    from discernment.synthesis import GenerateOptions, generate_prompts
    from discernment.synthesis.pipeline import written

    options.check_kept(written(out), [seeds] if seeds else [])
    asked = options.parse_options(GenerateOptions, option)
    reading = options.parse_reading([seeds] if seeds else [], column, fixed_label, label_map, encoding)
    given = options.load_set(seeds, reading) if seeds else None
    models = {name: parse_chat_model(name) for name in dict.fromkeys([generator, *moderators])}
    with ConsoleReporter() as reporter:
        summary = generate_prompts(
            asked,
            out,
            generator=models[generator],
            moderators=[models[name] for name in moderators],
            seeds=given,
            progress=reporter.progress,
        )
    _show(summary, out)


def parse_chat_model(name: str) -> ChatModel:
    """Read `openai:NAME`, `openai:NAME@URL`, or the name of a local model.

    Raises:
        RecipeError: If the endpoint has no model's name.
        ModelError: If a local model cannot be loaded.
    """
    from discernment.synthesis import EndpointModel, PolicyModel

    if not name.startswith(BEHIND):
        return PolicyModel.load(options.parse_policy(name, None, []))
    try:
        address = Address.of(name)
    except ValueError as error:
        raise RecipeError(f"A model behind an endpoint cannot be asked: {error}.") from None
    return EndpointModel(address.name, base_url=address.url)


def _show(summary: GenerateSummary, out: Path) -> None:
    for step, counts in summary.steps.items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
        what = "votes" if step == "moderation" else "texts"
        say(
            f"{step}: {counts.questions} questions, {counts.failed} failed, {counts.unreadable} unreadable, "
            f"{counts.texts} {what}" + (f"; dropped: {dropped}" if dropped else "")
        )
    why = ", ".join(f"{n} {reason}" for reason, n in summary.doubtful.items())
    for name, n in summary.kept.items():
        note = f" ({why})" if name == "doubtful" and why else ""
        say(f"{n} {name.replace('_', ' ')}{note}: {out / f'{name}.jsonl'}")
    if summary.failed:
        say(f"{summary.failed} questions failed; the same command asks them again.", "yellow")
