"""The replies of a run as a dataset for the hub: the table as parquet, and a card that says what it holds."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from discernment.errors import RunError
from discernment.files import plain_yaml, replace_directory, write_text
from discernment.judges.verdict import Verdict
from discernment.prompts import load_suite
from discernment.reporting.exports.gathered import Gathered
from discernment.reporting.exports.sample_table import COLUMNS, write_samples_parquet
from discernment.reporting.model_card import NON_COMMERCIAL, licence_of
from discernment.reporting.text import visible
from discernment.runs.built_in import sets_of
from discernment.runs.publishing import CARD, MARK, may_be_replaced

TABLE = "samples.parquet"
LEFT_OUT = "The text of toxic prompts, and of the replies to them, is left out."
CAUTION = (
    "**Caution.** Prompts ask for harm, and models may have replied to them: what is written here is not what anybody "
    "stands for, and it is not fit to train on as it is."
)


def collect_dataset(gathered: Gathered, folder: Path, *, redact: bool = False) -> Path:
    """Put the table and a card into a folder, which is replaced if an earlier call left it.

    Args:
        gathered: What is sent; redacted already where `redact` says so.
        folder: Where it goes.
        redact: Whether the card says that texts are left out.

    Raises:
        RunError: If the folder holds something else.
    """
    if not may_be_replaced(folder):
        raise RunError(f"{folder} holds something else; move it away and give the command again.")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    write_samples_parquet(gathered, part / TABLE)
    write_text(part / CARD, f"{dataset_card(gathered, redact=redact)}\n{MARK}\n")
    replace_directory(part, folder)
    return folder


def dataset_card(gathered: Gathered, *, redact: bool) -> str:
    """The card as Markdown with the hub's metadata."""
    licences = {name: licence_of(name) for name in _sets(gathered.recipe)}
    made = f"discernment {gathered.version}" if gathered.version else "discernment"
    parts = [
        _metadata(any(NON_COMMERCIAL.search(licence) for licence in licences.values())),
        f"# {visible(gathered.name)}: replies\n",
        f"What each method made of the prompts of each benchmark, and how it was judged; made with {made}, base model "
        f"`{visible(gathered.base_model or 'not stated')}`, judge {visible(gathered.judge or 'not stated')}.\n",
        LEFT_OUT + "\n" if redact else CAUTION + "\n",
        "## Columns\n",
        "| column | content |\n|---|---|\n"
        + "".join(f"| `{name}` | {what} |\n" for name, what in COLUMNS.items()),
        "## Verdicts\n",
        _counts(gathered),
        "## Sets of prompts\n\n| set | licence |\n|---|---|\n"
        + "".join(f"| {visible(name)} | {licence} |\n" for name, licence in licences.items())
        if licences
        else "",
    ]
    return "\n".join(part for part in parts if part)


def _counts(gathered: Gathered) -> str:
    header = ["method", *(verdict.value for verdict in Verdict)]
    lines = [header, ["---"] * len(header)]
    for replies in gathered.replies:
        found = Counter(reply.verdict for s in replies.samples for reply in s.replies)
        name = visible(replies.name).replace("|", "/")
        lines.append([name, *(str(found[verdict]) for verdict in Verdict)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sets(recipe: str | None) -> list[str]:
    """The prompt sets that a recipe evaluates on."""
    content = plain_yaml(recipe) if recipe else None
    plan = content.get("evaluate") if isinstance(content, dict) else None
    if not isinstance(plan, dict):
        return []
    suite = [source.set for source in load_suite(plan["suite"])] if plan.get("suite") else []
    return list(dict.fromkeys([*sets_of(plan.get("benchmarks")), *suite]))


def _metadata(restricted: bool) -> str:
    metadata: dict[str, Any] = {
        "tags": ["discernment", "over-refusal", "safety", "not-for-all-audiences"],
        "configs": [{"config_name": "default", "data_files": TABLE}],
    }
    if restricted:
        metadata |= {"license": "other", "license_name": "non-commercial-prompts"}
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"
