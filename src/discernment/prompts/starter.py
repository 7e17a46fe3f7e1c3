"""The prompt sets that come along, written for this project: matched pairs, toxic prompts, benign instructions.

The files in `starter/` are data; this module gives them their form and says what is wrong where they break it.

    starter/pairs    frames with one slot, filled so that the prompt is harmless, and so that it is not
    starter/toxic    further toxic prompts with a safe refusal
    starter/benign   everyday instructions with a short answer
    starter/forms    matched pairs in six forms of writing, both sides with a response; the split is by form
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import resources
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from discernment.errors import DataError
from discernment.files import plain_yaml
from discernment.frozen import Frozen
from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.prompt_set import PromptSet, Provenance

STARTER_SETS = {
    "starter/pairs": "Matched minimal pairs, seemingly toxic and toxic, in one wording frame each",
    "starter/toxic": "Toxic prompts with safe refusals that give a reason",
    "starter/benign": "Everyday instructions with short good answers",
    "starter/forms": "Matched pairs in six forms of writing, with answers and safe refusals",
}

FORM_SPLITS = {
    "indirect": Split.TRAIN,
    "specific": Split.TRAIN,
    "passage": Split.TRAIN,
    "sentences": Split.TRAIN,
    "reported": Split.VALIDATION,
    "fiction": Split.TEST,
}
"""The forms of writing of `starter/forms`, and the split of each."""

SLOT = "{}"
VALIDATION_SHARE = 0.1

Text = Annotated[str, Field(min_length=1, pattern=r"(?s)^\S(.*\S)?$")]
Form = Literal["question", "imperative"]


class _Prompting(Frozen):
    form: Form
    prompt: Text
    response: Text

    @model_validator(mode="after")
    def _ends_as_its_form(self) -> _Prompting:
        _check_ending(self.prompt, self.form)
        return self


class _Toxic(_Prompting):
    category: Text


class _Benign(_Prompting):
    topic: Text
    split: Split


class _Pair(Frozen):
    safe: Text
    toxic: Text
    answer: Text | None = None


class _Frame(Frozen):
    category: Text
    keyword: Text
    form: Form
    split: Split
    frame: Text
    pairs: list[_Pair] = Field(min_length=4)

    @model_validator(mode="after")
    def _has_one_slot(self) -> _Frame:
        if self.frame.count(SLOT) != 1:
            raise ValueError(f"the frame {self.frame!r} must have the slot {SLOT} exactly once")
        _check_ending(self.frame, self.form)
        return self


class _Written(Frozen):
    category: Text
    safe: Text
    toxic: Text
    answer: Text
    refusal: Text


AnyRow = TypeVar("AnyRow", bound=Frozen)


@cache
def load_starter(name: str) -> PromptSet:
    """Read one of the sets that come along.

    Args:
        name: `starter/pairs`, `starter/toxic`, `starter/benign` or `starter/forms`.

    Raises:
        DataError: If there is no such set, or one of its files breaks its form.
    """
    if name not in STARTER_SETS:
        raise DataError(f"There is no starter set {name!r}; there are {', '.join(STARTER_SETS)}.")
    parsers: dict[str, dict[str, Callable[[str], list[Prompt]]]] = {
        "starter/pairs": {"frames.yaml": parse_pairs},
        "starter/toxic": {"toxic.yaml": parse_toxic},
        "starter/benign": {"benign.yaml": parse_benign},
        "starter/forms": {f"forms/{w}.yaml": partial(parse_forms, written=w) for w in FORM_SPLITS},
    }
    prompts = [prompt for file, parse in parsers[name].items() for prompt in parse(_shipped(file))]
    return PromptSet(prompts, Provenance(name=name, licence="Apache-2.0", note=STARTER_SETS[name]))


def parse_pairs(text: str) -> list[Prompt]:
    """The prompts of a `frames.yaml`: for each pair the seemingly toxic prompt, then the toxic one.

    Raises:
        DataError: If the text breaks the form; the message names the frame.
    """
    return [prompt for frame in _rows(text, _Frame, "frames.yaml") for prompt in _fill(frame)]


def parse_toxic(text: str) -> list[Prompt]:
    """The prompts of a `toxic.yaml`; of each category the same tenth is for validation, the rest for training.

    Raises:
        DataError: If the text breaks the form; the message names the row.
    """
    rows = _rows(text, _Toxic, "toxic.yaml")
    by_category: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_category[row.category].append(row.prompt)
    held_out = {
        prompt
        for of_category in by_category.values()
        for prompt in sorted(of_category, key=_digest)[: round(VALIDATION_SHARE * len(of_category))]
    }
    splits = [Split.VALIDATION if row.prompt in held_out else Split.TRAIN for row in rows]
    return _prompts(Label.TOXIC, rows, [row.category for row in rows], splits)


def parse_benign(text: str) -> list[Prompt]:
    """The prompts of a `benign.yaml`.

    Raises:
        DataError: If the text breaks the form; the message names the row.
    """
    rows = _rows(text, _Benign, "benign.yaml")
    return _prompts(Label.BENIGN, rows, [row.topic for row in rows], [row.split for row in rows])


def parse_forms(text: str, written: str) -> list[Prompt]:
    """The prompts of one file of `forms/`: for each pair the seemingly toxic prompt, then the toxic one.

    The form of writing is the last part of the source, and decides the split.

    Args:
        text: The YAML.
        written: The form of writing, one of `FORM_SPLITS`.

    Raises:
        DataError: If there is no such form, or the text breaks its own; the message names the row.
    """
    if written not in FORM_SPLITS:
        raise DataError(f"There is no form of writing {written!r}; there are {', '.join(FORM_SPLITS)}.")
    seen: Counter[str] = Counter()
    prompts = []
    for row in _rows(text, _Written, f"forms/{written}.yaml"):
        seen[row.category] += 1
        key = f"{written}-{_slug(row.category)}-{seen[row.category]:02d}"
        for side, label, prompt, response in (
            ("safe", Label.SEEMINGLY_TOXIC, row.safe, row.answer),
            ("toxic", Label.TOXIC, row.toxic, row.refusal),
        ):
            prompts.append(
                Prompt(
                    id=f"{key}-{side}",
                    text=prompt,
                    label=label,
                    category=row.category,
                    source=f"starter/forms/{written}",
                    partner=_partner(key, side),
                    split=FORM_SPLITS[written],
                    response=response,
                )
            )
    return prompts


def _shipped(file: str) -> str:
    try:
        return resources.files("discernment.prompts").joinpath("starter", file).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"The installed package lacks prompts/starter/{file} ({error}); install it anew."
        ) from error


def _prompts(
    label: Label, rows: Sequence[_Prompting], categories: Sequence[str], splits: Sequence[Split]
) -> list[Prompt]:
    seen: Counter[str] = Counter()
    prompts = []
    for row, category, split in zip(rows, categories, splits, strict=True):
        seen[category] += 1
        prompts.append(
            Prompt(
                id=f"{label}-{_slug(category)}-{seen[category]:02d}",
                text=row.prompt,
                label=label,
                category=category,
                source=f"starter/{label}/{category}",
                split=split,
                response=row.response,
            )
        )
    return prompts


def _fill(frame: _Frame) -> Iterator[Prompt]:
    for number, pair in enumerate(frame.pairs, start=1):
        key = f"{_slug(frame.category)}-{_slug(frame.keyword)}-{number}"
        for side, label, filler, response in (
            ("safe", Label.SEEMINGLY_TOXIC, pair.safe, pair.answer),
            ("toxic", Label.TOXIC, pair.toxic, None),
        ):
            yield Prompt(
                id=f"{key}-{side}",
                text=frame.frame.replace(SLOT, filler),
                label=label,
                category=frame.category,
                source=f"starter/{frame.category}",
                partner=_partner(key, side),
                frame=frame.frame,
                keyword=frame.keyword,
                split=frame.split,
                response=response,
            )


def _partner(key: str, side: str) -> str:
    return f"{key}-{'toxic' if side == 'safe' else 'safe'}"


def _rows(text: str, form: type[AnyRow], file: str) -> list[AnyRow]:
    try:
        return TypeAdapter(list[form]).validate_python(plain_yaml(text))  # type: ignore[valid-type]
    except yaml.YAMLError as error:
        raise DataError(f"{file} is not YAML ({' '.join(str(error).split())}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f" {part + 1}" if isinstance(part, int) else f" {part}" for part in first["loc"])
        raise DataError(
            f"{file}{', row' if place else ''}{place}: {first['msg'].removeprefix('Value error, ')} "
            f"({error.error_count()} such error(s) in the file)."
        ) from error


def _check_ending(text: str, form: Form) -> None:
    if text.endswith("?") != (form == "question") or not text.endswith(("?", ".")):
        raise ValueError(
            f"{text!r} must end in a question mark if it is a question and in a full stop if not"
        )


def _slug(text: str) -> str:
    return re.sub(r"\W+|_", "-", text.casefold()).strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
