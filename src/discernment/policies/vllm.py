"""vLLM as a faster way to generate, for many prompts or long replies (extra `vllm`, a GPU).

It only generates: rejection probabilities, diagnosis and training need the model itself, which `Policy.load` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import GenerationConfig

from discernment.errors import ModelError, RecipeError
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_chat, resolve
from discernment.models.model_spec import ModelSpec
from discernment.policies.draws import prompt_seeds
from discernment.policies.policy import Completion, Policy
from discernment.policies.policy_spec import PolicySpec

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLM

    from discernment.models.prefix import Begun


class VllmPolicy(Policy):
    """A policy whose replies vLLM generates, with the tokens, the stop tokens and the greedy choice of `Policy`.

    Its kernels round otherwise than transformers does, so a few replies differ; `find_flips` counts them.

    Args:
        engine: The loaded engine.
        chat: The model's tokenizer and chat format.
        name: What to call it in tables.
        ends: Tokens that end a reply, beside those that the tokenizer and the chat format end with.
    """

    def __init__(self, engine: LLM, chat: ChatFormat, name: str, ends: Sequence[int] = ()) -> None:
        self.engine = engine
        self.chat = chat
        self.name = name
        self.rule = None
        self._ends = list(ends)

    @classmethod
    def load(cls, spec: PolicySpec | ModelSpec | str, name: str | None = None, **options: Any) -> VllmPolicy:
        """Load a model into vLLM.

        Args:
            spec: Which policy, or bare model; its `device` is left to vLLM.
            name: What to call it in tables.
            options: For `vllm.LLM`, such as `gpu_memory_utilization` or `tensor_parallel_size`.

        Raises:
            RecipeError: If the extra `vllm` is not installed.
            ModelError: If the model cannot be loaded, or the policy has adapters or a rule.
        """
        policy = PolicySpec.of(spec).without_rule("vLLM")
        spec = policy.model
        try:
            from vllm import LLM
        except ImportError as error:
            raise RecipeError(
                f"Generating with vLLM needs `pip install 'discernment[vllm]'` ({error})."
            ) from error
        if policy.adapters:
            raise ModelError(
                f"vLLM generates from whole models; merge the adapter {policy.adapters[0]!r} and save the model first."
            )
        chat, where = load_chat(spec), resolve(spec)
        try:
            engine = LLM(
                model=where,
                revision=spec.revision,
                dtype=spec.dtype,
                trust_remote_code=spec.trust_remote_code,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ModelError(f"vLLM cannot load the model {spec.model!r} ({reason.rstrip('.')}).") from error
        return cls(engine, chat, name or spec.model, _ends(where, spec))

    def generate(
        self,
        sequences: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        begun: Begun | None = None,
    ) -> list[Completion]:
        """Replies to encoded prompts; see `Policy.generate`. Nothing is read before, so `begun` is not heard."""
        from vllm import SamplingParams

        ends = {self.chat.end_of_turn, self.chat.tokenizer.eos_token_id, *self._own_ends()}
        # vLLM takes no sampling options from the model's own configuration where they are given like this.
        params = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=number,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(i for i in ends if i is not None),
                detokenize=False,
            )
            for number in prompt_seeds(sequences, seed)
        ]
        prompts: Any = [{"prompt_token_ids": list(ids)} for ids in sequences]
        outputs = self.engine.generate(prompts, params, use_tqdm=False)
        replies = [list(output.outputs[0].token_ids) for output in outputs]
        return [self._completion(*pair, ends) for pair in zip(sequences, replies, strict=True)]

    def next_token_logits(self, sequences: Sequence[Sequence[int]], begun: Sequence[int] = ()) -> Tensor:
        """Not to be had from vLLM.

        Raises:
            ModelError: Always.
        """
        self._refuse()

    @property
    def positions(self) -> int | None:
        """How many tokens of a prompt and its reply vLLM reads, where it says so."""
        config = getattr(getattr(self.engine, "llm_engine", None), "model_config", None)
        limit: int | None = getattr(config, "max_model_len", None)
        return limit

    def _own_ends(self) -> list[int]:
        return self._ends

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "model":
            self._refuse()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {attribute!r}")

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"{self.name} is loaded in vLLM, which only generates; load it with `Policy.load` for logits, "
            "or evaluate with `rejection: false`."
        )


def _ends(where: str, spec: ModelSpec) -> list[int]:
    """The end tokens of the model's own generation configuration, if it has one."""
    try:
        own = GenerationConfig.from_pretrained(where, revision=spec.revision or "main").eos_token_id
    except OSError:
        return []
    return own if isinstance(own, list) else [own] if own is not None else []
