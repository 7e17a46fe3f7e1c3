"""The page of a diagnosis, and its table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discernment.diagnosis.diagnose_types import Diagnosis
from discernment.diagnosis.similarity import GroupPair
from discernment.files import write_text
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.marks import legend_symbol
from discernment.reporting.page import templates
from discernment.reporting.words import label_in_words

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["render_diagnosis", "similarity_table", "write_diagnosis"]

QUESTION = "Why does this model refuse what it should answer?"
TEXT_LIMIT = 600
ROWS_IN_WORDS = {
    "shared": "the {k} likeliest tokens of all prompts together",
    "own": "the {k} likeliest tokens of each prompt",
    "probes": "the whole vocabulary, estimated with {probes} Gaussian probes a side",
    "exact": "the whole vocabulary, exactly",
}


def write_diagnosis(diagnosis: Diagnosis, out: Path, *, redact: bool = False) -> Path:
    """Write a diagnosis as one self-contained HTML file without scripts.

    Args:
        diagnosis: What was found.
        out: The file.
        redact: Leave out the text of toxic prompts.

    Returns:
        The path of the file.
    """
    write_text(out, render_diagnosis(diagnosis, redact=redact))
    return out


def render_diagnosis(diagnosis: Diagnosis, *, redact: bool = False) -> str:
    """The page as HTML text; the same diagnosis gives the same text."""
    from discernment.reporting import diagnosis_figures as figures

    context: dict[str, Any] = {
        "question": QUESTION,
        "found": diagnosis,
        "redact": redact,
        "in_words": label_in_words,
        "toxic": Label.TOXIC,
        "labels": [label for label in Label if any(g.row is label for g in diagnosis.groups)],
        "tables": [
            ("row", "Row-normalised similarity", _by_pair(diagnosis.groups)),
            ("symmetric", "Symmetric similarity", _by_pair(diagnosis.groups_symmetric)),
        ],
        "head": _by_pair(diagnosis.head or ()),
        "heat_maps": figures.heat_maps(diagnosis),
        "layers": figures.layer_panels(diagnosis),
        "layer_legend": [(words, legend_symbol(look)) for words, look in figures.layer_legend(diagnosis)],
        "shares": figures.share_panels(diagnosis),
        "facts": _facts(diagnosis),
        "limit": TEXT_LIMIT,
    }
    return templates().get_template("diagnosis.html.j2").render(context) + "\n"


def similarity_table(diagnosis: Diagnosis) -> Table:
    """The row-normalised similarity of the groups for the terminal, each mean over its 95 % interval."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Kernel similarity: prompts that are moved, by steps on",
        caption="Row-normalised; 95 % intervals over prompts.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    by_pair = _by_pair(diagnosis.groups)
    labels = list(dict.fromkeys(row for row, _ in by_pair))
    table.add_column("moved")
    for label in labels:
        table.add_column(label_in_words[label], justify="right")
    for row in labels:
        cells = []
        for column in labels:
            pair = by_pair[row, column]
            number = Text(text.decimal(pair.mean))
            number.append(f"\n{text.interval(pair.low, pair.high, 'decimal')}", style="dim")
            cells.append(number)
        table.add_row(label_in_words[row], *cells)
    return table


def _by_pair(pairs: Iterable[GroupPair]) -> dict[tuple[Label, Label], GroupPair]:
    return {(pair.row, pair.column): pair for pair in pairs}


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """How the numbers came about, as terms and values."""
    kernel, cost = diagnosis.options.kernel, diagnosis.cost
    parameters = "all parameters" if kernel.parameters == "all" else "LoRA adapters only"
    if kernel.layers is not None:
        parameters += " of layers {} to {}".format(*kernel.layers)
    elif not kernel.head:
        parameters += " but the head"
    facts = [
        ("Model", diagnosis.model),
        ("Prompt set", diagnosis.prompt_set),
        ("Kernel", f"first token of the reply; {parameters}"),
        ("Output rows", ROWS_IN_WORDS[kernel.rows].format(k=kernel.k, probes=kernel.probes)),
        ("Tokens", " ".join(repr(token) for token in diagnosis.output_tokens or ())),
        ("Prompts of the kernel", f"{len(diagnosis.kernel_prompts)} (seed {diagnosis.options.seed})"),
        (
            "Noise floor",
            ""
            if diagnosis.noise_floor is None
            else f"{diagnosis.noise_floor:.1e}, largest difference alone and in the batch",
        ),
        (
            "Sampling error",
            ""
            if diagnosis.sampling_error is None
            else f"{text.percent(diagnosis.sampling_error)} % (median)",
        ),
        ("Backward passes", text.count(cost.backward_passes)),
        (
            "Time",
            f"kernel {text.duration(cost.kernel_seconds)}, rejection {text.duration(cost.rejection_seconds)}, "
            f"layers {text.duration(cost.separability_seconds)}",
        ),
        ("Unscored prompts", text.count(len(diagnosis.unscored))),
    ]
    return [(term, value) for term, value in facts if value]
