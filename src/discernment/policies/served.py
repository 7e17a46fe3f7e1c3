"""A policy whose model is behind an OpenAI-compatible endpoint, so that it can only be asked.

It replies as the endpoint's own chat format has it. Where its tokenizer is named, rejection probabilities can be had as
well (`policies.echo`); logits, hidden states and weights cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from discernment.errors import ModelError
from discernment.files import encodable
from discernment.models.chat import ChatFormat
from discernment.models.endpoint import Echo, Ending, Endpoint, Reply
from discernment.models.loading import load_chat
from discernment.models.model_spec import EndpointOptions, ModelSpec
from discernment.models.thoughts import read_text, thought_without_end
from discernment.policies.policy import Completion, Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.prompted import Prompted
from discernment.prompts import Asked, Conversation

NO_TOKENIZER = "the model is behind an endpoint, and no `tokenizer` of it is named by which log-probabilities could be read there"
FATAL = (401, 402, 404)
"""Statuses that mean every prompt: no such key, no money, no such model."""


class Served(NamedTuple):
    """What a model behind an endpoint made of a prompt.

    Attributes:
        completion: The reply.
        input_tokens: Tokens of the prompt, as the endpoint counts them; 0 where it does not.
        unscored: Why the reply is none that could be judged; None where it can.
    """

    completion: Completion
    input_tokens: int = 0
    unscored: str | None = None


class ServedPolicy:
    """A model behind an endpoint that replies to prompts.

    Args:
        endpoint: Where it is asked.
        name: What to call it in tables.
        system: System message, before that of a prompt; without any, none is sent.
        options: How it is asked.
        chat: Its tokenizer and chat format, as far as they are known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        system: str | None = None,
        options: EndpointOptions | None = None,
        chat: ChatFormat | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.system = system
        self.options = options or EndpointOptions()
        self.chat = chat

    @classmethod
    def load(cls, spec: PolicySpec | ModelSpec | str, name: str | None = None) -> ServedPolicy:
        """Open the endpoint; nothing is asked yet.

        Args:
            spec: The policy, or a bare model `openai:NAME@URL`.
            name: What to call it in tables; the model's name by default.

        Raises:
            ModelError: If the model is not behind an endpoint, or its tokenizer cannot be loaded.
            RecipeError: If the extra `judges` is not installed, there is no key, or the rule is more than a system message.
        """
        spec = PolicySpec.of(spec)
        model, address = spec.model, spec.model.address
        if address is None:
            raise ModelError(f"{model.model} is not behind an endpoint; load it with `Policy.load`.")
        rule = spec.rule.load() if spec.rule else None
        system = rule.system if isinstance(rule, Prompted) else model.system
        asked = model.endpoint
        endpoint = Endpoint(address.name, address.url, None, asked.retries, asked.timeout)
        chat = load_chat(model).with_system(system) if model.tokenizer else None
        return cls(endpoint, name or model.model, system, asked, chat)

    @property
    def no_rejection(self) -> str | None:
        """Why it has no rejection probability; None where it may have one."""
        return NO_TOKENIZER if self.chat is None else None

    def ask(
        self,
        prompt: Asked,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Served:
        """The reply to one prompt; may be called from several threads.

        A filter that stops a reply leaves none that could be judged; neither does a cap that is used up before a word is
        said. What a model says as it refuses through the endpoint's own means is its reply.

        Args:
            prompt: The prompt.
            max_new_tokens: Token cap of the reply.
            temperature: 0 asks for the likeliest token each time.
            top_p: Sent with a temperature above 0 only.
            seed: Sent with a temperature above 0 only.

        Raises:
            Exception: What the endpoint does, but for statuses that mean every prompt.
            ModelError: If the endpoint says so that it cannot be asked at all.
        """
        drawn = {"top_p": top_p, "seed": seed} if temperature > 0 else {}
        turns = Conversation.of(prompt).under(self.system).turns
        messages = [{key: encodable(text) for key, text in turn.items()} for turn in turns]
        try:
            reply = self.endpoint.ask(messages, max_tokens=max_new_tokens, temperature=temperature, **drawn)
        except Exception as error:
            self.check_is_there(error)
            if getattr(error, "code", None) == "content_filter":
                stopped = f"a filter of the endpoint stopped the prompt ({self.endpoint.in_words(error)})"
                return Served(Completion("", True, 0), unscored=stopped)
            raise
        return _read(reply, max_new_tokens)

    def echo(self, texts: Sequence[Sequence[int]]) -> tuple[list[Echo], int]:
        """How likely the model finds every token of some texts; see `Endpoint.echo`."""
        return self.endpoint.echo(texts)

    def check_is_there(self, error: Exception) -> None:
        """Make sure that a failed question does not mean that every one fails.

        Raises:
            ModelError: If the endpoint says so.
        """
        if getattr(error, "status_code", None) in FATAL:
            raise ModelError(
                f"{self.name} cannot be asked ({self.endpoint.in_words(error)}); mend its name, its address or "
                "OPENAI_API_KEY, and give the same command again."
            ) from error


def load_policy(spec: PolicySpec | ModelSpec | str, name: str | None = None) -> Policy | ServedPolicy:
    """Load a policy, wherever its model is; see `Policy.load` and `ServedPolicy.load`."""
    spec = PolicySpec.of(spec)
    return ServedPolicy.load(spec, name) if spec.model.is_served else Policy.load(spec, name)


def _read(reply: Reply, max_new_tokens: int) -> Served:
    tokens, cut = reply.output_tokens, reply.ending is Ending.CUT
    if reply.refusal:
        return Served(Completion(reply.refusal.strip(), True, tokens), reply.input_tokens)
    text, thought = read_text(reply.text)
    thought = reply.thought.strip() or thought
    if reply.thought and not text and cut:
        text, thought = thought_without_end(reply.thought.strip()), None
    completion = Completion(text, not cut, tokens, thought=thought)
    if reply.ending is Ending.REFUSED:
        return Served(completion, reply.input_tokens, "a filter of the endpoint stopped the reply")
    if cut and not text:
        return Served(completion, reply.input_tokens, f"nothing was said within {max_new_tokens} tokens")
    return Served(completion, reply.input_tokens)
