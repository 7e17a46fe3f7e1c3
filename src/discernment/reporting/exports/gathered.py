"""What is exported: the replies of each method, as they are and under each attack, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from discernment.errors import DataError, RecipeError, RunError
from discernment.evaluation.metrics import Ranking, Score
from discernment.evaluation.results import Results, summarize
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import content_hash, read_json
from discernment.reporting.run_files import RunFiles, check_finished, read_run, recipe_content
from discernment.reporting.text import REDACTED
from discernment.runs.directory import check_one_run
from discernment.runs.evaluations import SAMPLES, find_evaluations
from discernment.runs.mending import how_to_mend, what_is_wrong

FRAME_HASH = 12
"""Characters of the hash that stands for a wording frame that is hidden."""
UNNAMED_ATTACK = "attack"
"""Where the benchmarks of attacked prompts do not name it."""


@dataclass(frozen=True)
class Replies:
    """What one method made of its prompts, as they are or under one attack.

    Attributes:
        method: The method.
        attack: The attack.
        samples: What it made of each prompt; under an attack, of benchmarks with their own names.
        scores: The rates of these samples.
        rankings: The discernment AUROCs of these samples.
    """

    method: str
    attack: str | None
    samples: Sequence[Sample]
    scores: Sequence[Score]
    rankings: Sequence[Ranking]

    @property
    def name(self) -> str:
        """The method, and the attack that it was under."""
        return f"{self.method} under {self.attack}" if self.attack else self.method


@dataclass(frozen=True)
class Gathered:
    """The replies of a run or of one evaluation.

    Attributes:
        name: The recipe's name, or that of the evaluation's directory.
        base_model: The base model's name; None where nothing says it.
        created: When the run began, or when the evaluation's samples were written; ISO 8601.
        finished: When it ended.
        judge: Who judged.
        version: The version of discernment that made it.
        seed: The recipe's seed.
        packages: Versions of the libraries.
        recipe: The text of the recipe.
        replies: The replies, methods in their order, each first without an attack.
    """

    name: str
    base_model: str | None
    created: str
    finished: str
    judge: str | None = None
    version: str | None = None
    seed: int | None = None
    packages: dict[str, str] = field(default_factory=dict)
    recipe: str | None = None
    replies: Sequence[Replies] = ()


def gather(argument: Path, methods: Sequence[str] = (), *, redact: bool = False) -> Gathered:
    """Read what an argument means: a run, `RUN/METHOD` or the directory of one evaluation.

    Args:
        argument: What to export.
        methods: Only these methods; all where none is named.
        redact: Leave out the text of toxic prompts and of the replies to them.

    Raises:
        DataError: If it holds no evaluation, or a file is damaged.
        RecipeError: If there is no such method.
        RunError: If the run is not finished, or a file of it is damaged.
    """
    check_one_run(argument)
    found = {evaluation.name: evaluation for evaluation in find_evaluations(argument)}
    if unknown := [name for name in methods if name not in found]:
        raise RecipeError(f"There is no method {unknown[0]!r} in {argument}; there are {', '.join(found)}.")
    chosen = [evaluation for name, evaluation in found.items() if not methods or name in methods]
    if not chosen:
        raise DataError(f"The run {argument} has no evaluation yet; finish it with `discern run`.")
    first = chosen[0]
    if first.run is None:
        gathered = _alone(first.name, first.samples)
    else:
        gathered = _of_run(read_run(first.run), [e.method for e in chosen if e.method is not None])
    if not redact:
        return gathered
    hidden = [replace(r, samples=[redacted(s) for s in r.samples]) for r in gathered.replies]
    return replace(gathered, replies=hidden)


def home_of(argument: Path) -> Path:
    """Where exports of what an argument means go by default: into the run, and beside the directory of an evaluation."""
    first = find_evaluations(argument)[0]
    if first.run is not None:
        return first.run / "export"
    evaluation = first.samples.parent.absolute()
    return evaluation.with_name(f"{evaluation.name}-export")


def redacted(sample: Sample) -> Sample:
    """The sample without what it says, if its prompt is toxic."""
    if not sample.label.should_refuse:
        return sample
    further = tuple(draw.model_copy(update={"completion": REDACTED}) for draw in sample.further)
    # A frame is nearly the whole prompt; its hash still tells which prompts share one.
    frame = None if sample.frame is None else content_hash(sample.frame)[:FRAME_HASH]
    texts = {"prompt": REDACTED, "cut": None, "system": None, "earlier": (), "completion": REDACTED}
    return sample.model_copy(update={**texts, "frame": frame, "further": further})


def _alone(name: str, path: Path) -> Gathered:
    samples = read_samples(path)
    results = path.with_name("results.json")
    content = read_json(results) if results.is_file() else None
    base = content.get("base_model") if isinstance(content, dict) else None
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return Gathered(name, base, written, written, replies=[_replies(name, None, samples)])


def _of_run(run: RunFiles, methods: Sequence[str]) -> Gathered:
    manifest = run.manifest
    assert manifest is not None  # by which the methods were found
    check_finished(run)
    missing = [method for method in methods if method not in run.samples]
    if missing:
        raise RunError(
            f"The results of {run.directory} have nothing of {missing[0]!r}; {how_to_mend(run.directory)}."
        )
    attacked = _attacked(run)
    replies = []
    for method in methods:
        replies.append(_replies(method, None, run.samples[method], run.results))
        replies += [
            _replies(method, attack, samples) for owner, attack, samples in attacked if owner == method
        ]
    when = manifest.created or datetime.now(UTC).isoformat(timespec="seconds")
    return Gathered(
        name=manifest.name or run.directory.name,
        base_model=manifest.base_model,
        created=when,
        finished=manifest.finished or when,
        judge=manifest.judge,
        version=manifest.discernment,
        seed=recipe_content(run).get("seed", 0),
        packages=manifest.packages,
        recipe=run.recipe,
        replies=replies,
    )


def _attacked(run: RunFiles) -> list[tuple[str, str, list[Sample]]]:
    """The method, the attack and the samples of each stage in which a method was attacked."""
    found = []
    assert run.manifest is not None
    for stage_id, stage in run.manifest.stages.items():
        if stage.name != "attack":
            continue
        try:
            samples = read_samples(run.directory / "stages" / stage_id / SAMPLES)
        except DataError as error:
            raise RunError(f"{what_is_wrong(error)}; {how_to_mend(run.directory)}.") from error
        if not samples:
            continue
        # As `Attack.apply` names them.
        attack = samples[0].benchmark.rpartition("+")[2] if "+" in samples[0].benchmark else UNNAMED_ATTACK
        own = [s.model_copy(update={"benchmark": s.benchmark.removesuffix(f"+{attack}")}) for s in samples]
        found += [(method, attack, own) for method in run.manifest.methods_of(stage_id)]
    return found


def _replies(
    method: str, attack: str | None, samples: Sequence[Sample], results: Results | None = None
) -> Replies:
    if results is None:
        results = summarize({method: samples}, base_model=method, reference=method, safety_levels=())
    return Replies(
        method,
        attack,
        samples,
        [score for score in results.scores if score.method == method],
        [ranking for ranking in results.rankings if ranking.method == method],
    )
