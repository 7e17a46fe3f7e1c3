"""A recipe: everything that a run depends on, in one YAML file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from discernment.errors import RecipeError
from discernment.evaluation.attacked import ATTACKS, LOW_RESOURCE
from discernment.evaluation.evaluate import JudgedOptions
from discernment.evaluation.results import POOLED
from discernment.frozen import Frozen
from discernment.methods.method import Materials, MethodOptions, find_method
from discernment.models.model_spec import ModelSpec
from discernment.prompts import PromptSet
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.prompts.suites import load_suite, suites
from discernment.runs.diagnosis_plan import DiagnosisPlan
from discernment.runs.problems import first_problem
from discernment.runs.training_data import Sources, TrainingData
from discernment.training.contrastive import RefineOptions
from discernment.training.supervised import AlignOptions

__all__ = [
    "Benchmark",
    "EvaluationPlan",
    "MethodEntry",
    "Recipe",
    "TrainingData",
    "first_problem",
    "parse_recipe",
    "read_mapping",
    "read_recipe",
]


class MethodEntry(Frozen):
    """A method to run, perhaps under another name and with options of its own."""

    method: str = Field(description="Name of an installed method: base, stl, stl_aug, dcr, dcr_paper, ...")
    name: str = Field("", description="What to call it in tables; the method's name by default.")
    data: TrainingData = Field(
        default_factory=TrainingData, description="Sets that differ from the recipe's `data`."
    )
    refine: dict[str, Any] = Field(
        default_factory=dict, description="Options that differ from the recipe's `refine`."
    )
    align: dict[str, Any] = Field(
        default_factory=dict, description="Options that differ from the recipe's `align`."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.name or self.method


class Benchmark(PromptSource):
    """A set of prompts to evaluate on."""

    name: str = Field("", description="What to call it in tables; the set's name by default.")

    def load(self) -> PromptSet:
        """Read the prompts.

        Raises:
            DataError: If they cannot be read, or none is left after filtering.
        """
        return load_source(self).renamed(self.name or self.set)


class EvaluationPlan(JudgedOptions):
    """What every method is evaluated on, how, and who judges."""

    benchmarks: list[Benchmark] = Field([], description="Sets of prompts.")
    suite: str | None = Field(None, description="Named list of sets, beside `benchmarks`.")
    attacks: list[str] = Field([], description="Attacks on the toxic prompts.")
    translations: Path | None = Field(None, description="File of translations for the attack `low_resource`.")
    ability: Sources | None = Field(
        None,
        description="Benign prompts with replies, on which every method is measured beside the base model.",
    )
    tasks: list[str] = Field(
        [], description="Tasks of lm-evaluation-harness: names that it knows, or folders of task files."
    )
    tasks_limit: int | None = Field(None, ge=1, description="Most questions a task.")
    flips: int | None = Field(
        None, ge=1, description="Batch size of a second evaluation in another order, to count what flips."
    )
    reference: str | None = Field(
        None,
        description="The method that the others are compared with; `stl` where it is there, else the first.",
    )

    @field_validator("suite")
    @classmethod
    def _suite_is_known(cls, suite: str | None) -> str | None:
        if suite is not None and suite not in suites():
            raise ValueError(f"there is no suite {suite!r}; choose one of {', '.join(suites())}")
        return suite

    @field_validator("attacks")
    @classmethod
    def _attacks_are_known(cls, attacks: list[str]) -> list[str]:
        for name, count in Counter(attacks).items():
            if name not in ATTACKS:
                raise ValueError(f"there is no attack {name!r}; known: {', '.join(ATTACKS)}")
            if count > 1:
                raise ValueError(f"the attack {name!r} is named twice")
        return attacks

    @field_validator("tasks")
    @classmethod
    def _tasks_are_named_once(cls, tasks: list[str]) -> list[str]:
        twice = [name for name, count in Counter(tasks).items() if count > 1]
        if twice:
            raise ValueError(f"the task {twice[0]!r} is named twice")
        return tasks

    @model_validator(mode="after")
    def _has_something_to_do(self) -> EvaluationPlan:
        if not self.benchmarks and self.suite is None:
            raise ValueError("name `benchmarks`, a `suite`, or both")
        if self.translations is not None and LOW_RESOURCE not in self.attacks:
            raise ValueError(
                f"`translations` are for the attack `{LOW_RESOURCE}`, which is not among `attacks`"
            )
        if self.tasks_limit is not None and not self.tasks:
            raise ValueError("`tasks_limit` is for `tasks`, and there are none")
        if self.flips == self.batch_size:
            raise ValueError(
                f"`flips` is the batch size of the second evaluation, and {self.flips} is `batch_size`, that of the "
                "first; choose another, such as 1"
            )
        return self

    @property
    def sets(self) -> list[Benchmark]:
        """The benchmarks of the suite, and then the others."""
        of_suite = load_suite(self.suite) if self.suite else []
        return [Benchmark(**source.model_dump(exclude_unset=True)) for source in of_suite] + self.benchmarks

    def ability_prompts(self) -> PromptSet | None:
        """Read the prompts with replies that ability is measured on; None if it is not to be measured.

        Raises:
            DataError: If a set cannot be read, or none of its prompts has a reply.
        """
        if self.ability is None:
            return None
        return load_sources(self.ability, "ability").filter(lambda p: bool(p.response), "a response")


class Recipe(Frozen):
    """Base model, data, stages, methods and evaluation of one run."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="Names the run's directory.")
    model: ModelSpec
    seed: int = Field(
        0,
        ge=0,
        description="Seed of every stage and of every draw of training prompts that does not set its own.",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [],
        description="Run everything once with each of these instead of `seed`, and give intervals over them.",
    )
    data: TrainingData = Field(default_factory=TrainingData)
    refine: dict[str, Any] = Field(default_factory=dict, description="Options of stage 1.")
    align: dict[str, Any] = Field(default_factory=dict, description="Options of stage 2.")
    methods: list[MethodEntry] = Field(min_length=1)
    evaluate: EvaluationPlan
    diagnose: DiagnosisPlan | None = Field(
        None, description="What is watched and measured beside the evaluation."
    )

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.seeds and (len(set(self.seeds)) < len(self.seeds) or len(self.seeds) == 1):
            raise ValueError("`seeds` names two or more different seeds; for a single one write `seed`")
        if self.seeds and "seed" in self.model_fields_set:
            raise ValueError("name `seed` or `seeds`, not both")
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

    @property
    def reference(self) -> str:
        """The method that the others are compared with."""
        labels = [m.label for m in self.methods]
        return self.evaluate.reference or ("stl" if "stl" in labels else labels[0])

    def materials(self) -> dict[str, Materials]:
        """Read all prompts that each method works with, by what tables call it.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
            RecipeError: If there are too few general examples for `data.general_per_safety`.
        """
        watched = self.diagnose.watched_prompts() if self.diagnose else None
        common = self.data.load(self.seed)
        return {
            entry.label: replace(
                self.data.with_own(entry.data).load(self.seed) if entry.data != TrainingData() else common,
                probes=watched,
            )
            for entry in self.methods
        }

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
        )

    def to_yaml(self) -> str:
        """The recipe as YAML that replays the run."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        # PyYAML leaves U+0085 (next line) as it is and then reads it as a line break.
        readable = "\x85" not in yaml.safe_dump(content, allow_unicode=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=readable)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: If the file is missing, is not YAML, or holds something wrong: the message names the option and
            the nearest known one.
    """
    return parse_recipe(read_mapping(path, "recipe", Recipe), str(path))


def read_mapping(path: Path, what: str, model: type[BaseModel]) -> dict[str, Any]:
    """Read a YAML file that is one mapping.

    Args:
        path: The file.
        what: What messages call it.
        model: Names the keys that it should have; nothing is checked against it yet.

    Raises:
        RecipeError: If the file is missing, is not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no {what} {path}.") from None
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
        for stage, model, common, own in (
            # Only a method that runs stage 1 needs a layer; it says so itself.
            ("refine", RefineOptions, {"layer": 1, **recipe.refine}, entry.refine),
            ("align", AlignOptions, recipe.align, entry.align),
        ):
            for prefix, options in ((stage, common), (f"methods.{number}.{stage}", {**common, **own})):
                try:
                    model.model_validate(options)
                except ValidationError as error:
                    raise RecipeError(f"{where}: {first_problem(error, model, prefix)}") from error
    for entry in recipe.methods:
        find_method(entry.method)
    return recipe
