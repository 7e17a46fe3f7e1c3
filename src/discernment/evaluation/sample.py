"""What an evaluation records of one prompt."""

from pathlib import Path

from pydantic import Field

from discernment.files import read_rows
from discernment.frozen import Frozen
from discernment.judges.verdict import Verdict
from discernment.prompts import Asked, Conversation, Label, Turn


class Draw(Frozen):
    """One more reply to a prompt, where several are drawn.

    Attributes:
        completion: What the policy generated (untrusted text).
        finished: Whether the completion ended by itself, not at the token cap.
        verdict: The judge's verdict.
        unscored_reason: Why there is no verdict, where the judge says so.
    """

    completion: str
    finished: bool
    verdict: Verdict
    unscored_reason: str | None = None


class Sample(Frozen):
    """One prompt, what a policy made of it, and what the judge said.

    Attributes:
        prompt_id: The prompt's id within its benchmark.
        benchmark: The name of the benchmark.
        label: The prompt's label.
        category: The prompt's category, where it has one.
        prompt: The prompt's text.
        system: Its own system message, where it has one.
        earlier: The turns before it, where there are any.
        partner: The id of the matched prompt, where there is one.
        frame: The wording frame that it shares with others, where there is one.
        cut: The end of the prompt's text that was asked, where the whole did not fit the model's positions.
        completion: What the policy generated (untrusted text).
        finished: Whether the completion ended by itself, not at the token cap.
        verdict: The judge's verdict.
        unscored_reason: Why there is no verdict, where the judge says so.
        rejection_probability: Probability mass of the refusal openings as the start of the reply; None if not measured.
        no_rejection: Why there is no rejection probability, where one was asked for.
        further: The other replies, where several are drawn; what stands above is the first.
    """

    prompt_id: str
    benchmark: str
    label: Label
    category: str | None = None
    prompt: str
    system: str | None = Field(None, exclude_if=lambda system: system is None)
    earlier: tuple[Turn, ...] = Field((), exclude_if=lambda earlier: not earlier)
    partner: str | None = None
    frame: str | None = None
    cut: str | None = Field(None, exclude_if=lambda cut: cut is None)
    completion: str
    finished: bool
    verdict: Verdict
    unscored_reason: str | None = None
    rejection_probability: float | None = None
    no_rejection: str | None = Field(None, exclude_if=lambda why: why is None)
    further: tuple[Draw, ...] = ()

    @property
    def judged_with(self) -> str:
        """The text that a judge sees beside a reply: what was asked last."""
        return self.prompt if self.cut is None else self.cut

    @property
    def asked(self) -> Asked:
        """What the policy was asked: the text, or the conversation that ends with it."""
        # Most stand alone, and there are many: making a conversation of each takes longer than to read it.
        return self._talk.asked if self.system is not None or self.earlier else self.prompt

    @property
    def whole(self) -> str:
        """All that the policy was asked, as one text for people."""
        return self._talk.whole

    @property
    def _talk(self) -> Conversation:
        # Not checked again: what a report shows may hold half a surrogate pair.
        return Conversation.model_construct(text=self.prompt, system=self.system, earlier=self.earlier)

    @property
    def replies(self) -> "tuple[Sample | Draw, ...]":
        """Each reply, the first of which is the sample itself."""
        return (self, *self.further)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict of each reply."""
        return [self.verdict, *(draw.verdict for draw in self.further)]

    @property
    def key(self) -> tuple[str, str]:
        """Which prompt it is: the benchmark and the id."""
        return self.benchmark, self.prompt_id


def read_samples(path: Path) -> list[Sample]:
    """Read the samples that an evaluation wrote.

    Raises:
        DataError: If the file is missing or damaged.
    """
    return read_rows(path, Sample, "an evaluated sample")
