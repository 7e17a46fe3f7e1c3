"""`discern init`: a first recipe for a model, with the reason beside each choice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import caution, notice, prepare_process, say
from discernment.cli.options import ModelOptions, System, out_option, parse_options
from discernment.errors import RecipeError
from discernment.models.model_spec import ModelSpec

if TYPE_CHECKING:
    from discernment.runs.first_recipe.begin import Choices
    from discernment.runs.first_recipe.folder import Said
    from discernment.runs.recipe import Recipe

MINUTES = 15.0


def init(
    model: Annotated[str, typer.Argument(help="Hub id, folder, GGUF file or wheel://PACKAGE.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with your prompt files, or one file; the starter set without.")
    ] = None,
    out: Annotated[
        Path | None, out_option("The recipe to write; NAME.yaml, after the model, without.", is_file=True)
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Run the recipe, down to the report.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
    minutes: Annotated[
        float, typer.Option(min=1, help="What the run should take at most, by estimate.")
    ] = MINUTES,
    label: Annotated[
        list[str] | None, typer.Option(help="Label of all prompts of a file, as FILE=toxic; may be repeated.")
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            help="What a label value of a file means, as FILE:VALUE=benign, or =none to leave it out."
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Column of a file, as FILE:ROLE=NAME; roles: text, label, response, split."),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="File of the folder to leave out.")] = None,
    system: System = None,
    model_option: ModelOptions = None,
) -> None:
    """Write a first recipe for a model: looks at it, the machine and your prompts, and says why each choice."""
    prepare_process()
    given = {"model": model} | ({} if system is None else {"system": system})
    spec = parse_options(ModelSpec, model_option, given)
    if spec.quantization is not None:
        raise RecipeError(
            "`init` finds out by itself whether the weights have to be held in few bits; leave `quantization` out, and write it "
            "into the recipe if you want it all the same."
        )
    name = _name(model)
    out = out or Path(f"{name}.yaml")
    if data is None and (label or label_map or column or skip):
        raise RecipeError(
            "--label, --label-map, --column and --skip are for the files of --data; name a folder."
        )
    said = _said(label or (), label_map or (), column or (), skip or ())
    files = [("label", label), ("label-map", label_map), ("column", column), ("skip", skip)]
    command = _written_by(model, data, minutes, system, [*files, ("model-option", model_option)])
    found, recipe = _write(spec, data, said, out, minutes, command, force=force)
    _tell(found)
    say(f"Recipe: {out}" + (f"; your prompts: {found.file}" if data else ""))
    if run:
        from discernment.cli.run import run as run_verb

        run_verb(str(out), jobs=found.jobs)
        return
    _say_next(found, out, recipe.name)


def _written_by(
    model: str,
    data: Path | None,
    minutes: float,
    system: str | None,
    repeated: Sequence[tuple[str, Sequence[str] | None]],
) -> str:
    """The command that a recipe was made by, to be given again; where it was written to is seen."""
    words = ["discern", "init", model, *(["--data", str(data)] if data else [])]
    words += [] if minutes == MINUTES else ["--minutes", f"{minutes:g}"]
    words += [] if system is None else ["--system", system]
    words += [word for name, values in repeated for one in values or () for word in (f"--{name}", one)]
    return shlex.join(words)


def _write(
    spec: ModelSpec, data: Path | None, said: Said, out: Path, minutes: float, command: str, *, force: bool
) -> tuple[Choices, Recipe]:
    """Choose, and write the recipe and the prompts that belong to it."""
    from discernment.runs.first_recipe.begin import choose, prompts_file, write_recipe
    from discernment.runs.first_recipe.draft import as_yaml

    for path in (out, prompts_file(out)) if data is not None else (out,):
        if path.exists() and not force:
            raise RecipeError(f"{path} is there already; name another by --out, or write over it by --force.")
    file = prompts_file(out)
    before = file.read_bytes() if file.exists() else None
    try:
        found = choose(spec, data, said, out, minutes, lambda what: notice(f"Looking at {what} ...", "dim"))
        return found, write_recipe(as_yaml(found, _name(out.stem), command), out)
    except BaseException:
        if before is None:  # without a recipe they would only be in the way of the next try
            file.unlink(missing_ok=True)
        elif file.read_bytes() != before:  # which the recipe that is there was written for
            file.write_bytes(before)
        raise


def _say_next(found: Choices, out: Path, name: str) -> None:
    from discernment.runs.first_recipe.estimate import in_minutes

    jobs = f" --jobs {found.jobs}" if found.jobs > 1 else ""
    took = f"{in_minutes(found.seconds)}, " if found.seconds is not None else ""
    say(f"Next: discern run {shlex.quote(str(out))}{jobs} ({took}into runs/{name})")


def _tell(found: Choices) -> None:
    """Print what the user's files were taken for, and what was chosen of the model."""
    if found.own is not None:
        for line in found.own.taken:
            say(line)
        for line in found.own.left_out:
            say(f"left out: {line}", "yellow")
        say(f"{len(found.own.prompts)} prompts, {found.own.split}.")
    for line in found.unusable:
        say(f"left out: {line}", "yellow")
    from discernment.runs.first_recipe.circumstances import gib

    facts, way = found.facts, found.way
    say(
        f"Model: {facts.parameters / 1e6:,.1f} million weights, {facts.layers} layers; {way.name}, {gib(way.needed)} of "
        f"{gib(found.machine.free)} free; layer {found.layer}."
    )
    if not way.fits:
        caution("By estimate no way to train this model fits into the memory; the recipe takes the smallest.")
    if found.tried is not None and found.aligned:
        say(
            f"It refuses toxic prompts already (mean rejection probability {found.tried.refused:.2f}), so it is the reference."
        )


def _said(label: Sequence[str], label_map: Sequence[str], column: Sequence[str], skip: Sequence[str]) -> Said:
    """What the options say of files.

    Raises:
        RecipeError: If one is not written as it must be, or two contradict each other.
    """
    from discernment.prompts import Label
    from discernment.prompts.columns import label_key
    from discernment.runs.first_recipe.folder import Said
    from discernment.runs.first_recipe.recognise import LEFT_OUT, Given

    def meant(option: str, text: str, value: str) -> Label:
        try:
            return Label(value)
        except ValueError:
            raise RecipeError(
                f"{option} {text!r}: {value!r} is no label; say one of {', '.join(Label)}."
            ) from None

    of_file: dict[str, Given] = {}
    for text in label:
        file, value = _parted("--label", "FILE=LABEL", text)
        of_file[file] = of_file.get(file, Given())._replace(label=meant("--label", text, value))
    for text in label_map:
        file, key, value = _thrice("--label-map", "FILE:VALUE=LABEL", text)
        meaning = value if value == LEFT_OUT else meant("--label-map", text, value)
        before = of_file.get(file, Given())
        of_file[file] = before._replace(meanings={**before.meanings, label_key(key): meaning})
    for text in column:
        file, role, value = _thrice("--column", "FILE:ROLE=NAME", text)
        if role not in ("text", "label", "response", "split"):
            raise RecipeError(f"--column {text!r}: {role!r} is no role; say text, label, response or split.")
        before = of_file.get(file, Given())
        of_file[file] = before._replace(columns={**before.columns, role: value})
    for file, given in of_file.items():
        if given.label is not None and (given.meanings or "label" in given.columns):
            raise RecipeError(
                f"--label gives all rows of {file} one label, and --label-map or --column says that they have different ones; "
                "leave one out."
            )
    return Said(of_file, skip)


def _parted(option: str, form: str, text: str) -> tuple[str, str]:
    before, equals, value = (part.strip() for part in text.rpartition("="))
    if not (before and equals and value):
        raise RecipeError(f"{option} {text!r} must be {form}.")
    return before, value


def _thrice(option: str, form: str, text: str) -> tuple[str, str, str]:
    before, value = _parted(option, form, text)
    file, colon, key = (part.strip() for part in before.partition(":"))
    if not (file and colon and key):
        raise RecipeError(f"{option} {text!r} must be {form}.")
    return file, key, value


def _name(model: str) -> str:
    """A name for a recipe: the last part of a model's, of letters that file names may have."""
    last = re.sub(r"[^\w.-]+", "-", model.rstrip("/").replace("\\", "/").rpartition("/")[2]).strip("-.")
    return last.removesuffix(".gguf") or "mine"
