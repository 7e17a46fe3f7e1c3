"""Making seemingly toxic prompts: seeds, rewrites, moderation by an ensemble (after OR-Bench, Cui et al., ICML 2025)."""

from discernment.evaluation.synthesis.chat_models import (
    Answer,
    ChatModel,
    EndpointModel,
    PolicyModel,
    Sampling,
)
from discernment.evaluation.synthesis.options import GenerateOptions, GenerateSummary
from discernment.evaluation.synthesis.pipeline import generate_prompts

__all__ = [
    "Answer",
    "ChatModel",
    "EndpointModel",
    "GenerateOptions",
    "GenerateSummary",
    "PolicyModel",
    "Sampling",
    "generate_prompts",
]
