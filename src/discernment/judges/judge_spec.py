"""How a user names a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from discernment.frozen import Frozen
from discernment.judges.classifier import ClassifierJudge
from discernment.judges.encoder import EncoderJudge, trained_encoder
from discernment.judges.ensemble import EnsembleJudge
from discernment.judges.hub import MINOS, REFUSAL_LABELS, HubClassifierJudge, LlamaGuardJudge, WildGuardJudge
from discernment.judges.keyword import AUTO, KeywordJudge
from discernment.judges.languages import LANGUAGES
from discernment.judges.llm import LlmJudge
from discernment.judges.verdict import Judge, Verdict
from discernment.models.model_spec import KEY_WRITTEN_DOWN, ModelSpec, check_address

Kind = Literal["keywords", "encoder", "classifier", "hub", "wildguard", "llama_guard", "llm", "ensemble"]

REQUIRED: Mapping[Kind, str] = {
    "classifier": "path",
    "hub": "model",
    "llama_guard": "model",
    "llm": "model",
    "ensemble": "judges",
}
FOR_LLM = ("base_url", "structured", "max_tokens", "concurrency", "retries", "timeout", "prices")
OPTIONAL: Mapping[Kind, Sequence[str]] = {
    "keywords": ("language",),
    "encoder": ("path",),
    "hub": ("labels", "template"),
    "wildguard": ("model",),
    "llm": FOR_LLM,
}
WILDGUARD_MODEL = "allenai/wildguard"


class JudgeSpec(Frozen):
    """Which judge, and how it judges. A plain string is read as `{"kind": string}`."""

    kind: Kind = Field("keywords", description="The judge.")
    language: str = Field(
        AUTO, description="keywords: the language of the replies; `auto` finds it out for each of them."
    )
    path: str | None = Field(
        None,
        description="classifier: the file that `discern judges train` wrote. encoder: the folder; the one in the cache without.",
    )
    model: ModelSpec | None = Field(
        None, description="hub, wildguard, llama_guard: the model. llm: its name at the endpoint."
    )
    labels: dict[str, Verdict] | None = Field(
        None, description="hub: which verdict each of its labels means; `refusal` and `non-refusal` without."
    )
    template: str | None = Field(
        None, description="hub: how `{prompt}` and `{completion}` are put before it; Minos's form without."
    )
    base_url: str | None = Field(None, description="llm: the endpoint; OpenAI's, or `OPENAI_BASE_URL`.")
    structured: bool = Field(True, description="llm: ask for structured output.")
    max_tokens: int = Field(512, ge=1, description="llm: token cap of an answer.")
    concurrency: int = Field(8, ge=1, description="llm: questions asked at once.")
    retries: int = Field(5, ge=0, description="llm: how often a failed question is repeated.")
    timeout: float = Field(60.0, gt=0, description="llm: seconds without a byte before an attempt fails.")
    prices: tuple[float, float] | None = Field(
        None, description="llm: of a million input tokens and of a million output tokens."
    )
    judges: tuple[JudgeSpec, ...] | None = Field(
        None, min_length=2, description="ensemble: the judges whose majority counts."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, dict) and "api_key" in value:
            raise ValueError(KEY_WRITTEN_DOWN)
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("language")
    @classmethod
    def _has_phrases(cls, language: str) -> str:
        if language not in (AUTO, *LANGUAGES):
            raise ValueError(f"there are no phrases for it; take `{AUTO}` or one of {', '.join(LANGUAGES)}")
        return language

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return None if url is None else check_address(url)

    @field_validator("template")
    @classmethod
    def _has_both_places(cls, template: str | None) -> str | None:
        if template is None:
            return None
        try:
            filled = template.format(prompt="<prompt>", completion="<completion>")
        except (LookupError, ValueError, AttributeError):
            filled = ""
        if "<prompt>" not in filled or "<completion>" not in filled:
            raise ValueError("it needs the places {prompt} and {completion}; double all other braces")
        return template

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> JudgeSpec:
        needed = REQUIRED.get(self.kind)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"the judge `{self.kind}` needs `{needed}`")
        allowed = ["kind", needed, *OPTIONAL.get(self.kind, ())]
        foreign = [name for name in type(self).model_fields if name in self.model_fields_set - {*allowed}]
        if foreign:
            raise ValueError(f"the judge `{self.kind}` has no option `{'`, `'.join(foreign)}`; leave it out")
        if self.kind == "llm" and self.model is not None and self.model.model_fields_set != {"model"}:
            raise ValueError("the judge `llm` takes only the model's name; the endpoint decides the rest")
        return self

    def build(self, cache: Path | None = None) -> Judge:
        """Make the judge; models are loaded when it first judges.

        Args:
            cache: JSON-lines file for the judgements of LLM judges, so that none is asked for twice.

        Raises:
            DataError: If there is no such classifier or encoder.
            RecipeError: If an LLM judge lacks the extra `judges` or the key.
        """
        model = self.model or ModelSpec(model=WILDGUARD_MODEL)
        match self.kind:
            case "keywords":
                return KeywordJudge(self.language)
            case "encoder":
                return EncoderJudge(Path(self.path).expanduser() if self.path else trained_encoder())
            case "classifier":
                return ClassifierJudge.load(Path(str(self.path)).expanduser())
            case "hub":
                labels = {
                    name.casefold(): verdict for name, verdict in (self.labels or REFUSAL_LABELS).items()
                }
                return HubClassifierJudge(model, labels, self.template or MINOS)
            case "wildguard":
                return WildGuardJudge(model)
            case "llama_guard":
                return LlamaGuardJudge(model)
            case "llm":
                return LlmJudge(model.model, cache=cache, **{name: getattr(self, name) for name in FOR_LLM})
            case "ensemble":
                return EnsembleJudge([judge.build(cache) for judge in self.judges or ()])

    @property
    def asks_an_endpoint(self) -> bool:
        """Whether it, or one of an ensemble, is an LLM judge."""
        return self.kind == "llm" or any(judge.asks_an_endpoint for judge in self.judges or ())

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the judge could judge otherwise; how it is asked (retries, prices) does not matter.

        Raises:
            DiscernmentError: If the judge cannot be made, or its model cannot be found.
        """
        return self.build().fingerprint
