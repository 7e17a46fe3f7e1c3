"""What several verbs take: their options, each declared once, and how the texts are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError

from discernment.errors import RecipeError
from discernment.models.model_spec import ModelSpec
from discernment.prompts import PromptSet, PromptSource, load_source, load_sources
from discernment.runs.problems import first_problem

if TYPE_CHECKING:
    from discernment.policies.policy_spec import PolicySpec

OptionsT = TypeVar("OptionsT", bound=BaseModel)


def out_option(what: str) -> Any:
    """`--out`; `what` says what is written there."""
    return typer.Option("--out", "-o", help=what)


def stage_option(what: str) -> Any:
    """`--option`, which may be repeated; `what` says which there are."""
    return typer.Option("--option", "-O", help=what)


Model = Annotated[
    str, typer.Argument(help="Hub id, folder of a model or a policy, wheel://PACKAGE, or RUN/METHOD.")
]
System = Annotated[str | None, typer.Option(help="System message; without one the chat template decides.")]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option",
        "-M",
        help="Model option as KEY=VALUE, e.g. dtype=bfloat16, template=plain, rule.name=prompted.",
    ),
]
Options = Annotated[list[str] | None, stage_option("Stage option as KEY=VALUE, e.g. learning_rate=1e-4.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Prompt set: a catalogue name, starter/..., a file, hub:NAME; NAME:SPLIT for a split.",
    ),
]
SET_HELP = "A name that `discern prompts list` shows, a path to a .jsonl or .csv file, or hub:NAME"
SetName = Annotated[str, typer.Argument(metavar="SET", help=SET_HELP, show_default=False)]
Labels = Annotated[
    str, typer.Option(help="Completions with people's verdicts: xstest_human_labels, or a JSON-lines file.")
]
Redact = Annotated[bool, typer.Option(help="Leave toxic prompts and their completions out.")]


def load_set(text: str) -> PromptSet:
    """The prompts of `NAME` or `NAME:SPLIT`."""
    return load_source(parse_set(text))


def load_sets(texts: Sequence[str], name: str) -> PromptSet:
    """The prompts of several sets as one, called `name`."""
    return load_sources([parse_set(text) for text in texts], name)


def parse_set(text: str) -> PromptSource:
    """Read `NAME` or `NAME:SPLIT`.

    Raises:
        RecipeError: If the source is wrong.
    """
    try:
        return PromptSource.parse(text)
    except ValidationError as error:
        raise RecipeError(f"{text}: {first_problem(error, PromptSource)}") from error


def parse_policy(name: str, system: str | None, options: Sequence[str] | None) -> PolicySpec:
    """The policy that a name means: a model, a folder that a stage left, or `RUN/METHOD`, with `KEY=VALUE` options.

    Options are those of its model; `rule.name=NAME` and `rule.options.KEY=VALUE` let it act by a rule.

    Raises:
        DataError: If the run has no such method, or the folder's policy cannot be read.
        RecipeError: If an option is unknown or out of range.
    """
    from discernment.policies.policy_spec import PolicySpec, RuleSpec
    from discernment.runs.manifest import policy_of

    of_rule = [option for option in options or () if option.startswith("rule.")]
    given = {"model": name} | ({} if system is None else {"system": system})
    model = parse_options(ModelSpec, [o for o in options or () if o not in of_rule], given)
    run, _, method = name.rpartition("/")
    if run and (Path(run) / "manifest.json").is_file():
        said = model.model_dump(exclude={"model"}, exclude_unset=True)
        policy = policy_of(Path(run), method).with_model(**said)
    else:
        policy = PolicySpec.of(model)
    if not of_rule:
        return policy
    return policy.with_rule(parse_options(RuleSpec, [option.removeprefix("rule.") for option in of_rule]))


def parse_options(
    kind: type[OptionsT], pairs: Sequence[str] | None, given: Mapping[str, Any] | None = None
) -> OptionsT:
    """Read `KEY=VALUE` pairs into options; a dot goes down, e.g. `loss.name=supcon`.

    Raises:
        RecipeError: If a pair has no value, or an option is unknown or out of range.
    """
    options: dict[str, Any] = dict(given or {})
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"The option {pair!r} has no value; write KEY=VALUE.")
        *groups, last = key.split(".")
        place = options
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise RecipeError(f"The option {pair!r} goes into {group!r}, which has a value of its own.")
        try:
            # YAML 1.1 reads 1e-4 as text; pydantic makes it a number again.
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of the option {pair!r} is not YAML; quote it.") from error
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise RecipeError(f"Options: {first_problem(error, kind)}") from error
