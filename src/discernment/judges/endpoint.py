"""An OpenAI-compatible endpoint, for judges and for whoever else asks a model behind one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from discernment.errors import RecipeError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

__all__ = ["ask_coded", "coded_answer", "encodable", "failure_in_words", "open_client"]


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


def ask_coded(
    client: OpenAI,
    model: str,
    instruction: str,
    material: str,
    *,
    form: tuple[str, dict[str, Any]] | None,
    max_tokens: int,
) -> ChatCompletion:
    """Ask for a JSON object that repeats a code, which the material between its fences cannot know.

    Args:
        client: The endpoint.
        model: The model's name there.
        instruction: The system message.
        material: The untrusted text, fenced.
        form: Name and schema of the answer; None for an endpoint that knows no structured output.
        max_tokens: Token cap of the answer.
    """
    options: dict[str, Any] = {}
    if form is not None:
        name, schema = form
        described = {"name": name, "strict": True, "schema": schema}
        options["response_format"] = {"type": "json_schema", "json_schema": described}
    create: Any = client.chat.completions.create
    answer: ChatCompletion = create(
        model=model,
        messages=[{"role": "system", "content": instruction}, {"role": "user", "content": material}],
        temperature=0,
        max_tokens=max_tokens,
        **options,
    )
    return answer


def coded_answer(text: str | None, nonce: str, key: str, allowed: Sequence[str]) -> str | None:
    """What an answer says under `key`, if it is (or its last line is) a JSON object with the code; otherwise None."""
    text = (text or "").strip()
    for part in (text, text.splitlines()[-1] if text else ""):
        try:
            said = json.loads(part)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("code") == nonce and said.get(key) in allowed:
            return str(said[key])
    return None


def encodable(text: str) -> str:
    """The text, half surrogate pairs replaced: a broken completion can be judged, but not be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")


def failure_in_words(error: Exception) -> str:
    """The error's kind, and the status that the endpoint gave."""
    status = getattr(error, "status_code", None)
    return f"{type(error).__name__} {status}" if status else type(error).__name__
