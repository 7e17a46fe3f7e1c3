"""A rule: how a policy acts while it replies. There are two kinds, each one small class to subclass.

A *decoding rule* makes the next-token logits from one or more contexts of the same prompt; a *steering rule* changes
hidden states. A rule's options are its fields; what it has learned are its tensors. Others are added by the entry point
groups `discernment.decoding_rules` and `discernment.steering_rules`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr, ValidationError
from torch import Tensor, nn

from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.models.chat import ChatFormat
from discernment.models.layers import find_layers
from discernment.plugins import announced
from discernment.policies.gates import Gates
from discernment.prompts import Asked

if TYPE_CHECKING:
    from discernment.policies.policy import Policy

GROUPS = ("discernment.decoding_rules", "discernment.steering_rules")


class Rule(Frozen, ABC):
    """What both kinds have in common; its fields are the rule's options.

    Attributes:
        name: What policies and recipes call it.
        version: Raise it when the rule acts otherwise than before: results of the old one are then not taken for its.
        tree: Whether what it does at a token depends on nothing but the tokens that lead to it, so that all refusal
            openings may be read in one pass.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    tree: ClassVar[bool] = True
    _tensors: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What it has learned, by name, on the CPU."""
        return self._tensors

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """The same rule with what it has learned.

        Raises:
            RecipeError: If it needs other tensors.
        """
        copied = self.model_copy()
        copied._tensors = dict(tensors)
        return copied

    def begun(self) -> Rule:
        """The rule for replies whose beginning was written by another; the same by default."""
        return self


class DecodingRule(Rule):
    """Next-token logits from one or more contexts of the same prompt."""

    @abstractmethod
    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """Token ids of every context that the prompt is read in, as many for each prompt.

        Args:
            chat: The policy's chat format; `chat.with_system` gives one with another system message.
            prompt: The prompt's text; where it has a system message or earlier turns, the conversation.
        """

    def combine(self, logits: Tensor, step: int) -> Tensor:
        """The logits that the next token is chosen by; those of the first context by default.

        Args:
            logits: Of all contexts, float32, `[contexts, batch, vocabulary]`.
            step: How many tokens of the reply there are already.

        Returns:
            `[batch, vocabulary]`.
        """
        return logits[0]


class SteeringRule(Rule):
    """Changes what some layers put out, while the prompt is read and at every token of the reply.

    Attributes:
        decides: Whether it looks at each prompt first and decides how much it acts; then `strengths` says so.
        from_last: Whether it leaves a prompt as it is up to its last token, and acts from there on; only where it decides.
    """

    decides: ClassVar[bool] = False
    from_last: ClassVar[bool] = False

    @abstractmethod
    def layers(self, depth: int) -> Sequence[int]:
        """The layers whose output it changes, counted from 1, of a model that has `depth` of them."""

    @abstractmethod
    def steer(self, hidden: Tensor, layer: int) -> Tensor:
        """The output of a layer as it shall be.

        Args:
            hidden: What the layer puts out, `[batch, tokens, hidden]`.
            layer: Which layer, counted from 1.
        """

    def strengths(self, policy: Policy, sequences: Sequence[Sequence[int]]) -> Tensor:
        """How much of the change each prompt gets, `[batch]`, 0 for none, below 0 for the opposite.

        Asked only of a rule that decides.

        Args:
            policy: The policy; the rule does not act while it is asked.
            sequences: Token ids of the rendered prompts.
        """
        raise NotImplementedError

    @contextmanager
    def acting(self, policy: Policy, prompts: Sequence[Sequence[int]] | None) -> Iterator[None]:
        """Act on everything that the policy's model reads within the `with` block.

        Args:
            policy: The policy.
            prompts: The prompts of the batch, row by row; a rule that decides needs them.
        """
        found, handles, gates = find_layers(policy.model, policy.layer_path), [], None
        if self.decides and prompts is not None:
            gates = Gates(self.strengths(policy, prompts), prompts if self.from_last else None)
            handles.append(policy.model.register_forward_pre_hook(gates.see, with_kwargs=True))
        for number in self.layers(len(found.layers)):
            found.check(number)
            handles.append(found.layers[number - 1].register_forward_hook(self._hook(number, gates)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: int, gates: Gates | None) -> Any:
        def change(module: nn.Module, given: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            steered = self.steer(hidden, layer)
            if gates is not None:
                steered = gates.change(hidden, steered)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return change


def known_rules() -> list[str]:
    """Names of all installed rules, sorted."""
    return sorted({entry.name for group in GROUPS for entry in announced(group)})


def find_rule(name: str, options: Mapping[str, Any]) -> Rule:
    """The rule called `name`, with its options and without what it has learned.

    Raises:
        RecipeError: If there is none, its plug-in cannot be loaded, or an option is wrong.
    """
    entries = [entry for group in GROUPS for entry in announced(group).select(name=name)]
    if not entries:
        raise RecipeError(f"There is no rule {name!r}; known: {', '.join(known_rules())}.")
    try:
        kind: type[Rule] = entries[0].load()
    except Exception as error:
        raise RecipeError(f"The rule {name!r} ({entries[0].value}) cannot be loaded: {error}.") from error
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "its options"
        raise RecipeError(f"The rule {name!r} cannot take `{where}`: {problem['msg']}.") from error
