"""A disk without room, told from other mistakes and said in one sentence.

Each library says it in its own way: Python and Arrow by `errno`, what is written in Rust (safetensors, tokenizers) in
words, and `torch.save` not at all, but that its stream broke off.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from discernment.errors import DiskError

NUMBERS = {errno.ENOSPC, errno.EDQUOT}
WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|os error (?:28|122)\b"
    r"|iostream error|PytorchStreamWriter failed writing|inline_container\.cc.* unexpected pos"
    r"|\d+ requested and \d+ written"  # numpy
)


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came of, says that there was no room to write."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DiskError) or (isinstance(seen, OSError) and seen.errno in NUMBERS):
            return True
        if (not isinstance(seen, OSError) or seen.errno is None) and WORDS.search(str(seen)):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def no_room(folder: Path, needed: int | None = None) -> DiskError:
    """The error for a folder that cannot take what is to be written.

    Args:
        folder: Where it was to be written; it need not be there.
        needed: Bytes that were to be written, where that is known.
    """
    free = _free(folder)
    if needed is None or needed <= free:  # a quota, or other files at the same time
        amounts = f"{_size(free)} free there are not enough"
        advice = "free some, or name another place"
    else:
        amounts = f"{_size(needed)} are to be written and {_size(free)} are free"
        advice = f"free {_size(needed - free)}, or name another place"
    return DiskError(
        f"The disk that {folder} lies on has no room ({amounts}); {advice}, and give the command again, which goes on "
        "from here."
    )


@contextmanager
def room(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Say it in one way where something within finds no room.

    Args:
        folder: Where it writes.
        needed: Bytes that it writes, where that is known.

    Raises:
        DiskError: If the disk is full, or the quota used up; other errors pass as they are.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise no_room(folder, needed) from error


def check_room(folder: Path, needed: int) -> None:
    """Make sure that a folder can take so many bytes before any work is done for them.

    Raises:
        DiskError: If it cannot.
    """
    if needed > _free(folder):
        raise no_room(folder, needed)


def fullest_place() -> Path:
    """Where the least is free among the places that libraries write to."""
    places = [Path.cwd(), Path(os.environ.get("TMPDIR") or "/tmp"), Path.home()]  # noqa: S108
    return min((place for place in places if place.exists()), key=_free)


def _free(folder: Path) -> int:
    """Bytes that are free for this user where a folder lies, or would lie."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path())
    return shutil.disk_usage(there).free


def _size(count: int) -> str:
    """Bytes as people read them."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count} bytes"
