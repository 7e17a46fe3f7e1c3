"""Which column of a table of one's own holds what, and what its labels mean: by their names, never by a guess.

What is not clear is an error whose sentence says how to make it so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from discernment.errors import DataError
from discernment.files import packaged_yaml
from discernment.prompts import Label, Split
from discernment.prompts.columns import label_key, plain_value
from discernment.prompts.words import words

_NAMES = packaged_yaml("discernment.runs.first_recipe", "names.yaml")
PROMPT, RESPONSE, LABEL, SPLIT = (
    tuple(_NAMES["columns"][role]) for role in ("text", "response", "label", "split")
)
MEANINGS = {name: Label(label) for label, names in _NAMES["labels"].items() for name in names}
SPLITS = {name: Split(split) for split, names in _NAMES["splits"].items() for name in names}
FILLERS = frozenset(_NAMES["fillers"])
ABOUT_TEXTS = frozenset(_NAMES["about_texts"])
LABEL_NAMES = frozenset(("label", "labels"))
"""A column of this name holds the labels, whatever its values are and whatever others hold."""
LEFT_OUT = "none"
"""What the user says of a label value whose rows are to be left out."""
MOST_VALUES = 20
"""A column of labels has no more different values."""
TRUTHS = frozenset(("1", "true", "0", "false"))
"""Yes and no, by `label_key`."""
MOST_WORDS = 4
"""A column's name that has more of them is a prompt itself."""


class Given(NamedTuple):
    """What the user said of a file.

    Attributes:
        label: The label of all its rows.
        columns: Which column holds what, by role: `text`, `label`, `response`, `split`.
        meanings: What values of its labels mean, by `label_key`: a label, or `none` for rows to be left out.
    """

    label: Label | None = None
    columns: Mapping[str, str] = {}
    meanings: Mapping[str, str] = {}


class Recognised(NamedTuple):
    """What the columns of a file were taken for.

    Attributes:
        text: Column of the prompt.
        response: Column of the reply, if any.
        label: Column of the label; None where all rows have the same.
        fixed_label: That label.
        meanings: What each value of the label's column means.
        split: Column of the split, if any.
        why: Why the rows have that label, where they have the same.
    """

    text: str
    response: str | None
    label: str | None
    fixed_label: Label | None
    meanings: Mapping[str, str]
    split: str | None
    why: str = ""

    def in_words(self) -> str:
        """One phrase such as ``column `user_q` as prompt, `kind` as label: `bad` -> toxic``."""
        parts = [f"column `{self.text}` as prompt"]
        if self.label is None:
            parts.append(f"all rows as {self.fixed_label} ({self.why})")
        else:
            values = ", ".join(f"`{value}` -> {label}" for value, label in self.meanings.items())
            parts.append(f"`{self.label}` as label: {values}")
        if self.response:
            parts.append(f"`{self.response}` as reply")
        if self.split:
            parts.append(f"`{self.split}` as split")
        return ", ".join(parts)


def recognise(name: str, rows: Sequence[Mapping[str, Any]], given: Given) -> Recognised:
    """Find out what the columns of a table hold.

    Args:
        name: The file's name in the folder, for messages and for what it says itself.
        rows: Its rows; not empty.
        given: What the user said of it, which goes first.

    Raises:
        DataError: If a column is not there, or it is not clear which one holds the prompts or the labels, or what a value
            means.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for role, column in given.columns.items():
        if column not in columns:
            raise DataError(
                f"{name} has no column `{column}` for `--column {name}:{role}={column}` (columns: {_listed(columns)}); name "
                "one of these."
            )
    chosen = dict(given.columns)
    split = _split(name, rows, columns, chosen.get("split"))
    label, fixed, meanings, why = _label(name, rows, [c for c in columns if c not in chosen.values()], given)
    taken = {split, label, *chosen.values()}
    replies = [c for c in _texts_among(_named(columns, RESPONSE)) if c not in taken and not _is_prompt(c)]
    response = chosen.get("response") or next((c for c in replies if _holds_replies(rows, c)), None)
    text = chosen.get("text") or _prompt(name, rows, [c for c in columns if c not in taken | {response}])
    return Recognised(text, response, label, fixed, meanings, split, why)


def _split(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], chosen: str | None
) -> str | None:
    """The column of the splits: that which was chosen, or one that is named like it and holds some."""
    for column in [chosen] if chosen else _named(columns, SPLIT):
        values = list(dict.fromkeys(_values(rows, column)))
        unknown = [value for value in values if split_of(value) is None]
        if unknown and (chosen or len(unknown) < len(values)):
            raise DataError(
                f"{name} has in its column `{column}` {_listed(unknown)}, which is no split; write train, validation or test, "
                "or rename the column."
            )
        if chosen or (values and not unknown):
            return column
    return None


def split_of(value: Any) -> Split | None:
    """The split that a value means."""
    return SPLITS.get(_key(value))


def split_in(name: str) -> Split | None:
    """The split that a file's name says, or else the nearest of its folders that says any."""
    for part in _parts(name):
        if found := {split for called, split in SPLITS.items() if _stands_in(called, part)}:
            return found.pop() if len(found) == 1 else None
    return None


def _prompt(name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    texts = [column for column in _texts_among(columns) if _holds_texts(rows, column)]
    named = _named(texts, PROMPT)
    if named:
        texts = [column for column in named if _rank(column, PROMPT) == _rank(named[0], PROMPT)]
    if texts and all(map(_is_prompt, texts)):
        raise DataError(
            f"{name} seems to have no line of column names, for one would be `{texts[0][:60]}`; write a line such as "
            f"`prompt,label` above the first prompt, or say by `--column {name}:text=COLUMN` that it is the name of a column."
        )
    if len(texts) == 1:
        return texts[0]
    problem = (
        f"several columns that may hold the prompts ({_listed(texts)})"
        if texts
        else f"no column of texts that may be prompts (columns: {_listed(columns)})"
    )
    raise DataError(
        f"{name} has {problem}; say which by `--column {name}:text=COLUMN`, or leave the file out by `--skip {name}`."
    )


def _label(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], given: Given
) -> tuple[str | None, Label | None, Mapping[str, str], str]:
    """The column of the labels and what its values mean; or the one label of all rows, and why."""
    if given.label is not None:
        return None, given.label, {}, "as you said"
    column = given.columns.get("label") or _label_column(name, rows, columns, given)
    if column is not None:
        return column, None, _meanings(name, rows, column, given), ""
    said = _label_in(name)
    if said is not None:
        return None, said, {}, "as its name says"
    raise DataError(
        f"{name} has no column whose values are known labels (columns: {_listed(list(rows[0]))}); say what all its prompts are "
        f"by `--label {name}=toxic` (or seemingly_toxic, benign), name the column by `--column {name}:label=COLUMN`, or leave "
        f"the file out by `--skip {name}`."
    )


def _label_column(
    name: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], given: Given
) -> str | None:
    """The column whose values are labels: one that is called so, else by all of its values rather than some, then by its name.

    Beside a file's name that says a label, a column of another name whose values mean only one is there for something else.
    """
    called = [c for c in columns if _key(c) in LABEL_NAMES and 0 < len({*_values(rows, c)}) <= MOST_VALUES]
    said = None if given.meanings else _label_in(name)
    known = {}
    for column in called or columns:
        counts = Counter(_values(rows, column))
        if not 0 < len(counts) <= MOST_VALUES:
            continue
        understood = {value: label for value in counts if (label := _meaning(value, column, given))}
        if said and not _named([column], LABEL) and len({*understood.values()}) < 2:
            continue
        mostly = 2 * sum(counts[value] for value in understood) >= counts.total()
        if called or (understood and mostly):
            known[column] = (len(understood) < len(counts), not understood, _rank(column, LABEL))
    if not known:
        return None
    first = min(known.values())
    best = [column for column, rank in known.items() if rank == first]
    if _is_yes_or_no(_values(rows, best[0]), best[0]):
        best += [c for c in columns if c not in best and _contradicts(rows, best[0], c, given)]
    if len(best) > 1:
        raise DataError(
            f"{name} has several columns that may hold the labels ({_listed(best)}); say which by "
            f"`--column {name}:label=COLUMN`."
        )
    if said and not _named(best, LABEL):
        raise DataError(
            f"{name} is {said} by its name, and its column `{best[0]}` seems to hold several labels; say which of the two counts "
            f"by `--label {name}={said}` or `--column {name}:label={best[0]}`."
        )
    return best[0]


def _is_yes_or_no(values: Iterable[str], column: str) -> bool:
    """Whether a column answers with yes and no if a prompt is what the column is called by."""
    return bool(_labels_in(column)) and {label_key(value) for value in values} <= TRUTHS


def _contradicts(rows: Sequence[Mapping[str, Any]], column: str, other: str, given: Given) -> bool:
    """Whether another column of yes and no says something else of a prompt than one does."""
    if not _is_yes_or_no(_values(rows, other), other):
        return False
    said = (
        {_meaning(value, c, given) for c in (column, other) for value in _values([row], c)} for row in rows
    )
    return any(len(labels) > 1 for labels in said)


def _meanings(name: str, rows: Sequence[Mapping[str, Any]], column: str, given: Given) -> Mapping[str, str]:
    counts = Counter(_values(rows, column))
    meant = {value: _meaning(value, column, given) for value in counts}
    unknown = [value for value, label in meant.items() if label is None]
    if unknown:
        some = ", ".join(f"`{value}` ({counts[value]} rows)" for value in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"{name}: the values {some}{more} of the column `{column}` are no known labels; say what each means, as in "
            f"`--label-map {name}:{unknown[0]}=seemingly_toxic` (or toxic, benign, or `none` to leave these rows out), name "
            f"another column by `--column {name}:label=COLUMN`, or give one label to all by `--label {name}=toxic`."
        )
    order = [*Label, LEFT_OUT]
    return {v: label for label in order for v, meaning in meant.items() if meaning == label}


def _meaning(value: str, column: str, given: Given) -> str | None:
    """What a label value means: as the user said, by its name, or yes and no in a column that is called by a label."""
    key = label_key(value)
    if key in given.meanings:
        return given.meanings[key]
    if key in TRUTHS:
        about = _labels_in(column)
        if not {"not", "non", "no"} & {*_words(column)} and about in ({Label.TOXIC}, {Label.BENIGN}):
            says_harm = about == {Label.TOXIC}
            return Label.TOXIC if says_harm == (key in ("1", "true")) else Label.BENIGN
        return None
    return _label_called(value)


def _label_called(value: Any) -> Label | None:
    return MEANINGS.get(_key(value))


def _labels_in(column: str) -> set[Label]:
    """The labels that stand in a name: of `seemingly_toxic` two, so that it is no name for either; `answer` names a reply."""
    return {label for name, label in MEANINGS.items() if name not in RESPONSE and _stands_in(name, column)}


def _label_in(name: str) -> Label | None:
    """The label that a file's name says, or else the nearest of its folders, where it says nothing else."""
    for part in _parts(name):
        key = f"_{_key(part)}_"
        for split in SPLITS:
            key = key.replace(f"_{split}_", "_")
        words = [word for word in _words(key) if word not in FILLERS and not word.isdigit()]
        if label := _label_called(" ".join(words)):
            return label
        if _labels_in(part):  # `toxic_or_not` leaves it open, whatever its folder is called
            return None
    return None


def _values(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """What a column holds, as text, where it holds anything; nothing of lists and long texts."""
    found = [plain_value(row.get(column)) for row in rows]
    if any(isinstance(value, list | dict) for value in found):
        return []
    texts = [str(value).strip() for value in found if value is not None and str(value).strip()]
    return [] if any(len(text) > 60 for text in texts) else texts


def _holds_texts(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether most values are texts of words, or lists of turns, and they differ: an address or a state repeats."""
    found = [value for row in rows if (value := row.get(column)) not in (None, "")]
    texts = [v for v in found if isinstance(v, list) or (isinstance(v, str) and re.search(r"[^\W\d_]{2}", v))]
    return len(texts) > len(found) / 2 and len({str(text) for text in texts}) > min(2, len(rows) / 4)


def _holds_replies(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether most values are texts of several words, or turns; many refusals are the same."""
    found = [value for row in rows if (value := row.get(column)) not in (None, "")]
    texts = [v for v in found if isinstance(v, dict) or (isinstance(v, str) and len(words(v)) > 1)]
    return len(texts) > len(found) / 2


def _named(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that are called by one of the names, the surest first."""
    return sorted(
        (c for c in columns if _rank(c, names) < 2 * len(names)), key=lambda column: _rank(column, names)
    )


def _rank(column: str, names: Sequence[str]) -> int:
    """How sure a name is: what is called so as a whole before what has it for one of its words."""
    key, words = _key(column), _words(column)
    whole = (n for n, name in enumerate(names) if name == key)
    part = (len(names) + n for n, name in enumerate(names) if name in words)
    return next(whole, next(part, 2 * len(names)))


def _texts_among(columns: Sequence[str]) -> list[str]:
    """Those whose names do not say that they hold something about a text, as `prompt_id` and `prompt_type` do."""
    return [c for c in columns if _is_prompt(c) or not ABOUT_TEXTS & {*_words(c)[-1:]}]


def _is_prompt(column: str) -> bool:
    """Whether a column's name reads like a prompt, which it is where a table has no line of names."""
    return len(_words(column)) > MOST_WORDS or column.rstrip().endswith(("?", "!", "."))


def _parts(name: str) -> list[str]:
    """What a file, without its endings, and its folders are called, the nearest first."""
    *folders, file = name.split("/")
    return [file.partition(".")[0], *reversed(folders)]


def _words(text: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    return [word for word in re.split(r"[\W_]+", parted.casefold()) if word]


def _key(value: Any) -> str:
    return "_".join(_words(str(value)))


def _stands_in(name: str, text: str) -> bool:
    """Whether a name of one word or several, with `_` between them, stands in a text as whole words."""
    return f"_{name}_" in f"_{_key(text)}_"


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns[:12]) + (", ..." if len(columns) > 12 else "")
