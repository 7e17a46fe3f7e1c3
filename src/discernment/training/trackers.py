"""Trackers of training curves, such as TensorBoard, by the names and through the callbacks that transformers has."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from discernment.errors import RecipeError

VARIABLE = "DISCERNMENT_REPORT_TO"
"""Names the trackers where a recipe does not."""
FOLDER = "tensorboard"
"""Beside the stages: what TensorBoard shows. A stage's own folder would lose it with the checkpoints, or be damaged without it."""
FOLDER_VARIABLE = "TENSORBOARD_LOGGING_DIR"
"""Says to transformers' callback where to write."""
UNFIT = re.compile(r"[^\w.+ -]")

_now: ContextVar[dict[str, Any] | None] = ContextVar("tracked", default=None)


def chosen_trackers(named: Sequence[str] | None) -> list[str]:
    """The trackers that a recipe names, or those of the environment where it has no `track`."""
    if named is not None:
        return list(named)
    given = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    if given == ["all"]:
        from transformers.integrations.integration_utils import get_available_reporting_integrations

        return list(get_available_reporting_integrations())
    return [name for name in given if name not in ("", "none")]


def check_trackers(named: Sequence[str] | None) -> None:
    """Make sure that all trackers are there before anything is trained.

    Args:
        named: Those of a recipe; None if it names none.

    Raises:
        RecipeError: If transformers has no such tracker, or it is not installed.
    """
    chosen = chosen_trackers(named)
    if not chosen:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    where = VARIABLE if named is None else "`track`"
    there = get_available_reporting_integrations()
    for name in chosen:
        if name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(
                f"{where} names the tracker {name!r}, which transformers does not know; it knows "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        if name in there:
            continue
        try:
            INTEGRATION_TO_CALLBACK[name]()  # some are there and not in the list
        except (RuntimeError, ImportError) as error:
            raise RecipeError(
                f"{where} names the tracker {name!r}, which is not installed; install its package, e.g. "
                f"`pip install {name}`, or leave it out."
            ) from error


@contextmanager
def tracked(named: Sequence[str] | None, folder: Path, name: str) -> Iterator[list[str]]:
    """What is trained within sends its curves to trackers.

    Args:
        named: The trackers of a recipe; None for those of the environment.
        folder: Where TensorBoard's files go, unless its own variable says so: in a folder called `name`.
        name: What trackers call it.

    Yields:
        The trackers.

    Raises:
        RecipeError: As `check_trackers`.
    """
    check_trackers(named)
    chosen = chosen_trackers(named)
    before = os.environ.get(FOLDER_VARIABLE)
    token = _now.set({"report_to": chosen, "run_name": name if chosen else None})
    if "tensorboard" in chosen:
        os.environ[FOLDER_VARIABLE] = str(Path(before or folder) / UNFIT.sub("-", name))
    try:
        yield chosen
    finally:
        _now.reset(token)
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before
        elif "tensorboard" in chosen:
            del os.environ[FOLDER_VARIABLE]


def tracking_arguments() -> dict[str, Any]:
    """`report_to` and `run_name` for the trainer that is made now."""
    return dict(_now.get() or {"report_to": chosen_trackers(None), "run_name": None})
