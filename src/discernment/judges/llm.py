"""A language model behind an OpenAI-compatible address as judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from discernment.files import content_hash, encodable, packaged_yaml
from discernment.judges.coded import CodedJudge
from discernment.judges.verdict import BatchJudge, Judgement, Verdict
from discernment.keyed_log import KeyedLog
from discernment.models.endpoint import Ending, Reply, ask_all

VERDICTS = (Verdict.REFUSAL, Verdict.PARTIAL_REFUSAL, Verdict.COMPLIANCE)
QUESTION = packaged_yaml("discernment.judges", "questions.yaml")["verdict"]
PER = 1_000_000


@dataclass
class LlmUsage:
    """What judging took since the judge was made.

    Attributes:
        requests: Judgements that were asked for.
        from_cache: Judgements that were known already.
        input_tokens: As the endpoint counts them.
        output_tokens: As the endpoint counts them.
        cost: In the currency of the prices; None without prices, and where a reply came without a count of tokens.
    """

    requests: int = 0
    from_cache: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None

    def __add__(self, other: LlmUsage) -> LlmUsage:
        """What two judges took together; the cost is known only if that of both is."""
        return LlmUsage(
            self.requests + other.requests,
            self.from_cache + other.from_cache,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            None if self.cost is None or other.cost is None else self.cost + other.cost,
        )


class LlmJudge(CodedJudge, BatchJudge):
    """Asks a language model for a verdict.

    A failed connection, a refusal to judge, or an answer that is cut or cannot be read gives `unscored` with the
    reason. Answers are kept; failures are not, so that judging again asks for those alone.

    Args:
        model: The model's name at the endpoint.
        cache: JSON-lines file for the judgements.
        concurrency: Questions asked at once.
        prices: Of a million input tokens and of a million output tokens.
        endpoint: Where and how to ask: the other arguments of `CodedJudge`.

    Raises:
        RecipeError: If the extra `judges` is not installed, or there is no key.
    """

    kind = "llm"
    instruction, material = QUESTION["instruction"], QUESTION["material"]
    form, key, answers = "judgement", "verdict", VERDICTS

    def __init__(
        self,
        model: str,
        *,
        cache: Path | None = None,
        concurrency: int = 8,
        prices: tuple[float, float] | None = None,
        **endpoint: Any,
    ) -> None:
        super().__init__(model, **endpoint)
        self.concurrency = concurrency
        self.prices = prices
        self.usage = LlmUsage(cost=0.0 if prices else None)
        self._counted = True
        self._cache = KeyedLog(
            cache,
            lambda row: Judgement(Verdict(row["verdict"]), row["reason"]),
            "is no judgement; delete the file to judge anew",
        )
        self._lock = Lock()

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        """The judgements on `(prompt, completion)` pairs, in their order; equal pairs are asked for once."""
        exchanges = [(encodable(prompt), encodable(completion)) for prompt, completion in exchanges]
        keys = [content_hash([self.fingerprint, *exchange]) for exchange in exchanges]
        unknown = {k: e for k, e in zip(keys, exchanges, strict=True) if k not in self._cache}
        self.usage.from_cache += sum(key in self._cache for key in keys)
        asked = ask_all(lambda item: self._ask(item[0], *item[1]), unknown.items(), self.concurrency)
        found = dict(zip(unknown, asked, strict=True))
        return [found[key] if key in found else self._cache[key] for key in keys]

    def _ask(self, key: str, prompt: str, completion: str) -> Judgement:
        try:
            with self._lock:
                self.usage.requests += 1
            reply, said = self._asked(prompt=prompt, completion=completion)
            self._count(reply.input_tokens, reply.output_tokens)
            judgement = _read(reply, said)
        except Exception as error:  # whatever an endpoint does, the other questions go on
            return Judgement(Verdict.UNSCORED, f"the endpoint failed ({self._endpoint.in_words(error)})")
        row = {"verdict": judgement.verdict.value, "reason": judgement.reason}
        self._cache.add(key, judgement, row)
        return judgement

    def _count(self, input_tokens: int, output_tokens: int) -> None:
        with self._lock:
            usage = self.usage
            usage.input_tokens += input_tokens
            usage.output_tokens += output_tokens
            self._counted &= input_tokens > 0
            if not self._counted:
                usage.cost = None
            elif self.prices is not None:
                price_in, price_out = self.prices
                usage.cost = (usage.input_tokens * price_in + usage.output_tokens * price_out) / PER


def _read(reply: Reply, said: str | None) -> Judgement:
    """The verdict of a reply that ended by itself and said something that can be believed."""
    if reply.ending is Ending.REFUSED:
        return Judgement(Verdict.UNSCORED, "the judge refused to judge")
    if reply.ending is Ending.CUT:
        return Judgement(Verdict.UNSCORED, "the judge's answer was cut")
    if said is None:
        return Judgement(Verdict.UNSCORED, "the judge's answer cannot be read")
    return Judgement(Verdict(said))
