"""Proposition 1 before and after each stage 1 of a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.proposition import PropositionCheck, measure_proposition
from discernment.diagnosis.refinement_effect import PropositionResults, RefinementCheck, compare_propositions
from discernment.files import read_json, write_json
from discernment.kernel.kernel import KernelOptions
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import FILE, PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.measures.kernel import KernelChoice
from discernment.runs.stages import StageRunner
from discernment.runs.training_data import Sources

COMBINES = ("average", "choose")
"""Stages that make one model of several restarts."""


class PropositionPlan(KernelChoice):
    """Which prompts Proposition 1 is measured on, and how."""

    prompts: Sources | None = Field(
        None,
        description="Toxic, seemingly toxic and, if wanted, benign prompts; `probes` by default. Half of them fit the "
        "bound and half test it; intervals need some 70 over the three labels.",
    )


def check_refinements(
    base: PolicySpec, prompts: PromptSet, plan: PropositionPlan, stage: StageRunner, seed: int
) -> PropositionResults:
    """Measure every refined model, and what it was before, at the layer that stage 1 trained up to.

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

    def check(name: str, policy: PolicySpec, layer: int) -> PropositionCheck:
        inputs = {
            "policy": policy.with_model(dtype="float32"),
            "prompts": prompts,
            "layer": layer,
            "options": plan.kernel,
            "seed": seed,
        }
        directory = stage.look("proposition", proposition_stage, inputs, name=name)
        return PropositionCheck.model_validate(read_json(directory / "proposition.json"))

    refinements = []
    for key, (layer, below, methods) in _aligned(stage).items():
        start = base if below is None else PolicySpec.read(stage.directory / below)
        for stage.owner in methods:
            before = check(below or base.model.model, start, layer)
            after = check(key, PolicySpec.read(stage.directory / key), layer)
        refinements.append(
            RefinementCheck(
                methods=methods,
                before=before,
                after=after,
                comparison=compare_propositions(before, after, seed=seed),
            )
        )
    return PropositionResults(refinements=refinements)


class _Refined(NamedTuple):
    """A model that is aligned after stage 1: of several restarts the mean, or the chosen one.

    Attributes:
        layer: The layer that stage 1 trained up to.
        below: The stage that left what stage 1 started from; None for the base model.
        methods: Who asked for it.
    """

    layer: int
    below: str | None
    methods: list[str]


def _aligned(stage: StageRunner) -> dict[str, _Refined]:
    """The models that are aligned after stage 1, by their stage."""
    found: dict[str, _Refined] = {}
    for owner in dict.fromkeys(owner for owners in stage.owners.values() for owner in owners):
        keys = stage.stages_of(owner)
        left = {key: _left(stage, key) for key in keys}

        def stage_that_left(policy: Any, left: dict[str, Any] = left) -> str | None:
            return next((key for key, found in left.items() if found == policy), None)

        combined = [stage.records[key].inputs for key in keys if stage.records[key].name in COMBINES]
        parts = [policy for inputs in combined for policy in (inputs["start"], *inputs["others"])]
        for key in keys:
            name = stage.records[key].name
            if name not in COMBINES and (name != "refine" or left[key] in parts):
                continue
            at = PolicySpec.read(stage.directory / key).folder.name  # of a choice, what was chosen
            record = stage.records[at]
            if record.name in COMBINES:  # a mean has the layer of what it is the mean of
                record = stage.records[stage_that_left(record.inputs["start"]) or at]
            below = stage_that_left(record.inputs["start"])
            found.setdefault(at, _Refined(record.notes["layer"], below, [])).methods.append(owner)
    return found


def _left(stage: StageRunner, key: str) -> Any:
    """What stands in a record for the policy that a stage left; None where it left none."""
    folder = stage.directory / key
    return stage.describe({"start": PolicySpec.read(folder)})["start"] if (folder / FILE).is_file() else None


def proposition_stage(
    policy: PolicySpec,
    prompts: PromptSet,
    layer: int,
    options: KernelOptions,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a policy, check Proposition 1 on it, and write `out/proposition.json`."""
    loaded = Policy.load(policy, name)
    told = partial(progress, "layers of the kernel")
    check = measure_proposition(loaded, prompts, layer, options, seed=seed, out=out, progress=told)
    write_json(out / "proposition.json", check.model_dump(mode="json"))
    notes: dict[str, Any] = {
        "layer": layer,
        "frozen_holds": check.frozen.holds,
        "full_holds": check.full.holds,
    }
    tokens = sum(len(ids) for ids in loaded.encode(prompts.asked))
    return StageCost(steps=len(prompts), tokens=tokens, notes=notes)
