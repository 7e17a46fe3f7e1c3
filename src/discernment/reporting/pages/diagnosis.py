"""The page of a diagnosis."""

from collections.abc import Iterable
from pathlib import Path

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.diagnosis.similarity import GroupPair
from discernment.files import write_text
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.pages.template import render

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
    from discernment.reporting.figures import kernel, layers

    context = {
        "question": QUESTION,
        "found": diagnosis,
        "redact": redact,
        "toxic": Label.TOXIC,
        "labels": [label for label in Label if any(g.row is label for g in diagnosis.groups)],
        "tables": [
            ("row", "Row-normalised similarity", _by_pair(diagnosis.groups)),
            ("symmetric", "Symmetric similarity", _by_pair(diagnosis.groups_symmetric)),
        ],
        "head": _by_pair(diagnosis.head or ()),
        "heat_maps": kernel.heat_maps(diagnosis),
        "layers": layers.layer_panels(diagnosis),
        "layer_legend": layers.layer_legend(diagnosis),
        "shares": kernel.share_panels(diagnosis),
        "facts": _facts(diagnosis),
        "limit": TEXT_LIMIT,
    }
    return render("diagnosis", context)


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
    floor, error = diagnosis.noise_floor, diagnosis.sampling_error
    facts = [
        ("Model", diagnosis.model),
        ("Prompt set", diagnosis.prompt_set),
        ("Kernel", f"first token of the reply; {parameters}"),
        ("Output rows", ROWS_IN_WORDS[kernel.rows].format(k=kernel.k, probes=kernel.probes)),
        ("Tokens", " ".join(repr(token) for token in diagnosis.output_tokens or ())),
        ("Prompts of the kernel", f"{len(diagnosis.kernel_prompts)} (seed {diagnosis.options.seed})"),
        ("Noise floor", "" if floor is None else f"{floor:.1e}, largest difference alone and in the batch"),
        ("Sampling error", "" if error is None else f"{text.percent(error)} % (median)"),
        ("Backward passes", text.count(cost.backward_passes)),
        (
            "Time",
            f"kernel {text.duration(cost.kernel_seconds)}, rejection {text.duration(cost.rejection_seconds)}, "
            f"layers {text.duration(cost.separability_seconds)}",
        ),
        ("Unscored prompts", text.count(len(diagnosis.unscored))),
    ]
    return [(term, value) for term, value in facts if value]
