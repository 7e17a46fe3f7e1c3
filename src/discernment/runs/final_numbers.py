"""The numbers that a run ends with, for the trackers that have its curves."""

import logging
from collections.abc import Sequence
from pathlib import Path

from discernment.disk import is_full
from discernment.errors import DataError
from discernment.evaluation.metrics import EqualSafety, Ranking
from discernment.evaluation.results import Results
from discernment.files import content_hash, read_json, write_json
from discernment.training.trackers import FOLDER, chosen_trackers, tracked

FILE = "tracked.json"
"""What was sent where, so that a run that is done sends nothing again."""

logger = logging.getLogger(__name__)


def final_numbers(results: Results) -> dict[str, float]:
    """Rates, discernment AUROCs and comparisons at equal safety, each called METHOD/WHAT/WHERE/LABEL."""
    found = {
        f"{score.method}/{score.metric}/{score.benchmark}/{score.label.value}": score.value
        for score in results.scores
    }
    found |= {f"{row.method}/auroc/{_where(row)}": row.value for row in results.rankings}
    for row in results.equal_safety:
        found[f"{row.method}/equal_safety/{_where(row)}"] = row.compliance
        found[f"{row.method}/equal_safety_difference/{_where(row)}"] = row.difference
    return {name: value for name, value in found.items() if value is not None}


def _where(row: Ranking | EqualSafety) -> str:
    sides = row.harmless if row.harmless == row.toxic else f"{row.harmless} against {row.toxic}"
    return f"{sides}/{row.harmless_label.value}"


def send_numbers(results: Results, named: Sequence[str] | None, directory: Path, name: str) -> None:
    """Send the numbers of a run to its trackers, once; a tracker that fails costs a line of the log and not the run.

    Args:
        results: The numbers.
        named: The trackers of the recipe; None for those of the environment.
        directory: The run's directory.
        name: The recipe's name.
    """
    chosen = chosen_trackers(named)
    sent = {"trackers": chosen, "numbers": content_hash(final_numbers(results))}
    if not chosen or _known(directory / FILE) == sent:
        return
    try:
        _send(final_numbers(results), named, directory / FOLDER, f"{name} results")
    except Exception as error:  # trackers raise what they like
        if is_full(error):
            raise
        logger.warning(
            "The numbers could not be sent to %s (%s); the same command tries again.",
            ", ".join(chosen),
            error,
        )
        return
    write_json(directory / FILE, sent)


def _send(numbers: dict[str, float], named: Sequence[str] | None, folder: Path, name: str) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    with tracked(named, folder, name) as trackers:
        arguments = TrainingArguments(
            output_dir=str(folder), run_name=name, report_to=list(trackers), use_cpu=True
        )
        state, control = TrainerState(), TrainerControl()
        callbacks = [kind() for kind in get_reporting_integration_callbacks(trackers)]
        logs = {f"eval_{key}": value for key, value in numbers.items()}
        for callback in callbacks:
            callback.on_train_begin(arguments, state, control, model=None)
            callback.on_log(arguments, state, control, logs=dict(logs), model=None)
            callback.on_train_end(arguments, state, control, model=None)


def _known(file: Path) -> object:
    try:
        return read_json(file)
    except DataError:  # not there, or damaged
        return None
