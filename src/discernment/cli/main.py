"""The command `discern`: one thin function a verb, each of which parses, calls one function, and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from discernment.cli.judges import app as judges_app
from discernment.cli.prompts import app as prompts_app
from discernment.errors import DiscernmentError

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="discern",
    help="Which of these models refuses what it should, and only that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(prompts_app, name="prompts")
app.add_typer(judges_app, name="judges")

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Directory for the results.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Prompt set: a catalogue name, starter/..., a file, hub:NAME; NAME:SPLIT for a split.",
    ),
]
Layer = Annotated[int | None, typer.Option(help="l: the last layer that stage 1 trains, counted from 1.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", help="Stage option as KEY=VALUE, e.g. learning_rate=1e-4."),
]
System = Annotated[str | None, typer.Option(help="System message; without one the chat template decides.")]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--model-option", "-M", help="Model option as KEY=VALUE, e.g. dtype=bfloat16, template=plain."
    ),
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Out = None,
    redact: Annotated[
        bool, typer.Option(help="Leave toxic prompts and their completions out of the report.")
    ] = False,
) -> None:
    """Run a recipe from the base model to the report; done stages are not done again."""
    from discernment.cli.console import ConsoleReporter, console, prepare_process
    from discernment.cli.verbs import report_run, report_seeds

    prepare_process()
    from discernment.runs.recipe import read_recipe
    from discernment.runs.run import run_recipe
    from discernment.runs.seeds import run_seeds

    parsed = read_recipe(recipe)
    directory = out or Path("runs") / parsed.name
    if parsed.seeds:
        with ConsoleReporter() as reporter:
            of_seeds = run_seeds(parsed, directory, reporter)
        report_seeds(of_seeds, console, redact=redact)
    else:
        with ConsoleReporter() as reporter:
            summary = run_recipe(parsed, directory, reporter)
        report_run(summary, console, redact=redact)


@app.command()
def sweep(
    sweep: Annotated[Path, typer.Argument(help="The sweep, a YAML file.")],
    out: Out = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many trials there shall be, earlier ones included.")
    ] = None,
) -> None:
    """Search over a recipe's options; the same command goes on where it was."""
    from discernment.cli.console import prepare_process

    prepare_process()
    from discernment.cli.sweep import sweep_into

    sweep_into(sweep, out, trials)


@app.command()
def refine(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or wheel://PACKAGE.")],
    layer: Annotated[
        str,
        typer.Option(
            help="l: the last layer that is trained, counted from 1; `auto`: where the labels can be told apart."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the refined model.")],
    sets: Sets = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="Prompt sets by which the stage stops.")
    ] = None,
    retained: Annotated[list[str] | None, typer.Option(help="Benign prompt sets for `retention`.")] = None,
    option: Options = None,
    system: System = None,
    model_option: ModelOptions = None,
) -> None:
    """Stage 1 alone: contrastive refinement of the first LAYER layers."""
    from discernment.cli.console import prepare_process
    from discernment.cli.verbs import parse_model, refine_model

    prepare_process()
    refine_model(
        parse_model(model, system, model_option or []),
        layer,
        sets or ["starter/pairs:train"],
        validation,
        retained,
        option or [],
        out,
    )


@app.command()
def align(
    model: Annotated[
        str,
        typer.Argument(
            help="Hub id, folder, or wheel://PACKAGE; for DCR, what `refine` left, with `-O frozen_layers=LAYER`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the aligned model.")],
    sets: Sets = None,
    option: Options = None,
    system: System = None,
    model_option: ModelOptions = None,
) -> None:
    """Stage 2 alone: supervised safety fine-tuning on prompts with replies."""
    from discernment.cli.console import prepare_process
    from discernment.cli.verbs import align_model, parse_model

    prepare_process()
    align_model(
        parse_model(model, system, model_option or []),
        sets or ["starter/benign:train", "starter/toxic:train"],
        option or [],
        out,
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or wheel://PACKAGE.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for samples and results.")],
    sets: Sets = None,
    option: Options = None,
    system: System = None,
    model_option: ModelOptions = None,
) -> None:
    """Let one model reply to prompt sets, and show what it refuses."""
    from discernment.cli.console import prepare_process
    from discernment.cli.verbs import evaluate_one, parse_model

    prepare_process()
    evaluate_one(
        parse_model(model, system, model_option or []),
        sets or ["starter/pairs:test", "starter/benign:test"],
        option or [],
        out,
    )


@app.command()
def diagnose(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, wheel://PACKAGE, or RUN/METHOD, e.g. runs/quickstart/stl.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for diagnosis.json and report.html.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            help="Prompt set, as for `evaluate`. Not one that you report on: a layer is chosen by it. Without any, "
            "starter/pairs:validation and starter/benign:validation.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-O", help="Option as KEY=VALUE, e.g. kernel.k=5, per_group=8, seed=1."),
    ] = None,
    redact: Annotated[bool, typer.Option(help="Leave toxic prompts out of the report.")] = False,
    system: System = None,
    model_option: ModelOptions = None,
) -> None:
    """Show why a model refuses too much, and which layer to refine; always in float32, without training."""
    from discernment.cli.console import prepare_process
    from discernment.cli.diagnose import diagnose_into
    from discernment.cli.verbs import parse_model

    prepare_process()
    diagnose_into(
        parse_model(model, system, model_option or []),
        sets or ["starter/pairs:validation", "starter/benign:validation"],
        option or [],
        out,
        redact=redact,
    )


@app.command()
def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Directories that `evaluate` or `run` left; or NAME=DIR.")
    ],
    reference: Annotated[str | None, typer.Option(help="The name that the others are compared with.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .json file for the results, or a directory for page, tables and results."
        ),
    ] = None,
    redact: Annotated[bool, typer.Option(help="Leave toxic prompts and their completions out.")] = False,
) -> None:
    """Compare evaluations of the same prompts: rates, paired tests, equal safety."""
    from discernment.cli.compare import compare_evaluations

    compare_evaluations(evaluations, reference, out, redact=redact)


@app.command()
def report(
    run_directory: Annotated[Path, typer.Argument(help="A directory that `run` left.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The HTML file; RUN/report.html by default.")
    ] = None,
    redact: Annotated[bool, typer.Option(help="Leave toxic prompts and their completions out.")] = False,
) -> None:
    """Write the HTML report of a run again."""
    from discernment.cli.console import console
    from discernment.reporting.report import write_report

    console.print(f"Report: {write_report(run_directory, out, redact=redact)}")


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, wheel://PACKAGE, or RUN/METHOD, e.g. runs/quickstart/dcr.")
    ],
    system: System = None,
    model_option: ModelOptions = None,
    max_new_tokens: Annotated[int, typer.Option(help="Token cap of a reply.")] = 128,
) -> None:
    """Talk to a model; each reply comes with its rejection probability."""
    from discernment.cli.console import prepare_process
    from discernment.cli.verbs import chat_with, parse_model

    prepare_process()
    chat_with(model, parse_model(model, system, model_option or []), max_new_tokens)


def main() -> None:
    """Run the command line; a user's mistake gets one sentence and exit code 2."""
    try:
        app()
    except DiscernmentError as error:
        sys.stderr.write(f"discern: {error}\n")
        sys.exit(2)
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        sys.stderr.write(
            f"discern: {error.filename}: {error.strerror}; name another place or mend this one.\n"
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer says nothing of a Ctrl-C
            sys.stderr.write("discern: interrupted; the same command goes on from here.\n")
        raise
