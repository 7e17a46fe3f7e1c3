"""The plan of a recipe: its stages, which of them are done, and what the others will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from discernment.cost import StageCost
from discernment.errors import DiscernmentError
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import content_hash
from discernment.frozen import Frozen
from discernment.models.loading import load_chat
from discernment.models.precision import choose_device, free_memory
from discernment.policies.policy_spec import PolicySpec
from discernment.runs.left_out import of_groups
from discernment.runs.planning.estimate import Estimate, Work, smaller, work_of
from discernment.runs.planning.rate import measure_rate
from discernment.runs.preparation import build_steps, prepare
from discernment.runs.recipe import Recipe
from discernment.runs.resources import resident
from discernment.runs.run import asked_of, evaluate_policy
from discernment.runs.seeds import of_seeds
from discernment.runs.stage_record import StageRecord, find_damage
from discernment.runs.stages import Alike, Quiet, StageRunner


class PlannedStage(Frozen):
    """One stage of a plan.

    Attributes:
        name: The stage's name.
        methods: The methods that need it.
        done: Whether it is there already; then seconds and memory are those that it took.
        trained: Parameters that it trains, where they are known.
        memory: Most memory of the process and its GPUs, in bytes; None where it cannot be told.
        seconds: How long it takes.
        estimate: What the memory is made of.
        fits: Whether so much can be had on the device.
        advice: Where it does not fit: what to write into the recipe, and the memory that it then takes.
    """

    name: str
    methods: list[str]
    done: bool
    trained: int | None = None
    memory: int | None = None
    seconds: float | None = None
    estimate: Estimate | None = None
    fits: bool = True
    advice: tuple[tuple[str, int], ...] = ()


class Plan(Frozen):
    """What a recipe will take.

    Attributes:
        device: Where it computes.
        room: Bytes that can be had there.
        process: Bytes that a process takes that is ready to train and holds no model yet.
        runs: How many runs it makes, of several seeds or without groups of sources; the stages are those of the first.
        stages: The stages, in order.
    """

    device: str
    room: int
    process: int
    runs: int
    stages: list[PlannedStage]


class NotDoneError(Exception):
    """A stage whose result is asked for has not been done."""


class Looker(StageRunner):
    """Goes through stages without running or changing any, and notes them.

    Attributes:
        seen: Each stage with the methods that need it, its inputs and where it lies; None where that depends on a stage that is
            not done.
        replied: Whether the replies of the evaluation are there, which measures look at.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Quiet())
        self.replied = False
        self.seen: dict[str, tuple[str, list[str], Mapping[str, Any], Path | None]] = {}

    def __call__(
        self, name: str, work: Callable[..., StageCost], *, start: PolicySpec, **inputs: Any
    ) -> PolicySpec:
        """Note a stage; what it leaves is known once it is done, else it is a policy that is not there."""
        found = self.run(name, work, {"start": start, **inputs})
        if found.is_dir():
            return PolicySpec.read(found)
        made = start.with_model(model=str(found / "model"))
        rule = inputs.get("rule")
        return made if rule is None else made.with_rule(rule)

    def run(
        self,
        name: str,
        work: Callable[..., StageCost],
        inputs: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        alike: Alike | None = None,
    ) -> Path:
        """Note a stage, and say where it lies; there is nothing there where it is not done."""
        final = None if any(map(self._is_missing, inputs.values())) else self.place(name, work, inputs)
        if final is not None and final.is_dir() and not find_damage(final):
            self.records[final.name] = StageRecord.read(final)
        else:
            final = None
        key = final.name if final else self._key(name, work, inputs)
        known = self.seen.setdefault(key, (name, [], inputs, final))
        if self.owner not in known[1]:
            known[1].append(self.owner)
        return final or self.directory / f"{MISSING}{key[:12]}"

    def look(self, *given: Any, **extra: Any) -> Path:
        """Note a stage whose result is wanted at once.

        Raises:
            NotDoneError: If it has not been done.
        """
        name, work, inputs = given[:3]
        found = self.run(name, work, inputs)
        if not (found.is_dir() and self.replied):
            raise NotDoneError
        return found

    def _key(self, name: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> str:
        """What tells a stage from others while what it depends on is not done."""
        told = {
            key: repr(value) if self._is_missing(value) else self.describe({key: value})[key]
            for key, value in inputs.items()
        }
        return content_hash([name, work.__module__, work.__qualname__, told])

    def _is_missing(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._is_missing, value))
        if isinstance(value, PolicySpec):
            where = [value.model.model, *value.adapters, *([value.rule.tensors] if value.rule else [])]
            return any(MISSING in str(path) for path in where)
        return isinstance(value, Path) and MISSING in str(value)


MISSING = "not-done-"


def make_plan(recipe: Recipe, directory: Path) -> Plan:
    """Say what running a recipe in a directory will take; nothing is run and nothing is written.

    Args:
        recipe: The recipe; of several runs, the first is looked at.
        directory: The directory of the run, where stages may be done already.

    Raises:
        DiscernmentError: As `run_recipe` does before its first stage.
    """
    runs = _single_runs(recipe)
    recipe = runs[0]
    looker = Looker(directory / "stages")
    look_through(recipe, looker)
    from discernment.training import contrastive_trainer, preference_trainer, supervised_trainer

    _ = contrastive_trainer, preference_trainer, supervised_trainer  # what a process that trains has imported
    spec = recipe.model
    chat = None if spec.is_served else load_chat(spec, PolicySpec.of(spec).adapters)
    device = choose_device(spec)
    process = resident() or 0
    room = free_memory(device)
    rate: list[float] = []

    def seconds(estimate: Estimate) -> float:
        if not rate:
            rate.append(measure_rate(spec))
        return estimate.operations / rate[0]

    stages = []
    for name, owners, inputs, final in looker.seen.values():
        if final is not None:
            took = looker.records[final.name]
            told = {"done": True, "memory": took.peak_memory_bytes, "seconds": took.seconds}
            stages.append(PlannedStage.model_validate({"name": name, "methods": owners, **told}))
            continue
        work = None if chat is None else work_of(inputs, spec, chat)
        known = {} if work is None else _expected(work, process, room, device.type, seconds)
        stages.append(PlannedStage.model_validate({"name": name, "methods": owners, "done": False, **known}))
    return Plan(device=str(device), room=room, process=process, runs=len(runs), stages=stages)


def _single_runs(recipe: Recipe) -> list[Recipe]:
    """The recipe of each run that it makes."""
    return [*(of_groups(recipe) or of_seeds(recipe)).values()] or [recipe]


def _expected(
    work: Work, process: int, room: int, device: str, seconds: Callable[[Estimate], float]
) -> dict[str, Any]:
    """What is known of a stage that is not done."""
    estimate = work.of(work.options)
    fits = _needed(estimate, process, device) <= room
    return {
        "trained": estimate.trained,
        "memory": process + estimate.memory,
        "seconds": seconds(estimate),
        "estimate": estimate,
        "fits": fits,
        "advice": () if fits else tuple(_advice(work, process, estimate)),
    }


def look_through(recipe: Recipe, looker: Looker) -> None:
    """Show all stages of a recipe to `looker`, method by method.

    Raises:
        DiscernmentError: As `run_recipe` does before its first stage.
    """
    prepared = prepare(recipe)
    for entry in recipe.methods:
        looker.owner = entry.label
        policy = build_steps(recipe, entry, prepared.base, prepared.materials, looker)
        samples: list[Sample] = []
        for asked in asked_of(recipe, prepared, policy):
            found = looker.run(asked.stage, evaluate_policy, asked.inputs)
            if not asked.attack and found.is_dir():
                samples = read_samples(found / "samples.jsonl")
        looker.replied = bool(samples)
        for measure in prepared.measures:
            try:
                measure.take(policy, samples, looker)
            except NotDoneError:
                continue


def _needed(estimate: Estimate, process: int, device: str) -> int:
    """Bytes of the device; a process that trains on the CPU takes some for itself."""
    return estimate.memory + (process if device == "cpu" else 0)


def _advice(work: Work, process: int, now: Estimate) -> Iterator[tuple[str, int]]:
    """Changes that need less, each with what is then needed."""
    for words, options in smaller(work.options):
        try:
            memory = work.of(options).memory
        except DiscernmentError:
            continue
        if memory < now.memory:
            yield words, process + memory
