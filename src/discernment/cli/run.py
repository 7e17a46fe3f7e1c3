"""`discern run`: a recipe from the base model to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import caution, notice, prepare_process, print_json, say, show
from discernment.cli.engines import EngineName, Jobs, SlurmOptions, parse_engine
from discernment.cli.options import AsJson, Verify, out_option

if TYPE_CHECKING:
    from discernment.runs.left_out import LeftOutRuns
    from discernment.runs.run import RunSummary
    from discernment.runs.seeds import SeedsSummary


def run(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a recipe that comes along (`discern recipes`).")
    ],
    out: Annotated[Path | None, out_option("Directory for the results.")] = None,
    redact: Annotated[
        bool, typer.Option(help="Leave toxic prompts and their completions out of the report.")
    ] = False,
    verify: Verify = False,
    jobs: Jobs = 1,
    engine: EngineName = "local",
    slurm: SlurmOptions = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe from the base model to the report; done stages are not done again."""
    prepare_process()
    from discernment.cli.reporter import ConsoleReporter
    from discernment.ranks import check_alone
    from discernment.runs.left_out import run_left_out
    from discernment.runs.recipe import read_recipe
    from discernment.runs.run import run_recipe
    from discernment.runs.seeds import run_seeds

    if jobs > 1 or engine != "local":
        check_alone("`--jobs`")
    at = parse_engine(engine, slurm)
    parsed = read_recipe(recipe)
    directory = out or Path("runs") / parsed.name
    if parsed.leave_out:
        with ConsoleReporter() as reporter:
            left_out = run_left_out(parsed, directory, reporter, verify=verify, jobs=jobs, engine=at)
        _report_left_out(left_out, redact=redact, as_json=as_json)
    elif parsed.seeds:
        with ConsoleReporter() as reporter:
            of_seeds = run_seeds(parsed, directory, reporter, verify=verify, jobs=jobs, engine=at)
        _report_seeds(of_seeds, redact=redact, as_json=as_json)
    else:
        with ConsoleReporter() as reporter:
            summary = run_recipe(parsed, directory, reporter, verify=verify, jobs=jobs, engine=at)
        _report_run(summary, redact=redact, as_json=as_json)


def _report_run(summary: RunSummary, *, redact: bool, as_json: bool) -> None:
    """Print what a run found, and write its report and its tables."""
    from discernment.reporting.pages.examples import freed
    from discernment.reporting.tables.freed import freed_table
    from discernment.reporting.tables.methods import OVER_REFUSAL, results_table

    if summary.stages_run == 0:
        notice("Nothing to do: every stage was done before.")
    _print_cautions(summary)
    if as_json:
        print_json(summary.results.model_dump(mode="json"))
    else:
        say(f"{OVER_REFUSAL} {summary.results.finding}", "bold")
        show(results_table(summary.results))
        changed = freed(summary.results, summary.samples)
        if changed is not None:
            show(freed_table(changed))
    notice(_write_reports(summary, redact=redact))


def _report_seeds(summary: SeedsSummary, *, redact: bool, as_json: bool) -> None:
    """Write the report of each seed's run; print what they found together, and write its page."""
    from discernment.reporting.pages.seeds import findings
    from discernment.reporting.seed_runs import write_seed_files
    from discernment.reporting.tables.seeds import seeds_table

    for seed, of_seed in summary.runs.items():
        notice(f"Seed {seed}. {_write_reports(of_seed, redact=redact)}")
        _print_cautions(of_seed)
    if as_json:
        print_json(summary.results.model_dump(mode="json"))
    else:
        show(seeds_table(summary.results))
        for finding in findings(summary.results):
            say(finding)
    page = write_seed_files(summary.results, summary.directory)
    notice(f"Tables: {summary.directory / 'tables'}")
    notice(f"Page: {page}")


def _report_left_out(left_out: LeftOutRuns, *, redact: bool, as_json: bool) -> None:
    """Write the report of each run; print how the methods fare on what was left out, and where the numbers are."""
    from discernment.reporting.tables.csv_files import write_left_out
    from discernment.reporting.tables.left_out import left_out_table

    for (group, seed), run in left_out.runs.items():
        notice(f"Without {group}, seed {seed}. {_write_reports(run, redact=redact)}")
        _print_cautions(run)
    if as_json:
        print_json(left_out.results.model_dump(mode="json"))
    else:
        show(left_out_table(left_out.results))
    table = left_out.directory / "tables" / "left_out.csv"
    write_left_out(table, left_out.results)
    notice(f"Every number: {table}; with what they say together: {left_out.directory / 'left_out.json'}")


def _print_cautions(summary: RunSummary) -> None:
    for benchmark, count in summary.seen_in_training.items():
        caution(f"{count} prompts of {benchmark} are also in the training data.")
    for attack, reason in summary.skipped_attacks.items():
        notice(f"The attack {attack} was left out: {reason}")
    for left_out in summary.results.left_out:
        notice(left_out.words)


def _write_reports(summary: RunSummary, *, redact: bool) -> str:
    """Write the report and the tables of a run, and say where they are."""
    from discernment.reporting.pages.run import write_report
    from discernment.reporting.run_files import read_manifest
    from discernment.reporting.tables.csv_files import write_field, write_tables
    from discernment.reporting.tables.field import field_table

    tables = summary.directory / "tables"
    write_tables(tables, summary.results)
    manifest = read_manifest(summary.directory)
    if manifest is not None and (columns := field_table(summary.results, manifest)):
        write_field(tables / "field.csv", columns)
    return f"Report: {write_report(summary.directory, redact=redact)}; tables: {tables}"
