"""From a row of a table to a prompt: which column holds what, what its labels mean, and chats as prompts."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from discernment.errors import DataError
from discernment.prompts.conversation import Turn
from discernment.prompts.prompt import Label, Prompt, Split

MESSAGES = "messages"
"""Where chats have their turns; read where there is no `prompt`."""
TRUTHS = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
"""What YAML 1.1 takes for a truth value, quoted or not."""
SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Whom `from` means, in turns with `from` and `value` in place of `role` and `content`, as ShareGPT has them."""
WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        text: Column of the prompt: its text, or a list of turns with `role` and `content` (or `from` and `value`). Where
            there is no `prompt`, `messages` is read.
        label: Column of the label, or None if `fixed_label` says it for all rows.
        fixed_label: The label of every row, where the table has no label column.
        label_map: What the table's own label values mean, e.g. `{"1": "toxic"}`; others are read as they are. It does
            not matter how a number, a truth value or the case of a word is written.
        id: Column of the id; rows without one are numbered.
        category: Column of the category.
        source: Column of the source; without one, the set's name is the source.
        response: Column of a reply to train on: its text, or a turn of the assistant.
        partner: Column of the matched prompt's id.
        split: Column of the split.

    Raises:
        DataError: If it says twice what the labels are: by `fixed_label`, and by a column or what is in it.
    """

    text: str = "prompt"
    label: str | None = "label"
    fixed_label: Label | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    id: str = "id"
    category: str = "category"
    source: str = "source"
    response: str = "response"
    partner: str = "partner"
    split: str = "split"

    def __post_init__(self) -> None:
        if self.fixed_label is not None and (self.label_map or self.label not in (None, Columns.label)):
            raise DataError(
                "`fixed_label` gives all rows one label, so neither a column of labels nor `label_map` can be given beside it; "
                "leave out the one or the other."
            )

    @property
    def holding_text(self) -> tuple[str, ...]:
        """The columns that the prompt may stand in, the first that is there."""
        return (self.text, MESSAGES) if self.text == Columns.text else (self.text,)

    def check_there(self, names: Collection[str], where: str) -> None:
        """Whether a table has the columns that were named for what a prompt need not have.

        Args:
            names: The names of the table's columns.
            where: The table, for the message.

        Raises:
            DataError: If it lacks one.
        """
        for role in ("id", "category", "source", "response", "partner", "split"):
            column = getattr(self, role)
            if column and column != getattr(Columns, role) and column not in names:
                raise DataError(
                    f"{where} has no column {column!r} for the {role} (columns: {', '.join(map(str, names))}); name one of these."
                )

    @cached_property
    def meanings(self) -> Mapping[str, str]:
        """`label_map` by what does not change with how a label is written."""
        return {label_key(key): label for key, label in self.label_map.items()}


def label_key(value: Any) -> str:
    """A label value whatever a table or YAML made of it: 1, 1.0 and "1" are one, and so are true and "yes"."""
    text = str(value).strip().casefold()
    if number := WHOLE_NUMBER.fullmatch(text):
        return number[1]
    return TRUTHS.get(text, text)


def read_prompt(row: Mapping[str, Any], number: int, where: str, name: str, columns: Columns) -> Prompt:
    """The prompt that a row holds.

    Args:
        row: The row, by column.
        number: Its number, of which an id is made where it has none.
        where: Where it stands, for messages; ends in a comma.
        name: The set's name.
        columns: Which columns hold what.

    Raises:
        DataError: If the row lacks a prompt, or a prompt, response, label or split is not what it must be.
    """

    def value(column: str) -> str | None:
        found = plain_value(row.get(column))
        return None if found is None else str(found)

    split = value(columns.split)
    if split is not None and split not in set(Split):
        raise DataError(f"{where} has the split {split!r}; it must be one of {', '.join(Split)}.")
    try:
        return Prompt(
            **_asked(row, where, columns),
            id=value(columns.id) or f"{name}-{number:05d}",
            label=_label(row, where, columns),
            category=value(columns.category),
            source=value(columns.source) or name,
            partner=value(columns.partner),
            frame=value("frame"),
            keyword=value("keyword"),
            split=Split(split) if split else None,
            response=_response(row, where, columns),
        )
    except ValidationError as error:  # half a surrogate pair, as a cut emoji leaves it
        raise DataError(f"{where} is unusable ({error.errors()[0]['msg']}).") from error


def plain_value(value: Any) -> Any:
    """A value as Python has it, and None for what is missing: nothing, an empty text, not a number."""
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if type(value).__name__ in ("NAType", "NaTType"):  # of pandas
        return None
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _label(row: Mapping[str, Any], where: str, columns: Columns) -> Label:
    if columns.fixed_label is not None:
        return columns.fixed_label
    if columns.label is not None and columns.label not in row:
        raise DataError(
            f"{where} has no label in column {columns.label!r} (columns: {', '.join(map(str, row))}); name the column of the "
            "labels, or the one label of all rows (`fixed_label`)."
        )
    raw = plain_value(row.get(columns.label)) if columns.label else None
    try:
        # "none" in a map is a value, and not that there is none.
        meant = None if raw is None else columns.meanings.get(label_key(raw))
        return Label(meant or str(raw))
    except ValueError:
        raise DataError(
            f"{where} has the label {raw!r}; it must be one of {', '.join(Label)}, or `label_map` must say which "
            "of them it means."
        ) from None


def _response(row: Mapping[str, Any], where: str, columns: Columns) -> str | None:
    found = plain_value(row.get(columns.response))
    if (
        isinstance(found, str) and found.casefold() == "nan"
    ):  # as tables without numbers write what is missing
        return None
    if _role(found) == "assistant" and (said := _content(found)) is not None:
        found = said or None
    if found is not None and not isinstance(found, str):
        raise DataError(
            f"{where} has {_kind(found)} for a response in column {columns.response!r}; write the reply as text, or "
            "name the column that holds it."
        )
    return found if found is not None and found.strip() else None


def _asked(row: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Any]:
    column = next((name for name in columns.holding_text if name in row), columns.text)
    found = plain_value(row.get(column))
    if found is None or (isinstance(found, str) and not found.strip()):
        raise DataError(
            f"{where} has no prompt in column {column!r} "
            f"(columns: {', '.join(map(str, row))}); mend the row or name the right column."
        )
    if isinstance(found, str):
        if column == columns.text:
            return {"text": found}
        found = _turns_in(found)
    if isinstance(found, Sequence) and not isinstance(found, str) and found:
        return _conversation(found, f"{where} column {column!r},")
    raise DataError(
        f"{where} has {_kind(found)} for a prompt in column {column!r}; write it as text, or as a list of turns with "
        "`role` and `content`, or name the right column."
    )


def _turns_in(text: str) -> Any:
    """The turns that a table without lists holds as JSON; the text itself if there are none."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, list) else text


def _conversation(turns: Sequence[Any], where: str) -> dict[str, Any]:
    said = []
    for number, turn in enumerate(turns, start=1):
        role, text = _role(turn), _content(turn)
        if role is None or text is None or not (text.strip() or role == "system"):
            raise DataError(
                f"{where} turn {number}, needs both a `role` (system, user or assistant) and a `content` that is text; "
                "mend the turn or leave the row out."
            )
        said.append((role, text))
    system = said.pop(0)[1] if said[0][0] == "system" else None
    roles = [role for role, _ in said]
    if not roles or roles[-1] != "user":
        raise DataError(
            f"{where} ends with a turn of the {roles[-1] if roles else 'system'}; the user must have the last word, so "
            "put a reply into `response` or leave it out."
        )
    if any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
        raise DataError(
            f"{where} has turns out of order ({', '.join(roles)}); user and assistant must speak in turn, the "
            "user first, and a system message can only stand before all of them."
        )
    return {
        "text": said[-1][1],
        "system": system,
        "earlier": tuple(Turn.model_validate({"role": role, "content": text}) for role, text in said[:-1]),
    }


def _role(turn: Any) -> str | None:
    if not isinstance(turn, Mapping):
        return None
    role = turn.get("role") or SPEAKERS.get(str(turn.get("from")))
    return role if role in ("system", "user", "assistant") else None


def _content(turn: Any) -> str | None:
    """The text of a turn, which may be cut into parts."""
    found = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
    if isinstance(found, Sequence) and not isinstance(found, str):
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in found]
        found = "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]
    return found if isinstance(found, str) else None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return f"the truth value {value}"
    if isinstance(value, str):
        return "a text that is no list of turns"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, Sequence) else f"a {type(value).__name__}"
