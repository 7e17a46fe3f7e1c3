"""What a run diagnoses: every method's model, and Proposition 1 before and after each stage 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from discernment.cost import StageCost
from discernment.diagnosis.diagnose import DiagnoseOptions, diagnose
from discernment.diagnosis.proposition import compare_propositions, measure_proposition
from discernment.diagnosis.proposition_results import PropositionCheck, PropositionResults, RefinementCheck
from discernment.files import read_json, write_json
from discernment.kernel.kernel import KernelOptions
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.runs.diagnosis_plan import PropositionPlan
from discernment.runs.stages import StageRunner

__all__ = ["check_refinements", "diagnose_stage", "proposition_stage"]


def check_refinements(
    base: ModelSpec, prompts: PromptSet, plan: PropositionPlan, stage: StageRunner, seed: int
) -> PropositionResults:
    """Measure the base model and every refined one at the layer that stage 1 trained up to.

    Args:
        base: The base model.
        prompts: What to measure on.
        plan: How to measure.
        stage: The runner that ran the methods' stages.
        seed: Which half of the prompts the bound is tested on; fixes the intervals.

    Raises:
        DataError: If the bound cannot be fitted, or too few prompts give finite values.
        ModelError: If the kernel cannot be measured.
    """

    def check(name: str, model: ModelSpec, layer: int) -> PropositionCheck:
        inputs = {
            "model": model.model_copy(update={"dtype": "float32"}),
            "prompts": prompts,
            "layer": layer,
            "options": plan.kernel,
            "seed": seed,
        }
        extra = {"name": name, "progress": stage.reporter.progress}
        directory = stage.run("proposition", proposition_stage, inputs, extra)
        return PropositionCheck.model_validate(read_json(directory / "proposition.json"))

    refinements = []
    for key in [key for key, record in stage.records.items() if record.name == "refine"]:
        layer = stage.records[key].notes["layer"]
        files = {"model": str(stage.directory / key / "model"), "revision": None, "adapter": None}
        methods = list(dict.fromkeys(stage.owners[key]))
        for stage.owner in methods:
            before = check(base.model, base, layer)
            after = check(key, base.model_copy(update=files), layer)
        refinements.append(
            RefinementCheck(
                methods=methods,
                before=before,
                after=after,
                comparison=compare_propositions(before, after, seed=seed),
            )
        )
    return PropositionResults(refinements=refinements)


def proposition_stage(
    model: ModelSpec,
    prompts: PromptSet,
    layer: int,
    options: KernelOptions,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a model, check Proposition 1 on it, and write `out/proposition.json`."""
    policy = Policy.load(model, name)
    told = partial(progress, "layers of the kernel")
    check = measure_proposition(policy, prompts, layer, options, seed=seed, progress=told)
    write_json(out / "proposition.json", check.model_dump(mode="json"))
    notes: dict[str, Any] = {
        "layer": layer,
        "frozen_holds": check.frozen.holds,
        "full_holds": check.full.holds,
    }
    tokens = sum(len(ids) for ids in policy.encode(prompts.texts))
    return StageCost(steps=len(prompts), tokens=tokens, notes=notes)


def diagnose_stage(
    model: ModelSpec,
    prompts: PromptSet,
    options: DiagnoseOptions,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
    name: str | None = None,
) -> StageCost:
    """Load a model and write `out/diagnosis.json`; see `diagnosis.diagnose`."""
    policy = Policy.load(model, name)
    found = diagnose(policy, prompts, options, out, progress)
    write_json(out / "diagnosis.json", found.model_dump(mode="json"))
    tokens = sum(len(sequence) for sequence in policy.encode(prompts.texts))
    return StageCost(steps=len(prompts), tokens=tokens)
