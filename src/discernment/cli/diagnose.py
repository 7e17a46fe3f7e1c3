"""`discern diagnose`: why a model refuses too much, and which layer to refine."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import caution, notice, prepare_process, print_json, say, show
from discernment.files import read_json


def diagnose(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, wheel://PACKAGE, or RUN/METHOD, e.g. runs/quickstart/stl.")
    ],
    out: Annotated[Path, options.out_option("Directory for diagnosis.json and report.html.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Prompt set, as for `evaluate`. Not one that you report on: a layer is chosen by it. Without any, "
            "starter/pairs:validation and starter/benign:validation.",
        ),
    ] = None,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
    option: Annotated[
        list[str] | None, options.stage_option("Option as KEY=VALUE, e.g. kernel.k=5, per_group=8, seed=1.")
    ] = None,
    redact: Annotated[bool, typer.Option(help="Leave toxic prompts out of the report.")] = False,
    system: options.System = None,
    model_option: options.ModelOptions = None,
    as_json: options.AsJson = False,
) -> None:
    """Show why a model refuses too much, and which layer to refine; always in float32, without training."""
    prepare_process()
    from discernment.cli.reporter import ConsoleReporter
    from discernment.diagnosis.diagnosis import DiagnoseOptions, Diagnosis
    from discernment.reporting.pages.diagnosis import write_diagnosis
    from discernment.reporting.tables.similarity import similarity_table
    from discernment.runs.measures.kernel import check_kernel, diagnose_stage
    from discernment.runs.stages import run_into

    policy = options.parse_policy(model, system, model_option).with_weights("A diagnosis")
    asked = options.parse_options(DiagnoseOptions, option)
    check_kernel(policy, asked.kernel)
    sets = sets or ["starter/pairs:validation", "starter/benign:validation"]
    reading = options.parse_reading(sets, column, fixed_label, label_map, encoding)
    prompts = options.load_sets(sets, "diagnosis", reading)
    # The kernel's differences drown in the rounding of less.
    inputs = {"policy": policy.with_model(dtype="float32"), "prompts": prompts, "options": asked}
    command = partial(_refine, model, system, model_option or ())
    with ConsoleReporter() as reporter:
        told = {"name": model, "command": command, "progress": reporter.progress}
        ran = run_into(out, "diagnose", diagnose_stage, inputs, reporter, told)
    if not ran:
        notice("Nothing to do; the diagnosis is there.")
    found = Diagnosis.model_validate(read_json(out / "diagnosis.json"))
    page = write_diagnosis(found, out / "report.html", redact=redact)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(similarity_table(found))
        say(found.finding)
    if found.unscored:
        caution(f"unscored prompts, which are in no number: {len(found.unscored)}.")
    notice(f"Next: {found.command}")
    notice(f"Report: {page}; numbers: {out / 'diagnosis.json'}")


def _refine(model: str, system: str | None, model_options: Sequence[str], layer: int) -> str:
    """The command for stage 1 of what was typed, without a rule, which stage 1 does not take."""
    words = ["discern", "refine", model, "--layer", str(layer), "--out", "refined"]
    words += [] if system is None else ["--system", system]
    for option in model_options:
        words += [] if option.startswith("rule.") else ["--model-option", option]
    return shlex.join(words)
