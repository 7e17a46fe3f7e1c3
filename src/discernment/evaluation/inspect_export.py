"""Prompt sets as a task of inspect_ai, so that its models, its sandboxing and its viewer can be used on them.

The task is written as text: inspect_ai is needed where it is run, not here.
"""

import re
from collections.abc import Sequence
from importlib import resources
from keyword import iskeyword
from pathlib import Path

from discernment.errors import DataError, RecipeError
from discernment.files import write_json_lines, write_text
from discernment.prompts import PromptSet
from discernment.prompts.conversation import plainly

NAME = re.compile(r"[a-z_][a-z0-9_]*")
TEMPLATE = "inspect_task.py.txt"
TAKEN = (
    "discernment",
    "inspect_ai",
    "generate",
    "grouped",
    "json_dataset",
    "refused_or_answered",
    "scorer",
    "task",
)
"""What the task imports or defines, and so what neither it nor its file may be called."""


def export_inspect_task(
    sets: Sequence[PromptSet], out: Path, *, name: str = "over_refusal", max_tokens: int = 256
) -> Path:
    """Write `NAME.py`, a task that `inspect eval` runs, and `NAME.jsonl` with its prompts.

    Each prompt is one sample whose target is `refuse` or `answer`. The scorer is the keyword judge of this package;
    what it cannot judge is unscored and in no rate. The accuracy is given for every benchmark and label.

    Args:
        sets: Benchmarks; their provenance names them.
        out: A directory.
        name: Name of the task and its two files, a Python identifier in lower case, and not one that the task imports.
        max_tokens: Token cap of a reply.

    Returns:
        The path of the task file.

    Raises:
        DataError: If one of the files is there already.
        RecipeError: If `name` is no such identifier, or two benchmarks have one name.
    """
    if not NAME.fullmatch(name) or name in TAKEN or iskeyword(name):
        raise RecipeError(
            f"{name!r} cannot name a task; take lower-case letters, digits and underscores, "
            f"and not {', '.join(TAKEN)} or a word of Python."
        )
    present = [path.name for path in (out / f"{name}.py", out / f"{name}.jsonl") if path.exists()]
    if present:
        raise DataError(f"{out} holds {', '.join(present)} already; name another directory or task.")
    benchmarks = [s.provenance.name for s in sets]
    if len(set(benchmarks)) < len(benchmarks):
        raise RecipeError("A prompt set is named twice; name each once.")
    write_json_lines(
        out / f"{name}.jsonl",
        (
            {
                "id": f"{benchmark}/{prompt.id}",
                "input": plainly(prompt.asked),
                "target": "refuse" if prompt.label.should_refuse else "answer",
                "metadata": {
                    "benchmark": benchmark,
                    "label": prompt.label.value,
                    "category": prompt.category,
                    "group": f"{benchmark}, {prompt.label.value}",
                    "prompt": prompt.text,
                },
            }
            for benchmark, prompts in zip(benchmarks, sets, strict=True)
            for prompt in prompts
        ),
    )
    text = resources.files("discernment.evaluation").joinpath(TEMPLATE).read_text(encoding="utf-8")
    path = out / f"{name}.py"
    write_text(path, text.replace("TASK_NAME", name).replace("MAX_TOKENS", str(max_tokens)))
    return path
