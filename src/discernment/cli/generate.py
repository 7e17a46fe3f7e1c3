"""What `discern prompts generate` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from discernment.cli.console import ConsoleReporter, console
from discernment.cli.verbs import parse_model, parse_options, parse_set
from discernment.errors import RecipeError
from discernment.prompts import load_source
from discernment.reporting.text import visible
from discernment.synthesis import (
    ChatModel,
    EndpointModel,
    GenerateOptions,
    GenerateSummary,
    PolicyModel,
    generate_prompts,
)

__all__ = ["generate_into", "parse_chat_model"]

ENDPOINT = "openai:"


def generate_into(
    generator: str, moderators: Sequence[str], seeds: str | None, options: Sequence[str], out: Path
) -> None:
    """Generate prompts into `out`, and print what became of them."""
    parsed = parse_options(GenerateOptions, options)
    given = load_source(parse_set(seeds)) if seeds else None
    models = {name: parse_chat_model(name) for name in dict.fromkeys([generator, *moderators])}
    with ConsoleReporter() as reporter:
        summary = generate_prompts(
            parsed,
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
    if not name.startswith(ENDPOINT):
        return PolicyModel.load(parse_model(name, None, []))
    rest = name.removeprefix(ENDPOINT)
    model, _, address = rest.rpartition("@")
    if not address.startswith(("http://", "https://")):  # an @ may belong to the model's name
        model, address = rest, ""
    if not model:
        raise RecipeError(f"{name} names no model; write openai:NAME or openai:NAME@URL.")
    return EndpointModel(model, base_url=address or None)


def _show(summary: GenerateSummary, out: Path) -> None:
    for step, counts in summary.steps.items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in counts.dropped.items())
        what = "votes" if step == "moderation" else "texts"
        console.print(
            Text(
                f"{step}: {counts.questions} questions, {counts.failed} failed, {counts.unreadable} unreadable, "
                f"{counts.texts} {what}" + (f"; dropped: {dropped}" if dropped else "")
            )
        )
    why = ", ".join(f"{n} {reason}" for reason, n in summary.doubtful.items())
    for name, n in summary.kept.items():
        note = f" ({why})" if name == "doubtful" and why else ""
        console.print(Text(visible(f"{n} {name.replace('_', ' ')}{note}: {out / f'{name}.jsonl'}")))
    if summary.failed:
        console.print(Text(f"{summary.failed} questions failed; the same command asks them again.", "yellow"))
