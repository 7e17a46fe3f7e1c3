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

from discernment.alignment.supervised import AlignOptions, align
from discernment.cli.console import ConsoleReporter, console
from discernment.diagnosis.rejection import rejection_probability
from discernment.errors import DataError, RecipeError
from discernment.evaluation.evaluate import EvaluateOptions
from discernment.evaluation.judges import KeywordJudge
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.summary import summarize
from discernment.files import content_hash, read_json, write_json
from discernment.models.policy import Policy
from discernment.models.spec import ModelSpec
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.refinement.trainer import RefineOptions, refine
from discernment.reporting.report import write_report
from discernment.reporting.table import results_table
from discernment.reporting.text import visible
from discernment.runs.recipe import first_problem
from discernment.runs.run import RunSummary, evaluate_model
from discernment.runs.stages import run_into

__all__ = [
    "align_model",
    "chat_with",
    "compare_evaluations",
    "evaluate_one",
    "parse_model",
    "parse_options",
    "parse_set",
    "refine_model",
    "report_run",
]

OptionsT = TypeVar("OptionsT", bound=BaseModel)


def report_run(summary: RunSummary, console: Console, *, redact: bool) -> None:
    """Print what a run found, and write its report."""
    if summary.stages_run == 0:
        console.print("Nothing to do: every stage was done before.")
    for benchmark, count in summary.seen_in_training.items():
        console.print(
            f"[yellow]Caution:[/yellow] {count} prompts of {escape(benchmark)} are also in the training data."
        )
    console.print(results_table(summary.results))
    console.print(Text(summary.results.finding))
    console.print(f"Report: {write_report(summary.directory, redact=redact)}")


def refine_model(
    model: ModelSpec,
    layer: int,
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
    with ConsoleReporter() as reporter:
        inputs: dict[str, Any] = {
            "model": model,
            "benchmarks": [load_source(parse_set(s)).renamed(s) for s in sets],
            "options": parse_options(EvaluateOptions, options),
            "judge": KeywordJudge(),
        }
        run_into(out, "evaluate", evaluate_model, inputs, reporter, {"progress": reporter.progress})
    results = summarize(
        {model.model: read_samples(out / "samples.jsonl")}, base_model=model.model, reference=model.model
    )
    write_json(out / "results.json", results.model_dump(mode="json"))
    console.print(results_table(results))
    console.print(Text(results.finding))
    console.print(f"Samples: {out / 'samples.jsonl'}; compare with others: discern compare {out} OTHER")


def compare_evaluations(evaluations: Sequence[Path], reference: str | None, out: Path | None) -> Results:
    """Compare what `evaluate` or `run` left, on the prompts that all of them have."""
    samples: dict[str, list[Sample]] = {}
    how: dict[str, str] = {}
    for argument in evaluations:
        for name, path in _samples_in(argument):
            if name in samples:
                raise RecipeError(
                    f"Two evaluations are called {name!r}; give one a name of its own: NAME={path}."
                )
            samples[name] = read_samples(path)
            how[name] = _how_evaluated(path)
    if len(set(how.values())) > 1:
        raise DataError(
            "The evaluations were made in different ways (token cap, openings or judge), so their numbers cannot be "
            "compared; evaluate the models again with the same options."
        )
    shared = set.intersection(*({(s.benchmark, s.prompt) for s in found} for found in samples.values()))
    if not shared:
        raise DataError("The evaluations have no prompt in common; evaluate all models on the same sets.")
    samples = {
        name: [s for s in found if (s.benchmark, s.prompt) in shared] for name, found in samples.items()
    }
    if reference is not None and reference not in samples:
        raise RecipeError(f"There is no evaluation called {reference!r}; there are {', '.join(samples)}.")
    first = "stl" if "stl" in samples else next(iter(samples))
    results = summarize(samples, base_model=", ".join(samples), reference=reference or first)
    console.print(results_table(results))
    console.print(Text(results.finding))
    if out is not None:
        write_json(out, results.model_dump(mode="json"))
        console.print(f"Results: {out}")
    return results


def chat_with(name: str, model: ModelSpec, max_new_tokens: int) -> None:
    """Talk to a model, or to a method of a run, until the input ends; each prompt stands for itself."""
    spec = _run_method(name)
    if spec is not None:
        given = model.model_dump(exclude={"model"}, exclude_unset=True)
        model = spec.model_copy(update=given)
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


def _how_evaluated(samples: Path) -> str:
    """What must be the same for two evaluations to be compared; the batch size need not."""
    record = samples.with_name("stage.json")
    inputs = read_json(record).get("inputs", {}) if record.is_file() else {}
    options = {k: v for k, v in inputs.get("options", {}).items() if k != "batch_size"}
    return content_hash([options, inputs.get("judge")])


def _samples_in(argument: Path) -> list[tuple[str, Path]]:
    # A directory may have an equals sign in its name.
    name, equals, rest = ("", "", str(argument)) if argument.is_dir() else str(argument).rpartition("=")
    directory = Path(rest)
    if (directory / "samples.jsonl").is_file():
        return [(name if equals else directory.name, directory / "samples.jsonl")]
    if not (directory / "manifest.json").is_file():
        raise DataError(
            f"{directory} holds neither an evaluation nor a run: no samples.jsonl, no manifest.json."
        )
    methods = read_json(directory / "manifest.json")["methods"]
    prefix = f"{name}/" if equals else ""
    return [
        (prefix + method, directory / "stages" / stage / "samples.jsonl")
        for method, entry in methods.items()
        for stage in entry["stages"]
        if stage.startswith("evaluate-")
    ]


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
