"""Which of these models refuses what it should, and only that?

The names below are the Python API. Each is imported when it is first asked for, so that `import discernment` stays
fast: the training and evaluation functions need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discernment.diagnosis.diagnose import DiagnoseOptions, Diagnosis, diagnose
    from discernment.diagnosis.learning_step import check_learning_step
    from discernment.errors import DiscernmentError
    from discernment.evaluation.evaluate import EvaluateOptions, evaluate
    from discernment.evaluation.sample import read_samples
    from discernment.evaluation.summary import summarize
    from discernment.judges import KeywordJudge
    from discernment.kernel.engine import gradient_kernel
    from discernment.kernel.kernel import KernelOptions
    from discernment.models.model_spec import ModelSpec
    from discernment.policies.policy import Policy
    from discernment.policies.rejection import rejection_probability
    from discernment.prompts import Label, Prompt, PromptSet, PromptSource, load_source, load_sources
    from discernment.reporting.diagnosis import write_diagnosis
    from discernment.reporting.report import write_report
    from discernment.runs.recipe import Recipe, read_recipe
    from discernment.runs.run import run_recipe
    from discernment.training.contrastive import RefineOptions, refine
    from discernment.training.supervised import AlignOptions, align

__version__ = "0.1.0"

__all__ = [
    "AlignOptions",
    "DiagnoseOptions",
    "Diagnosis",
    "DiscernmentError",
    "EvaluateOptions",
    "KernelOptions",
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
    "check_learning_step",
    "diagnose",
    "evaluate",
    "gradient_kernel",
    "load_source",
    "load_sources",
    "read_recipe",
    "read_samples",
    "refine",
    "rejection_probability",
    "run_recipe",
    "summarize",
    "write_diagnosis",
    "write_report",
]

_HOMES = {
    "AlignOptions": "training.supervised",
    "DiagnoseOptions": "diagnosis.diagnose",
    "Diagnosis": "diagnosis.diagnose",
    "DiscernmentError": "errors",
    "EvaluateOptions": "evaluation.evaluate",
    "KernelOptions": "kernel.kernel",
    "KeywordJudge": "judges",
    "Label": "prompts",
    "ModelSpec": "models.model_spec",
    "Policy": "policies.policy",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "PromptSource": "prompts",
    "Recipe": "runs.recipe",
    "RefineOptions": "training.contrastive",
    "align": "training.supervised",
    "check_learning_step": "diagnosis.learning_step",
    "diagnose": "diagnosis.diagnose",
    "evaluate": "evaluation.evaluate",
    "gradient_kernel": "kernel.engine",
    "load_source": "prompts",
    "load_sources": "prompts",
    "read_recipe": "runs.recipe",
    "read_samples": "evaluation.sample",
    "refine": "training.contrastive",
    "rejection_probability": "policies.rejection",
    "run_recipe": "runs.run",
    "summarize": "evaluation.summary",
    "write_diagnosis": "reporting.diagnosis",
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
