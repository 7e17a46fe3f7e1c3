"""Who writes and moderates prompts: a model behind an OpenAI-compatible address, or a local policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from discernment.files import content_hash, encodable
from discernment.models.endpoint import Ending, Endpoint, address

if TYPE_CHECKING:
    from discernment.models.model_spec import ModelSpec
    from discernment.policies.policy import Policy
    from discernment.policies.policy_spec import PolicySpec

ADVICE = "lower `max_tokens` or `moderation_max_tokens`, or take a model that reads more"


class Sampling(NamedTuple):
    """How answers are drawn; at temperature 0 the likeliest token is taken."""

    temperature: float
    max_tokens: int
    seed: int = 0


class Answer(NamedTuple):
    """What a model answered.

    Attributes:
        text: The answer; empty where the model refused through the endpoint's own means.
        finished: Whether it ended by itself, not at the token cap or at a filter.
        failure: Why there is no answer at all; None where there is one.
    """

    text: str
    finished: bool = True
    failure: str | None = None


class ChatModel(Protocol):
    """Answers questions; add another by giving it these three members."""

    @property
    def name(self) -> str:
        """What to call it in files."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the model could answer otherwise; answers are kept under it."""

    def ask(self, questions: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield `(position of the question, answer)` as the answers come, in any order."""


class EndpointModel:
    """A model behind an OpenAI-compatible address.

    Args:
        model: Its name at the endpoint.
        base_url: The endpoint; OpenAI's own, or `OPENAI_BASE_URL`, without one.
        api_key: The key; `OPENAI_API_KEY` without one.
        concurrency: Questions asked at once.
        retries: How often a failed question is repeated, with growing pauses of random length.
        timeout: Seconds without a byte before an attempt fails.

    Raises:
        RecipeError: If the extra `judges` is not installed, or there is no key.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        self.name = model
        self.base_url = address(base_url)
        self.concurrency = concurrency
        self._endpoint = Endpoint(model, self.base_url, api_key, retries, timeout)

    @property
    def fingerprint(self) -> str:
        """Changes with the model's name and the endpoint."""
        return content_hash(["endpoint", self.name, self.base_url])

    def ask(self, questions: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield the answers as they come."""
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        try:
            running = {pool.submit(self._answer, text, sampling): n for n, text in enumerate(questions)}
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, no question that has not begun

    def _answer(self, question: str, sampling: Sampling) -> Answer:
        try:
            reply = self._endpoint.ask(
                [{"role": "user", "content": encodable(question)}],
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
            )
            return Answer(reply.text, finished=reply.ending is Ending.WHOLE)
        except Exception as error:  # whatever an endpoint does, the other questions go on
            return Answer("", failure=self._endpoint.in_words(error))


class PolicyModel:
    """A local policy.

    Args:
        policy: The policy.
        fingerprint: What answers are kept under; it must change with the model.
        batch_size: Questions answered side by side.
    """

    def __init__(self, policy: Policy, fingerprint: str, *, batch_size: int = 8) -> None:
        self.policy = policy
        self.batch_size = batch_size
        self._fingerprint = fingerprint

    @classmethod
    def load(cls, spec: PolicySpec | ModelSpec | str, *, batch_size: int = 8) -> PolicyModel:
        """Load a policy to write or moderate prompts.

        Raises:
            ModelError: If it cannot be loaded.
        """
        from discernment.policies.policy import Policy
        from discernment.policies.policy_spec import PolicySpec

        spec = PolicySpec.of(spec)
        return cls(Policy.load(spec), spec.fingerprint(), batch_size=batch_size)

    @property
    def name(self) -> str:
        """The policy's name."""
        return self.policy.name

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model and the batch size, which decides what is drawn."""
        return content_hash(["policy", self._fingerprint, self.batch_size])

    def ask(self, questions: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield the answers batch by batch; what is drawn depends on the batch and the seed alone.

        Raises:
            DataError: If a question and its answer do not fit the model's positions.
        """
        from discernment.policies.context import check_context

        for start in range(0, len(questions), self.batch_size):
            batch = questions[start : start + self.batch_size]
            seed = int(content_hash([sampling.seed, *batch])[:8], 16)
            encoded = self.policy.encode(batch)
            check_context(self.policy, encoded, replies=sampling.max_tokens, advice=ADVICE)
            replies = self.policy.generate(
                encoded,
                sampling.max_tokens,
                temperature=sampling.temperature,
                seed=seed,
                draws=[batch[:n].count(question) for n, question in enumerate(batch)],
            )
            answers = [Answer(reply.text, reply.finished) for reply in replies]
            yield from enumerate(answers, start)
