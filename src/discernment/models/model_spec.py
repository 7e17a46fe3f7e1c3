"""How a user names a model."""

import datetime
from typing import Literal

from pydantic import Field, model_validator

from discernment.frozen import Frozen

DATE = datetime.date(2026, 1, 1)
"""What templates that ask for the date are told: the same every day, so that the same prompt gives the same tokens."""


class ModelSpec(Frozen):
    """Which model to load, and how to speak to it. A plain string is read as `{"model": string}`."""

    model: str = Field(
        min_length=1,
        description="Hub id, local folder, path of a `.gguf` file, or `wheel://NAME` for such a file in an installed Python "
        "package.",
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

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value
