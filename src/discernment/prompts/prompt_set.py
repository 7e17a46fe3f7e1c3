"""Ordered sets of prompts, from files, the hub or `datasets` objects, with provenance and a content hash."""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from discernment.errors import DataError
from discernment.files import content_hash, read_json_lines, read_text, write_json_lines
from discernment.prompts.prompt import Label, Prompt, Split

LONGEST_FIELD = 2**30
"""Characters of a CSV field; Python's own limit, 131,072, is less than a long document."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        text: Column of the prompt's text.
        label: Column of the label, or None if `fixed_label` says it for all rows.
        fixed_label: The label of every row, where the table has no label column.
        label_map: What the table's own label values mean, e.g. `{"1": "toxic"}`; others are read as they are.
        id: Column of the id; rows without one are numbered.
        category: Column of the category.
        source: Column of the source; without one, the set's name is the source.
        response: Column of a reply to train on.
        partner: Column of the matched prompt's id.
        split: Column of the split.
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


@dataclass(frozen=True)
class Provenance:
    """Where a set comes from, so that a report can say so."""

    name: str
    address: str | None = None
    revision: str | None = None
    licence: str | None = None
    note: str | None = None

    @classmethod
    def of_file(cls, path: Path) -> Provenance:
        """A file of one's own, of which nothing else is known."""
        return cls(name=path.stem, address=path.name)


class PromptSet(Sequence[Prompt]):
    """An immutable, ordered set of prompts with unique ids.

    Args:
        prompts: The prompts, in order.
        provenance: Where they come from.

    Raises:
        DataError: If two prompts have the same id.
    """

    def __init__(self, prompts: Iterable[Prompt], provenance: Provenance) -> None:
        self.prompts = tuple(prompts)
        self.provenance = provenance
        repeated = [key for key, count in Counter(p.id for p in self.prompts).items() if count > 1]
        if repeated:
            raise DataError(
                f"{provenance.name} has {len(repeated)} repeated prompt ids, first {repeated[0]!r}; make them unique."
            )

    # ------------------------------------------------------------------ reading

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], provenance: Provenance, columns: Columns | None = None
    ) -> PromptSet:
        """Read a table of rows, such as a `datasets.Dataset` or a list of dictionaries.

        Args:
            rows: The rows, in order.
            provenance: Where they come from; its name is in every error message.
            columns: Which columns hold what.

        Raises:
            DataError: If a row lacks a prompt or has a label outside the three.
        """
        return cls(_prompts(enumerate(rows, start=1), "row", provenance, columns), provenance)

    @classmethod
    def from_jsonl(
        cls, path: Path, columns: Columns | None = None, provenance: Provenance | None = None
    ) -> PromptSet:
        """Read one JSON object a line.

        Raises:
            DataError: If the file cannot be read, or a row is unusable; the message names the line.
        """
        provenance = provenance or Provenance.of_file(path)
        return cls(_prompts(_objects(path), "line", provenance, columns), provenance)

    @classmethod
    def from_csv(
        cls, path: Path, columns: Columns | None = None, provenance: Provenance | None = None
    ) -> PromptSet:
        """Read a CSV file with a header line (UTF-8).

        Raises:
            DataError: If the file cannot be read, or a row is unusable; the message names the row.
        """
        csv.field_size_limit(LONGEST_FIELD)
        try:
            rows = list(csv.DictReader(StringIO(read_text(path), newline="")))
        except csv.Error as error:
            raise DataError(f"{path} cannot be read as CSV ({error}).") from error
        return cls.from_rows(rows, provenance or Provenance.of_file(path), columns)

    @classmethod
    def from_hub(
        cls,
        name: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: Columns | None = None,
        provenance: Provenance | None = None,
    ) -> PromptSet:
        """Download a data set through `datasets`.

        Raises:
            DataError: If it cannot be had (no network, no such set or split), or a row is unusable.
        """
        import datasets

        try:
            table = datasets.load_dataset(name, config, split=split, revision=revision)
        except Exception as error:  # the hub client raises many unrelated types
            raise DataError(
                f"The data set {name!r} (config {config}, split {split}) cannot be loaded from the hub "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}); "
                "check the name and the network, or put the file into the folder that DISCERNMENT_DATA names."
            ) from error
        return cls.from_rows(
            table, provenance or Provenance(name=name, address=name, revision=revision), columns
        )

    def to_jsonl(self, path: Path) -> None:
        """Write the set as JSON lines that `from_jsonl` reads back."""
        rows = (p.model_dump(mode="json", exclude_none=True) for p in self.prompts)
        write_json_lines(path, ({"prompt": row.pop("text"), **row} for row in rows))

    # ------------------------------------------------------------------ selecting

    def filter(self, keep: Callable[[Prompt], bool], what: str) -> PromptSet:
        """The prompts for which `keep` is true.

        Args:
            keep: The condition.
            what: The condition in words, for the error message.

        Raises:
            DataError: If none is left.
        """
        kept = [p for p in self.prompts if keep(p)]
        if not kept:
            raise DataError(f"{self.provenance.name} has no prompt with {what}; {self.summary()}.")
        return PromptSet(kept, self.provenance)

    def with_label(self, *labels: Label) -> PromptSet:
        """The prompts with one of `labels`."""
        return self.filter(lambda p: p.label in labels, "label " + " or ".join(labels))

    def with_split(self, split: Split) -> PromptSet:
        """The prompts that the source assigns to `split`."""
        return self.filter(lambda p: p.split == split, f"split {split}")

    def sample(self, count: int, seed: int) -> PromptSet:
        """At most `count` prompts drawn without replacement, in their original order."""
        if count >= len(self.prompts):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.prompts)), count))  # noqa: S311
        return PromptSet([self.prompts[i] for i in chosen], self.provenance)

    def renamed(self, name: str) -> PromptSet:
        """The same prompts under another name."""
        return PromptSet(self.prompts, replace(self.provenance, name=name))

    @classmethod
    def concatenate(cls, sets: Iterable[PromptSet], name: str) -> PromptSet:
        """Join sets in order; ids get their set's name in front where they would clash.

        Raises:
            DataError: If the same set is joined to itself.
        """
        sets = list(sets)
        seen = Counter(p.id for s in sets for p in s)

        def unique(key: str, origin: PromptSet) -> str:
            return key if seen[key] < 2 else f"{origin.provenance.name}/{key}"

        joined = [
            p.model_copy(update={"id": unique(p.id, s), "partner": p.partner and unique(p.partner, s)})
            for s in sets
            for p in s
        ]
        return cls(joined, Provenance(name=name, note=" + ".join(s.provenance.name for s in sets)))

    # ------------------------------------------------------------------ describing

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [p.text for p in self.prompts]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the prompts hold, in order."""
        return content_hash([p.model_dump(mode="json") for p in self.prompts])

    def counts(self) -> dict[str, int]:
        """How many prompts each label has; labels with none are left out."""
        found = Counter(p.label for p in self.prompts)
        return {label.value: found[label] for label in Label if found[label]}

    def summary(self) -> str:
        """One phrase such as `it has 250 seemingly_toxic and 200 toxic`."""
        counts = " and ".join(f"{n} {label}" for label, n in self.counts().items())
        return f"it has {counts or 'no prompts'}"

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        return self.prompts[index]

    def __repr__(self) -> str:
        return f"PromptSet({self.provenance.name!r}, {self.counts()})"


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}, is not a JSON object.")
        yield number, row


def _prompts(
    rows: Iterable[tuple[int, Mapping[str, Any]]], unit: str, provenance: Provenance, columns: Columns | None
) -> Iterator[Prompt]:
    for number, row in rows:
        yield _prompt(
            row, number, f"{provenance.name}, {unit} {number},", provenance.name, columns or Columns()
        )


def _prompt(row: Mapping[str, Any], number: int, where: str, name: str, columns: Columns) -> Prompt:
    def value(column: str) -> str | None:
        found = row.get(column)
        return str(found) if found not in (None, "") else None

    text = value(columns.text)
    if text is None or not text.strip():
        raise DataError(
            f"{where} has no prompt in column {columns.text!r} "
            f"(columns: {', '.join(map(str, row))}); mend the row or name the right column."
        )
    label = columns.fixed_label
    if label is None:
        raw = value(columns.label) if columns.label else None
        mapped = columns.label_map.get(str(raw), raw)
        if mapped not in set(Label):
            raise DataError(f"{where} has the label {raw!r}; it must be one of {', '.join(Label)}.")
        label = Label(mapped)
    split = value(columns.split)
    if split is not None and split not in set(Split):
        raise DataError(f"{where} has the split {split!r}; it must be one of {', '.join(Split)}.")
    try:
        return Prompt(
            id=value(columns.id) or f"{name}-{number:05d}",
            text=text,
            label=label,
            category=value(columns.category),
            source=value(columns.source) or name,
            partner=value(columns.partner),
            frame=value("frame"),
            keyword=value("keyword"),
            split=Split(split) if split else None,
            response=value(columns.response),
        )
    except ValidationError as error:  # half a surrogate pair, as a cut emoji leaves it
        raise DataError(f"{where} is unusable ({error.errors()[0]['msg']}).") from error
