"""Which of these models refuses what it should, and only that?

The names below are the Python API. Each is imported when it is first asked for, so that `import discernment` stays
fast: the training and evaluation functions need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discernment.alignment.supervised import AlignOptions, align
    from discernment.diagnosis.rejection import rejection_probability
    from discernment.errors import DiscernmentError
    from discernment.evaluation.evaluate import EvaluateOptions, evaluate
    from discernment.evaluation.judges import KeywordJudge
    from discernment.evaluation.sample import read_samples
    from discernment.evaluation.summary import summarize
    from discernment.models.policy import Policy
    from discernment.models.spec import ModelSpec
    from discernment.prompts import Label, Prompt, PromptSet, PromptSource, load_source, load_sources
    from discernment.refinement.trainer import RefineOptions, refine
    from discernment.reporting.report import write_report
    from discernment.runs.recipe import Recipe, read_recipe
    from discernment.runs.run import run_recipe

__version__ = "0.1.0"

__all__ = [
    "AlignOptions",
    "DiscernmentError",
    "EvaluateOptions",
    "KeywordJudge",
    "Label",
    "ModelSpec",
    "Policy",
    "Prompt",
    "PromptSet",
    "PromptSource",
    "Recipe",
    "RefineOptions",
    "__version__",
    "align",
    "evaluate",
    "load_source",
    "load_sources",
    "read_recipe",
    "read_samples",
    "refine",
    "rejection_probability",
    "run_recipe",
    "summarize",
    "write_report",
]

_HOMES = {
    "AlignOptions": "alignment.supervised",
    "DiscernmentError": "errors",
    "EvaluateOptions": "evaluation.evaluate",
    "KeywordJudge": "evaluation.judges",
    "Label": "prompts",
    "ModelSpec": "models.spec",
    "Policy": "models.policy",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "PromptSource": "prompts",
    "Recipe": "runs.recipe",
    "RefineOptions": "refinement.trainer",
    "align": "alignment.supervised",
    "evaluate": "evaluation.evaluate",
    "load_source": "prompts",
    "load_sources": "prompts",
    "read_recipe": "runs.recipe",
    "read_samples": "evaluation.sample",
    "refine": "refinement.trainer",
    "rejection_probability": "diagnosis.rejection",
    "run_recipe": "runs.run",
    "summarize": "evaluation.summary",
    "write_report": "reporting.report",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
