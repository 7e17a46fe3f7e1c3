"""How a user names a model."""

import datetime
import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from discernment.frozen import Frozen
from discernment.models.endpoint import address

DATE = datetime.date(2026, 1, 1)
"""What templates that ask for the date are told: the same every day, so that the same prompt gives the same tokens."""
BEHIND = "openai:"
"""How the name of a model behind an endpoint begins."""
OPENAI = "https://api.openai.com/v1"
KEY_WRITTEN_DOWN = "a key is never written down; put it into the variable OPENAI_API_KEY"
FOR_ENDPOINT = {"model", "system", "endpoint", "tokenizer"}
"""What such a model may be told; the endpoint decides the rest."""
WITH_TOKENIZER = {"template", "thinking", "special_tokens", "date"}
"""What says besides how prompts are written, where its tokenizer is named."""


def check_address(url: str) -> str:
    """An endpoint's address, which says where, and nothing that is secret.

    Raises:
        ValueError: If it is none, or more than one.
    """
    if re.search(r"://[^/]*@", url):
        raise ValueError(KEY_WRITTEN_DOWN)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"an address begins with http:// or https://, and {url!r} does not")
    if re.search(r"[?#\s]", url):
        raise ValueError("the address of an endpoint ends with its path, without `?` and what follows")
    return url


class Address(NamedTuple):
    """Where a model behind an OpenAI-compatible endpoint is asked.

    Attributes:
        name: The model's name there.
        url: The endpoint's address; None for OpenAI's own, or `OPENAI_BASE_URL`.
    """

    name: str
    url: str | None

    @classmethod
    def of(cls, text: str) -> "Address":
        """Read `openai:NAME` or `openai:NAME@URL`.

        Raises:
            ValueError: If there is no name, or more in the address than one.
        """
        rest = text.removeprefix(BEHIND)
        if re.search(r"://[^/]*@", rest):
            raise ValueError(KEY_WRITTEN_DOWN)
        name, _, url = rest.rpartition("@")
        if (
            name
            and (url == "localhost" or re.match(r"[^/]*(:\d+(/|$)|/)", url))
            and not url.startswith("http")
        ):
            check_address(url)
        if not url.startswith(("http://", "https://")):  # an @ may belong to the model's name
            name, url = rest, ""
        if not name.strip():
            raise ValueError(f"it names no model; write {BEHIND}NAME or {BEHIND}NAME@URL")
        return cls(name, check_address(url).rstrip("/") if url else None)

    @property
    def where(self) -> str:
        """The endpoint's address, also where it is not named."""
        return address(self.url) or OPENAI


class EndpointOptions(Frozen):
    """How an endpoint is asked; what it replies does not depend on it."""

    concurrency: int = Field(8, ge=1, description="Prompts asked at once.")
    retries: int = Field(
        5,
        ge=0,
        description="How often a failed question is repeated: no connection, no answer in time, 408, 409, 429 and 5xx.",
    )
    timeout: float = Field(120.0, gt=0, description="Seconds without a byte before an attempt fails.")

    @model_validator(mode="before")
    @classmethod
    def _without_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and "api_key" in value:
            raise ValueError(KEY_WRITTEN_DOWN)
        return value


class ModelSpec(Frozen):
    """Which model to load, and how to speak to it. A plain string is read as `{"model": string}`."""

    model: str = Field(
        min_length=1,
        description="Hub id, local folder, path of a `.gguf` file, `wheel://NAME` for such a file in an installed Python "
        "package, or `openai:NAME@URL` for a model behind an OpenAI-compatible endpoint.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    adapter: str | None = Field(
        None, description="Hub id or folder of a LoRA adapter to merge into the model."
    )
    tokenizer: str | None = Field(
        None,
        description="Hub id or folder of the tokenizer; without one the last adapter's own, or the model's.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="`auto`: bfloat16 on a GPU or a processor that multiplies in it, otherwise float32.",
    )
    thinking: Literal["off", "on", "template"] = Field(
        "off",
        description="`off`: the answer comes first, behind a closed thought where the template opens one; `on`: the "
        "template is asked for a thought; `template`: what the template does.",
    )
    special_tokens: Literal["text", "tokens"] = Field(
        "text", description="How control tokens of the template within a prompt are read."
    )
    date: datetime.date = Field(DATE, description="What templates that ask for the date are told.")
    quantization: Literal["4bit", "8bit"] | None = Field(
        None,
        description="Hold the weights of linear layers in so many bits (bitsandbytes); adapters can be trained.",
    )
    attn_implementation: str | None = Field(
        None,
        description="`eager`, `sdpa`, `flash_attention_2` or another that transformers knows; without one it chooses.",
    )
    device: str = Field("auto", description="`auto`: the first GPU, otherwise the CPU; or any torch device.")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="`chat`: the tokenizer's chat template; `plain`: instruction and response headings.",
    )
    system: str | None = Field(
        None, description="System message; without one the chat template decides; an empty one is left out."
    )
    layers: str | None = Field(
        None, description="Name of the layer list, e.g. `model.layers`, where it is not found by itself."
    )
    trust_remote_code: bool = Field(False, description="Run the code that comes with a hub model.")
    # Not in dumps of others, whose stages keep the names that they had before there were endpoints.
    endpoint: EndpointOptions = Field(
        EndpointOptions(),
        description="How a model behind an endpoint is asked.",
        exclude_if=lambda endpoint: endpoint == EndpointOptions(),
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_the_name(self) -> "ModelSpec":
        if not self.is_served:
            if "endpoint" in self.model_fields_set:
                raise ValueError(f"`endpoint` is for models named `{BEHIND}NAME@URL`; leave it out")
            return self
        Address.of(self.model)
        allowed = FOR_ENDPOINT | (WITH_TOKENIZER if self.tokenizer else set())
        foreign = [name for name in type(self).model_fields if name in self.model_fields_set - allowed]
        if foreign:
            raise ValueError(
                f"a model behind an endpoint takes no `{'`, `'.join(foreign)}`; the endpoint decides that"
            )
        return self

    @property
    def is_served(self) -> bool:
        """Whether the model is behind an endpoint, so that it can only be asked."""
        return self.model.startswith(BEHIND)

    @property
    def address(self) -> Address | None:
        """Where it is asked, if it is behind an endpoint."""
        return Address.of(self.model) if self.is_served else None
