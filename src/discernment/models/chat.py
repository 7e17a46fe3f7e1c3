"""From prompts and replies to the tokens that a model was taught, the same in training, diagnosis and evaluation."""

from __future__ import annotations

import contextlib
import copy
import datetime
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from discernment.errors import ModelError
from discernment.models.model_spec import DATE
from discernment.models.thoughts import closing_of, opening_of, split_thought
from discernment.prompts import Asked, Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
"""For base models, which have no chat template."""
MARKER = "zqx7"
"""Stands for a reply while the template is looked at; no template says it."""

CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>.*?)(?P=quote)\s*\)""")

Thinking = Literal["off", "on", "template"]


class Frame(NamedTuple):
    """What a template writes around a reply.

    Attributes:
        lead: Between the generation prompt and the reply's text.
        after: Behind the reply's text.
        space: White space that stands before the reply's text anyway.
    """

    lead: str
    after: str
    space: str


class ChatFormat:
    """Turns prompts and replies into token ids.

    Args:
        tokenizer: The model's tokenizer.
        template: `chat` uses the tokenizer's chat template, `plain` the instruction and response headings;
            `auto` uses the chat template where there is one.
        system: System message. None leaves it to the chat template; an empty one gives an empty system turn. That of
            a prompt stands behind it.
        thinking: `off` has the template write no thought, or closes the one that it opens, so that the answer comes
            first; `on` asks it for one; `template` leaves it to the template.
        special_tokens: Whether the template's own control tokens within a prompt are read as `text` or as `tokens`.
        date: What templates that ask for the date are told.

    Raises:
        ModelError: If `chat` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Literal["auto", "chat", "plain"] = "auto",
        system: str | None = None,
        *,
        thinking: Thinking = "off",
        special_tokens: Literal["text", "tokens"] = "text",
        date: datetime.date = DATE,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; use `template: plain`.")
        self.tokenizer = tokenizer
        self.system = system
        self.template = template if template != "auto" else ("chat" if tokenizer.chat_template else "plain")
        self.thinking = thinking
        self.special_tokens = special_tokens
        self.date = date

    def with_system(self, system: str | None) -> Self:
        """The same format with another system message."""
        changed = copy.copy(self)
        changed.system = system
        return changed

    # ------------------------------------------------------------------ prompts

    def render(self, prompt: Asked) -> str:
        """The text that the model continues with its reply; with `thinking: off`, with its answer.

        Raises:
            ModelError: If the chat template refuses the turns, or leaves out the system message of the prompt or
                what the user said.
        """
        talk = Conversation.of(prompt).under(self.system)
        if self.template == "plain":
            text = "".join(
                PLAIN_TEMPLATE.format(prompt=turn.content) if turn.role == "user" else f"{turn.content}\n\n"
                for turn in (*talk.earlier, Turn(role="user", content=talk.text))
            )
            return f"{talk.system}\n\n{text}" if talk.system else text
        text = self._apply(self._turns(prompt), add_generation_prompt=True)
        _check_said(talk, text)
        return text + (closing_of(text) or "") if self.thinking == "off" else text

    def encode(self, prompt: Asked) -> list[int]:
        """Token ids of the rendered prompt, special tokens included once."""
        text = self.render(prompt)
        if self.special_tokens == "tokens":
            return self._ids(text)
        pieces: list[str] = []
        # From the last turn to the first: what comes before `sought` is still to be looked at, before `whole` uncut.
        whole = len(text)
        sought = whole - len(self._tail) if text.endswith(self._tail) else whole
        for said in reversed(Conversation.of(prompt).turns):
            written = said["content"]
            start = text.rfind(written, 0, sought)
            if start < 0:
                written = written.strip()
                start = text.rfind(written, 0, sought)
            if start < 0:
                continue
            if self._marks.search(written):
                pieces = [*self._as_text(written), text[start + len(written) : whole], *pieces]
                whole = start
            sought = start
        return [*self._ids(text[:whole]), *(token for piece in pieces for token in self._within(piece))]

    @cached_property
    def _tail(self) -> str:
        """What the template writes behind the last turn of the user, who may write the same."""
        return self._start.rpartition(MARKER)[2]

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Control tokens: those that the tokenizer calls special, and those that the template writes.

        Other added tokens are text like any other; some tokenizers have their runs of newlines among them.
        """
        template = self._dated if self.template == "chat" else ""
        marks = [
            re.escape(token.content)
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in template)
        ]
        return re.compile("|".join(sorted(marks, key=len, reverse=True)) or r"(?!)")

    def _as_text(self, written: str) -> list[str]:
        """Pieces to be read one by one: cut behind its first letter, a control token is text like any other."""
        if self.special_tokens == "tokens":
            return [written]
        return self._marks.sub(lambda mark: f"{mark[0][0]}\0{mark[0][1:]}", written).split("\0")

    # ------------------------------------------------------------------ replies

    def encode_reply(self, prompt: Asked, reply: str) -> list[int]:
        """Token ids that the template writes behind a prompt for a whole reply, the end of the turn included.

        They are those of prompt and reply together less those of the prompt: alone, a reply may begin with another
        token (SentencePiece puts a space before it), and what the template writes before it would be lost. Control
        tokens in the reply are text, as in a prompt, but for one at its end, as replies are kept that end with it.

        Raises:
            ModelError: If the template drops the reply, or changes the prompt when one follows.
        """
        pieces = self._reply_pieces(self._written(prompt, self._without_end(reply)))
        start = self.render(prompt)
        begun = self._reply_ids(start, pieces)
        whole = self._reply_ids(start, [*pieces[:-1], pieces[-1] + self._frame.after])
        end = next(
            (n for n, token in enumerate(whole) if n >= len(begun) - 1 and token == self.end_of_turn), None
        )
        return [*begun, self.end_of_turn] if end is None else whole[: end + 1]

    def _without_end(self, reply: str) -> str:
        """A reply without the end of the turn, which is written behind it anyway."""
        end = str(self.tokenizer.decode([self.end_of_turn]))
        return reply.rstrip().removesuffix(end) if end and reply.rstrip().endswith(end) else reply

    def _reply_pieces(self, reply: str) -> list[str]:
        """A reply to be read in pieces: the marks of a thought before the answer stay control tokens."""
        if not self._marks.search(reply):
            return [reply]
        begins = reply.rfind(split_thought(reply).answer or "")  # none, where all of it is a thought
        first, *others = self._as_text(reply[begins:])
        return [reply[:begins] + first, *others]

    def _reply_ids(self, start: str, pieces: Sequence[str]) -> list[int]:
        """Token ids of a reply's pieces behind a rendered prompt, with what the template writes before the first."""
        begun = self._behind(start, self._frame.lead + pieces[0])
        return [*begun, *(token for piece in pieces[1:] for token in self._within(piece))]

    def encode_opening(self, opening: str) -> list[int]:
        """Token ids of the beginning of a reply, behind a prompt and `lead`."""
        return self._behind(self._start, self._frame.lead + opening)[len(self.lead) :]

    @cached_property
    def lead(self) -> list[int]:
        """Token ids that stand between every prompt and its reply's text, such as the marks of a channel.

        Empty where the template writes nothing there, or what it writes is one token with the reply's first letters.
        """
        found = self._behind(self._start, self._frame.lead)
        replies = (self._behind(self._start, self._frame.lead + text) for text in ("I", "Sure", "7", '"'))
        return found if all(ids[: len(found)] == found for ids in replies) else []

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a reply.

        Raises:
            ModelError: If the tokenizer has none.
        """
        # Whatever the template writes right after a reply is what the model was taught to stop with.
        with contextlib.suppress(ModelError):  # a template without replies: the tokenizer's end has to do
            added = self.tokenizer.added_tokens_decoder
            for token in self._ids(self._frame.after, first=False):
                if token in self.tokenizer.all_special_ids or (token in added and added[token].special):
                    return token
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end-of-sequence token, so replies cannot be ended.")
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def _frame(self) -> Frame:
        if self.template == "plain":
            return Frame("", "", "\n")
        turns = self._turns("prompt")
        asked = self._apply(turns, add_generation_prompt=True)
        prompt, closing = self.render("prompt"), closing_of(asked)
        before, found, after = self._apply([*turns, self._turn("assistant", MARKER)]).rpartition(MARKER)
        if not found:
            raise ModelError(
                "The chat template leaves out what the assistant said, so replies cannot be put behind prompts; use "
                "`template: plain`."
            )
        space = before[len(before.rstrip()) :]
        if before.startswith(prompt):
            return Frame(before[len(prompt) :], after, space)
        # A thought that the generation prompt opens may be written otherwise, or not at all, once it is past.
        if closing is not None and before.startswith(asked):
            return Frame("" if self.thinking == "off" else before[len(asked) :], after, space)
        unopened = asked.removesuffix(opening_of(asked) or "")
        if closing is not None and before.startswith(unopened):
            rest = before[len(unopened) :]
            return Frame(rest if self.thinking == "off" else closing + rest, after, space)
        if prompt.startswith(before) and _is_thought(prompt[len(before) :]):
            return Frame("", after, space)
        raise ModelError(
            "The chat template writes the prompt otherwise when a reply follows, so the two cannot be told apart; use "
            "`template: plain`."
        )

    def _written(self, prompt: Asked, reply: str) -> str:
        """A reply as the template writes it: many take white space off its ends."""
        text = reply.strip()
        if self.template == "plain" or text == reply or not text:
            return reply
        before, _, after = self._apply([*self._turns(prompt), self._turn("assistant", reply)]).rpartition(
            text
        )
        left, right = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
        usual = self._frame.after[: len(self._frame.after) - len(self._frame.after.lstrip())]
        return f"{left.removeprefix(self._frame.space)}{text}{right.removesuffix(usual)}"

    @cached_property
    def _start(self) -> str:
        """A rendered prompt to put the beginnings of replies behind; which one it is does not matter."""
        return self.render(MARKER)

    def _behind(self, start: str, text: str) -> list[int]:
        """Token ids of a text behind a rendered prompt."""
        if not text:
            return []
        ids, whole = self._ids(start), self._ids(start + text)
        if whole[: len(ids)] == ids:
            return whole[len(ids) :]
        return self._within(text)  # it melts into the prompt's last token

    def _within(self, text: str) -> list[int]:
        """Token ids of a text as it is read behind something that it does not melt into."""
        for anchor in ("a", ".", "\n", "?"):
            ids, whole = self._ids(anchor, first=False), self._ids(anchor + text, first=False)
            if whole[: len(ids)] == ids:
                return whole[len(ids) :]
        return self._ids(text, first=False)

    # ------------------------------------------------------------------ the tokenizer and its template

    def _ids(self, text: str, *, first: bool = True) -> list[int]:
        """Token ids of a text; where it is the `first`, a plain one gets what the tokenizer puts before a text."""
        if not text:
            return []
        # A chat template writes its own special tokens; the plain one leaves them to the tokenizer.
        add = first and self.template == "plain"
        ids: list[int] = self.tokenizer(text, add_special_tokens=add)["input_ids"]
        return ids[:-1] if add and ids[-1] == self.tokenizer.eos_token_id else ids

    def _turns(self, prompt: Asked) -> list[dict[str, Any]]:
        turns = Conversation.of(prompt).under(self.system).turns
        return [self._turn(turn["role"], turn["content"]) for turn in turns]

    def _turn(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template reads contents as lists of parts only."""
        parts = [{"type": "text", "text": MARKER}]
        return MARKER not in self._tried(MARKER) and MARKER in self._tried(parts)

    def _tried(self, content: Any) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            )
        except Exception:  # which says that it does not take such a content
            return ""

    @cached_property
    def _dated(self) -> str:
        """The chat template with the fixed date where it asks the clock."""

        def say(asked: re.Match[str]) -> str:
            return repr(self.date.strftime(asked["format"]))

        return CLOCK.sub(say, str(self.tokenizer.get_chat_template()))

    def _apply(self, turns: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        thinking: dict[str, Any] = (
            {} if self.thinking == "template" else {"enable_thinking": self.thinking == "on"}
        )
        try:
            text = self.tokenizer.apply_chat_template(
                [*turns],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=self._dated,
                **thinking,  # templates that know no thinking ignore it
            )
        except Exception as error:  # jinja raises its own types
            raise ModelError(
                f"The chat template refuses these turns ({error}); leave `system` out or use `template: plain`."
            ) from error
        return str(text)


def _check_said(talk: Conversation, text: str) -> None:
    """Some templates leave a system message out, or all turns but the last, without a word."""
    for turn in talk.turns:
        if turn["role"] != "assistant" and turn["content"].strip() not in text:
            what, rest = (
                ("the system message", "it")
                if turn["role"] == "system"
                else ("an earlier turn", "the prompt")
            )
            raise ModelError(
                f"The chat template leaves out {what} of the prompt that ends {talk.text[-60:]!r}; use `template: plain`, "
                f"or leave {rest} out."
            )


def _is_thought(text: str) -> bool:
    """Whether a text is one whole thought, as templates write an empty one before an answer."""
    return bool(text.strip()) and split_thought(text).answer == ""
