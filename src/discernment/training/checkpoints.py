"""Checkpoints that can be trusted after an interruption."""

import logging
import shutil
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open

from discernment.errors import DiscernmentError
from discernment.files import read_json

SHARDED = "pytorch_model_fsdp.bin"
"""A file in the checkpoint of a model that is spread over devices."""

logger = logging.getLogger(__name__)


def latest_checkpoint(out: Path, *, sharded: bool = False) -> Path | None:
    """The newest checkpoint under `out/checkpoints` that was written whole; those that were not are removed.

    Args:
        out: The stage's directory.
        sharded: Whether the model is spread over devices (FSDP): its checkpoints are of another kind.
    """
    remove_torn_checkpoints(out)
    found = [checkpoint for checkpoint in _checkpoints(out) if (checkpoint / SHARDED).exists() == sharded]
    if not found:
        return None
    logger.info("Going on from step %s.", found[-1].name.rpartition("-")[2])
    return found[-1]


def remove_torn_checkpoints(out: Path) -> None:
    """Remove the checkpoints under `out/checkpoints` that were cut off or are damaged.

    The trainer writes checkpoints in place: the state file comes last, so one that lacks it was cut off.
    """
    for checkpoint in _checkpoints(out):
        if not _is_whole(checkpoint):
            logger.warning("The checkpoint %s was cut off; it is removed.", checkpoint.name)
            shutil.rmtree(checkpoint)


def _checkpoints(out: Path) -> list[Path]:
    """All checkpoints, the newest last."""
    return sorted((out / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))


def _is_whole(checkpoint: Path) -> bool:
    try:
        state = read_json(checkpoint / "trainer_state.json")
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
        optimizer = list(checkpoint.glob("optimizer.*"))
        for file in (
            *checkpoint.glob("*.pt*"),
            *checkpoint.glob("*.bin"),
        ):  # torch writes archives with checksums
            with ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return False
    except (DiscernmentError, OSError, SafetensorError, BadZipFile):
        return False
    return bool(weights and optimizer) and isinstance(state, dict) and "global_step" in state
