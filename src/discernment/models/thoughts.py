"""Where a model's thought ends and its answer begins; `thoughts.yaml` has the forms that models give it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from pydantic import field_validator

from discernment.files import packaged_yaml
from discernment.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEADING = 4
"""Special tokens at the beginning of a reply that are passed over, such as the one that begins a text."""
END_OF_PROMPT = 64
"""Tokens at the end of a prompt that are looked at for the mark that opens a thought."""
CAPITAL = r"(?=[^\W\d_a-z])"


class ThoughtForm(Frozen):
    """The marks around a thought.

    Attributes:
        opens: The mark that begins it.
        closes: The marks that may end it.
        glued: Whether the opening mark is a bare word, which counts only where a capital follows at once.
    """

    opens: str
    closes: tuple[str, ...]
    glued: bool = False

    @field_validator("closes", mode="before")
    @classmethod
    def _one_or_several(cls, value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    @property
    def opening(self) -> re.Pattern[str]:
        """Finds the opening mark, with the white space around it."""
        if self.glued:
            return re.compile(rf"\s*{re.escape(self.opens)}{CAPITAL}")
        return re.compile(rf"\s*{re.escape(self.opens)}\s*", re.IGNORECASE)

    @property
    def closing(self) -> re.Pattern[str]:
        """Finds a closing mark."""
        return re.compile("|".join(map(re.escape, self.closes)), 0 if self.glued else re.IGNORECASE)


class AnswerForm(Frozen):
    """The marks around an answer.

    Attributes:
        opens: The mark that begins it.
        closes: The mark that may end it.
        alone: Whether they count in a reply without a thought, too.
    """

    opens: str
    closes: str | None = None
    alone: bool = False

    @property
    def opening(self) -> re.Pattern[str]:
        """Finds the opening mark, with the white space around it."""
        return re.compile(rf"\s*{re.escape(self.opens)}\s*", re.IGNORECASE)


class Thought(NamedTuple):
    """A reply's two parts.

    Attributes:
        thought: What was thought before the answer; None if nothing.
        answer: The answer; None if the thought never ends.
    """

    thought: str | None
    answer: str | None


class ReadReply(NamedTuple):
    """A reply as it is shown.

    Attributes:
        text: The answer; all of the reply, from the opening mark on, if its thought never ends.
        thought: The thought that came before the answer, if there was one.
    """

    text: str
    thought: str | None


def split_thought(text: str) -> Thought:
    """Tell the thought at the beginning of a reply from its answer.

    Marks within an answer count for nothing: it may be about them. One exception is a closing mark at the beginning
    or the end of a line, outside of code, that no mark opens: what it closes was opened by the prompt.

    Args:
        text: The reply (untrusted); if its prompt ended with an opening mark, behind that mark.

    Returns:
        The text as it is for an answer, if there are no marks; otherwise parts without white space around them.
    """
    thoughts, at = [], 0
    while True:
        start, end, after = _next_thought(text, at)
        if after == at:
            break
        thoughts.append(text[start:end].strip())
        if after is None:
            break
        at = after
    thought = "\n\n".join(filter(None, thoughts)) or None
    return Thought(thought, None if after is None else _unwrapped(text[at:], bool(thoughts)))


def thought_without_end(thought: str) -> str:
    """The reply that a thought would be that was given apart and never ended: behind the mark that opens one."""
    return f"{_forms()[0][0].opens}\n{thought}"


def read_text(text: str) -> ReadReply:
    """Read a reply that is text without special tokens, such as an endpoint gives."""
    found = split_thought(text)
    if found.answer is None:
        return ReadReply(text.strip(), None)
    return ReadReply(found.answer.strip(), found.thought)


def read_reply(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], reply: Sequence[int]) -> ReadReply:
    """Read the token ids of a reply: the thought is told by its marks first, then special tokens are dropped.

    Args:
        tokenizer: The tokenizer.
        prompt: Token ids of the prompt, which may open a thought at its end.
        reply: Token ids of the reply, without the token that ends it.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(sorted(special.intersection(reply)))]
    marks = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
    opened = opening_of(str(tokenizer.decode(list(prompt[-END_OF_PROMPT:])))) or ""
    text = opened + str(tokenizer.decode(list(reply)))
    text = text[_first_mark(text, marks) :]
    found = split_thought(text)
    if found.answer is None:
        begun, _, _ = _next_thought(text, 0)
        return ReadReply(text[:begun].lstrip() + marks.sub("", text[begun:]).rstrip(), None)
    if found.answer != text:
        thought = marks.sub("", found.thought or "").strip()
        return ReadReply(marks.sub("", found.answer).strip(), thought or None)
    return ReadReply(str(tokenizer.decode(list(reply), skip_special_tokens=True)).strip(), None)


def closing_of(rendered: str) -> str | None:
    """The text that closes, empty, a thought that a rendered prompt leaves open at its end; None if there is none.

    A thought opened on a line of its own is closed on one, with an empty line behind it, as Qwen3 and its kin write
    a thought that is left out; others put the two marks side by side.
    """
    opened = opening_of(rendered)
    if opened is None:
        return None
    closes = next(form.closes[0] for form in _forms()[0] if form.opens.lower() == opened.strip().lower())
    space = opened[len(opened.rstrip()) :]
    return f"\n{closes}\n\n" if space == "\n" else f"{closes}\n\n" if space else closes


def opening_of(rendered: str) -> str | None:
    """The mark that opens a thought at the very end of a rendered prompt, with the white space behind it."""
    text = rendered.rstrip()
    for form in _forms()[0]:
        if not form.glued and text.lower().endswith(form.opens.lower()):
            return rendered[len(text) - len(form.opens) :]
    return None


def _next_thought(text: str, at: int) -> tuple[int, int, int | None]:
    """Where the thought at `at` begins and ends, and what follows it does; the last is `at` if there is none there."""
    for form in _forms()[0]:
        if opened := form.opening.match(text, at):
            closed = form.closing.search(text, opened.end())
            return opened.end(), closed.start() if closed else len(text), closed.end() if closed else None
    closed = _lone_closing(text, at)
    return (at, closed.start(), closed.end()) if closed else (at, at, at)


def _lone_closing(text: str, at: int) -> re.Match[str] | None:
    """The first closing mark that no mark opens, unless it stands within a line or in code."""
    forms, marks = _closings()
    for closed in marks.finditer(text, at):
        start, end = closed.span()
        before = text[max(text.rfind("\n", at, start) + 1, at) : start]
        behind = re.compile(r"[^\n]*").match(text, end)
        form = forms[(closed.lastindex or 1) - 1]
        in_code = text.count("```", at, start) % 2 == 1
        opened = re.search(re.escape(form.opens), text[at:start], re.IGNORECASE)
        within = before.strip() and behind and behind.group().strip()
        if not in_code and not opened and not within:
            return closed
    return None


@cache
def _closings() -> tuple[list[ThoughtForm], re.Pattern[str]]:
    """The forms that can be told by their closing marks, and what finds these: a group each."""
    forms = [form for form in _forms()[0] if not form.glued]
    return forms, re.compile("|".join(f"({form.closing.pattern})" for form in forms), re.IGNORECASE)


def _unwrapped(answer: str, thought: bool) -> str:
    """An answer without the marks around it; one behind a thought without white space around it."""
    for form in _forms()[1]:
        opened = form.opening.match(answer)
        if opened and (thought or form.alone):
            body = answer[opened.end() :].strip()
            ended = form.closes is not None and body.lower().endswith(form.closes.lower())
            return body[: -len(form.closes or "")].strip() if ended else body
    return answer.strip() if thought else answer


def _first_mark(text: str, special: re.Pattern[str]) -> int:
    """Where the mark of a thought or an answer stands: at once, or behind the first special tokens; otherwise 0."""
    thoughts, answers = _forms()
    start = 0
    for _ in range(LEADING + 1):
        wrapped = any(form.alone and form.opening.match(text, start) for form in answers)
        if wrapped or any(form.opening.match(text, start) for form in thoughts):
            return start
        token = special.match(text, start)
        if token is None:
            break
        start = token.end()
    return 0


@cache
def _forms() -> tuple[tuple[ThoughtForm, ...], tuple[AnswerForm, ...]]:
    data = packaged_yaml("discernment.models", "thoughts.yaml")
    return (
        tuple(ThoughtForm.model_validate(form) for form in data["thoughts"]),
        tuple(AnswerForm.model_validate(form) for form in data["answers"]),
    )
