"""What a policy behind an endpoint makes of prompts: asked for side by side, kept one by one, nothing asked twice.

What the endpoint replied is kept, whatever it is; a question that failed is not, so that the same command asks it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from discernment.errors import DataError, DiscernmentError
from discernment.evaluation.rows import Found, Row, Tell, kept_reply
from discernment.keyed_log import KeyedLog
from discernment.models.endpoint import NoReplyError, ask_all
from discernment.policies.draws import seed_of
from discernment.policies.echo import echoed_rejection
from discernment.policies.policy import Completion
from discernment.policies.rejection import OpeningTrie
from discernment.policies.served import Served, ServedPolicy

if TYPE_CHECKING:
    from discernment.evaluation.evaluate import EvaluateOptions

SEEDS = 1 << 31
"""Endpoints take seeds below it."""
NO_ECHO = (400, 404, 405, 422, 501)
"""Statuses by which an endpoint says that it gives no log-probabilities of what it is given."""


def ask_served(
    policy: ServedPolicy,
    rows: Sequence[Row],
    trie: OpeningTrie | None,
    options: EvaluateOptions,
    out: Path,
    *,
    unscored_limit: float = 1.0,
    tell: Tell,
) -> Found:
    """Ask a policy behind an endpoint; what is in `out` is not asked for again.

    The notes have under `endpoint` what it took: `requests` of this call, replies `kept` from an earlier one, and the
    tokens of all of them as the endpoint counts them; `asked_without` names parameters that it refused.

    Args:
        policy: The policy.
        rows: The prompts, those that are not asked with the reason.
        trie: The refusal openings, if rejection probabilities are asked for and the policy can have them.
        options: How to generate.
        out: Directory of `completions.jsonl` and `rejection.jsonl`.
        unscored_limit: Highest share of a benchmark's replies that may fail or be stopped by a filter; beyond it, no more
            is asked.
        tell: Hears how far it is.

    Raises:
        DataError: If more of them fail, or a file is damaged.
        ModelError: If the endpoint cannot be asked at all, or the tokenizer is not the model's.
    """
    asked = [row for row in rows if row.left_out is None]
    asker = _Asker(policy, asked, options, out / "completions.jsonl", unscored_limit)
    drawn = [(row, draw) for row in asked for draw in range(asker.draws)]
    replies: dict[str, list[dict[str, Any]]] = {row.key: [] for row in asked}
    tell("replies", 0, len(drawn))
    answers = ask_all(lambda item: asker.ask(*item), drawn, policy.options.concurrency)
    for done, ((row, _), reply) in enumerate(zip(drawn, answers, strict=True), start=1):
        replies[row.key].append(reply)
        tell("replies", done, len(drawn))
    asker.check()
    whole = {
        key: first | ({"further": further} if further else {}) for key, (first, *further) in replies.items()
    }
    rejections = _rejections(policy, asked, trie, out / "rejection.jsonl", tell) if trie is not None else {}
    said = [reply for of_prompt in replies.values() for reply in of_prompt]
    usage = {
        "requests": asker.requests,
        "kept": len(drawn) - asker.requests,
        "input_tokens": sum(reply["input_tokens"] for reply in said),
        "output_tokens": sum(reply["tokens"] for reply in said),
    }
    if trie is not None:
        usage["rejection_tokens"] = sum(found.get("tokens", 0) for found in rejections.values())
    tokens = sum(number for what, number in usage.items() if what.endswith("tokens"))
    without = policy.endpoint.refused
    notes: dict[str, Any] = {"endpoint": usage | ({"asked_without": without} if without else {})}
    why = policy.no_rejection if options.rejection else None
    return Found(rows, whole, rejections, tokens, notes | ({"no_rejection": why} if why else {}), why)


class _Asker:
    """Asks one question at a time in each thread, and remembers how many failed."""

    def __init__(
        self, policy: ServedPolicy, rows: Sequence[Row], options: EvaluateOptions, file: Path, limit: float
    ) -> None:
        self.policy = policy
        self.options = options
        self.limit = limit
        self.draws = options.sampling.n if options.sampling else 1
        self.requests = 0
        self._totals = Counter(row.benchmark for row in rows for _ in range(self.draws))
        self._failures: dict[str, list[str]] = {benchmark: [] for benchmark in self._totals}
        self._log = KeyedLog(file, _kept_reply, "is no reply; delete the file to ask anew")
        self._lock = Lock()
        self._ended: DiscernmentError | None = None

    def ask(self, row: Row, draw: int) -> dict[str, Any]:
        """One reply: the kept one, or a new one, or what failed."""
        key = f"{row.key}.{draw}" if draw else row.key
        if key in self._log:
            reply = self._log[key]
        elif self._hopeless():
            return _failed("not asked, because too many replies failed")
        else:
            reply = self._new(key, row)
        if "unscored" in reply:
            with self._lock:
                self._failures[row.benchmark].append(reply["unscored"])
        return reply

    def check(self) -> None:
        """Fail if too much of a benchmark did.

        Raises:
            DataError: If more than the limit failed or was stopped by a filter.
        """
        for benchmark in self._over():
            reasons, total = self._failures[benchmark], self._totals[benchmark]
            most = max(sorted(set(reasons)), key=reasons.count)
            raise DataError(
                f"{len(reasons)} of the {total} replies of {self.policy.name} to {benchmark} could not be had (most often: "
                f"{most}), more than the {self.limit:.1%} that may be unscored; see to the endpoint and give the same "
                "command again, which asks for what failed alone, or raise the limit."
            )

    def _over(self) -> list[str]:
        return [b for b, failed in self._failures.items() if len(failed) > self.limit * self._totals[b]]

    def _hopeless(self) -> bool:
        with self._lock:
            return bool(self._over())

    def _new(self, key: str, row: Row) -> dict[str, Any]:
        if self._ended is not None:
            raise self._ended
        sampling = self.options.sampling
        drawn: dict[str, Any] = {}
        if sampling is not None:
            seed = seed_of([sampling.seed, key]) % SEEDS
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        with self._lock:
            self.requests += 1
        try:
            served = self.policy.ask(row.asked, self.options.max_new_tokens, **drawn)
        except DiscernmentError as error:
            self._ended = error
            raise
        except Exception as error:  # whatever an endpoint does, the other questions go on
            return _failed(f"the endpoint failed ({self.policy.endpoint.in_words(error)})")
        reply = _reply(served)
        self._log.add(key, reply, reply)
        return reply


def _rejections(
    policy: ServedPolicy, rows: Sequence[Row], trie: OpeningTrie, file: Path, tell: Tell
) -> dict[str, dict[str, Any]]:
    """The rejection probability of each prompt by its key, or why there is none."""
    log = KeyedLog(file, _kept_mass, "is no rejection probability; delete the file to ask anew")
    none_at_all: list[str] = []

    def ask(row: Row) -> dict[str, Any]:
        if row.key in log:
            return log[row.key]
        if none_at_all:
            return {"why": none_at_all[0]}
        try:
            mass, tokens = echoed_rejection(policy, row.asked, trie)
        except DiscernmentError:
            raise
        except Exception as error:  # whatever an endpoint does, the other questions go on
            words = policy.endpoint.in_words(error)
            why = f"the endpoint gave no log-probabilities of the refusal openings ({words})"
            if isinstance(error, NoReplyError) or getattr(error, "status_code", None) in NO_ECHO:
                none_at_all.append(why)
            return {"why": why}
        found = {"rejection_probability": mass, "tokens": tokens}
        log.add(row.key, found, found)
        return found

    what, answers = "rejection probabilities", {}
    tell(what, 0, len(rows))
    asked = ask_all(ask, rows, policy.options.concurrency)
    for done, (row, found) in enumerate(zip(rows, asked, strict=True), start=1):
        answers[row.key] = found
        tell(what, done, len(rows))
    return answers


def _reply(served: Served) -> dict[str, Any]:
    unscored = {"unscored": served.unscored} if served.unscored else {}
    return {**kept_reply(served.completion), "input_tokens": served.input_tokens, **unscored}


def _failed(reason: str) -> dict[str, Any]:
    return _reply(Served(Completion("", True, 0), unscored=reason))  # nothing was cut at the cap


def _kept_reply(row: Mapping[str, Any]) -> dict[str, Any]:
    """A reply that was kept; raises `KeyError` or `TypeError` where it is none."""
    optional = {name: str(row[name]) for name in ("thought", "unscored") if name in row}
    numbers = {name: int(row[name]) for name in ("tokens", "input_tokens")}
    return {"completion": str(row["completion"]), "finished": bool(row["finished"]), **numbers, **optional}


def _kept_mass(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"rejection_probability": float(row["rejection_probability"]), "tokens": int(row["tokens"])}
