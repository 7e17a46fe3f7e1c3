"""A policy: a model with its tokenizer, its chat format and at most one rule, which can reply and give logits.

Everything that makes a policy speak goes through the three methods that end this class, so that a rule acts in all of
it: `generate`, `next_token_logits` and `reply_logits`; a tree of openings is read in one pass by `rejection`, which may
leave what it read of the prompts to `generate`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from discernment.errors import ModelError
from discernment.models.batch import Batch, one_length, pad
from discernment.models.chat import ChatFormat
from discernment.models.loading import check_vocabulary, load_chat, load_model
from discernment.models.logits import last_logits
from discernment.models.model_spec import ModelSpec
from discernment.models.prefix import Begun, generation_inputs
from discernment.models.thoughts import read_reply
from discernment.policies.context import check_context, steady_positions_of
from discernment.policies.decoding_settings import blank_settings, set_aside
from discernment.policies.draws import Draws
from discernment.policies.generation import ReplyWay, reply_way, step_by_step, together
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rule import DecodingRule, Rule, SteeringRule
from discernment.prompts import Asked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Completion:
    """What a policy generated.

    Attributes:
        text: The answer without special tokens; the whole reply, its opening mark first, if its thought never ends.
        finished: Whether it ended by itself, not at the token cap.
        tokens: Number of generated tokens, the end token included.
        ids: These tokens.
        thought: What was thought before the answer, if anything.
    """

    text: str
    finished: bool
    tokens: int
    ids: tuple[int, ...] = ()
    thought: str | None = None


class Encoded(list[int]):
    """Token ids of a rendered prompt, with those of the other contexts that a decoding rule reads it in.

    Args:
        contexts: Token ids of each context; the first is the list itself.
    """

    def __init__(self, *contexts: Sequence[int]) -> None:
        super().__init__(contexts[0])
        self.others = tuple(list(context) for context in contexts[1:])

    def then(self, tokens: Sequence[int]) -> Encoded:
        """The prompt and the beginning of its reply, in every context."""
        return Encoded(*([*context, *tokens] for context in (self, *self.others)))


class Policy:
    """A model that replies to prompts.

    Args:
        model: A causal language model in evaluation mode.
        chat: Its tokenizer and chat format.
        name: What to call it in tables.
        rule: How it acts while it replies.
        layer_path: Name of the layer list, where it is not found by itself.
    """

    _told = False

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        name: str,
        rule: Rule | None = None,
        layer_path: str | None = None,
    ) -> None:
        self.model = model
        self.chat = chat
        self.name = name
        self.rule = rule
        self.layer_path = layer_path

    @classmethod
    def load(
        cls, spec: PolicySpec | ModelSpec | str, name: str | None = None, *, training: bool = False
    ) -> Self:
        """Load a policy.

        Args:
            spec: The policy, or a bare model; or the name of either: a folder, a hub id, a package.
            name: What to call it in tables; the model's name by default.
            training: Load weights that can be trained; see `load_model`.

        Raises:
            DiscernmentError: If the model, its tokenizer, an adapter or the rule cannot be loaded.
        """
        spec = PolicySpec.of(spec)
        chat, rule = load_chat(spec.model, spec.adapters), spec.rule.load() if spec.rule else None
        model = load_model(spec.model, spec.adapters, training=training)
        check_vocabulary(model, chat)
        return cls(model, chat, name or spec.model.model, rule, spec.model.layers)

    @property
    def positions(self) -> int | None:
        """How many tokens of a prompt and its reply can be read; None where nothing limits them."""
        return steady_positions_of(self.model.config)

    def encode(self, prompts: Sequence[Asked]) -> list[Encoded]:
        """Token ids of each rendered prompt, in every context that the policy reads it in."""
        if isinstance(self.rule, DecodingRule):
            return [Encoded(*self.rule.contexts(self.chat, prompt)) for prompt in prompts]
        return [Encoded(self.chat.encode(prompt)) for prompt in prompts]

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Left-padded batch on the model's device."""
        return pad(sequences, self.pad_id, "left", self.model.device)

    @property
    def pad_id(self) -> int:
        """The padding token."""
        pad_id = self.chat.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return pad_id

    # ------------------------------------------------------------------ the rule

    def acting(self, prompts: Sequence[Sequence[int]] | None = None) -> AbstractContextManager[None]:
        """A `with` block in which the model is as the steering rule makes it, if there is one.

        Args:
            prompts: The prompts of the batch, row by row; a rule that decides by prompt needs them.
        """
        if isinstance(self.rule, SteeringRule):
            return self.rule.acting(self, prompts)
        return nullcontext()

    @property
    def alike(self) -> bool:
        """Whether the model is the same for every prompt, so that a shared beginning can be read once."""
        return not (isinstance(self.rule, SteeringRule) and self.rule.decides)

    def check_one_model(self, what: str, sequences: Sequence[Sequence[int]] = ()) -> None:
        """Make sure that the policy is one model on one context of each prompt.

        Args:
            what: What needs that, for the message.
            sequences: The encoded prompts.

        Raises:
            ModelError: If its rule mixes contexts, or decides by prompt.
        """
        mixes = any(getattr(sequence, "others", ()) for sequence in sequences)
        changes = isinstance(self.rule, DecodingRule) and type(self.rule).combine is not DecodingRule.combine
        if not self.alike or mixes or changes:
            rule = self.rule.name if self.rule else ""
            raise ModelError(
                f"{what} is about one model, and {self.name} acts by the rule {rule!r}, which is another one for each "
                "prompt, mixes several contexts or changes what is chosen; look at the policy without it."
            )

    def stack(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """All contexts of all prompts, context by context: the rows that the model reads.

        Raises:
            ValueError: If prompts do not come with the contexts that a decoding rule reads.
        """
        others = [getattr(sequence, "others", ()) for sequence in sequences]
        bare = isinstance(self.rule, DecodingRule) and not all(isinstance(s, Encoded) for s in sequences)
        if bare or len(set(map(len, others))) > 1:
            raise ValueError(
                "Not all prompts come with the contexts that the rule reads; encode them with `encode`."
            )
        return [list(c) for c in [*sequences, *(c for column in zip(*others, strict=True) for c in column)]]

    def combine(self, logits: Tensor, prompts: int, step: int) -> Tensor:
        """From the logits of all contexts to those that the next token is chosen by.

        Args:
            logits: Of the rows that `stack` gives, `[contexts * prompts, vocabulary]`.
            prompts: How many prompts there are.
            step: How many tokens of the reply there are already.

        Returns:
            `[prompts, vocabulary]`, float32.
        """
        logits = logits.float()
        if not isinstance(self.rule, DecodingRule):
            return logits
        return self.rule.combine(logits.unflatten(0, (-1, prompts)), step)

    # ------------------------------------------------------------------ speaking

    @torch.inference_mode()
    def next_token_logits(self, sequences: Sequence[Sequence[int]], begun: Sequence[int] = ()) -> Tensor:
        """Logits of the token that follows each prompt, `[batch, vocabulary]`, float32.

        Args:
            sequences: The encoded prompts.
            begun: Token ids that all replies have begun with.
        """
        rows = [[*context, *begun] for context in self.stack(sequences)]
        return self.combine(self._last_logits(sequences, rows, 1)[:, -1], len(sequences), len(begun))

    @torch.inference_mode()
    def reply_logits(
        self, sequences: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """For each prompt, the logits from which the tokens of a given reply are predicted, `[reply, vocabulary]`.

        Args:
            sequences: The encoded prompts.
            replies: Token ids of one reply each.
        """
        rows = self.stack(sequences)
        contexts = len(rows) // len(sequences)
        whole = [row + list(reply) for row, reply in zip(rows, [*replies] * contexts, strict=True)]
        # All replies end in the same place: only their positions go through the head.
        logits = self._last_logits(sequences, whole, max(map(len, replies)) + 1)[:, :-1]
        found = [
            logits[n :: len(sequences), logits.shape[1] - len(reply) :] for n, reply in enumerate(replies)
        ]
        if not isinstance(self.rule, DecodingRule):
            return [of_prompt[0] for of_prompt in found]
        return [
            torch.cat([self.combine(of_prompt[:, step], 1, step) for step in range(of_prompt.shape[1])])
            if of_prompt.shape[1]
            else of_prompt[0]
            for of_prompt in found
        ]

    def _last_logits(
        self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], last: int
    ) -> Tensor:
        """Logits at the end of rows, which are those of `stack` with more behind them, as the rule makes them."""

        def within(numbers: Sequence[int]) -> AbstractContextManager[None]:
            return self.acting([sequences[n % len(sequences)] for n in numbers])

        return last_logits(self.model, rows, last, self.pad_id, within)

    @torch.inference_mode()
    def generate(
        self,
        sequences: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        draws: Sequence[int] | None = None,
        begun: Begun | None = None,
    ) -> list[Completion]:
        """Replies to encoded prompts, one batch; a beginning that all share (a system message) is read once.

        Where that would change what a model replies, prompts of one length are a batch (`ReplyWay`). Of the model's own generation configuration only the end tokens are heard.

        Args:
            sequences: Token ids of the rendered prompts.
            max_new_tokens: Token cap of each reply.
            temperature: 0 takes the likeliest token; above 0 tokens are drawn.
            top_p: They are drawn from the likeliest tokens that together have this probability.
            seed: Seed of the draws. What is drawn for a prompt depends on it and on the prompt, not on its neighbours;
                the caller's random state is left as it was.
            draws: Which draw of its prompt each row is, counted from 0: copies of a prompt draw the same unless this tells
                them apart.
            begun: The same prompts as they were read before, by `rejection.read_once`; they are not read again.

        Raises:
            DataError: If a prompt and its reply do not fit the model's positions.
        """
        check_context(self, sequences, replies=max_new_tokens)
        self._tell_what_is_set_aside()
        way, lengths = reply_way(self.model, self.pad_id), [self._lengths(s) for s in sequences]
        if way is ReplyWay.ONE_LENGTH and any(len(set(of_prompt)) > 1 for of_prompt in lengths):
            way = ReplyWay.STEPWISE  # contexts of one prompt go on together
        groups = one_length(lengths) if way is ReplyWay.ONE_LENGTH else [list(range(len(sequences)))]
        found: dict[int, Completion] = {}
        for rows in groups:
            some = [sequences[row] for row in rows]
            of_rows = None if draws is None else [draws[row] for row in rows]
            draw = Draws(some, max_new_tokens, temperature, top_p, seed, of_rows) if temperature > 0 else None
            found |= zip(rows, self._replies(some, max_new_tokens, draw, way, begun), strict=True)
        return [found[row] for row in range(len(sequences))]

    def _replies(
        self,
        sequences: Sequence[Sequence[int]],
        max_new_tokens: int,
        draw: Draws | None,
        way: ReplyWay,
        begun: Begun | None,
    ) -> list[Completion]:
        ends = {self.chat.end_of_turn, self.chat.tokenizer.eos_token_id, *self._own_ends()}
        if way is ReplyWay.STEPWISE:

            def after(said: Sequence[Sequence[int]]) -> Tensor:
                rows = self.stack(sequences)
                rows = [row + list(reply) for row, reply in zip(rows, itertools.cycle(said), strict=False)]
                return self.combine(
                    self._last_logits(sequences, rows, 1)[:, -1], len(sequences), len(said[0])
                )

            replies = step_by_step(after, len(sequences), max_new_tokens, ends, draw)
            return [completion_of(self.chat, *pair, ends) for pair in zip(sequences, replies, strict=True)]
        share = self.alike and way is ReplyWay.SHARED
        with self.acting(sequences), blank_settings(self.model):
            inputs = (
                begun.inputs()
                if begun is not None
                else generation_inputs(
                    self.model, self.stack(sequences), self.pad_id, max_new_tokens, share=share
                )
            )
            # A cache that is there has keys and values alone; the hooks of a rule that decides count on all rows.
            leave = self.alike and "past_key_values" in inputs
            choose = self._chooser(draw)
            replies = together(
                self.model, inputs, max_new_tokens, ends, self.pad_id, len(sequences), choose, leave=leave
            )
        return [completion_of(self.chat, *pair, ends) for pair in zip(sequences, replies, strict=True)]

    @staticmethod
    def _lengths(sequence: Sequence[int]) -> tuple[int, ...]:
        """How long each context of a prompt is."""
        return tuple(map(len, (sequence, *getattr(sequence, "others", ()))))

    def _tell_what_is_set_aside(self) -> None:
        names = [] if self._told else set_aside(self.model.generation_config)
        self._told = True
        if names:
            logger.info(
                "The generation configuration of %s is set aside (%s); its end tokens are kept.",
                self.name,
                ", ".join(names),
            )

    def _chooser(self, draw: Draws | None) -> Callable[[Tensor, int, list[int]], Tensor] | None:
        """Combine the contexts of each prompt, which go on with the same token, and draw it where it is drawn."""

        def choose(logits: Tensor, step: int, numbers: list[int]) -> Tensor:
            chosen = self.combine(logits, len(numbers), step)
            if draw is not None:
                chosen = torch.full_like(chosen, -torch.inf).scatter(1, draw(chosen, step, numbers), 0.0)
            return chosen.repeat(len(logits) // len(numbers), 1)

        return choose if draw is not None or isinstance(self.rule, DecodingRule) else None

    def _own_ends(self) -> list[int]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        return own if isinstance(own, list) else [own] if own is not None else []


def completion_of(
    chat: ChatFormat, prompt: Sequence[int], reply: list[int], ends: Container[int | None]
) -> Completion:
    """What tokens behind a prompt say.

    Args:
        chat: The tokenizer and the chat format.
        prompt: Token ids of the rendered prompt.
        reply: Token ids of what was generated; what stands behind the first end is not heard.
        ends: Tokens that end a reply.
    """
    length = next((n for n, token in enumerate(reply, start=1) if token in ends), None)
    kept = reply[:length]
    text, thought = read_reply(chat.tokenizer, prompt, kept if length is None else kept[:-1])
    return Completion(text, length is not None, len(kept), tuple(kept), thought)
