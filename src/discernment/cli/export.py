"""`discern export`: the replies of a run in a form that other tools read."""

from __future__ import annotations

import shlex
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import notice, prepare_process, say
from discernment.cli.options import Redact, out_option
from discernment.errors import RecipeError, RunError
from discernment.files import replace_directory

if TYPE_CHECKING:
    from discernment.reporting.exports.gathered import Gathered


class Form(StrEnum):
    """What is written."""

    INSPECT = "inspect"
    CSV = "csv"
    PARQUET = "parquet"
    HUB = "hub"


SAID = {Form.INSPECT: "Logs", Form.CSV: "Table", Form.PARQUET: "Table"}


def export(
    run: Annotated[
        Path,
        typer.Argument(help="A directory that `run` or `evaluate` left, or RUN/METHOD of a finished run."),
    ],
    to: Annotated[
        Form,
        typer.Option(
            help="inspect: logs for `inspect view`; csv, parquet: a table; hub: the table as a dataset on the hub."
        ),
    ],
    out: Annotated[
        str | None,
        out_option("The folder, RUN/export/FORM by default; for hub, where it goes there, e.g. me/replies."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; may be repeated. All by default.")
    ] = None,
    redact: Redact = False,
    dry_run: Annotated[bool, typer.Option(help="For hub: leave the folder and send nothing.")] = False,
    private: Annotated[bool, typer.Option(help="For hub: make a new repository a private one.")] = False,
) -> None:
    """Export the replies of a run: logs for `inspect view`, a table, or a dataset on the hub."""
    prepare_process()
    from discernment.reporting.exports.gathered import gather, home_of

    if to is not Form.HUB and (dry_run or private):
        raise RecipeError(f"--{'dry-run' if dry_run else 'private'} is for `--to hub`; leave it out.")
    if to is Form.HUB and out is None:
        raise RecipeError("`--to hub` needs the repository that the dataset goes to, e.g. --out me/replies.")
    if to is Form.INSPECT:
        from discernment.reporting.exports.inspect_logs import check_inspect

        check_inspect()
    gathered = gather(run, method or (), redact=redact)
    home = home_of(run) / to
    count = sum(len(replies.samples) for replies in gathered.replies)
    if to is Form.HUB:
        from discernment.reporting.exports.dataset import collect_dataset
        from discernment.runs.publishing import send

        folder = collect_dataset(gathered, home, redact=redact)
        if dry_run:
            say(f"Folder: {folder}, replies to {count} prompts. Without --dry-run it is sent to {out}.")
        else:
            say(f"Published: {send(folder, str(out), private=private, kind='dataset')}")
        return
    folder = Path(out) if out is not None else home
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise RunError(f"{folder} holds something already; remove it or name another folder with --out.")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names = _write(gathered, to, part)
    replace_directory(part, folder)
    say(f"{SAID[to]}: {', '.join(str(folder / name) for name in names)}, replies to {count} prompts.")
    if to is Form.INSPECT:
        notice(f"See them with: inspect view --log-dir {shlex.quote(str(folder))}")


def _write(gathered: Gathered, to: Form, folder: Path) -> list[str]:
    """Write a form of the replies, and give the names of its files."""
    from discernment.reporting.exports.inspect_logs import write_inspect_logs
    from discernment.reporting.exports.sample_table import write_samples_csv, write_samples_parquet

    if to is Form.INSPECT:
        return [path.name for path in write_inspect_logs(gathered, folder)]
    write = write_samples_csv if to is Form.CSV else write_samples_parquet
    write(gathered, folder / f"samples.{to}")
    return [f"samples.{to}"]
