"""Asking a language model about untrusted text, so that the text cannot answer in its place."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

from discernment.files import content_hash, encodable
from discernment.models.endpoint import Endpoint, Reply, address

NONCE_BYTES = 8
OBJECT = re.compile(r"\{")
JSON = json.JSONDecoder(strict=False)
"""Lets a line break within a text pass, as models write it."""


class CodedJudge:
    """Asks a language model, and believes only an answer that it can read.

    The text to judge stands between fences with a code that is new for every question, and the answer must repeat the
    code in a JSON object, so a text that imitates an answer decides nothing. What is asked stands in the class.

    Args:
        model: The model's name at the endpoint.
        base_url: The endpoint; OpenAI's own, or `OPENAI_BASE_URL`, without one.
        api_key: The key; `OPENAI_API_KEY` without one.
        structured: Ask for structured output; turn it off for an endpoint that knows none.
        max_tokens: Token cap of an answer.
        retries: How often a failed question is repeated: no connection, no answer in time, 408, 409, 429 and 5xx, with
            growing pauses of random length.
        timeout: Seconds without a byte before an attempt fails.

    Raises:
        RecipeError: If the extra `judges` is not installed, or there is no key.
    """

    kind: ClassVar[str]
    """What kind of judge it is, for the fingerprint."""
    version: ClassVar[int] = 3
    """Goes up when the question or the reading of the answer changes; part of the fingerprint."""
    instruction: ClassVar[str]
    """The system message, with places for the code, `{nonce}`, and for what may be answered, `{verdicts}`."""
    material: ClassVar[str]
    """The untrusted texts, each with a place of its name, between fences with the code."""
    form: ClassVar[str]
    """What the form of the answer is called where the endpoint knows structured output."""
    key: ClassVar[str]
    """Under which key the answer says what is believed."""
    answers: ClassVar[Sequence[str]]
    """What it may say there."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        structured: bool = True,
        max_tokens: int = 512,
        retries: int = 5,
        timeout: float = 60.0,
    ) -> None:
        self.name = model
        self.base_url = address(base_url)
        self.structured = structured
        self.max_tokens = max_tokens
        self._endpoint = Endpoint(model, self.base_url, api_key, retries, timeout)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the model, the endpoint and the question."""
        question = [self.instruction, self.material, self._schema, self.structured, self.max_tokens]
        return content_hash([self.kind, self.version, self.name, self.base_url, *question])

    @property
    def _schema(self) -> dict[str, Any]:
        text = {"type": "string"}
        properties = {"explanation": text, "code": text, self.key: text | {"enum": list(self.answers)}}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _asked(self, **texts: str) -> tuple[Reply, str | None]:
        """The reply about `texts` and what it says, None where that cannot be believed; raises what the endpoint does."""
        nonce = secrets.token_hex(NONCE_BYTES)
        options: dict[str, Any] = {}
        if self.structured:
            described = {"name": self.form, "strict": True, "schema": self._schema}
            options["response_format"] = {"type": "json_schema", "json_schema": described}
        system = self.instruction.format(nonce=nonce, verdicts=", ".join(self.answers))
        sent = self.material.format(nonce=nonce, **{name: encodable(text) for name, text in texts.items()})
        reply = self._endpoint.ask(
            [{"role": "system", "content": system}, {"role": "user", "content": sent}],
            temperature=0,
            max_tokens=self.max_tokens,
            **options,
        )
        return reply, self._said(reply.text, nonce)

    def _said(self, text: str, nonce: str) -> str | None:
        """What a reply says in the JSON object with the code, the last one if there are several; None without one.

        What stands before and behind it, fences among that, does not matter, and neither does the case.
        """
        if nonce not in text.casefold():
            return None
        coded = [found for found in _objects(text) if str(found.get("code")).casefold() == nonce]
        answer = str(coded[-1].get(self.key)).casefold() if coded else None
        return next((known for known in self.answers if answer == known), None)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, their keys in lower case; those within others as well."""
    for match in OBJECT.finditer(text):
        try:
            found, _ = JSON.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield {key.casefold(): value for key, value in found.items()}
