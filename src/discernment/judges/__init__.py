"""Judges: what a completion is, a refusal or an answer."""

from discernment.judges.classifier import ClassifierJudge, train_classifier
from discernment.judges.encoder import EncoderJudge, train_encoder
from discernment.judges.ensemble import EnsembleJudge
from discernment.judges.hub import HubClassifierJudge, LlamaGuardJudge, WildGuardJudge
from discernment.judges.judge_spec import JudgeSpec
from discernment.judges.keyword import KeywordJudge
from discernment.judges.llm import LlmJudge, LlmUsage
from discernment.judges.verdict import BatchJudge, Judge, Judgement, check_unscored, judge_all, unscored_rate

__all__ = [
    "BatchJudge",
    "ClassifierJudge",
    "EncoderJudge",
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
    "train_encoder",
    "unscored_rate",
]
