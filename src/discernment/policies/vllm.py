"""A policy whose tokens a vLLM server of our own makes: faster with many prompts and with models over several GPUs.

It reads the very tokens that `Policy` would, so that template, thought, control tokens and date are the same; the kernels
round otherwise, so a few replies differ. Rejection probabilities are read as behind any endpoint (`policies.echo`).
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from discernment.errors import ModelError
from discernment.files import read_json
from discernment.models import adapter_files
from discernment.models.chat import ChatFormat
from discernment.models.endpoint import Echo, Ending, Endpoint
from discernment.models.loading import load_chat, load_config, resolve
from discernment.models.model_spec import EndpointOptions, ModelSpec
from discernment.models.precision import choose_device, choose_dtype
from discernment.models.server import LOOPBACK, Server, free_port
from discernment.policies.context import positions_of
from discernment.policies.engine import COMMAND, find_command
from discernment.policies.policy import completion_of
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.prompted import Prompted
from discernment.policies.served import Served, ServedPolicy
from discernment.prompts import Asked

logger = logging.getLogger(__name__)

START_LIMIT = 1800.0
"""Seconds that a server gets to load a model and compile what it runs."""
REPLY_LIMIT = 3600.0
"""Seconds without a byte before a question fails: with many at once, the last waits for all."""
ENDING = 2.0
"""Seconds that a server that breaks off may take to end."""
SERVED, BARE = "policy", "base"
"""What the server calls the policy, and the model that its adapter changes."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


class VllmPolicy(ServedPolicy):
    """A policy that replies by a vLLM server, which runs within `serving` alone.

    Args:
        spec: The policy, as `policies.engine.choose_engine` lets it pass.
        name: What to call it in tables.
        concurrency: Prompts asked at once.
        tensor_parallel: Devices that share each layer.
        start_limit: Seconds that the server gets to be there.

    Raises:
        DiscernmentError: If the tokenizer or the model cannot be found, or a rule is no message.
    """

    chat: ChatFormat

    def __init__(
        self,
        spec: PolicySpec,
        name: str,
        *,
        concurrency: int = 8,
        tensor_parallel: int = 1,
        start_limit: float = START_LIMIT,
    ) -> None:
        rule = spec.rule.load() if spec.rule else None
        chat = load_chat(spec.model, spec.adapters)
        chat = chat.with_system(rule.system) if isinstance(rule, Prompted) else chat
        self._port, self._key = free_port(), secrets.token_hex(16)
        endpoint = Endpoint(SERVED, f"http://{LOOPBACK}:{self._port}/v1", self._key, 0, REPLY_LIMIT)
        super().__init__(endpoint, name, chat.system, EndpointOptions(concurrency=concurrency), chat)
        self.spec = spec
        self.tensor_parallel = tensor_parallel
        self.start_limit = start_limit
        self._limit = positions_of(load_config(spec.model))
        own = [self.chat.end_of_turn, self.chat.tokenizer.eos_token_id, *_own_ends(spec.model)]
        self._ends = sorted({token for token in own if token is not None})
        self._server: Server | None = None

    def encode(self, prompts: Sequence[Asked]) -> list[list[int]]:
        """Token ids of each rendered prompt."""
        return [self.chat.encode(prompt) for prompt in prompts]

    @property
    def positions(self) -> int | None:
        """How many tokens of a prompt and its reply can be read, as `Policy` has it; None where nothing limits them.

        The server wants room for the last token of a reply as well, which nothing reads, and for one behind an opening.
        """
        return None if self._limit is None else self._limit - 2

    @contextmanager
    def serving(self, length: int, log: Path) -> Iterator[None]:
        """A `with` block in which the server runs; it ends with this process, however that ends.

        Args:
            length: Tokens of the longest prompt with its reply.
            log: Gets what the server prints; gone after the block, unless something went wrong.

        Raises:
            ModelError: If it does not come up in time, or ends before.
        """
        logger.info("vLLM is loading %s.", self.name)
        _leave_the_device()
        environment = {
            **os.environ,
            **_visible(self.spec.model, self.tensor_parallel),
            "VLLM_API_KEY": self._key,  # what answers to it on this port is our own
            "VLLM_NO_USAGE_STATS": "1",
            "NO_COLOR": "1",
        }
        with Server("vLLM", self._command(length), environment, log) as self._server:
            self._server.wait_for(self.endpoint.is_there, self.start_limit)
            yield

    def ask(
        self,
        prompt: Asked,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Served:
        """The reply to one prompt; see `ServedPolicy.ask`."""
        ids = self.chat.encode(prompt)
        drawn = {"top_p": top_p, "seed": seed} if temperature > 0 else {}
        try:
            said = self.endpoint.go_on(
                ids, self._ends, max_tokens=max_new_tokens, temperature=temperature, **drawn
            )
        except Exception as error:
            self.check_is_there(error)
            raise
        completion = completion_of(self.chat, ids, said.ids, self._ends)
        ended = completion.finished or said.ending is Ending.WHOLE  # its last token may be left out
        return Served(replace(completion, finished=ended), len(ids))

    def echo(self, texts: Sequence[Sequence[int]]) -> tuple[list[Echo], int]:
        """How likely the model finds every token of some texts; see `Endpoint.echo`."""
        try:
            return self.endpoint.echo(texts)
        except Exception as error:
            self.check_is_there(error)
            raise

    def check_is_there(self, error: Exception) -> None:
        """Make sure that the server is still running.

        Raises:
            ModelError: If it has ended.
        """
        broken = getattr(error, "status_code", 500) >= 500  # or no answer at all
        if self._server is not None:
            self._server.check("before all was asked", ENDING if broken else 0.0)

    def _command(self, length: int) -> list[str]:
        spec, adapter = self.spec.model, next(iter(self.spec.adapters), None)
        options: dict[str, object] = {
            "served-model-name": BARE if adapter else SERVED,
            "host": LOOPBACK,
            "port": self._port,
            "tokenizer": self.chat.tokenizer.name_or_path,
            "dtype": str(choose_dtype(spec, choose_device(spec))).removeprefix("torch."),
            "max-model-len": min(length, self._limit or length),
            "tensor-parallel-size": self.tensor_parallel,
            "generation-config": COMMAND,  # nothing of the model's own sampling options
        }
        if spec.revision is not None:
            options["revision"] = spec.revision
        if adapter:
            options |= {"lora-modules": f"{SERVED}={adapter}", "max-lora-rank": _room_for(adapter)}
        flags = ["--enable-prefix-caching"]
        flags += ["--enable-lora"] if adapter else []
        flags += ["--trust-remote-code"] if spec.trust_remote_code else []
        given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        return [find_command() or COMMAND, "serve", resolve(spec), *given, *flags]


def _room_for(adapter: str) -> int:
    """The smallest rank that vLLM makes room for and an adapter fits into.

    Raises:
        ModelError: If it is no adapter that vLLM takes.
    """
    file = adapter_files.find_file(adapter, adapter_files.CONFIG)
    said: dict[str, Any] = read_json(file) if file is not None else {}
    rank = max([said.get("r") or 0, *(said.get("rank_pattern") or {}).values()])
    room = next((room for room in RANKS if rank <= room), None)
    if rank < 1 or room is None:
        raise ModelError(
            f"vLLM takes adapters of LoRA up to rank {RANKS[-1]}, and {adapter} is none; set `engine: transformers`."
        )
    return room


def _own_ends(spec: ModelSpec) -> list[int]:
    """The end tokens of the model's own generation configuration; without one, those of its configuration."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(resolve(spec), revision=spec.revision or "main")
    except OSError:
        found = GenerationConfig.from_model_config(load_config(spec))
    own = found.eos_token_id
    return own if isinstance(own, list) else [own] if own is not None else []


def _leave_the_device() -> None:
    """Give back the memory of a device that earlier stages have left to this process."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _visible(spec: ModelSpec, count: int) -> dict[str, str]:
    """Which GPUs the server sees: those from this process's own on."""
    import torch

    device = choose_device(spec)
    if device.type != "cuda":
        return {}
    first = torch.cuda.current_device() if device.index is None else device.index
    named = os.environ.get(VISIBLE)
    all_of_them = named.split(",") if named else list(map(str, range(torch.cuda.device_count())))
    return {VISIBLE: ",".join(all_of_them[first : first + count])}
