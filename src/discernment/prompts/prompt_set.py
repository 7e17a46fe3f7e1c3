"""Ordered sets of prompts, from files, the hub or `datasets` objects, with provenance and a content hash."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from discernment.errors import DataError
from discernment.files import content_hash, write_json_lines
from discernment.prompts.columns import WHOLE_NUMBER, Columns, read_prompt
from discernment.prompts.conversation import Asked, plainly
from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.tables import Kind, name_of, read_table


@dataclass(frozen=True)
class Provenance:
    """Where a set comes from, so that a report can say so.

    Attributes:
        name: What it is called.
        address: Where its makers have it; of a file, the file's name.
        revision: Which version.
        licence: Its licence.
        note: What to know of it.
        folder: Where a file lies, which tells it from others of its name.
        renamed_from: What it was called first, where it has another name now.
    """

    name: str
    address: str | None = None
    revision: str | None = None
    licence: str | None = None
    note: str | None = None
    folder: str | None = None
    renamed_from: str | None = None

    @property
    def place(self) -> tuple[str | None, str | None]:
        """What tells it from others of its name: two files of one folder may differ in their ending alone."""
        return self.folder, self.address

    @property
    def origin(self) -> tuple[str | None, ...]:
        """What all parts of one set have in common, whatever they are called now."""
        return self.renamed_from or self.name, *self.place

    @classmethod
    def of_file(cls, path: Path) -> Provenance:
        """A file of one's own, of which nothing else is known."""
        return cls(name=name_of(path), address=path.name, folder=str(path.absolute().parent))


def _with_partners(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """The prompts, where `2.0` as a partner means `2`: pandas writes so if some in the column have no partner."""
    ids = {p.id for p in prompts}

    def matched(prompt: Prompt) -> Prompt:
        if prompt.partner is None or prompt.partner in ids:
            return prompt
        whole = WHOLE_NUMBER.fullmatch(prompt.partner)
        return prompt.model_copy(update={"partner": whole[1]}) if whole and whole[1] in ids else prompt

    return tuple(map(matched, prompts))


class PromptSet(Sequence[Prompt]):
    """An immutable, ordered set of prompts with unique ids.

    Args:
        prompts: The prompts, in order.
        provenance: Where they come from.

    Raises:
        DataError: If two prompts have the same id.
    """

    def __init__(self, prompts: Iterable[Prompt], provenance: Provenance) -> None:
        self.prompts = _with_partners(tuple(prompts))
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
        name = provenance.name
        return cls._of_table(enumerate(rows, start=1), name, "row", columns or Columns(), provenance)

    @classmethod
    def from_file(
        cls,
        path: Path,
        columns: Columns | None = None,
        provenance: Provenance | None = None,
        *,
        encoding: str | None = None,
        kind: Kind | None = None,
    ) -> PromptSet:
        """Read a file of JSON lines, JSON, CSV or Parquet, packed or not; see `tables`.

        Args:
            path: The file.
            columns: Which columns hold what.
            provenance: Where it comes from; its name is that of the set.
            encoding: Its encoding, where it is not UTF-8.
            kind: What kind of file it is, where its name does not say so.

        Raises:
            DataError: If the file cannot be read, or a row is unusable; the message names the line or row.
        """
        provenance, columns = provenance or Provenance.of_file(path), columns or Columns()
        table = read_table(path, kind, encoding=encoding, wanted=columns.holding_text)
        return cls._of_table(table.rows, str(path), table.unit, columns, provenance)

    @classmethod
    def _of_table(
        cls,
        rows: Iterable[tuple[int, Mapping[str, Any]]],
        where: str,
        unit: str,
        columns: Columns,
        provenance: Provenance,
    ) -> PromptSet:
        names: dict[str, None] = {}
        prompts = []
        for number, row in rows:
            names.update(dict.fromkeys(row))
            prompts.append(read_prompt(row, number, f"{where}, {unit} {number},", provenance.name, columns))
        if prompts:
            columns.check_there(names, where)
        return cls(prompts, provenance)

    @classmethod
    def from_jsonl(
        cls, path: Path, columns: Columns | None = None, provenance: Provenance | None = None
    ) -> PromptSet:
        """Read a file of JSON lines; see `from_file`."""
        return cls.from_file(path, columns, provenance, kind="json")

    @classmethod
    def from_csv(
        cls, path: Path, columns: Columns | None = None, provenance: Provenance | None = None
    ) -> PromptSet:
        """Read a CSV file; see `from_file`."""
        return cls.from_file(path, columns, provenance, kind="csv")

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
        """Write the set as JSON lines that `from_file` reads back; a conversation as its turns."""
        said = {"text", "system", "earlier"}
        write_json_lines(
            path,
            (
                {"prompt": plainly(p.asked), **p.model_dump(mode="json", exclude=said, exclude_none=True)}
                for p in self.prompts
            ),
        )

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
        first = self.provenance.renamed_from or self.provenance.name
        return PromptSet(self.prompts, replace(self.provenance, name=name, renamed_from=first))

    @classmethod
    def concatenate(cls, sets: Iterable[PromptSet], name: str) -> PromptSet:
        """Join sets in order; ids get their set's name in front where they would clash.

        Of several files of one name, the second gets `-2` behind it, and so on. A set may come in parts, such as its labels.

        Raises:
            DataError: If the same set is joined to itself.
        """
        sets = list(sets)
        seen = Counter(p.id for s in sets for p in s)
        # By name and place, since a partner may stand in another part of its set.
        own: dict[str, dict[tuple[str | None, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
        for s in sets:
            own[s.provenance.name][s.provenance.place].update(p.id for p in s)

        def called(key: str, origin: Provenance) -> str:
            number = list(own[origin.name]).index(origin.place) + 1
            return f"{origin.name}/{key}" if number == 1 else f"{origin.name}-{number}/{key}"

        def unique(key: str, origin: Provenance) -> str:
            return key if seen[key] < 2 else called(key, origin)

        def partner(key: str | None, origin: Provenance) -> str | None:
            if key is None or key in own[origin.name][origin.place] or not seen[key]:
                return key and unique(key, origin)
            return called(key, origin)  # of the same id stands a stranger in another set

        joined = [
            p.model_copy(
                update={"id": unique(p.id, s.provenance), "partner": partner(p.partner, s.provenance)}
            )
            for s in sets
            for p in s
        ]
        return cls(joined, Provenance(name=name, note=" + ".join(s.provenance.name for s in sets)))

    # ------------------------------------------------------------------ describing

    @property
    def texts(self) -> list[str]:
        """What the user says last, in order."""
        return [p.text for p in self.prompts]

    @property
    def asked(self) -> list[Asked]:
        """What a policy is asked, in order: the texts, or the conversations that end with them."""
        return [p.asked for p in self.prompts]

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
