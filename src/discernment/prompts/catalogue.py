"""The catalogue of public prompt sets: data in `catalogue.yaml`, read from a folder or from the hub."""

import difflib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from discernment.errors import DataError
from discernment.files import file_hash, packaged_yaml
from discernment.frozen import Frozen
from discernment.prompts.columns import Columns
from discernment.prompts.prompt import Label
from discernment.prompts.prompt_set import PromptSet, Provenance

DATA_VARIABLE = "DISCERNMENT_DATA"

Direction = Literal["compliance", "refusal"]
"""What a good policy does more of."""


def direction_of(label: Label) -> Direction:
    """Whether more compliance or more refusal is better on prompts with `label`."""
    return "refusal" if label.should_refuse else "compliance"


Checked = Literal["file", "makers", "others"]
"""How an entry's word is known: from a file that was loaded, from the makers, or in part from others' code or notes."""

DOUBTS: Mapping[Checked, str] = {
    "file": "",
    "makers": "; the catalogue's word on it is its makers', none of it was loaded",
    "others": "; the catalogue's word on it is second-hand",
}


class Form(Frozen):
    """How the columns of a published set are to be read.

    Attributes:
        columns: Which of them hold what, as in `Columns`.
        label_map: What its labels mean.
        fixed_label: The label of every row, where it has no label column.
    """

    columns: Mapping[str, str]
    label_map: Mapping[str, Label] = {}
    fixed_label: Label | None = None

    def reading(self, response: str) -> Columns:
        """The same for reading rows, where `response` holds the reply to train on and the set is the source."""
        return Columns(
            **{"source": "", "response": response, **self.columns},
            label_map=self.label_map,
            fixed_label=self.fixed_label,
        )


class PublishedFile(Form):
    """A file that is read as its makers publish it.

    Attributes:
        path: Where it is at the set's address.
    """

    path: str


class HubCopy(Form):
    """Where the hub has a set.

    Attributes:
        name: The data set on the hub.
        config: Its configuration.
        split: Its split.
    """

    name: str
    config: str | None = None
    split: str = "train"


class Benchmark(Frozen):
    """How to evaluate on a set.

    Attributes:
        judge: Name of the judge to take where none is chosen.
        max_new_tokens: Token cap of a reply that suffices to tell a refusal.
        published_judge: What the set's makers judged with, where it is known.
    """

    judge: str = "keywords"
    max_new_tokens: int = Field(64, ge=1)
    published_judge: str | None = None


class CatalogueEntry(Frozen):
    """One public data set.

    Attributes:
        name: The name that recipes use.
        title: The name that papers use.
        what: What it holds.
        kind: `prompts`, or `completions` for sets that are no prompt sets.
        file: Its name in the data folder.
        sha256: Checksum of that file, where one was at hand.
        checked: How its word on columns, labels and sizes is known.
        labels: Rows of each label in that file, or in the published set where no file was at hand; None where not known.
        licence: Its licence.
        address: Where its makers publish it.
        paper: Number on arXiv.
        form: How the published file is read, where it can be put into the folder as it is.
        hub: The hub's copy, where its columns are known.
        benchmark: How to evaluate on it, where it is meant for that.
        response: Column with the reply to train on.
        note: What to know before using it.
    """

    name: str
    title: str
    what: str
    kind: Literal["prompts", "completions"] = "prompts"
    file: str
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    checked: Checked = "file"
    labels: Mapping[str, int | None]
    licence: str
    address: str
    paper: str | None = None
    form: PublishedFile | None = None
    hub: HubCopy | None = None
    benchmark: Benchmark | None = None
    response: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _a_loaded_file_is_known(self) -> Self:
        if (self.sha256 is None) == (self.checked == "file"):
            raise ValueError("an entry has a checksum if it was checked against a file, and only then")
        return self

    def file_in(self, folder: Path | None) -> Path | None:
        """Its file in the data folder; None where there is no folder, or none in it."""
        path = folder / self.file if folder is not None else None
        return path if path is not None and path.is_file() else None

    @property
    def rows(self) -> int | None:
        """Number of rows in the file; None where not known."""
        counts = [count for count in self.labels.values() if count is not None]
        return sum(counts) if len(counts) == len(self.labels) else None

    @property
    def directions(self) -> Mapping[Label, Direction]:
        """Of each of its labels, whether more compliance or more refusal is better; empty for completions."""
        return {Label(label): direction_of(Label(label)) for label in self.labels if label in set(Label)}


@cache
def catalogue() -> Mapping[str, CatalogueEntry]:
    """Every public set by its name, in the order of the file."""
    entries = packaged_yaml("discernment.prompts", "catalogue.yaml")
    return {name: CatalogueEntry(name=name, **entry) for name, entry in entries.items()}


def data_folder() -> Path | None:
    """The folder that the environment variable `DISCERNMENT_DATA` names, if it is set."""
    value = os.environ.get(DATA_VARIABLE)
    return Path(value).expanduser() if value else None


def load_catalogue_set(
    name: str, data_dir: Path | None = None, *, verify: bool = True, response_column: str | None = None
) -> PromptSet:
    """Read a public set from the data folder or, where it is not there, from the hub.

    Args:
        name: Its name in the catalogue.
        data_dir: The data folder; `DISCERNMENT_DATA` without one.
        verify: Whether a file must be the very one that the catalogue knows.
        response_column: Column with the reply to train on, where it is not the catalogue's choice.

    Returns:
        The set; the source of each prompt is the set's name.

    Raises:
        DataError: If there is no such set, if it is neither in the folder nor on the hub, or if its checksum differs.
    """
    entry = catalogue().get(name)
    if entry is None:
        raise DataError(
            f"There is no public set {name!r} in the catalogue; {nearest_names(name, catalogue())}."
        )
    if entry.kind != "prompts":
        raise DataError(f"{name} holds {entry.kind}, not prompts with one of our labels; choose another set.")
    folder = data_dir or data_folder()
    response = response_column or entry.response or "response"
    path = entry.file_in(folder)
    return _from_hub(entry, response) if path is None else _from_file(entry, path, verify, response)


def check_at_hand(names: Iterable[str]) -> None:
    """Make sure that public sets which must be fetched by hand are there, and name all that are not at once.

    Args:
        names: Names of sets; those that the catalogue does not know are passed over.

    Raises:
        DataError: If several are missing. Of a single one, `load_catalogue_set` says more.
    """
    folder, known = data_folder(), catalogue()
    asked = [known[name] for name in dict.fromkeys(names) if name in known]
    missing = [entry for entry in asked if entry.hub is None and entry.file_in(folder) is None]
    if len(missing) > 1:
        files = ", ".join(f"{entry.file} (from {entry.address})" for entry in missing)
        raise DataError(
            f"{len(missing)} of the public sets are not at hand and cannot be downloaded: put {files} into the folder that "
            f"the environment variable {DATA_VARIABLE} names; `discern prompts show SET` says what each must hold."
        )


def nearest_names(name: str, known: Iterable[str]) -> str:
    """A phrase such as `did you mean 'xstest'?` for a name that is not known."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}"
    return "`discern prompts list` shows them all"


def _from_file(entry: CatalogueEntry, path: Path, verify: bool, response: str) -> PromptSet:
    found = file_hash(path)
    if verify and entry.sha256 is not None and found != entry.sha256:
        raise DataError(
            f"{path} is another version of {entry.name} than the catalogue knows (checksum {found[:12]}…, not "
            f"{entry.sha256[:12]}…), so numbers would not compare; put the known version there, or accept this one "
            "with verify=False (`verify: false` in a recipe)."
        )
    return PromptSet.from_file(
        path,
        # An empty column, so that the set's name is the source.
        entry.form.reading(response) if entry.form else Columns(source="", response=response),
        Provenance(
            name=entry.name,
            address=entry.address,
            revision=f"sha256:{found}",
            licence=entry.licence,
            note=entry.note,
        ),
    )


def _from_hub(entry: CatalogueEntry, response: str) -> PromptSet:
    if entry.form:
        what = f"{entry.form.path} of {entry.address}, as it is"
    else:
        what = f"one JSON object a line with `prompt` and `label`; from {entry.address}"
    by_hand = f"put {entry.file} ({what}) into the folder that the environment variable {DATA_VARIABLE} names"
    doubt = DOUBTS[entry.checked]
    if entry.hub is None:
        raise DataError(
            f"{entry.name} is not at hand: {by_hand} (the hub has no copy of it that the catalogue can read{doubt})."
        )
    hub = entry.hub
    provenance = Provenance(name=entry.name, address=hub.name, licence=entry.licence, note=entry.note)
    try:
        return PromptSet.from_hub(
            hub.name,
            config=hub.config,
            split=hub.split,
            columns=hub.reading(response),
            provenance=provenance,
        )
    except DataError as error:
        raise DataError(
            f"{entry.name} is not at hand: {by_hand}, or download it from the hub, where {hub.name} could not be read "
            f"just now ({type(error.__cause__ or error).__name__}{doubt})."
        ) from error
