"""Which of two replies is better: what a judge of that offers, and a language model as one."""

from typing import Literal, Protocol

from discernment.files import packaged_yaml
from discernment.judges.coded import CodedJudge
from discernment.judges.endpoint import was_cut

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
    """Asks a language model which reply is better; for its arguments see `CodedJudge`."""

    kind = "llm-preference"
    instruction, material = QUESTION["instruction"], QUESTION["material"]
    form, key, answers = "preference", "better", ANSWERS

    def compare(self, prompt: str, a: str, b: str) -> Preference:
        """The model's preference; `unscored` if the endpoint fails, refuses, or answers what cannot be read."""
        try:
            answer, said = self._asked(prompt=prompt, a=a, b=b)
            choice = answer.choices[0]
        except Exception:  # whatever an endpoint does, the other questions go on
            return "unscored"
        if choice.message.refusal or was_cut(answer):
            return "unscored"
        return next((preference for preference in ANSWERS if preference == said), "unscored")
