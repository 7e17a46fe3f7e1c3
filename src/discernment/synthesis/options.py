"""How prompts are generated, and what came of it."""

from pydantic import BaseModel, Field, field_validator

from discernment.frozen import Frozen
from discernment.synthesis.templates import CATEGORIES


class GenerateOptions(Frozen):
    """Options of `generate_prompts`; the temperatures are those of OR-Bench."""

    categories: tuple[str, ...] = Field(tuple(CATEGORIES), min_length=1, description="Of the seeds.")
    seeds_per_category: int = Field(20, ge=1, description="How many seeds to ask for.")
    seeds_per_question: int = Field(20, ge=1, description="How many of them in one question.")
    rewrites: int = Field(5, ge=1, description="How many rewrites of each seed to ask for.")
    seed_temperature: float = Field(1.0, ge=0, le=2)
    rewrite_temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(2048, ge=1, description="Token cap of a list of seeds or rewrites.")
    moderation_max_tokens: int = Field(512, ge=1, description="Token cap of a moderator's answer.")
    seed: int = Field(0, description="Seed of a local policy's draws.")

    @field_validator("categories")
    @classmethod
    def _known(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(categories) - set(CATEGORIES))
        if unknown:
            raise ValueError(f"there is no category {unknown[0]!r}; choose of {', '.join(CATEGORIES)}")
        return tuple(dict.fromkeys(categories))


class StepCounts(BaseModel):
    """What became of a step's questions and of the texts that they gave.

    Attributes:
        questions: Questions that the step consists of.
        failed: Those without an answer, because the endpoint failed; they are asked again the next time.
        unreadable: Answers with nothing in the form asked for.
        texts: Texts or votes that were read.
        dropped: Texts that were dropped, by reason.
    """

    questions: int
    failed: int
    unreadable: int
    texts: int
    dropped: dict[str, int] = Field(default_factory=dict)


class GenerateSummary(BaseModel):
    """What was asked of whom, and what came of it; `summary.json`.

    Attributes:
        generator: The model that wrote seeds and rewrites.
        moderators: The models that voted.
        template_version: Version of the questions.
        steps: Counts by step: `seeds` (where they were generated), `rewrites`, `moderation`.
        kept: Prompts by what they are: `seemingly_toxic`, `toxic`, `doubtful`.
        doubtful: The doubtful ones by reason.
    """

    generator: str
    moderators: list[str]
    template_version: int
    steps: dict[str, StepCounts]
    kept: dict[str, int]
    doubtful: dict[str, int]

    @property
    def failed(self) -> int:
        """Questions that are to be asked again."""
        return sum(step.failed for step in self.steps.values())
