"""Asking a language model about untrusted text, so that the text cannot answer in its place."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from discernment.files import content_hash
from discernment.judges.endpoint import create, encodable, open_client

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

NONCE_BYTES = 8
BEGINNING = re.compile(r"^[ \t]*(?:```\w*)?[ \t]*(?=\{)", re.MULTILINE)
"""Where a JSON object may begin: on a line of its own, perhaps behind the mark of a fence."""


class CodedJudge:
    """Asks a language model, and believes only an answer that it can read.

    The text to judge stands between fences with a code that is new for every question, and the answer must repeat the
    code in a JSON object at its end, so a text that imitates an answer decides nothing. What is asked stands in the class.

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
    version: ClassVar[int] = 2
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
        self.base_url = base_url
        self.structured = structured
        self.max_tokens = max_tokens
        self._client = open_client(base_url, api_key, retries, timeout)
        self._refused: set[str] = set()

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

    def _asked(self, **texts: str) -> tuple[ChatCompletion, str | None]:
        """The answer about `texts` and what it says, None where that cannot be believed; raises what the client does."""
        nonce = secrets.token_hex(NONCE_BYTES)
        options: dict[str, Any] = {}
        if self.structured:
            described = {"name": self.form, "strict": True, "schema": self._schema}
            options["response_format"] = {"type": "json_schema", "json_schema": described}
        system = self.instruction.format(nonce=nonce, verdicts=", ".join(self.answers))
        sent = self.material.format(nonce=nonce, **{name: encodable(text) for name, text in texts.items()})
        answer = create(
            self._client,
            self._refused,
            model=self.name,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": sent}],
            temperature=0,
            max_tokens=self.max_tokens,
            **options,
        )
        return answer, self._said((answer.choices[0].message.content or "").strip(), nonce)

    def _said(self, text: str, nonce: str) -> str | None:
        """What an answer says, if it ends with a JSON object with the code, fenced or not; otherwise None."""
        text = text.removesuffix("```").rstrip()
        for start in reversed([match.end() for match in BEGINNING.finditer(text)]):
            try:
                said = json.loads(text[start:])
            except ValueError:
                continue
            if not isinstance(said, dict) or said.get("code") != nonce:
                return None
            answer = said.get(self.key)
            return next((known for known in self.answers if str(answer).casefold() == known), None)
        return None
