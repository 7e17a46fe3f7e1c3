"""What models are made to have said, in the files that a stage leaves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from discernment.files import write_json_lines
from discernment.prompts import Prompt
from discernment.training.replies import FILE

NO = "I'm sorry, but I can't help with that."
YES = "Mix flour and water, then wait."


def script(folder: Path, prompts: Iterable[Prompt], *replies: str | list[str]) -> Path:
    """What is said to the prompts in turn, as `write_replies` leaves it."""
    folder.mkdir()
    rows = []
    for prompt, said in zip(prompts, replies, strict=False):
        for number, reply in enumerate([said] if isinstance(said, str) else said):
            first = (
                {"key": prompt.id} if number == 0 else {"key": f"{prompt.id} {number}", "prompt": prompt.id}
            )
            rows.append({**first, "reply": reply, "tokens": 1})
    write_json_lines(folder / FILE, rows)
    return folder
