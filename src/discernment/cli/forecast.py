"""How long a run will take, by what its stages took so far."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean


class Forecast:
    """The stages of a run, of which some are done.

    A stage that is ahead takes what those of its name took on average, or what all did where none of its name was done yet;
    one whose result was there already took no time and says nothing.

    Args:
        stages: The names of all, in their order.
        clock: Tells the seconds.
    """

    def __init__(self, stages: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.stages = stages
        self.begun = 0
        self._clock = clock
        self._taken: dict[str, list[float]] = defaultdict(list)
        self._since: float | None = None
        self._now = ""

    def begin(self, name: str, *, reused: bool) -> None:
        """Note that a stage begins, and that the one before has ended."""
        self._end()
        self.begun += 1
        if not reused:
            self._now, self._since = name, self._clock()

    @property
    def remaining(self) -> float | None:
        """Seconds until all are done; None until one has been done, and where nothing says how many there are."""
        if not self._taken or self.begun > len(self.stages):
            return None
        ahead = sum(map(self._usual, self.stages[self.begun :]))
        if self._since is None:
            return ahead
        return ahead + max(0.0, self._usual(self._now) - (self._clock() - self._since))

    def _usual(self, name: str) -> float:
        known = self._taken.get(name) or [seconds for taken in self._taken.values() for seconds in taken]
        return fmean(known)

    def _end(self) -> None:
        if self._since is not None:
            self._taken[self._now].append(self._clock() - self._since)
            self._since = None
