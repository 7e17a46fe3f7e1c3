"""An OpenAI-compatible endpoint, for judges and for whoever else asks a model behind one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from discernment.errors import RecipeError

if TYPE_CHECKING:
    from openai import OpenAI

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def open_client(base_url: str | None, api_key: str | None, retries: int, timeout: float) -> OpenAI:
    """The client of an endpoint.

    Args:
        base_url: Its address; OpenAI's own, or `OPENAI_BASE_URL`, without one.
        api_key: The key; `OPENAI_API_KEY` without one.
        retries: How often a failed question is repeated.
        timeout: Seconds without a byte before an attempt fails.

    Raises:
        RecipeError: If the extra `judges` is not installed, or there is no key.
    """
    try:
        from openai import OpenAI, OpenAIError
    except ImportError:
        raise RecipeError("An endpoint needs `pip install 'discernment[judges]'`.") from None
    try:
        return OpenAI(base_url=base_url, api_key=api_key, max_retries=retries, timeout=timeout)
    except OpenAIError as error:
        raise RecipeError(
            "The endpoint has no key; set OPENAI_API_KEY (to anything, for one that asks for none)."
        ) from error


def ask_all(
    ask: Callable[[Question], Answer], questions: Iterable[Question], concurrency: int
) -> Iterator[Answer]:
    """Ask several questions at once, and yield the answers in their order."""
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        yield from pool.map(ask, questions)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, no question that has not begun


def encodable(text: str) -> str:
    """The text, half surrogate pairs replaced: a broken completion can be judged, but not be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")


def failure_in_words(error: Exception) -> str:
    """The error's kind, and the status that the endpoint gave."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__
