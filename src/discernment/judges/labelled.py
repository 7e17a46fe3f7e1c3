"""Completions with verdicts that people gave."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from discernment.errors import DataError
from discernment.files import content_hash, read_json_lines
from discernment.judges.verdict import Verdict
from discernment.prompts.catalogue import catalogue, data_folder

OF_PEOPLE = {
    "full_compliance": Verdict.COMPLIANCE,
    "full_refusal": Verdict.REFUSAL,
    "partial_refusal": Verdict.PARTIAL_REFUSAL,
}
PUBLIC = "xstest_human_labels"
PROMPTS = "xstest"


class LabelledCompletion(BaseModel):
    """A completion and the verdict of people.

    Attributes:
        prompt: The prompt.
        completion: What a model replied (untrusted text).
        verdict: What people say of it, in the file as `label`: our verdicts, or XSTest's `full_refusal`,
            `partial_refusal`, `full_compliance`.
        model: Which model replied.
        category: The prompt's type.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    prompt: str
    completion: str
    verdict: Verdict = Field(alias="label")
    model: str = "unnamed"
    category: str | None = None

    @field_validator("verdict", mode="before")
    @classmethod
    def _of_people(cls, value: Any) -> Any:
        return OF_PEOPLE.get(value, value) if isinstance(value, str) else value

    @field_validator("verdict")
    @classmethod
    def _is_given(cls, value: Verdict) -> Verdict:
        if value is Verdict.UNSCORED:
            raise ValueError("a label must be a verdict, not `unscored`")
        return value

    @property
    def key(self) -> str:
        """Stands for the prompt and the completion."""
        return content_hash([self.prompt, self.completion])[:16]


def read_labelled(source: str) -> list[LabelledCompletion]:
    """Read labelled completions.

    Args:
        source: `xstest_human_labels`, or a JSON-lines file with `prompt`, `completion` and `label`, and where known
            `model` and `category`.

    Raises:
        DataError: If it cannot be found or read.
    """
    if source != PUBLIC:
        return _read(Path(source).expanduser(), {})
    folder = data_folder()
    if folder is None:
        raise DataError(
            f"{PUBLIC} lies in the folder that DISCERNMENT_DATA names; set it, or give a JSON-lines file."
        )
    prompts = folder / catalogue()[PROMPTS].file
    categories = (
        {row["id"]: row["category"] for _, row in read_json_lines(prompts)} if prompts.exists() else {}
    )
    return _read(folder / catalogue()[PUBLIC].file, categories)


def _read(path: Path, categories: Mapping[str, str]) -> list[LabelledCompletion]:
    found = []
    for number, row in read_json_lines(path):
        try:
            if isinstance(row, dict) and row.get("id") in categories:
                row = {"category": categories[row["id"]], **row}
            found.append(LabelledCompletion.model_validate(row))
        except ValidationError as error:
            raise DataError(
                f"{path}, line {number}, is no labelled completion ({error.errors()[0]['msg']}); it needs "
                "`prompt`, `completion` and `label`."
            ) from error
    if not found:
        raise DataError(f"{path} holds no labelled completions.")
    return found
