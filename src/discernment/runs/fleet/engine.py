"""What an engine is: where the processes of tasks are started, here or on other machines."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

from discernment.errors import RecipeError
from discernment.frozen import Frozen

Asked = TypeVar("Asked")
Found = TypeVar("Found")


class Killed(Exception):  # noqa: N818 - not a mistake of anyone's
    """The process of a task ended before the task did."""


class Workers(ABC):
    """The processes of one engine during one command; what they are given and what they return is pickled."""

    @abstractmethod
    def do(self, work: Callable[[Asked], Found], asked: Asked) -> Found:
        """Call `work(asked)` in another process, and wait for it; as many threads as there are jobs call this.

        Raises:
            Killed: If the process ends before.
            RunError: If the engine takes no tasks.
        """

    @abstractmethod
    def stop(self) -> None:
        """End all processes, also those that are at a task: whoever waits for it hears of it soon."""


class Engine(Frozen, ABC):
    """Starts processes for tasks. Its fields are its options, on which no result and no stage's name depends."""

    name: ClassVar[str]
    """What `--engine` calls it, and the extra that installs its package."""
    package: ClassVar[str] = ""
    """What it stands on, beside what is always there."""

    def check(self) -> None:
        """See that its package is there.

        Raises:
            RecipeError: If it is not.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise RecipeError(f"The engine {self.name} needs `pip install 'discernment[{self.name}]'`.")

    @abstractmethod
    def start(self, jobs: int, folder: Path) -> Workers:
        """Get ready for tasks.

        Args:
            jobs: How many are done at the same time.
            folder: Where the engine may keep what it needs for itself; all its machines see it.

        Raises:
            RecipeError: If a package is missing.
            RunError: If there is no such cluster.
        """
