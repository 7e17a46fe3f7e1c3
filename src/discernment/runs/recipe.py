"""A recipe: everything that a run depends on, in one YAML file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from discernment.errors import RecipeError
from discernment.evaluation.families import families_of
from discernment.evaluation.groups import POOLED
from discernment.files import RepeatedKeyError, read_yaml
from discernment.frozen import Frozen
from discernment.methods.method import Materials, MethodOptions, find_method, known_methods
from discernment.models.model_spec import ModelSpec
from discernment.runs.built_in import find_recipe
from discernment.runs.plans import DiagnosisPlan, EvaluationPlan
from discernment.runs.problems import first_problem
from discernment.runs.training_data import TrainingData
from discernment.training.contrastive import RefineOptions
from discernment.training.options import LARGEST_SEED
from discernment.training.supervised import AlignOptions

NAME = r"^\.*[\w-][\w.-]*$"
"""What can be a directory's name, or a part of it; dots alone are none."""


class MethodEntry(Frozen):
    """A method to run, perhaps under another name and with options of its own."""

    method: str = Field(description="Name of an installed method: base, stl, stl_aug, dcr, dcr_paper, ...")
    name: str = Field("", description="What to call it in tables; the method's name by default.")
    on: str | None = Field(
        None,
        description="What it stands on, where that is not the base model: a method of the recipe by what tables call it, "
        "else any known one.",
    )
    data: TrainingData = Field(
        default_factory=TrainingData, description="Sets that differ from the recipe's `data`."
    )
    refine: dict[str, Any] = Field(
        default_factory=dict, description="Options that differ from the recipe's `refine`."
    )
    align: dict[str, Any] = Field(
        default_factory=dict, description="Options that differ from the recipe's `align`."
    )
    rule: dict[str, Any] = Field(
        default_factory=dict, description="Options of the rule, for a method that acts by one."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the method's own, for a method that has any."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, dict):  # YAML 1.1 reads a bare `on` as true
            return {"on" if key is True else key: given for key, given in value.items()}
        return {"method": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _can_be_addressed(cls, name: str) -> str:
        if "/" in name or "\\" in name or name in (".", "..") or not name.isprintable():
            raise ValueError(
                "a name is said as RUN/NAME, so it has no slash, no line break, and is more than dots"
            )
        return name

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.name or self.method


def stands_on(entry: MethodEntry) -> str | None:
    """What an entry stands on; None for the base model itself."""
    if entry.method == "base" and entry.on is not None:
        raise RecipeError(
            f"The method 'base' is the base model as it is, so {entry.label!r} takes no `on`; leave it out."
        )
    return entry.on or find_method(entry.method).on


def _below(entry: MethodEntry, below: MethodEntry, *, known: bool) -> MethodEntry:
    """What an entry stands on, with the sets and options that differ for the entry itself.

    They are its own alone where it is a method of the base model's, which trains by them once more.
    """
    own = {"data": entry.data, "refine": entry.refine, "align": entry.align}
    alone = find_method(entry.method).on is None
    if alone or (known and not any(name in entry.model_fields_set for name in own)):
        return below
    merged = {
        "name": f"{below.label} below {entry.label}",
        "data": below.data.with_own(entry.data),
        "refine": {**below.refine, **entry.refine},
        "align": {**below.align, **entry.align},
    }
    return below.model_copy(update=merged)


class Recipe(Frozen):
    """Base model, data, stages, methods and evaluation of one run."""

    name: str = Field(min_length=1, pattern=NAME, description="Names the run's directory.")
    model: ModelSpec
    seed: int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="Seed of every stage and of every draw of training prompts that does not set its own.",
    )
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(
        [],
        description="Run everything once with each of these instead of `seed`, and give intervals over them.",
    )
    leave_out: dict[Annotated[str, Field(pattern=NAME)], Annotated[list[str], Field(min_length=1)]] = Field(
        {},
        description="Groups of sets: run everything once without each, and measure on what was left out.",
    )
    data: TrainingData = Field(default_factory=TrainingData)
    refine: dict[str, Any] = Field(default_factory=dict, description="Options of stage 1.")
    align: dict[str, Any] = Field(default_factory=dict, description="Options of stage 2.")
    methods: list[MethodEntry] = Field(min_length=1)
    evaluate: EvaluationPlan
    diagnose: DiagnosisPlan | None = Field(
        None, description="What is watched and measured beside the evaluation."
    )
    track: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        description="Trackers of the curves and the final numbers, as `report_to` of transformers; what "
        "DISCERNMENT_REPORT_TO names by default.",
    )

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.seeds and (len(set(self.seeds)) < len(self.seeds) or len(self.seeds) == 1):
            raise ValueError("`seeds` names two or more different seeds; for a single one write `seed`")
        if self.seeds and "seed" in self.model_fields_set:
            raise ValueError("name `seed` or `seeds`, not both")
        if self.seeds and (own := self._own_seed()):
            raise ValueError(f"with `seeds`, {own} would be the same for all of them; leave it out")
        labels = [m.label for m in self.methods]
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise ValueError(f"two methods are called {twice[0]!r}; give one of them a `name`")
        names = [b.name or b.set for b in self.evaluate.sets]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"two benchmarks are called {twice[0]!r}; give one of them a `name`")
        if POOLED in names:
            raise ValueError(
                f"a benchmark is called {POOLED!r}, which stands for all of them; give it another `name`"
            )
        if self.evaluate.reference is not None and self.evaluate.reference not in labels:
            raise ValueError(
                f"`evaluate.reference` is {self.evaluate.reference!r}, which is not among the methods"
            )
        return self

    def _own_seed(self) -> str | None:
        """Where a stage or a method has a seed of its own."""
        parts = {"refine": self.refine, "align": self.align}
        for method in self.methods:
            own = {"refine": method.refine, "align": method.align, "options": method.options}
            parts |= {f"{name} of {method.label!r}": options for name, options in own.items()}
        return next((f"`seed` in {where}" for where, options in parts.items() if "seed" in options), None)

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        labels = [m.label for m in self.methods]
        return self.evaluate.reference or ("stl" if "stl" in labels else labels[0])

    @property
    def families(self) -> dict[str, list[str]]:
        """The methods that come in several strengths."""
        return families_of({entry.label: (entry.method, stands_on(entry)) for entry in self.methods})

    def materials(self) -> dict[str, Materials]:
        """Read all prompts that each method works with, by what tables call it.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
            RecipeError: If there are too few general examples for `data.general_per_safety`.
        """
        watched = self.diagnose.watched_prompts() if self.diagnose else None
        common = self.data.load(self.seed)
        return {
            step.label: replace(
                self.data.with_own(step.data).load(self.seed) if step.data != TrainingData() else common,
                probes=watched,
            )
            for entry in self.methods
            for step in self.steps(entry)
        }

    def steps(self, entry: MethodEntry) -> list[MethodEntry]:
        """What is built one on the other for a method: what stands on the base model first, the method itself last.

        Sets and options that differ for the method differ for what it stands on, too, where it goes on from an aligned
        model by its nature; a method of the base model's keeps them to itself.

        Raises:
            RecipeError: If one of them is no method, stands on one that there is not or takes no `on`, or if they stand
                on each other in a circle.
        """
        steps, seen = [entry], [entry.label]
        while (wanted := stands_on(steps[0])) is not None:
            below = next((m for m in self.methods if m.label == wanted), None)
            if below is None and wanted not in known_methods():
                raise RecipeError(
                    f"{steps[0].label!r} stands on {wanted!r}, which is no method of the recipe and no known one; of the "
                    f"recipe: {', '.join(m.label for m in self.methods)}; known: {', '.join(known_methods())}."
                )
            if wanted in seen:
                raise RecipeError(
                    f"The methods {', '.join(map(repr, [*seen, wanted]))} stand on each other in a circle; change an `on`, or give "
                    "one of them a `name`."
                )
            seen.append(wanted)
            steps.insert(0, _below(steps[0], below or MethodEntry(method=wanted), known=below is not None))
        return steps

    def options(self, entry: MethodEntry) -> MethodOptions:
        """The stage options of one method: the recipe's with the method's own on top.

        Raises:
            ValidationError: If an option is unknown or out of range.
        """
        # Stage 1 has no default layer, and a method without stage 1 needs none.
        refine = {**self.refine, **entry.refine}
        return MethodOptions(
            align=AlignOptions.model_validate({"seed": self.seed, **self.align, **entry.align}),
            refine=RefineOptions.model_validate({"seed": self.seed, **refine}) if "layer" in refine else None,
            dynamics=self.diagnose.dynamics if self.diagnose else None,
            rule=entry.rule,
            own=self._own_options(entry),
        )

    def _own_options(self, entry: MethodEntry) -> Frozen:
        kind = find_method(entry.method).options_type
        seed = {"seed": self.seed} if "seed" in kind.model_fields else {}
        return kind.model_validate({**seed, **entry.options})

    def to_yaml(self) -> str:
        """The recipe as YAML that replays the run."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        # PyYAML leaves U+0085 (next line) as it is and then reads it as a line break.
        readable = "\x85" not in yaml.safe_dump(content, allow_unicode=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=readable)


def read_recipe(recipe: Path | str) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: A YAML file, or the name of a recipe that comes along.

    Raises:
        RecipeError: If the file is missing, is not YAML, or holds something wrong: the message names the option and
            the nearest known one.
    """
    path = find_recipe(recipe, "run")
    return parse_recipe(read_mapping(path, "recipe", Recipe), str(path))


def read_mapping(path: Path, what: str, model: type[BaseModel]) -> dict[str, Any]:
    """Read a YAML file that is one mapping.

    Args:
        path: The file.
        what: What messages call it.
        model: Names the keys that it should have; nothing is checked against it yet.

    Raises:
        RecipeError: If the file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no {what} {path}.") from None
    except RepeatedKeyError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        raise RecipeError(
            f"The {what} {path}{line} has the key {error.problem!r} twice; leave one out."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}," if place else ""
        raise RecipeError(
            f"The {what} {path}{where} is not valid YAML ({str(error).splitlines()[0]})."
        ) from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"The {what} {path} must be a mapping with the keys {', '.join(model.model_fields)}."
        )
    return content


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Check a recipe that was read already.

    Raises:
        RecipeError: If it holds something wrong.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {first_problem(error, Recipe)}") from error
    for number, entry in enumerate(recipe.methods):
        if nothing := [name for name in entry.data.model_fields_set if getattr(entry.data, name) is None]:
            raise RecipeError(
                f"{where}: `methods.{number}.data.{min(nothing)}` is empty, which would leave the recipe's own; a method can "
                "name other prompts, but not go without."
            )
        for stage, model, common, own in (
            # Only a method that runs stage 1 needs a layer; it says so itself.
            ("refine", RefineOptions, {"layer": "auto", **recipe.refine}, entry.refine),
            ("align", AlignOptions, recipe.align, entry.align),
        ):
            for prefix, options in ((stage, common), (f"methods.{number}.{stage}", {**common, **own})):
                try:
                    model.model_validate(options)
                except ValidationError as error:
                    raise RecipeError(f"{where}: {first_problem(error, model, prefix)}") from error
        _check_own_options(entry, f"methods.{number}.options", where)
        if entry.rule and not find_method(entry.method).acts_by_rule:
            raise RecipeError(
                f"{where}: `methods.{number}.rule`: the method {entry.method!r} acts by no rule; leave it out."
            )
        if entry.method == "base" and (unused := {"data", "refine", "align"} & entry.model_fields_set):
            raise RecipeError(
                f"{where}: `methods.{number}.{min(unused)}`: the method 'base' trains nothing; leave it out."
            )
        for step in recipe.steps(entry):
            _check_together(recipe, step, where)
    return recipe


def _check_together(recipe: Recipe, step: MethodEntry, where: str) -> None:
    """Make sure that options which are right each by itself go together in what a method stands on."""
    try:
        recipe.options(step)
    except ValidationError as error:
        kinds: tuple[type[BaseModel], ...] = (AlignOptions, RefineOptions)
        own = find_method(step.method).options_type
        model = next((kind for kind in kinds if kind.__name__ == error.title), own)
        raise RecipeError(f"{where}: {step.label!r}: {first_problem(error, model)}") from error


def _check_own_options(entry: MethodEntry, place: str, where: str) -> None:
    kind = find_method(entry.method).options_type
    if entry.options and not kind.model_fields:
        raise RecipeError(
            f"{where}: `{place}`: the method {entry.method!r} has no options of its own; leave them out."
        )
    try:
        kind.model_validate(entry.options)
    except ValidationError as error:
        raise RecipeError(f"{where}: {first_problem(error, kind, place)}") from error
