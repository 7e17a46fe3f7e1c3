"""`discern publish`: a method of a run with its model card, on the hub or in a folder."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli.console import prepare_process, say
from discernment.cli.options import out_option
from discernment.errors import RunError


def publish(
    method: Annotated[
        str, typer.Argument(help="A method of a finished run, as RUN/METHOD, e.g. runs/quickstart/dcr.")
    ],
    repository: Annotated[str, typer.Argument(help="Where it goes on the hub, e.g. me/smollm2-dcr.")],
    out: Annotated[Path | None, out_option("The folder that is sent; RUN/publish/METHOD by default.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Leave the folder and send nothing.")] = False,
    private: Annotated[bool, typer.Option(help="Make a new repository a private one.")] = False,
) -> None:
    """Publish a method of a run with a model card that says what was measured, and what was not."""
    prepare_process()
    from discernment.reporting.model_card import model_card
    from discernment.reporting.run_files import check_finished, read_run
    from discernment.runs.manifest import policy_of
    from discernment.runs.publishing import collect, send

    run, _, name = method.rstrip("/").rpartition("/")
    if not run:
        raise RunError(f"{method!r} names no run; write RUN/METHOD, e.g. runs/quickstart/{method}.")
    policy = policy_of(Path(run), name)
    read = read_run(Path(run))
    check_finished(read)
    card = model_card(read, name, policy)
    folder = collect(policy, card, out or Path(run) / "publish" / name)
    if dry_run:
        say(f"Folder: {folder}. Without --dry-run it is sent to {repository}.")
    else:
        say(f"Published: {send(folder, repository, private=private)}")
