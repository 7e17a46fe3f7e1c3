"""The model card of a method: what it was trained on and how, what was measured, and what was not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from discernment.errors import RunError
from discernment.evaluation.results import Results
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import STARTER_SETS, catalogue, load_starter
from discernment.reporting.run_files import RunFiles, recipe_content
from discernment.reporting.tables.methods import result_lines
from discernment.reporting.text import MISSING, visible
from discernment.runs.built_in import sets_of
from discernment.runs.recipe import parse_recipe

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)
NOT_SHOWN = (
    "Other prompts than these: a method can rank well on the sources at hand and not on new ones.",
    "Other languages, longer conversations, and attacks, unless the table has them.",
    "Whether an answer is right or harmful: the judge says whether it is a refusal, and it errs "
    "(docs/judges.md of discernment).",
)


def model_card(run: RunFiles, method: str, policy: PolicySpec) -> str:
    """The card as Markdown with the hub's metadata.

    Args:
        run: The run.
        method: Which of its methods.
        policy: What the method left.

    Raises:
        RunError: If the run has no manifest, no recipe or no such method.
    """
    if run.manifest is None or run.recipe is None or method not in run.results.methods:
        raise RunError(
            f"{run.directory} does not hold a finished run with the method {method!r}; finish it with `discern run`."
        )
    licences = _licences(recipe_content(run), method)
    known = run.manifest.methods.get(method)
    kind = f"`{(known and known.method) or method}`" + (
        f" on `{visible(known.on)}`" if known and known.on else ""
    )
    restricted = [name for name, licence in licences.items() if NON_COMMERCIAL.search(licence)]
    parts = [
        _metadata(run, policy, restricted),
        f"# {visible(run.manifest.name or '')}: `{visible(method)}`\n",
        f"Made from `{run.manifest.base_model}` by the method {kind} of discernment {run.manifest.discernment}, "
        "which trains and compares models on one question: which of them refuses what it should, and only that?\n",
        "## Results\n",
        _table(run.results, _shown(run.results, method)),
        f"95 % intervals over prompts. Judge: {run.manifest.judge}. {visible(run.results.finding)}\n",
        "**What is not shown.**\n",
        "".join(f"- {line}\n" for line in NOT_SHOWN),
        "## Sets that the recipe gives it to learn from\n",
        "| set | licence |\n|---|---|\n" + "".join(f"| {visible(n)} | {v} |\n" for n, v in licences.items()),
        _restriction(restricted),
        "## How to make it again\n",
        f"`pip install discernment=={run.manifest.discernment}`, then `discern run recipe.yaml` with\n",
        f"```yaml\n{run.recipe.rstrip()}\n```\n",
    ]
    return "\n".join(part for part in parts if part)


def _shown(results: Results, method: str) -> list[str]:
    """The method beside the untrained model, where it is there, and the reference."""
    others = [m for m in results.methods if m in ("base", results.reference) and m != method]
    return [*others, method]


def _table(results: Results, methods: Sequence[str]) -> str:
    rows = [["", *(f"`{visible(m)}`" for m in methods)], ["---"] * (len(methods) + 1)]
    for line in result_lines(results):
        cells = [line.numbers.get(method, [(MISSING, "")]) for method in methods]
        what = f"{line.group}: {line.where}" if line.where else line.group
        rows.append([visible(what), *(" ".join(_in_brackets(cell)) for cell in cells)])
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _in_brackets(cell: Sequence[tuple[str, str]]) -> list[str]:
    (number, _), *under = cell
    return [number, *(f"({words})" for words, _ in under)]


def _licences(content: dict[str, Any], method: str) -> dict[str, str]:
    """The licence of each set that a recipe gives a method, or what it stands on, to learn from, as far as it is known."""
    parsed = parse_recipe(content, "recipe.yaml")
    entry = next((entry for entry in parsed.methods if entry.label == method), None)
    if entry is None:
        raise RunError(f"The recipe of the run has no method {method!r}, of which the run has results.")
    steps = parsed.steps(entry)
    own = [step.model_dump(mode="json")["data"] for step in steps]
    named = dict.fromkeys(name for part in (content.get("data"), *own) for name in sets_of(part))
    return {name: licence_of(name) for name in named}


def licence_of(name: str) -> str:
    """The licence of a prompt set, as far as it is known."""
    if name in STARTER_SETS:
        return load_starter(name).provenance.licence or "not stated"
    known = catalogue()
    return known[name].licence if name in known else "not known to discernment"


def _restriction(restricted: Sequence[str]) -> str:
    if not restricted:
        return ""
    return f"**Not for commercial use:** {', '.join(restricted)} may not be used commercially.\n"


def _metadata(run: RunFiles, policy: PolicySpec, restricted: Sequence[str]) -> str:
    base = run.manifest.base_model if run.manifest else None
    metadata: dict[str, Any] = {
        "library_name": "peft" if policy.adapters else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["discernment", "over-refusal", "safety"],
    }
    if base and HUB_ID.fullmatch(base) and not Path(base).exists():
        metadata["base_model"] = base
    if restricted:
        metadata |= {"license": "other", "license_name": "non-commercial-training-data"}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"
