"""One notation for prompts from anywhere: a public set, the starter set, a file, the hub; with filters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from discernment.errors import DataError
from discernment.frozen import Frozen
from discernment.prompts.catalogue import catalogue, load_catalogue_set, nearest_names
from discernment.prompts.columns import Columns, label_key
from discernment.prompts.prompt import Label, Split
from discernment.prompts.prompt_set import PromptSet, Provenance
from discernment.prompts.starter import STARTER_SETS, load_starter
from discernment.prompts.tables import kind_of, known_endings

Text = TypeVar("Text", bound=str)
ColumnRole = Literal["text", "label", "id", "category", "source", "response", "partner", "split"]

HUB_PREFIX = "hub:"
FOR_TABLES = ("columns", "fixed_label", "label_map")
FOR_FILES = ("encoding",)
FOR_HUB = ("hub_config", "hub_split", "revision")


class PromptSource(Frozen):
    """Which prompts to read; a plain string stands for `{set: string}`.

    Attributes:
        set: A name of the catalogue, `starter/...`, a path to a file of JSON lines, JSON, CSV or Parquet, or `hub:NAME`.
        label: Keep the prompts with this label, or with one of these.
        split: Keep the prompts that the source itself assigns to this split.
        category: Keep the prompts whose category begins with this, or with one of these.
        response_begins: Keep the prompts whose response begins with this, or with one of these.
        max_characters: Keep the prompts whose text is no longer than this, with all that comes before it.
        limit: Draw at most this many of them.
        seed: Seed of that draw; the reader's by default, which in a recipe's `data` is the recipe's seed.
        columns: For files and the hub: which column holds the text, label, category, ...
        fixed_label: For files and the hub: the label of every row, in place of a column and of `label_map`.
        label_map: For files and the hub: what the labels there mean.
        encoding: For files: the encoding, where it is not UTF-8.
        response_column: Column with the reply to train on.
        hub_config: For the hub: the configuration.
        hub_split: For the hub: the split to download.
        revision: For the hub: the commit, tag or branch.
        verify: For public sets: whether a file must have the catalogue's checksum.
    """

    set: str = Field(min_length=1)
    label: Label | tuple[Label, ...] | None = None
    split: Split | None = None
    category: str | tuple[str, ...] | None = None
    response_begins: str | tuple[str, ...] | None = None
    max_characters: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int | None = None
    columns: dict[ColumnRole, str] = Field({})
    fixed_label: Label | None = None
    label_map: dict[str, Label] = Field({})
    encoding: str | None = None
    response_column: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    revision: str | None = None
    verify: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"set": value} if isinstance(value, str) else value

    @classmethod
    def parse(cls, text: str) -> PromptSource:
        """Read `NAME` or `NAME:SPLIT`, as the command line takes it; of a set of the hub it is the hub's split."""
        name, _, split = text.rpartition(":")
        if name.startswith(HUB_PREFIX) and split in set(Split):
            return cls(set=name, hub_split=split)
        return cls(set=name, split=Split(split)) if name and split in set(Split) else cls(set=text)

    @property
    def is_file(self) -> bool:
        """Whether it is a file of one's own."""
        return not self.set.startswith(HUB_PREFIX) and kind_of(self.set) is not None

    @property
    def is_table(self) -> bool:
        """Whether it has columns of its own: a file, or a set of the hub."""
        return self.is_file or self.set.startswith(HUB_PREFIX)

    @field_validator("label_map", mode="before")
    @classmethod
    def _keys_as_text(cls, value: Any) -> Any:
        # YAML reads 0, 1.0, yes and true as numbers and truth values.
        if not isinstance(value, dict):
            return value
        meant: dict[str, Any] = {}
        for key, label in value.items():
            if meant.setdefault(label_key(key), label) != label:
                raise ValueError(f"`label_map` says twice, and not the same, what {key!r} means")
        return {key if isinstance(key, str) else label_key(key): label for key, label in value.items()}

    @model_validator(mode="after")
    def _options_fit_the_set(self) -> PromptSource:
        if self.response_column and "response" in self.columns:
            raise ValueError("name the response column once, by `response_column` or in `columns`")
        if self.fixed_label and (self.label_map or "label" in self.columns):
            raise ValueError(
                "`fixed_label` gives all rows one label, so leave it out, or leave out `label_map` and the `label` of `columns`"
            )
        if not self.is_table:
            _reject(self, FOR_TABLES, "a file or `hub:NAME`, which have columns of their own")
        if not self.is_file:
            _reject(self, FOR_FILES, "a file")
        if not self.set.startswith(HUB_PREFIX):
            _reject(self, FOR_HUB, "`hub:NAME`")
        return self


def load_source(source: PromptSource | str, data_dir: Path | None = None, *, seed: int = 0) -> PromptSet:
    """Read the prompts that a source names, and filter them.

    Args:
        source: The source, or the name of its set.
        data_dir: The folder with public sets; `DISCERNMENT_DATA` without one.
        seed: Seed of the draw where the source has a `limit` and no seed of its own.

    Raises:
        DataError: If there is no such set, it cannot be read, or no prompt is left.
    """
    if isinstance(source, str):
        source = PromptSource(set=source)
    prompts = _read(source, data_dir)
    if not prompts:
        raise DataError(f"{source.set} has no prompts at all; fill it or leave it out.")
    if source.label is not None:
        prompts = prompts.with_label(*_listed(source.label))
    if source.split is not None:
        prompts = prompts.with_split(source.split)
    if source.category is not None:
        beginnings = _listed(source.category)
        prompts = prompts.filter(
            lambda p: p.category is not None and p.category.startswith(beginnings),
            f"category {' or '.join(beginnings)}",
        )
    if source.response_begins is not None:
        openings = _listed(source.response_begins)
        prompts = prompts.filter(
            lambda p: p.response is not None and p.response.startswith(openings),
            f"response begins {' or '.join(openings)}",
        )
    if (longest := source.max_characters) is not None:
        prompts = prompts.filter(lambda p: len(p.whole) <= longest, f"at most {longest} characters")
    if source.limit is None:
        return prompts
    return prompts.sample(source.limit, seed if source.seed is None else source.seed)


def load_sources(
    sources: Sequence[PromptSource | str], name: str, data_dir: Path | None = None, *, seed: int = 0
) -> PromptSet:
    """Read several sources and join them in order, under one name; see `load_source`.

    Raises:
        DataError: If there is no source, one of them cannot be read, or a prompt is there twice.
    """
    if not sources:
        raise DataError(f"{name} names no prompts; give at least one set.")
    return PromptSet.concatenate([load_source(source, data_dir, seed=seed) for source in sources], name)


def _of_hub(source: PromptSource) -> Provenance:
    name = source.set.removeprefix(HUB_PREFIX)
    # Several configurations or splits of one set may be joined.
    part = "/".join(each for each in (source.hub_config, source.hub_split, source.revision) if each)
    return Provenance(name=name, address=name, revision=source.revision, folder=part)


def _read(source: PromptSource, data_dir: Path | None) -> PromptSet:
    name = source.set
    if name.startswith(HUB_PREFIX):
        return PromptSet.from_hub(
            name.removeprefix(HUB_PREFIX),
            config=source.hub_config,
            split=source.hub_split,
            revision=source.revision,
            columns=_columns(source),
            provenance=_of_hub(source),
        )
    if source.is_file:
        return PromptSet.from_file(Path(name).expanduser(), _columns(source), encoding=source.encoding)
    if name in STARTER_SETS:
        if source.response_column:
            raise DataError(f"{name} has one kind of response; leave response_column out.")
        return load_starter(name)
    if name in catalogue():
        return load_catalogue_set(
            name, data_dir, verify=source.verify, response_column=source.response_column
        )
    if Path(name).expanduser().is_file():
        raise DataError(f"The file {name} is of no kind that is read; save it as one of {known_endings()}.")
    known = [*STARTER_SETS, *catalogue()]
    raise DataError(
        f"There is no prompt set {name!r}; {nearest_names(name, known)} "
        "(or give a path to a .jsonl, .json, .csv, .tsv or .parquet file, or hub:NAME)."
    )


def _columns(source: PromptSource) -> Columns:
    chosen: dict[str, Any] = {str(role): column for role, column in source.columns.items()}
    if source.response_column:
        chosen["response"] = source.response_column
    return Columns(**chosen, fixed_label=source.fixed_label, label_map=source.label_map)


def _listed(value: Text | tuple[Text, ...]) -> tuple[Text, ...]:
    return value if isinstance(value, tuple) else (value,)


def _reject(source: PromptSource, options: Sequence[str], where: str) -> None:
    given = [option for option in options if option in source.model_fields_set]
    if given:
        raise ValueError(f"`{'`, `'.join(given)}` can be given for {where} only, not for {source.set!r}")
