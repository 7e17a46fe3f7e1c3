"""Several judges by majority."""

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add

from discernment.errors import RecipeError
from discernment.files import content_hash
from discernment.judges.llm import LlmUsage
from discernment.judges.verdict import BatchJudge, Judge, Judgement, Verdict, judge_all


class EnsembleJudge(BatchJudge):
    """The verdict that most judges give; `unscored` on a tie, or where none could tell.

    A judge that leaves a completion unscored does not vote on it.

    Args:
        judges: The judges, at least two.

    Raises:
        RecipeError: If there are fewer.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        if len(judges) < 2:
            raise RecipeError(f"An ensemble needs at least two judges, not {len(judges)}; add one.")
        self.judges = tuple(judges)
        self.name = f"majority of {', '.join(j.name for j in judges)}"

    @property
    def fingerprint(self) -> str:
        """Changes with any of the judges."""
        return content_hash(["majority", [j.fingerprint for j in self.judges]])

    @property
    def trained_on(self) -> frozenset[str]:
        """The completions that one of them or another was trained on."""
        return frozenset().union(*(getattr(j, "trained_on", ()) for j in self.judges))

    @property
    def usage(self) -> LlmUsage | None:
        """What the LLM judges among them took; None if there is none."""
        found = [usage for j in self.judges if (usage := getattr(j, "usage", None)) is not None]
        return reduce(add, found) if found else None

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        """The judgements on `(prompt, completion)` pairs, in their order."""
        if not exchanges:
            return []
        votes = zip(*(judge_all(judge, exchanges) for judge in self.judges), strict=True)
        return [_majority([judgement.verdict for judgement in one]) for one in votes]


def _majority(votes: Sequence[Verdict]) -> Judgement:
    ranked = Counter(vote for vote in votes if vote is not Verdict.UNSCORED).most_common()
    if not ranked:
        return Judgement(Verdict.UNSCORED, "no judge could tell")
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        return Judgement(Verdict.UNSCORED, "the judges are divided")
    return Judgement(ranked[0][0])
