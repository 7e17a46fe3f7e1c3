"""Completions with verdicts: of people, and the starter set that was written with them."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from discernment.errors import DataError
from discernment.files import content_hash, encodable, packaged_yaml, read_json_lines
from discernment.frozen import Frozen
from discernment.judges.verdict import Verdict
from discernment.prompts.catalogue import catalogue, data_folder
from discernment.prompts.tables import kind_of, read_table

OF_PEOPLE = {
    "full_compliance": Verdict.COMPLIANCE,
    "full_refusal": Verdict.REFUSAL,
    "partial_refusal": Verdict.PARTIAL_REFUSAL,
}
NUMBERED = re.compile(r"[123]_(?=full|partial)")
"""What XSTest's own files write before them, as in `1_full_compliance`."""
PUBLIC = "xstest_human_labels"
PROMPTS = "xstest"
STARTER = "starter/verdicts"
STARTER_FILES = (
    "rebukes",
    "answers",
    "small_models",
    "assistants",
    "hedges",
    "plain_answers",
    "languages",
)
"""What the set that comes along is made of, each written apart from the others."""


class LabelledCompletion(BaseModel):
    """A completion and its verdict.

    Attributes:
        prompt: The prompt.
        completion: What a model replied (untrusted text).
        verdict: In a file it is called `label`, and may be written in XSTest's words: `full_refusal`, `partial_refusal`,
            `full_compliance`, with or without their numbers, in any case.
        model: Which model replied.
        category: The prompt's type.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    prompt: str
    completion: str
    verdict: Verdict = Field(alias="label")
    model: str = "unnamed"
    category: str | None = None

    @field_validator("prompt", "completion")
    @classmethod
    def _with_whole_letters(cls, value: str) -> str:
        return encodable(value)

    @field_validator("verdict", mode="before")
    @classmethod
    def _of_people(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        label = NUMBERED.sub("", value.strip().casefold())
        return OF_PEOPLE.get(label, label)

    @property
    def key(self) -> str:
        """Stands for the prompt and the completion."""
        return content_hash([self.prompt, self.completion])[:16]


def read_labelled(source: str) -> list[LabelledCompletion]:
    """Read labelled completions.

    Args:
        source: `starter/verdicts`, `xstest_human_labels`, or a file (JSON lines, JSON, CSV, Parquet) with `prompt`,
            `completion` and `label`, and where known `model` and `category`.

    Raises:
        DataError: If it cannot be found or read.
    """
    if source == STARTER:
        return list(_starter())
    if source != PUBLIC:
        return _read(Path(source).expanduser(), {})
    folder = data_folder()
    if folder is None:
        raise DataError(f"{PUBLIC} lies in the folder that DISCERNMENT_DATA names; set it, or give a file.")
    prompts = folder / catalogue()[PROMPTS].file
    categories = (
        {row["id"]: row["category"] for _, row in read_json_lines(prompts)} if prompts.exists() else {}
    )
    return _read(folder / catalogue()[PUBLIC].file, categories)


class _StarterReply(Frozen):
    prompt: str
    asked: str | None = None
    verdict: Verdict
    style: str
    language: str = "en"
    reply: Annotated[str, Field(min_length=1)]


@cache
def _starter() -> tuple[LabelledCompletion, ...]:
    rows = [
        (file, _StarterReply.model_validate(row))
        for file in STARTER_FILES
        for row in packaged_yaml("discernment.judges", f"starter/{file}.yaml")
    ]
    return tuple(
        LabelledCompletion(
            prompt=row.asked or row.prompt,
            completion=row.reply,
            verdict=row.verdict,
            model=file,
            category=row.style,
        )
        for file, row in rows
    )


def has_public_labels() -> bool:
    """Whether the completions that people labelled lie in the folder that DISCERNMENT_DATA names."""
    return catalogue()[PUBLIC].file_in(data_folder()) is not None


def _read(path: Path, categories: Mapping[str, str]) -> list[LabelledCompletion]:
    found = []
    table = read_table(path, kind_of(path.name) or "json", wanted=("completion",))
    for number, row in table.rows:
        try:
            if isinstance(row.get("id"), str) and row["id"] in categories:
                row = {"category": categories[row["id"]], **row}
            found.append(LabelledCompletion.model_validate(row))
        except ValidationError as error:
            raise DataError(
                f"{path}, {table.unit} {number}, is no labelled completion ({error.errors()[0]['msg']}); it needs "
                "`prompt`, `completion` and `label`."
            ) from error
    if not found:
        raise DataError(f"{path} holds no labelled completions.")
    return found
