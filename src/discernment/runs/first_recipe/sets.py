"""Which prompts go where in a first recipe: the user's own first, the starter set where these are missing or too few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discernment.errors import DataError
from discernment.files import read_yaml
from discernment.prompts import (
    HARMLESS,
    Label,
    PromptSet,
    PromptSource,
    Split,
    catalogue,
    load_source,
    load_sources,
)
from discernment.prompts.catalogue import data_folder
from discernment.runs.built_in import built_in
from discernment.runs.first_recipe.folder import OwnPrompts

LEAST_TO_CONTRAST = 16
"""Fewer prompts of a side teach what these few are about."""
LEAST_TO_VALIDATE = 4
PUBLIC_LIMIT = 50
WITH_REPLY = {"response_begins": ""}
"""Keeps the prompts that have a reply, however it begins."""

Source = Mapping[str, Any]


class Sizes(NamedTuple):
    """How much is trained and evaluated; the defaults are those of the recipe `quickstart`.

    Attributes:
        general: Benign examples of stage 2.
        safety: Toxic examples of stage 2, with refusals.
        augmentation: Seemingly toxic examples of `stl_aug` and `dcr`.
        steps: Steps of stage 1.
        share: Of the test prompts.
    """

    general: int = 160
    safety: int = 96
    augmentation: int = 40
    steps: int = 100
    share: float = 1.0

    def scaled(self, share: float) -> Sizes:
        """A shorter stage 1 and fewer test prompts.

        Stage 2 stays: on half of it, a small model does not learn to refuse, and there is nothing to compare.
        """
        return self._replace(steps=max(1, round(share * self.steps)), share=share)


class Entry(NamedTuple):
    """One entry of a recipe's `data`, or one of its benchmarks.

    Attributes:
        name: Its key, or the benchmark's name.
        sources: The sets.
        reason: Why these.
    """

    name: str
    sources: Sequence[Source]
    reason: str

    def load(self) -> PromptSet:
        """Read the prompts."""
        sources = [
            PromptSource.model_validate({k: v for k, v in s.items() if k != "name"}) for s in self.sources
        ]
        return load_sources(sources, self.name)


class _Kind(NamedTuple):
    """What stage 2 learns of one kind of prompts, and from where it is filled up."""

    label: Label
    what: str
    starter: Source


KINDS: Mapping[str, _Kind] = {
    "general": _Kind(
        Label.BENIGN, "benign prompts with answers", {"set": "starter/benign", "split": "train"}
    ),
    "safety": _Kind(Label.TOXIC, "toxic prompts with refusals", {"set": "starter/toxic", "split": "train"}),
    "augmentation": _Kind(
        Label.SEEMINGLY_TOXIC,
        "seemingly toxic prompts with answers, for `stl_aug` and `dcr`",
        {"set": "starter/pairs", "split": "train", "label": "seemingly_toxic"},
    ),
}
STARTER_CONTRAST: Sequence[Source] = [
    {"set": f"starter/{name}", "split": "train"} for name in ("pairs", "toxic", "benign")
]
STARTER_VALIDATION: Source = {"set": "starter/pairs", "split": "validation"}


def training_sets(own: OwnPrompts | None, file: Path, sizes: Sizes) -> list[Entry]:
    """The entries of `data`.

    Args:
        own: The user's prompts, if there are any.
        file: Where they will be.
        sizes: How many are wanted.
    """
    wanted = {"general": sizes.general, "safety": sizes.safety, "augmentation": sizes.augmentation}
    entries = [_examples(name, own, file, count) for name, count in wanted.items()]
    return [*entries, _contrast(own, file), _validation(own, file)]


def _examples(name: str, own: OwnPrompts | None, file: Path, wanted: int) -> Entry:
    kind = KINDS[name]
    count = len(own.of(Split.TRAIN, kind.label, replies=True)) if own else 0
    sources: list[Source] = []
    if count:
        mine = {"set": str(file), "split": "train", "label": str(kind.label), **WITH_REPLY}
        sources.append({**mine, "limit": min(count, wanted)})
    if count < wanted:
        sources.append({**kind.starter, "limit": wanted - count})
    if own is None:
        reason = f"Stage 2, {kind.what}: those that come along, since no --data was given."
    elif not count:
        reason = f"Stage 2, {kind.what}: of your own none can be learned from, so these come along."
    else:
        filled = f", filled up to {wanted} with those that come along" if count < wanted else ""
        reason = f"Stage 2, {kind.what}: {min(count, wanted)} of your own{filled}."
    return Entry(name, sources, reason)


def _contrast(own: OwnPrompts | None, file: Path) -> Entry:
    matched = (
        "Stage 1 sets labels against each other; pairs of one wording leave it nothing but the harm to tell."
    )
    if own is None:
        return Entry("contrast", STARTER_CONTRAST, matched)
    sides = [len(own.of(Split.TRAIN, *labels)) for labels in ((Label.TOXIC,), HARMLESS)]
    if min(sides) < LEAST_TO_CONTRAST:
        return Entry(
            "contrast",
            STARTER_CONTRAST,
            f"{matched} Yours are left out: with {sides[0]} toxic and {sides[1]} other training prompts (at least "
            f"{LEAST_TO_CONTRAST} each) it would learn where a prompt comes from.",
        )
    mine: Source = {"set": str(file), "split": "train"}
    return Entry(
        "contrast",
        [mine, *STARTER_CONTRAST],
        f"{matched} Yours ({sides[0]} toxic, {sides[1]} others) stand beside those that come along: sources take turns, so "
        "that none stands for its label.",
    )


def _validation(own: OwnPrompts | None, file: Path) -> Entry:
    sources, whose = [STARTER_VALIDATION], "pairs that come along"
    if own is not None:
        toxic = own.of(Split.VALIDATION, Label.TOXIC)
        others = own.of(Split.VALIDATION, *HARMLESS)
        if min(len(toxic), len(others)) >= LEAST_TO_VALIDATE:
            sources = [{"set": str(file), "split": "validation"}, STARTER_VALIDATION]
            whose = "yours, and pairs that come along"
    return Entry(
        "contrast_validation",
        sources,
        f"By these a layer is chosen and stage 1 is watched, never by a test: {whose}.",
    )


def test_sets(own: OwnPrompts | None, file: Path, share: float) -> tuple[list[Entry], list[str]]:
    """The benchmarks, and public sets that are in the data folder and cannot be used, with the reason.

    Args:
        own: The user's prompts, if there are any.
        file: Where they will be.
        share: Of the test prompts.
    """
    found = []
    if own is not None and (test := own.of(Split.TEST, *Label)):
        mine: Source = {"name": "own prompts", "set": str(file), "split": "test"}
        found.append(Entry("own prompts", [mine], f"Your own held-out prompts: {len(test)} ({own.split})."))
    for name, why in (
        ("pairs", "Frames and key words that no training prompt has, one half toxic."),
        ("benign", "What nobody should refuse."),
    ):
        source = {"name": f"starter {name}", "set": f"starter/{name}", "split": "test"}
        found.append(Entry(f"starter {name}", [source], why))
    public, unusable = _public_sets()
    entries = [_limited(entry, share) for entry in [*found, *public]]
    return entries, unusable


def _public_sets() -> tuple[list[Entry], list[str]]:
    """The benchmarks of the recipe `public` whose files are in the data folder."""
    folder = data_folder()
    if folder is None:
        return [], []
    entries, unusable = [], []
    for source in read_yaml(built_in()["public"].path.read_text(encoding="utf-8"))["evaluate"]["benchmarks"]:
        known = catalogue()[source["set"]]
        if known.file_in(folder) is None:
            continue
        try:
            load_source(PromptSource.model_validate({k: v for k, v in source.items() if k != "name"}))
        except DataError as error:
            unusable.append(f"{source['set']}: {error}")
            continue
        limited = {**source, "limit": min(source.get("limit", PUBLIC_LIMIT), PUBLIC_LIMIT)}
        reason = f"{known.title}, which your DISCERNMENT_DATA has; a sample, to keep the run short."
        entries.append(Entry(source["name"], [limited], reason))
    return entries, unusable


def _limited(entry: Entry, share: float) -> Entry:
    if share >= 1:
        return entry
    source = entry.sources[0]
    count = source.get("limit") or len(entry.load())
    limit = max(min(count, 20), round(share * count))
    return Entry(
        entry.name, [{**source, "limit": limit}], f"{entry.reason} {limit} of {count}, to keep to the time."
    )
