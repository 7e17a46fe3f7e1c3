"""Saying how far something has got."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Gets what is being done, how much of it is done, and how much there is."""


def counting(tell: Progress, what: str, of: int) -> Callable[[int], None]:
    """A function that gets how many more are done, and tells `tell` how many of `of` are done by now."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(what, done, of)

    return count
