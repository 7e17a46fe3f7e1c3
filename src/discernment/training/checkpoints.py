"""Checkpoints that can be trusted after an interruption."""

import logging
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from discernment.errors import DiscernmentError
from discernment.files import read_json

logger = logging.getLogger(__name__)


def latest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint under `out/checkpoints` that was written whole; broken newer ones are removed.

    The trainer writes checkpoints in place: the state file comes last, so one that lacks it was cut off.
    """
    folder = out / "checkpoints"
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        if _is_whole(checkpoint):
            logger.info("Going on from step %s.", checkpoint.name.rpartition("-")[2])
            return checkpoint
        logger.warning("The checkpoint %s was cut off; it is removed.", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / "trainer_state.json")
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
    except (DiscernmentError, OSError, SafetensorError):
        return False
    return bool(weights) and (checkpoint / "optimizer.pt").is_file()
