"""An OpenAI-compatible endpoint, for judges and for whoever else asks a model behind one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from discernment.errors import RecipeError

if TYPE_CHECKING:
    from openai import BadRequestError, OpenAI
    from openai.types.chat import ChatCompletion

MAY_BE_REFUSED = ("max_tokens", "temperature")
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


def create(client: OpenAI, refused: set[str], **question: Any) -> ChatCompletion:
    """Ask a question, without parameters that the endpoint refuses: reasoning models know no `max_tokens`.

    Args:
        client: The endpoint's client.
        refused: Parameters that it has refused before; what it refuses now is added.
        question: The parameters, `max_tokens` and `temperature` among them.
    """
    from openai import BadRequestError

    while True:
        sent = {name: value for name, value in question.items() if name not in refused}
        if "max_tokens" in refused and "max_tokens" in question:
            sent["max_completion_tokens"] = question["max_tokens"]
        ask: Any = client.chat.completions.create
        try:
            answer: ChatCompletion = ask(**sent)
        except BadRequestError as error:
            named = next((name for name in MAY_BE_REFUSED if name in sent and _refuses(error, name)), None)
            if named is None:
                raise
            refused.add(named)
        else:
            return answer


def _refuses(error: BadRequestError, name: str) -> bool:
    """Whether an endpoint says that it does not know a parameter, or no value of it but its own."""
    said = str(error).lower()
    return (error.param == name or f"'{name}'" in said) and ("unsupported" in said or "not support" in said)


def was_cut(answer: ChatCompletion) -> bool:
    """Whether an answer ended at its token cap; endpoints have many words, or none, for one that ended by itself."""
    return answer.choices[0].finish_reason in ("length", "max_tokens")


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
    """The error's kind, and the status and the first line that the endpoint gave."""
    status = getattr(error, "status_code", None)
    kind = f"{type(error).__name__} {status}" if status else type(error).__name__
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    first = next(iter(said.split("\n")), "") if isinstance(said, str) else ""
    return f"{kind}: {encodable(first)[:200]}" if first else kind
