"""Suites: named lists of benchmarks, kept as data in `suites.yaml`."""

from collections.abc import Mapping, Sequence
from functools import cache

from discernment.errors import DataError
from discernment.files import packaged_yaml
from discernment.prompts.sources import PromptSource


@cache
def suites() -> Mapping[str, Sequence[PromptSource]]:
    """Every suite by its name."""
    return {
        name: tuple(PromptSource.model_validate(source) for source in sources)
        for name, sources in packaged_yaml("discernment.prompts", "suites.yaml").items()
    }


def load_suite(name: str) -> list[PromptSource]:
    """The benchmarks of a suite, as sources that `load_source` reads one by one.

    Args:
        name: `paper`, `quick` or `full`.

    Raises:
        DataError: If there is no such suite.
    """
    if name not in suites():
        raise DataError(f"There is no suite {name!r}; choose one of {', '.join(suites())}.")
    return list(suites()[name])
