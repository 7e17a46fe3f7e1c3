"""Judges: what a completion is, a refusal or an answer."""

from discernment.evaluation.judges.classifier import ClassifierJudge, train_classifier
from discernment.evaluation.judges.ensemble import EnsembleJudge
from discernment.evaluation.judges.hub import HubClassifierJudge, LlamaGuardJudge, WildGuardJudge
from discernment.evaluation.judges.judge import (
    BatchJudge,
    Judge,
    Judgement,
    check_unscored,
    judge_all,
    unscored_rate,
)
from discernment.evaluation.judges.keyword import KeywordJudge
from discernment.evaluation.judges.llm import LlmJudge, LlmUsage
from discernment.evaluation.judges.spec import JudgeSpec

__all__ = [
    "BatchJudge",
    "ClassifierJudge",
    "EnsembleJudge",
    "HubClassifierJudge",
    "Judge",
    "JudgeSpec",
    "Judgement",
    "KeywordJudge",
    "LlamaGuardJudge",
    "LlmJudge",
    "LlmUsage",
    "WildGuardJudge",
    "check_unscored",
    "judge_all",
    "train_classifier",
    "unscored_rate",
]
