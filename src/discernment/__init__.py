"""Which of these models refuses what it should, and only that?

The names below are the Python API. Each is imported when it is first asked for, so that `import discernment` stays
fast: the training and evaluation functions need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discernment.diagnosis.diagnosis import DiagnoseOptions, Diagnosis, diagnose
    from discernment.diagnosis.learning_step import check_learning_step
    from discernment.errors import DiscernmentError
    from discernment.evaluation.evaluate import EvaluateOptions, evaluate
    from discernment.evaluation.results import summarize
    from discernment.evaluation.sample import read_samples
    from discernment.judges import KeywordJudge
    from discernment.kernel.engine import gradient_kernel
    from discernment.kernel.kernel import KernelOptions
    from discernment.models.model_spec import ModelSpec
    from discernment.policies.policy import Policy
    from discernment.policies.rejection import rejection_probability
    from discernment.prompts import Label, Prompt, PromptSet, PromptSource, load_source, load_sources
    from discernment.reporting.pages.diagnosis import write_diagnosis
    from discernment.reporting.pages.run import write_report
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

_MODULES = {
    "diagnosis.diagnosis": "DiagnoseOptions Diagnosis diagnose",
    "diagnosis.learning_step": "check_learning_step",
    "errors": "DiscernmentError",
    "evaluation.evaluate": "EvaluateOptions evaluate",
    "evaluation.results": "summarize",
    "evaluation.sample": "read_samples",
    "judges": "KeywordJudge",
    "kernel.engine": "gradient_kernel",
    "kernel.kernel": "KernelOptions",
    "models.model_spec": "ModelSpec",
    "policies.policy": "Policy",
    "policies.rejection": "rejection_probability",
    "prompts": "Label Prompt PromptSet PromptSource load_source load_sources",
    "reporting.pages.diagnosis": "write_diagnosis",
    "reporting.pages.run": "write_report",
    "runs.recipe": "Recipe read_recipe",
    "runs.run": "run_recipe",
    "training.contrastive": "RefineOptions refine",
    "training.supervised": "AlignOptions align",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
