"""An OpenAI-compatible endpoint, for policies, judges, and whoever else asks a model behind one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from discernment.errors import RecipeError
from discernment.files import encodable

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

logger = logging.getLogger(__name__)

CAP, OTHER_CAP = "max_tokens", "max_completion_tokens"
MAY_BE_REFUSED = (CAP, "temperature", "response_format", "top_p", "seed")
"""What an endpoint may not take; the cap then goes under its other name, the others are left out."""
NOT_TAKEN = (400, 422)
"""The statuses by which it says so."""
TOO_MUCH = re.compile(
    r"too (?:large|high|big|long|small|low)|range|at (?:most|least)|exceed|(?:less|greater|more) than|context"
)
"""By which an endpoint finds fault with the cap's size; then it knows the cap."""
CUT = ("length", "max_length", "max_tokens", "max_output_tokens", "model_length")
FILTERED = "content_filter"
THOUGHTS = ("reasoning_content", "reasoning")
"""Under which a message has what was thought before it, where the endpoint gives that apart."""
ON_THIS_MACHINE = re.compile(r"http://(?:localhost|127\.0\.0\.1|\[::1\])(?=[:/]|$)")
"""An address that no proxy finds, whichever the environment names."""
KEY_SHOWN = "[key]"
SHORT_KEY = 8
"""Shorter keys, such as those of endpoints that ask for none, are words that an endpoint may well say."""
Question = TypeVar("Question")
Answer = TypeVar("Answer")


def address(base_url: str | None) -> str | None:
    """The endpoint's address: the one that is named, or that of `OPENAI_BASE_URL`; None for OpenAI's own."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or None


class Ending(StrEnum):
    """How a reply ended."""

    WHOLE = "whole"
    """By itself; endpoints have many words for that, or none."""
    CUT = "cut"
    """At its token cap."""
    REFUSED = "refused"
    """The model refused through the endpoint's own means, or a filter stopped it."""


class Reply(NamedTuple):
    """What a model behind an endpoint replied.

    Attributes:
        text: The reply; empty where the model refused.
        ending: How it ended.
        input_tokens: As the endpoint counts them; 0 where it does not.
        output_tokens: As the endpoint counts them; 0 where it does not.
        refusal: What the model said where it refused through the endpoint's own means.
        thought: What it thought before, where the endpoint gives that apart.
    """

    text: str
    ending: Ending
    input_tokens: int = 0
    output_tokens: int = 0
    refusal: str = ""
    thought: str = ""


class Echo(NamedTuple):
    """A text that a model behind an endpoint read.

    Attributes:
        tokens: Its tokens as the endpoint writes them.
        logprobs: The log-probability of each given those before it; None of the first.
    """

    tokens: list[str]
    logprobs: list[float | None]


class Continued(NamedTuple):
    """How a model behind an endpoint goes on after given tokens.

    Attributes:
        ids: The tokens that it put behind them, perhaps with the one that ends the reply.
        ending: How it ended.
    """

    ids: list[int]
    ending: Ending


class NoReplyError(Exception):
    """An endpoint answered without a reply; `body` is what it said instead."""

    def __init__(self, body: object) -> None:
        super().__init__("no reply")
        self.body = body


class Endpoint:
    """A model behind an OpenAI-compatible address.

    Args:
        model: Its name there.
        base_url: The address; OpenAI's own, or `OPENAI_BASE_URL`, without one.
        api_key: The key; `OPENAI_API_KEY` without one.
        retries: How often a failed question is repeated: no connection, no answer in time, 408, 409, 429 and 5xx, with
            growing pauses of random length.
        timeout: Seconds without a byte before an attempt fails.

    Raises:
        RecipeError: If the extra `judges` is not installed, or there is no key.
    """

    def __init__(
        self, model: str, base_url: str | None, api_key: str | None, retries: int, timeout: float
    ) -> None:
        self.model = model
        self._client = _open_client(base_url, api_key, retries, timeout)
        self._refused: frozenset[str] = frozenset()
        self._lock = Lock()

    @property
    def refused(self) -> list[str]:
        """The parameters that it is asked without by now, because it refused them."""
        return sorted(self._refused)

    def in_words(self, error: Exception) -> str:
        """`failure_in_words` without the key, which an endpoint may repeat."""
        key = self._client.api_key
        return failure_in_words(error, key if len(key) >= SHORT_KEY else None)

    def ask(self, messages: Sequence[dict[str, str]], **sampling: Any) -> Reply:
        """The reply to a conversation; raises what the client does, and `NoReplyError`.

        What the endpoint refuses of `MAY_BE_REFUSED` is left out and remembered, if that helps: reasoning models know no
        `max_tokens`, and no temperature but their own.

        Args:
            messages: The conversation.
            sampling: Further parameters: `max_tokens`, `temperature`, `response_format`.
        """
        from openai import APIStatusError

        refused = self._refused
        said: dict[str, str] = {}
        while True:
            try:
                answer = self._create(messages, refused, sampling)
            except APIStatusError as error:
                left = [name for name in MAY_BE_REFUSED if name in sampling and name not in refused]
                named = next((name for name in left if _refuses(error, name)), None)
                if named is None:
                    raise
                refused |= {named}
                said[named] = self.in_words(error)
                continue
            self._remember(said)
            return _read(answer)

    def echo(self, texts: Sequence[Sequence[int]]) -> tuple[list[Echo], int]:
        """How likely the model finds every token of some texts; raises what the client does, and `NoReplyError`.

        Asked of the completions with `echo` and `logprobs`, as vLLM and others have them.

        Args:
            texts: Token ids of each.

        Returns:
            What it says of each text, and how many tokens it read and generated by its own count.
        """
        create: Any = self._client.completions.create
        prompts = [list(text) for text in texts]
        answer = create(model=self.model, prompt=prompts, max_tokens=1, temperature=0, echo=True, logprobs=1)
        try:
            said = sorted(answer.choices, key=lambda choice: choice.index)
            found = [Echo(list(c.logprobs.tokens), list(c.logprobs.token_logprobs)) for c in said]
        except (AttributeError, TypeError) as error:
            raise NoReplyError(getattr(answer, "model_extra", None)) from error
        if len(found) != len(prompts) or any(
            len(e.logprobs) < len(p) for e, p in zip(found, prompts, strict=True)
        ):
            raise NoReplyError("it says nothing of the tokens that it is given")
        return found, sum(counted_tokens(answer))

    def go_on(self, prompt: Sequence[int], stops: Sequence[int], **sampling: Any) -> Continued:
        """How the model goes on after given tokens; raises what the client does, and `NoReplyError`.

        Asked of the completions with `stop_token_ids` and `return_token_ids`, as vLLM has them.

        Args:
            prompt: Token ids.
            stops: Tokens that end the reply.
            sampling: Further parameters: `max_tokens`, `temperature`.
        """
        create: Any = self._client.completions.create
        more = {"stop_token_ids": list(stops), "return_token_ids": True}
        answer = create(model=self.model, prompt=list(prompt), extra_body=more, **sampling)
        choice = next(iter(getattr(answer, "choices", None) or ()), None)
        ids = getattr(choice, "token_ids", None)
        if choice is None or not isinstance(ids, list):
            raise NoReplyError(getattr(answer, "model_extra", None))
        return Continued(list(map(int, ids)), Ending.CUT if choice.finish_reason in CUT else Ending.WHOLE)

    def is_there(self, seconds: float = 5.0) -> bool:
        """Whether the endpoint answers within some seconds that it has the model."""
        from openai import OpenAIError

        client = self._client.with_options(max_retries=0, timeout=seconds)
        try:
            return any(model.id == self.model for model in client.models.list())
        except (OpenAIError, ValueError, TypeError, AttributeError):  # something else answers there
            return False

    def _remember(self, said: dict[str, str]) -> None:
        """Leave out from now on what was refused, and show once in what words."""
        with self._lock:
            new = {name: words for name, words in said.items() if name not in self._refused}
            self._refused |= new.keys()
        for name, words in new.items():
            instead = f"with `{OTHER_CAP}`" if name == CAP else "without it"
            logger.warning("%s refuses `%s` (%s); it is asked %s.", self.model, name, words, instead)

    def _create(
        self, messages: Sequence[dict[str, str]], refused: frozenset[str], sampling: dict[str, Any]
    ) -> ChatCompletion:
        sent = {name: value for name, value in sampling.items() if name not in refused}
        if CAP in refused and CAP in sampling:
            sent[OTHER_CAP] = sampling[CAP]
        create: Any = self._client.chat.completions.create
        answer: ChatCompletion = create(model=self.model, messages=list(messages), **sent)
        return answer


def _open_client(base_url: str | None, api_key: str | None, retries: int, timeout: float) -> OpenAI:
    try:
        from openai import DefaultHttpxClient, OpenAI, OpenAIError
    except ImportError:
        raise RecipeError("An endpoint needs `pip install 'discernment[judges]'`.") from None
    own = DefaultHttpxClient(trust_env=False) if ON_THIS_MACHINE.match(address(base_url) or "") else None
    try:
        return OpenAI(
            base_url=base_url, api_key=api_key, max_retries=retries, timeout=timeout, http_client=own
        )
    except OpenAIError as error:
        raise RecipeError(
            "The endpoint has no key; set OPENAI_API_KEY (to anything, for one that asks for none)."
        ) from error


def _refuses(error: Any, name: str) -> bool:
    """Whether an endpoint says that it does not know a parameter, or no value of it but its own."""
    param = str(error.param or name)
    if error.status_code not in NOT_TAKEN or param.split(".")[0] != name:
        return False
    words = f"{error.param} {_sentence(error.body)}".casefold()
    named = re.search(rf"(?<!\w){name}(?!\w)", words) is not None
    return named and not (name == CAP and TOO_MUCH.search(words))


def _read(answer: ChatCompletion) -> Reply:
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise NoReplyError(getattr(answer, "model_extra", None))
    message, finish = choices[0].message, str(choices[0].finish_reason).casefold()
    if message is None:
        raise NoReplyError(getattr(answer, "model_extra", None))
    refusal = getattr(message, "refusal", None)
    ending = Ending.CUT if finish in CUT else Ending.WHOLE
    if refusal or finish == FILTERED:
        ending = Ending.REFUSED
    text = "" if refusal else str(message.content or "")
    thought = next((said for name in THOUGHTS if (said := getattr(message, name, None))), "")
    return Reply(
        encodable(text),
        ending,
        *counted_tokens(answer),
        refusal=encodable(str(refusal or "")),
        thought=encodable(str(thought)),
    )


def counted_tokens(answer: Any) -> tuple[int, int]:
    """Tokens of the prompt and of the reply, as an endpoint counts them; 0 where it does not."""
    usage = getattr(answer, "usage", None)
    prompt, reply = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return prompt if isinstance(prompt, int) else 0, reply if isinstance(reply, int) else 0


def ask_all(
    ask: Callable[[Question], Answer], questions: Iterable[Question], concurrency: int
) -> Iterator[Answer]:
    """Ask several questions at once, and yield the answers in their order."""
    pool = ThreadPoolExecutor(max_workers=concurrency)
    try:
        yield from pool.map(ask, questions)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, no question that has not begun


def failure_in_words(error: Exception, key: str | None = None) -> str:
    """The error's kind, and the status and the first line that the endpoint gave, without the key."""
    status = getattr(error, "status_code", None)
    kind = f"{type(error).__name__} {status}" if status else type(error).__name__
    first = next(iter(_sentence(getattr(error, "body", None)).strip().splitlines()), "")
    shown = "".join(letter for letter in first if letter.isprintable())
    shown = (shown.replace(key, KEY_SHOWN) if key else shown)[:200]
    return f"{kind}: {shown}" if shown else kind


def _sentence(body: object) -> str:
    """What an endpoint says in the body of an error, in the forms that OpenAI, vLLM, FastAPI and others have."""
    match body:
        case str():
            return "" if body.lstrip().startswith("<") else body  # no page of a gateway
        case {"message": str(words)}:
            return words
        case {"msg": str(words)}:
            place = body.get("loc") if isinstance(body, dict) else None
            return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list | tuple) else words
        case {"error": inner} | {"detail": inner}:
            return _sentence(inner)
        case [first, *_]:
            return _sentence(first)
    return ""
