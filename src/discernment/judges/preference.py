"""Which of two replies is better: what a judge of that offers, and a language model as one."""

from typing import Any, Literal, Protocol

from discernment.files import packaged_yaml
from discernment.judges.coded import CodedJudge
from discernment.models.endpoint import Ending

Preference = Literal["a", "b", "tie", "unscored"]
"""The better of two replies; `unscored` where the judge could not tell or failed."""

QUESTION = packaged_yaml("discernment.judges", "questions.yaml")["preference"]
ANSWERS: tuple[Preference, ...] = ("a", "b", "tie")


class PreferenceJudge(Protocol):
    """Says which of two replies is better; add another by giving it these three members."""

    @property
    def name(self) -> str:
        """Short name for tables and files."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the judge could judge otherwise; answers are kept under it."""

    def compare(self, prompt: str, a: str, b: str) -> Preference:
        """Which reply to `prompt` is better; may be called from several threads."""


class LlmPreferenceJudge(CodedJudge):
    """Asks a language model which reply is better; for its arguments see `CodedJudge`.

    Attributes:
        trouble: Why it last could not tell; None as long as it could.
    """

    kind = "llm-preference"
    instruction, material = QUESTION["instruction"], QUESTION["material"]
    form, key, answers = "preference", "better", ANSWERS

    def __init__(self, model: str, **endpoint: Any) -> None:
        super().__init__(model, **endpoint)
        self.trouble: str | None = None

    def compare(self, prompt: str, a: str, b: str) -> Preference:
        """The model's preference; `unscored` if the endpoint fails, refuses, or answers what cannot be read."""
        try:
            reply, said = self._asked(prompt=prompt, a=a, b=b)
        except Exception as error:  # whatever an endpoint does, the other questions go on
            self.trouble = f"the endpoint failed ({self._endpoint.in_words(error)})"
            return "unscored"
        believed = said if reply.ending is Ending.WHOLE else None
        if believed is None:
            how = "cannot be read" if reply.ending is Ending.WHOLE else f"was {reply.ending}"
            self.trouble = f"the judge's answer {how}"
        return next((preference for preference in ANSWERS if preference == believed), "unscored")
