"""What the verbs of the command line call: the same functions that the Python API offers, with something to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.prompt import Prompt as Ask
from rich.text import Text

from discernment.cli.console import ConsoleReporter, console
from discernment.errors import DataError, RecipeError
from discernment.evaluation.evaluate import JudgedOptions
from discernment.evaluation.sample import read_samples
from discernment.evaluation.summary import summarize
from discernment.files import read_json, write_json
from discernment.judges import KeywordJudge
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.reporting.report import write_report
from discernment.reporting.seeds import findings, seeds_table, write_seeds
from discernment.reporting.table import results_table
from discernment.reporting.tables_csv import write_tables
from discernment.reporting.text import visible
from discernment.runs.recipe import first_problem
from discernment.runs.run import RunSummary, evaluate_model
from discernment.runs.seeds import SeedsSummary
from discernment.runs.stages import run_into
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align

__all__ = [
    "align_model",
    "chat_with",
    "evaluate_one",
    "parse_model",
    "parse_options",
    "parse_set",
    "refine_model",
    "report_run",
    "report_seeds",
    "resolve_model",
]

OptionsT = TypeVar("OptionsT", bound=BaseModel)


def report_run(summary: RunSummary, console: Console, *, redact: bool) -> None:
    """Print what a run found, and write its report and its tables."""
    if summary.stages_run == 0:
        console.print("Nothing to do: every stage was done before.")
    _print_cautions(summary, console)
    console.print(results_table(summary.results))
    console.print(Text(summary.results.finding))
    console.print(_write_reports(summary, redact=redact))


def report_seeds(summary: SeedsSummary, console: Console, *, redact: bool) -> None:
    """Write the report of each seed's run; print what they found together, and write its page."""
    for seed, run in summary.runs.items():
        console.print(f"Seed {seed}. {_write_reports(run, redact=redact)}")
        _print_cautions(run, console)
    console.print(seeds_table(summary.results))
    for finding in findings(summary.results):
        console.print(Text(visible(finding)))
    console.print(f"Page: {write_seeds(summary.results, summary.directory / 'seeds.html')}")


def _print_cautions(summary: RunSummary, console: Console) -> None:
    for benchmark, count in summary.seen_in_training.items():
        console.print(
            f"[yellow]Caution:[/yellow] {count} prompts of {escape(benchmark)} are also in the training data."
        )
    for attack, reason in summary.skipped_attacks.items():
        console.print(Text(f"The attack {attack} was left out: {reason}"))


def _write_reports(summary: RunSummary, *, redact: bool) -> str:
    """Write the report and the tables of a run, and say where they are."""
    tables = summary.directory / "tables"
    write_tables(tables, summary.results)
    return f"Report: {write_report(summary.directory, redact=redact)}; tables: {tables}"


def refine_model(
    model: ModelSpec,
    layer: str,
    sets: Sequence[str],
    validation: Sequence[str] | None,
    retained: Sequence[str] | None,
    options: Sequence[str],
    out: Path,
) -> None:
    """Run stage 1 into `out`."""
    inputs: dict[str, Any] = {
        "model": model,
        "prompts": load_sources([parse_set(s) for s in sets], "contrast"),
        "options": parse_options(RefineOptions, [*options, f"layer={layer}"]),
        "validation": load_sources([parse_set(s) for s in validation], "validation") if validation else None,
        "retained": load_sources([parse_set(s) for s in retained], "retained") if retained else None,
    }
    _run_stage("refine", refine, inputs, out)


def align_model(model: ModelSpec, sets: Sequence[str], options: Sequence[str], out: Path) -> None:
    """Run stage 2 into `out`."""
    inputs: dict[str, Any] = {
        "model": model,
        "examples": load_sources([parse_set(s) for s in sets], "examples"),
        "options": parse_options(AlignOptions, options),
    }
    _run_stage("align", align, inputs, out)


def evaluate_one(model: ModelSpec, sets: Sequence[str], options: Sequence[str], out: Path) -> None:
    """Evaluate one model into `out` and print its table."""
    if len(set(sets)) < len(sets):
        raise RecipeError("A prompt set is named twice; name each once.")
    asked = parse_options(JudgedOptions, options)
    with ConsoleReporter() as reporter:
        inputs: dict[str, Any] = {
            "model": model,
            "benchmarks": [load_source(parse_set(s)).renamed(s) for s in sets],
            "options": asked.options,
            "judge": asked.judge,
        }
        extra = {
            "name": model.model,
            "unscored_limit": asked.unscored_limit,
            "progress": reporter.progress,
        }
        run_into(out, "evaluate", evaluate_model, inputs, reporter, extra)
    results = summarize(
        {model.model: read_samples(out / "samples.jsonl")}, base_model=model.model, reference=model.model
    )
    write_json(out / "results.json", results.model_dump(mode="json"))
    console.print(results_table(results))
    console.print(Text(results.finding))
    console.print(f"Samples: {out / 'samples.jsonl'}; compare with others: discern compare {out} OTHER")


def chat_with(name: str, model: ModelSpec, max_new_tokens: int) -> None:
    """Talk to a model, or to a method of a run, until the input ends; each prompt stands for itself."""
    model = resolve_model(model)
    policy = Policy.load(model, name=name)
    console.print("Each prompt stands for itself; an empty line ends.")
    while True:
        try:
            prompt = Ask.ask("[bold]you[/bold]", console=console)
        except EOFError:
            return
        if not prompt.strip():
            return
        refusal = rejection_probability(policy, [prompt])[0]
        reply = policy.generate(policy.encode([prompt]), max_new_tokens)[0]
        console.print(Text(visible(reply.text)))
        verdict = KeywordJudge().judge(prompt, reply.text)
        console.print(Text(f"rejection probability {refusal:.3f}, judged {verdict}", style="dim"))


def parse_set(text: str) -> PromptSource:
    """Read `NAME` or `NAME:SPLIT`.

    Raises:
        RecipeError: If the source is wrong.
    """
    try:
        return PromptSource.parse(text)
    except ValidationError as error:
        raise RecipeError(f"{text}: {first_problem(error, PromptSource)}") from error


def parse_model(model: str, system: str | None, options: Sequence[str]) -> ModelSpec:
    """Read a model's name and its `KEY=VALUE` options.

    Raises:
        RecipeError: If an option is unknown or out of range.
    """
    given = {"model": model} | ({} if system is None else {"system": system})
    return parse_options(ModelSpec, options, given)


def resolve_model(model: ModelSpec) -> ModelSpec:
    """The model itself or, where its name means `RUN/METHOD`, the model of that method.

    Raises:
        DataError: If the run has no such method.
    """
    found = _run_method(model.model)
    given = model.model_dump(exclude={"model"}, exclude_unset=True)
    return model if found is None else found.model_copy(update=given)


def parse_options(
    kind: type[OptionsT], pairs: Sequence[str], given: Mapping[str, Any] | None = None
) -> OptionsT:
    """Read `KEY=VALUE` pairs into options; a dot goes down, e.g. `loss.name=supcon`.

    Raises:
        RecipeError: If a pair has no value, or an option is unknown or out of range.
    """
    options: dict[str, Any] = dict(given or {})
    for pair in pairs:
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


def _run_stage(name: str, work: Any, inputs: dict[str, Any], out: Path) -> None:
    with ConsoleReporter() as reporter:
        ran = run_into(out, name, work, inputs, reporter)
    console.print(f"{'Model' if ran else 'Nothing to do; the model is there'}: {out / 'model'}")


def _run_method(model: str) -> ModelSpec | None:
    """The model of `RUN/METHOD`, where that is what `model` means."""
    run, _, method = model.rpartition("/")
    manifest = Path(run) / "manifest.json"
    if not run or not manifest.is_file():
        return None
    methods = read_json(manifest)["methods"]
    if method not in methods:
        raise DataError(f"The run {run} has no method {method!r}; it has {', '.join(methods)}.")
    spec = ModelSpec.model_validate(methods[method]["model"])
    inside = Path(run) / spec.model
    return spec.model_copy(update={"model": str(inside)}) if inside.is_dir() else spec
