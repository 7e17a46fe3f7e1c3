"""Running a recipe: build, evaluate, attack and measure every method, compare, write."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from discernment.cost import StageCost
from discernment.errors import ModelError, RecipeError
from discernment.evaluation.attacks import with_completion_prefix
from discernment.evaluation.evaluate import EvaluateOptions, check_samples, evaluate
from discernment.evaluation.results import LeftOut, Results, summarize
from discernment.evaluation.robustness import attack_drop
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import write_json
from discernment.frozen import Frozen
from discernment.judges import JudgeSpec
from discernment.policies.engine import choose_engine
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.served import ServedPolicy, load_policy
from discernment.policies.vllm import VllmPolicy
from discernment.prompts import PromptSet
from discernment.ranks import is_first, together
from discernment.runs.directory import claim, forget_other_recipe, keep_recipe
from discernment.runs.final_numbers import send_numbers
from discernment.runs.fleet.engine import Engine
from discernment.runs.manifest import Manifest, check_version
from discernment.runs.parallel import do_side_by_side, goes_elsewhere
from discernment.runs.preparation import Prepared, build_steps, prepare
from discernment.runs.proposition import check_refinements
from discernment.runs.recipe import MethodEntry, Recipe
from discernment.runs.stages import Alike, Quiet, Reporter, StageRunner

ONLY_REPLIES = "the model is behind an endpoint, which only replies"
JUDGED_AGAIN = Alike("judge", ("completions.jsonl", "rejection.jsonl"))
"""Replies and rejection probabilities are the same whoever judges."""


class RunSummary(NamedTuple):
    """What a run left.

    Attributes:
        directory: The run's directory.
        results: The numbers, as in `results.json`.
        stages_run: Stages that had to be done; 0 means that everything was there already.
        seen_in_training: Evaluation prompts that also are training prompts, by benchmark.
        skipped_attacks: Why an attack of the recipe was not tried, by its name.
        samples: What each method made of the benchmarks.
    """

    directory: Path
    results: Results
    stages_run: int
    seen_in_training: dict[str, int]
    skipped_attacks: dict[str, str]
    samples: dict[str, list[Sample]]


def run_recipe(
    recipe: Recipe,
    directory: Path,
    reporter: Reporter | None = None,
    *,
    verify: bool = False,
    jobs: int = 1,
    engine: Engine | None = None,
) -> RunSummary:
    """Do all that `recipe` asks for and leave it in `directory`.

    Stages that the directory holds already are not done again, unless they are damaged; an interrupted run goes on where
    it was. The directory gets `recipe.yaml`, `manifest.json`, `results.json`, one folder a stage, and `proposition.json` if the
    recipe asks for it and a method has a stage 1.

    Args:
        recipe: What to do.
        directory: The run's directory.
        reporter: Hears what is going on.
        verify: Read every file of the stages that are there already; damage to large ones is seen by their size alone
            otherwise.
        jobs: How many methods are worked on side by side, each in a process of its own.
        engine: Starts these processes; those of this machine by default, and none for a single job.

    Raises:
        DiscernmentError: If the recipe, the data or a model is wrong, the directory is in use, or its disk is full.
    """
    if recipe.leave_out:
        raise RecipeError("The recipe has `leave_out`; run it with `run_left_out`, as `discern run` does.")
    if recipe.seeds:
        raise RecipeError("The recipe has several `seeds`; run it with `run_seeds`, as `discern run` does.")
    with claim(directory, "run"):
        check_version(directory)
        hears, prepared, ran = reporter or Quiet(), prepare(recipe), 0
        if goes_elsewhere(jobs, engine):
            forget_other_recipe(directory, recipe)
            ran = do_side_by_side({directory: recipe}, jobs, hears, verify=verify, engine=engine)
        else:
            hears.plan(prepared.stages)
        return run_prepared(recipe, prepared, directory, hears, verify=verify, ran=ran)


def run_prepared(
    recipe: Recipe,
    prepared: Prepared,
    directory: Path,
    reporter: Reporter,
    *,
    verify: bool = False,
    ran: int = 0,
) -> RunSummary:
    """Run a recipe whose prompts were read already, in a directory that this process has claimed.

    `ran` of its stages were done just before, by other processes.
    """
    forget_other_recipe(directory, recipe)
    stage = StageRunner(directory / "stages", reporter, verify=verify, trackers=recipe.track)
    stage.ran = ran
    run = _Run(recipe, prepared, directory, stage)
    keep_recipe(directory, recipe)
    for entry in recipe.methods:
        run.do(entry)
        run.manifest.write("running")
    return run.write(run.compare())


def do_method(
    recipe: Recipe,
    prepared: Prepared,
    directory: Path,
    method: str,
    reporter: Reporter,
    *,
    verify: bool = False,
) -> int:
    """Do the stages of one method alone, in a directory that another process has claimed; returns how many."""
    stage = StageRunner(directory / "stages", reporter, verify=verify, trackers=recipe.track)
    (entry,) = (entry for entry in recipe.methods if entry.label == method)
    _Run(recipe, prepared, directory, stage).do(entry)
    return stage.ran


class Asking(NamedTuple):
    """A stage in which a policy replies.

    Attributes:
        stage: Its name.
        attack: The attack; empty where the benchmarks are asked as they are.
        inputs: What the replies depend on; `evaluate_policy` takes them.
    """

    stage: str
    attack: str
    inputs: dict[str, Any]


def asked_of(recipe: Recipe, prepared: Prepared, policy: PolicySpec) -> list[Asking]:
    """The stages in which a method's policy replies: to the benchmarks, and then to them under each attack.

    Only verdicts are asked of replies to attacks.
    """
    plan = recipe.evaluate
    plain = plan.options_for(policy)
    options = EvaluateOptions(
        max_new_tokens=plain.max_new_tokens,
        batch_size=plain.batch_size,
        rejection=False,
        too_long=plain.too_long,
        engine=plain.engine,
    )

    def inputs(benchmarks: Sequence[PromptSet], options: EvaluateOptions, **more: Any) -> dict[str, Any]:
        return {"policy": policy, "benchmarks": benchmarks, "options": options, "judge": plan.judge, **more}

    found = [Asking("evaluate", "", inputs(prepared.benchmarks, plain))]
    for under in prepared.attacked:
        how, prefix = options, {}
        if under.reply_prefix is not None:  # replies that are begun for the policy need it here
            how, prefix = (
                options.model_copy(update={"engine": "transformers"}),
                {"reply_prefix": under.reply_prefix},
            )
        found.append(Asking("attack", under.attack, inputs(under.benchmarks, how, **prefix)))
    return found


class _Run:
    """One run, step by step; `stage.owner` is the method that a step is about."""

    def __init__(self, recipe: Recipe, prepared: Prepared, directory: Path, stage: StageRunner) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.directory = directory
        self.stage = stage
        self.manifest = Manifest(directory, recipe, prepared, stage)
        self.samples: dict[str, list[Sample]] = {}
        self.under_attack: dict[tuple[str, str], list[Sample]] = {}
        self.measured: dict[str, list[Frozen]] = {}
        self.left_out: list[LeftOut] = []

    def do(self, entry: MethodEntry) -> None:
        """Make a method's policy, and measure it."""
        policy = self.build(entry)
        self.evaluate(policy)
        self.attack(policy)
        self.measure(policy)

    def build(self, entry: MethodEntry) -> PolicySpec:
        """Make a method's policy."""
        self.stage.owner = entry.label
        policy = build_steps(self.recipe, entry, self.prepared.base, self.prepared.materials, self.stage)
        self.manifest.add(entry, policy)
        return policy

    def evaluate(self, policy: PolicySpec) -> None:
        """Let it answer the benchmarks."""
        self.samples[self.stage.owner] = self._replies(asked_of(self.recipe, self.prepared, policy)[0])

    def attack(self, policy: PolicySpec) -> None:
        """Let it answer them under each attack.

        A stage for each attack: another attack in the recipe is no reason to do the others again.
        """
        for asked in asked_of(self.recipe, self.prepared, policy)[1:]:
            if "reply_prefix" in asked.inputs and policy.model.is_served:
                self._leave_out(f"replies under the attack {asked.attack}")
                continue
            self.under_attack[asked.attack, self.stage.owner] = self._replies(asked)

    def measure(self, policy: PolicySpec) -> None:
        """Measure what the recipe asks for beside the verdicts."""
        for measure in self.prepared.measures:
            if policy.model.is_served and measure.asks_weights:
                self._leave_out(measure.name)
                continue
            rows = measure.take(policy, self.samples[self.stage.owner], self.stage)
            self.measured.setdefault(measure.field, []).extend(rows)

    def compare(self) -> Results:
        """Put all numbers together."""
        recipe = self.recipe
        results = summarize(
            self.samples,
            base_model=recipe.model.model,
            reference=recipe.reference,
            safety_levels=recipe.evaluate.safety_levels,
            families=recipe.families,
            seed=recipe.seed,
        )
        drops = [
            attack_drop(clean, self.under_attack[under.attack, method], method=method, attack=under.attack)
            for under in self.prepared.attacked
            for method, clean in self.samples.items()
            if (under.attack, method) in self.under_attack
        ]
        found = {
            "attack_drops": [drop for drop in drops if drop],
            "left_out": [*results.left_out, *self.left_out],
        }
        return results.model_copy(update=found | self.measured)

    def write(self, results: Results) -> RunSummary:
        """Leave the results, and what they say of Proposition 1, if it is asked for."""
        write_json(self.directory / "results.json", results.model_dump(mode="json"))
        plan, prompts = self.recipe.diagnose, self.prepared.proposition
        if plan is not None and plan.proposition is not None and prompts is not None:
            found = check_refinements(
                self.prepared.base, prompts, plan.proposition, self.stage, self.recipe.seed
            )
            if found.refinements:
                write_json(self.directory / "proposition.json", found.model_dump(mode="json"))
        self.manifest.write("complete")
        send_numbers(results, self.recipe.track, self.directory, self.recipe.name)
        return RunSummary(
            self.directory,
            results,
            self.stage.ran,
            self.prepared.seen_in_training,
            self.prepared.skipped,
            self.samples,
        )

    def _leave_out(self, what: str) -> None:
        self.left_out.append(LeftOut(method=self.stage.owner, what=what, why=ONLY_REPLIES))

    def _replies(self, asked: Asking) -> list[Sample]:
        plan = self.recipe.evaluate
        limit = plan.unscored_limit
        stage = self.stage.look(
            asked.stage,
            evaluate_policy,
            asked.inputs,
            JUDGED_AGAIN,
            unscored_limit=limit,
            tensor_parallel=plan.tensor_parallel,
        )
        found = read_samples(stage / "samples.jsonl")
        check_samples(found, limit, self.stage.owner)  # which may have been higher the last time
        return found


@together
def evaluate_policy(
    policy: PolicySpec,
    benchmarks: list[PromptSet],
    options: EvaluateOptions,
    judge: JudgeSpec,
    out: Path,
    *,
    name: str | None = None,
    reply_prefix: str | None = None,
    unscored_limit: float = 1.0,
    tensor_parallel: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> StageCost:
    """Load a policy and evaluate it; see `evaluation.evaluate`.

    The judgements of an LLM judge are kept in `out/judgements.jsonl`.

    Args:
        policy: The policy.
        benchmarks: Prompt sets; their provenance names them.
        options: How to generate.
        judge: Who judges.
        out: A directory.
        name: What messages call the policy; the model's name by default.
        reply_prefix: What every reply is begun with.
        unscored_limit: Highest share of a benchmark's replies that the judge may leave unscored.
        tensor_parallel: GPUs that share each layer where vLLM generates.
        progress: Called with what is being done, how many prompts are done, and how many there are.

    Raises:
        DiscernmentError: If the policy or the judge cannot be had, or it leaves too much unscored.
    """
    judges = judge.build(out / "judgements.jsonl") if is_first() else None
    loaded: Policy | ServedPolicy
    if choose_engine(options.engine, policy) == "vllm":
        called, at_once = name or policy.model.model, options.batch_size
        loaded = VllmPolicy(policy, called, concurrency=at_once, tensor_parallel=tensor_parallel)
    else:
        loaded = load_policy(policy, name)
    if reply_prefix is not None:
        if isinstance(loaded, ServedPolicy):
            raise ModelError(f"The replies of {loaded.name} cannot be begun for it: {ONLY_REPLIES}.")
        loaded = with_completion_prefix(loaded, reply_prefix)
    return evaluate(
        loaded, benchmarks, options, out, judge=judges, unscored_limit=unscored_limit, progress=progress
    )
