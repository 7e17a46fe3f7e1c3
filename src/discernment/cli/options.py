"""What several verbs take: their options, each declared once, and how the texts are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError

from discernment.errors import RecipeError
from discernment.files import read_yaml
from discernment.models.model_spec import ModelSpec
from discernment.prompts import Label, PromptSet, PromptSource, load_source, load_sources
from discernment.runs.problems import first_problem

if TYPE_CHECKING:
    from discernment.policies.policy_spec import PolicySpec

OptionsT = TypeVar("OptionsT", bound=BaseModel)
Reading = Mapping[str, Any]
"""Keys of `PromptSource` that say how a table is read."""


def out_option(what: str, *, is_file: bool = False) -> Any:
    """`--out`; `what` says what is written there, and `is_file` whether it is a file."""

    def with_a_name(given: str | Path | None) -> Path | None:
        if given is None:
            return None
        out = Path(given)
        if out.name in ("", ".."):  # what lies beside it is called after it
            out = out.resolve()
        if not out.name or (is_file and out.is_dir()):
            raise RecipeError(
                f"--out {out} is a folder; name a file." if is_file else f"--out {out} has no name."
            )
        return out

    return typer.Option("--out", "-o", help=what, callback=with_a_name)


def stage_option(what: str) -> Any:
    """`--option`, which may be repeated; `what` says which there are."""
    return typer.Option("--option", "-O", help=what)


def _be_quiet(asked: bool) -> None:
    from discernment.cli.console import notices

    notices.quiet = asked


Model = Annotated[
    str, typer.Argument(help="Hub id, folder of a model or a policy, wheel://PACKAGE, or RUN/METHOD.")
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hub id, folder of a model or a policy, wheel://PACKAGE, openai:NAME@URL, or RUN/METHOD.",
    ),
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
SET_HELP = "A name that `discern prompts list` shows, a path to a file (.jsonl, .json, .csv, .tsv, .parquet), or hub:NAME"
SetName = Annotated[str, typer.Argument(metavar="SET", help=SET_HELP, show_default=False)]
Column = Annotated[
    list[str] | None,
    typer.Option(help="Column of a file or a hub set as ROLE=NAME, e.g. text=question; may be repeated."),
]
FixedLabel = Annotated[
    Label | None, typer.Option(case_sensitive=False, help="Label of every row of a file or a hub set.")
]
LabelMap = Annotated[
    str | None, typer.Option(help="What the labels of a file or a hub set mean, e.g. 1=toxic,0=benign.")
]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a file that is not UTF-8, e.g. cp1252.")]
Labels = Annotated[
    str,
    typer.Option(
        help="Completions with people's verdicts: xstest_human_labels, starter/verdicts, or a file."
    ),
]
LabelSets = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        help="Labelled completions to learn from: starter/verdicts, xstest_human_labels, or a file; may be repeated.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Read all files of done stages, to see damage that leaves their sizes as they were."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the numbers as one JSON document, and nothing else.")
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the result alone: no progress, no notices.",
        callback=_be_quiet,
        expose_value=False,
    ),
]
Redact = Annotated[bool, typer.Option(help="Leave toxic prompts and their completions out.")]


def check_kept(written: Iterable[Path], read: Iterable[str]) -> None:
    """Whether what is written leaves what is read as it is.

    Raises:
        RecipeError: If a file is both.
    """
    sources = {Path(name).resolve() for name in read}
    for path in written:
        if path.resolve() in sources:
            raise RecipeError(f"{path} is read, and would be replaced; name another place with --out.")


def check_not_a_run(out: Path) -> None:
    """Whether a file or folder for a comparison leaves what a run or a stage wrote as it is.

    Raises:
        RecipeError: If it is one of their files, or a folder that has some.
    """
    from discernment.runs.directory import OUTCOMES
    from discernment.runs.stage_record import FILE

    own = {*OUTCOMES, FILE} - {"results.json"}  # which a comparison leaves, too
    if out.is_dir() and (found := sorted(own & {path.name for path in out.iterdir()})):
        raise RecipeError(
            f"{out} holds the {found[0]} of a run or an evaluation; name another place with --out."
        )
    taken = own | ({"results.json"} if out.with_name("manifest.json").is_file() else set())
    if out.is_file() and out.name in taken:
        raise RecipeError(f"{out} is a file of a run or an evaluation; name another place with --out.")


def load_set(text: str, reading: Reading | None = None) -> PromptSet:
    """The prompts of `NAME` or `NAME:SPLIT`."""
    return load_source(parse_set(text, reading))


def load_sets(texts: Sequence[str], name: str, reading: Reading | None = None) -> PromptSet:
    """The prompts of several sets as one, called `name`."""
    return load_sources([parse_set(text, reading) for text in texts], name)


def parse_set(text: str, reading: Reading | None = None) -> PromptSource:
    """Read `NAME` or `NAME:SPLIT`.

    Args:
        text: The set.
        reading: How the tables among the sets are read, as `parse_reading` gives it.

    Raises:
        RecipeError: If the source is wrong.
    """
    try:
        source = PromptSource.parse(text)
        if not reading or not source.is_table:
            return source
        given = {key: value for key, value in reading.items() if source.is_file or key != "encoding"}
        return PromptSource.model_validate({**source.model_dump(exclude_unset=True), **given})
    except ValidationError as error:
        raise RecipeError(f"{text}: {first_problem(error, PromptSource)}") from error


def parse_reading(
    sets: Sequence[str],
    column: Sequence[str] | None,
    fixed_label: Label | None,
    label_map: str | None,
    encoding: str | None,
) -> Reading:
    """How the tables among some sets are read, as keys of `PromptSource`.

    Raises:
        RecipeError: If a pair is none, or there is something given and no set that it could be for.
    """
    given = {
        "columns": _pairs("--column", "ROLE=NAME", column or ()),
        "fixed_label": fixed_label,
        "label_map": _pairs("--label-map", "LABEL=MEANING", label_map.split(",") if label_map else ()),
        "encoding": encoding,
    }
    reading = {key: value for key, value in given.items() if value}
    sources = [parse_set(text) for text in sets]
    for key in reading:
        if not any(source.is_file if key == "encoding" else source.is_table for source in sources):
            option = "--column" if key == "columns" else f"--{key.replace('_', '-')}"
            raise RecipeError(
                f"{option} is for files{'' if key == 'encoding' else ' and sets of the hub'}, and none is named; leave "
                "it out or name one."
            )
    return reading


def _pairs(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.rpartition("="))
        if not (key and equals and value):
            raise RecipeError(f"{option} {text!r} must be {form}.")
        if found.setdefault(key, value) != value:
            raise RecipeError(f"{option} gives {key!r} twice; give it once.")
    return found


def parse_policy(name: str, system: str | None, options: Sequence[str] | None) -> PolicySpec:
    """The policy that a name means: a model, a folder that a stage left, or `RUN/METHOD`, with `KEY=VALUE` options.

    Options are those of its model; `rule.name=NAME` and `rule.options.KEY=VALUE` let it act by a rule.

    Raises:
        DataError: If the run has no such method, or the folder's policy cannot be read.
        RecipeError: If an option is unknown or out of range.
        RunError: If the run is one of several seeds, which has policies for each.
    """
    from discernment.policies.policy_spec import PolicySpec, RuleSpec
    from discernment.runs.directory import check_one_run
    from discernment.runs.manifest import policy_of

    of_rule = [option for option in options or () if option.startswith("rule.")]
    given = {"model": name} | ({} if system is None else {"system": system})
    model = parse_options(ModelSpec, [o for o in options or () if o not in of_rule], given)
    run, _, method = name.rstrip("/").rpartition("/")
    if run and not Path(name).is_dir():
        check_one_run(Path(run))
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

    Args:
        kind: The options.
        pairs: The pairs; of two with the same key the last one counts.
        given: What arguments and options of their own say already.

    Raises:
        RecipeError: If a pair has no value or says what is given, or an option is unknown or out of range.
    """
    options: dict[str, Any] = dict(given or {})
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"The option {pair!r} has no value; write KEY=VALUE.")
        if key in (given or {}):
            raise RecipeError(
                f"The option {pair!r} says {key!r} a second time, beside an argument or an option of its own; say it once."
            )
        *groups, last = key.split(".")
        place = options
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise RecipeError(f"The option {pair!r} goes into {group!r}, which has a value of its own.")
        try:
            # YAML 1.1 reads 1e-4 as text; pydantic makes it a number again.
            place[last] = read_yaml(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"The value of the option {pair!r} is not YAML; quote it.") from error
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        raise RecipeError(f"Options: {first_problem(error, kind)}") from error


def parse_yaml(kind: type[OptionsT], text: str, option: str) -> OptionsT:
    """Read what a recipe would say, written as YAML in one line, e.g. `{kind: hub, model: FOLDER}`.

    Args:
        kind: What it describes.
        text: The YAML.
        option: The option that it was given by, for the message.

    Raises:
        RecipeError: If it is not YAML, or a key is unknown or out of range.
    """
    try:
        return kind.model_validate(read_yaml(text))
    except yaml.YAMLError as error:
        raise RecipeError(f"{option} {text!r} is not YAML, or has a key twice; mend it.") from error
    except ValidationError as error:
        raise RecipeError(f"{option} {text!r}: {first_problem(error, kind)}") from error
