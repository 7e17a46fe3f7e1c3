"""A sweep: a recipe, which of its options to search over, what to make better, and what was found (`sweep.json`)."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationError, model_validator

from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.runs.built_in import built_in, find_recipe
from discernment.runs.problems import first_problem
from discernment.runs.recipe import Recipe, parse_recipe, read_mapping, read_recipe
from discernment.runs.search.objective import Objective
from discernment.training.options import LARGEST_SEED

if TYPE_CHECKING:
    from optuna import Trial

Value = bool | int | float | str | None
State = Literal["complete", "pruned", "failed"]

USUAL_TRIALS = 20
MEASURED_BY_REJECTION = ("auroc", "equal_safety")


class Dimension(Frozen):
    """The values that an option may take: a list of choices, or a range."""

    choices: tuple[Value, ...] | None = Field(None, description="The values; a plain list stands for it.")
    low: float | None = Field(None, allow_inf_nan=False, description="Lowest value.")
    high: float | None = Field(None, allow_inf_nan=False, description="Highest value.")
    log: bool = Field(False, description="Draw the logarithm evenly.")
    step: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Distance of neighbouring values, up to `high`."
    )
    integer: bool = Field(
        False, validation_alias=AliasChoices("int", "integer"), description="Whole numbers only."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"choices": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Dimension:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give a list, or a range with `low` and `high`, and not both")
            if len(self.choices) < 1 or len(set(self.choices)) < len(self.choices):
                raise ValueError("the list must hold at least one value, and none twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give a list of values, or a range with `low` and `high`")
        if self.low >= self.high:
            raise ValueError(f"`low` is {self.low:g} and must be below `high`, which is {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs a `low` above 0 and no `step`")
        if self.integer and any(bound % 1 for bound in (self.low, self.high, self.step or 1)):
            raise ValueError("`int` needs whole numbers for `low`, `high` and `step`")
        if self.step is not None:
            # As they are written: in binary three steps of 0.1 are not 0.3. Optuna would lower `high` silently.
            low, high, step = (Fraction(str(number)) for number in (self.low, self.high, self.step))
            if (high - low) % step:
                nearest = float(low + max(1, round((high - low) / step)) * step)
                raise ValueError(
                    f"`step` is {self.step:.15g} and does not lead from {self.low:.15g} to {self.high:.15g}; "
                    f"make `high` {nearest:.15g}, or choose another `step`"
                )
        return self

    @property
    def landmarks(self) -> list[Value]:
        """Every choice; of a range the ends and, where it is not one of whole numbers, a value between them."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None and self.high is not None
        if self.integer:
            return [int(self.low), int(self.high)]
        return [self.low, self.low + 0.382 * (self.high - self.low), self.high]

    def suggest(self, trial: Trial, key: str) -> Value:
        """The value that Optuna proposes in a trial."""
        if self.choices is not None:
            return trial.suggest_categorical(key, self.choices)
        assert self.low is not None and self.high is not None
        if self.integer:
            step = int(self.step or 1)
            return trial.suggest_int(key, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


class Sweep(Frozen):
    """A search over the options of a recipe."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="Names the sweep's directory.")
    recipe: Recipe = Field(description="A recipe, or the path of one from the sweep's own folder.")
    space: dict[str, Dimension] = Field(min_length=1, description="Options of the recipe, and their values.")
    objectives: list[Objective] = Field(min_length=1, max_length=3, description="What to make better.")
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: int | None = Field(None, ge=1, description="All together; 20, or the whole grid, without it.")
    seed: int = Field(0, ge=0, description="Seed of the search.")
    seeds: tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...] = Field(
        (), description="Seeds of every trial's recipe; the recipe's own by default."
    )
    allow_test: bool = Field(False, description="Whether to choose on prompts of a test split.")

    @model_validator(mode="after")
    def _fits_the_recipe(self) -> Sweep:
        if self.recipe.seeds:
            raise ValueError("the recipe names `seeds`; the `seeds` of a sweep stand beside its `recipe`")
        if self.recipe.leave_out:
            raise ValueError("the recipe names `leave_out`, which does not go with a sweep; leave it out")
        places = {place.strip() for key in self.space for place in key.split(",")}
        if taken := {p for p in places if p in ("name", "seed", "seeds") or p.endswith(".seed")}:
            raise ValueError(f"`{min(taken)}` cannot be searched over; `seeds` runs every trial with several")
        ranges = [key for key, dimension in self.space.items() if dimension.choices is None]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"the sampler `grid` needs lists, and `space.{ranges[0]}` is a range")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names one twice")
        if len(self.seeds) > 1:
            self._check_with_seeds()
        methods = [entry.label for entry in self.recipe.methods]
        benchmarks = [b.name or b.set for b in self.recipe.evaluate.sets]
        for number, objective in enumerate(self.objectives):
            at = f"`objectives.{number}`"
            if objective.method not in methods:
                raise ValueError(
                    f"{at}: there is no method {objective.method!r}; there are {', '.join(methods)}"
                )
            if objective.benchmark is not None and objective.benchmark not in benchmarks:
                raise ValueError(
                    f"{at}: there is no benchmark {objective.benchmark!r}; there are {', '.join(benchmarks)}"
                )
            if objective.kind == "equal_safety" and objective.method == self.recipe.reference:
                raise ValueError(
                    f"{at}: {objective.method} is the reference that others are compared with; name another method"
                )
            if objective.kind in MEASURED_BY_REJECTION and not self.recipe.evaluate.rejection:
                raise ValueError(
                    f"{at}: `{objective.kind}` needs `evaluate.rejection`, which the recipe turns off"
                )
        return self

    def _check_with_seeds(self) -> None:
        """See that no stage has a seed of its own, which would be the same for all `seeds`."""
        content = self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})
        try:
            Recipe.model_validate({**content, "seeds": self.seeds})
        except ValidationError as error:
            raise ValueError(f"`recipe`: {first_problem(error, Recipe).removesuffix('.')}") from error

    @property
    def every_seed(self) -> tuple[int, ...]:
        """The seeds that every trial is run with."""
        return self.seeds or (self.recipe.seed,)

    def grid(self) -> list[dict[str, Value]]:
        """Every combination of the listed values, in an order that `seed` fixes."""
        lists = [dimension.choices or () for dimension in self.space.values()]
        grid = [dict(zip(self.space, values, strict=True)) for values in itertools.product(*lists)]
        random.Random(self.seed).shuffle(grid)  # noqa: S311 - an order, not a secret
        return grid

    def planned(self, trials: int | None = None) -> int:
        """How many trials there shall be; `trials` goes before the sweep's own number."""
        wanted = trials or self.trials
        if self.sampler == "grid":
            points = len(self.grid())
            return min(wanted or points, points)
        return wanted or USUAL_TRIALS

    def samples(self) -> list[dict[str, Value]]:
        """A few points that hold every listed value and both ends of every range."""
        columns = {key: dimension.landmarks for key, dimension in self.space.items()}
        longest = max(map(len, columns.values()))
        return [
            {key: marks[min(n, len(marks) - 1)] for key, marks in columns.items()} for n in range(longest)
        ]

    def recipe_at(self, values: Mapping[str, Value], name: str, seed: int) -> Recipe:
        """The recipe with other options.

        Args:
            values: By key of `space`.
            name: The name of the recipe.
            seed: Its seed.

        Raises:
            RecipeError: If a key leads nowhere, or what comes out is no recipe.
        """
        content = self.recipe.model_dump(mode="json", exclude_defaults=True)
        for key, value in values.items():
            for place in key.split(","):
                _put(content, place.strip(), value)
        return parse_recipe({**content, "name": name, "seed": seed}, f"The sweep {self.name}")


class SweepTrial(Frozen):
    """One point of the space that was tried.

    Attributes:
        number: Its number, from 0.
        state: `pruned` trials stopped after some of their seeds; `failed` ones have no number to go by.
        parameters: The value of every key of the space.
        values: One number an objective, the mean over the seeds that were run; None if it failed.
        seconds: What it took here, without what earlier trials or an interrupted attempt had done.
        error: Why it failed.
        best: Whether no other complete trial is better: for several objectives, in none without being worse in another.
    """

    number: int
    state: State
    parameters: dict[str, Value]
    values: list[float] | None = None
    seconds: float
    error: str | None = None
    best: bool = False


class SweepResults(Frozen):
    """A sweep and its trials.

    Attributes:
        schema_version: Version of this file's form.
        name: The sweep's name.
        sampler: How points were chosen.
        seeds: The seeds of every trial.
        space: What was searched over.
        objectives: What was made better.
        trials: The trials in the order in which they ended.
    """

    schema_version: Literal[1] = 1
    name: str
    sampler: str
    seeds: tuple[int, ...]
    space: dict[str, Dimension]
    objectives: list[Objective]
    trials: list[SweepTrial]

    @property
    def best(self) -> list[SweepTrial]:
        """The best trial or, for several objectives, all on the Pareto front; empty if none is complete."""
        return [trial for trial in self.trials if trial.best]

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`; what is not said of a trial, an objective or an option is as by default."""
        return {"schema_version": 1, **self.model_dump(mode="json", exclude_defaults=True)}


def read_sweep(source: Path | str) -> Sweep:
    """Read and check a sweep, and the recipe at several points of its space.

    Args:
        source: A YAML file, or the name of a sweep that comes along.

    Raises:
        RecipeError: If the file or its recipe is missing, is not YAML, or holds something wrong.
    """
    path = find_recipe(source, "sweep")
    content = read_mapping(path, "sweep", Sweep)
    recipe = content.get("recipe")
    if isinstance(recipe, str):
        beside = path.parent / recipe
        content["recipe"] = read_recipe(recipe if recipe in built_in() and not beside.is_file() else beside)
    elif isinstance(recipe, dict):
        content["recipe"] = parse_recipe({"name": content.get("name"), **recipe}, f"{path}, `recipe`")
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {first_problem(error, Sweep)}") from error
    for values in sweep.samples():
        sweep.recipe_at(values, sweep.name, sweep.every_seed[0])
    return sweep


def _put(content: dict[str, Any], place: str, value: Value) -> None:
    """Set the option at a dotted place; a method is addressed by its name, an entry of a list by its number."""
    where: Any = content
    steps = place.split(".")
    if steps[0] == "methods":
        where, rest = _method(content, place)
        steps = rest.split(".")
        _inherit(content, where, steps)
    for number, step in enumerate(steps, start=1):
        is_last = number == len(steps)
        if isinstance(where, dict) and is_last:
            where[step] = value
        elif isinstance(where, dict):
            where = where.setdefault(step, {})
        elif isinstance(where, list) and not is_last and step.isdecimal() and int(step) < len(where):
            where = where[int(step)]
        else:
            stuck = f"there is the value {where!r} before `{step}`"
            if isinstance(where, list):
                stuck = f"there is a list where `{step}` stands; number its entry, from 0 to {len(where) - 1}"
            raise RecipeError(f"`space.{place}` leads nowhere in the recipe: {stuck}.")


def _method(content: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """The entry of the method that a place names, and what of the place is left."""
    entries = {entry.get("name") or entry["method"]: entry for entry in content["methods"]}
    rest = place.removeprefix("methods.")
    for name in sorted(entries, key=len, reverse=True):  # a name may hold dots
        if rest.startswith(f"{name}."):
            return entries[name], rest.removeprefix(f"{name}.")
    raise RecipeError(
        f"`space.{place}` must name an option of a method, as `methods.NAME.align.OPTION`; "
        f"the methods are {', '.join(entries)}."
    )


def _inherit(content: dict[str, Any], entry: dict[str, Any], steps: list[str]) -> None:
    """A method's own value replaces the recipe's whole; one that is changed in part starts as a copy of it."""
    if len(steps) > 2 and steps[1] not in entry.get(steps[0], {}):
        stage = content.get(steps[0])
        if isinstance(stage, dict) and steps[1] in stage:
            entry.setdefault(steps[0], {})[steps[1]] = copy.deepcopy(stage[steps[1]])
