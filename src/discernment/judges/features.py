"""What the refusal classifier sees of a completion."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from discernment.judges.keyword import KeywordJudge
from discernment.judges.prose import APOSTROPHES, readable
from discernment.judges.verdict import Verdict

WORD = re.compile(r"[\w']+")
SHORTEST_TOPIC_WORD = 4
TOPIC = "topicword"
OPENING_WORDS = 20
START_WORDS = 40
MANY = 6

VIEWS: dict[str, dict[str, Any]] = {
    "whole": {"token_pattern": WORD.pattern, "ngram_range": (1, 2), "min_df": 2},
    "opening": {"token_pattern": WORD.pattern, "ngram_range": (1, 3), "min_df": 2},
    "start": {"analyzer": "char_wb", "ngram_range": (3, 5), "min_df": 3},
}
"""How each view of a completion is cut into terms (arguments of scikit-learn's `TfidfVectorizer`)."""


def views_of(prompt: str, completion: str) -> dict[str, str]:
    """The texts that the views are made from.

    The longer words of the prompt are masked: a classifier must learn how a reply refuses, not which topics its
    training models refused.
    """
    text = (readable(completion) or "").translate(APOSTROPHES).casefold()
    topic = {
        w for w in WORD.findall(prompt.translate(APOSTROPHES).casefold()) if len(w) >= SHORTEST_TOPIC_WORD
    }
    masked = WORD.sub(lambda word: TOPIC if word[0] in topic else word[0], text)
    words = masked.split()
    return {
        "whole": masked,
        "opening": " ".join(words[:OPENING_WORDS]),
        "start": " ".join(words[:START_WORDS]),
    }


def keyword_features(completions: Sequence[str], judge: KeywordJudge) -> npt.NDArray[np.float64]:
    """What the keyword judge finds, as numbers from 0 to about 1; shape (n, features)."""
    return np.array([_row(completion, judge) for completion in completions], dtype=np.float64)


def _row(completion: str, judge: KeywordJudge) -> list[float]:
    found = judge.signals(completion)
    return [
        found.verdict is Verdict.REFUSAL,
        found.verdict is Verdict.PARTIAL_REFUSAL,
        found.verdict is Verdict.COMPLIANCE,
        found.first_refusal == 0,
        found.first_refusal is not None,
        min(found.refusals, MANY) / MANY,
        found.answers > 0,
        found.alternatives > 0,
        found.listed > 0,
        min(found.listed, MANY) / MANY,
        min(found.sentences, MANY) / MANY,
    ]
