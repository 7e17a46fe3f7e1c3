"""What installed packages announce by entry points, this one included."""

import sys
from functools import cache
from importlib.metadata import EntryPoints, entry_points


def announced(group: str) -> EntryPoints:
    """The entry points of a group; `.select(name=...)` chooses among them.

    Args:
        group: The group, such as `discernment.methods`.
    """
    return _along(tuple(sys.path), group)


@cache
def _along(path: tuple[str, ...], group: str) -> EntryPoints:
    """The same for what is installed along `path`, once: the files of all packages are read for it."""
    return entry_points(group=group)
