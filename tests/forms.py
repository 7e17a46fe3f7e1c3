"""Tiny tokenizers with chat templates in the form of public model families; `forms.yaml` describes them."""

from __future__ import annotations

import re
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from discernment.frozen import Frozen
from tiny import CORPUS

TODAY = date(2025, 3, 9)
WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = [chr(n) for n in range(33, 127)]
PROMPTS = ["How do I kill a process?", "Hi", "What is 2 + 2?\nSay it in one word."]
REFUSAL = "I can't help with that."
REPLIES = [
    REFUSAL,
    "7 steps: mix flour, wait.",
    '"No", I say.',
    "nd so on.",
    "Sure.\n\nFirst, mix flour and water.",
    "\nSure, here is how.",
    "  Sure, here is how.",
]


class Form(Frozen):
    """A family's tokenizer and template; `forms.yaml` says what the fields mean."""

    name: str
    models: str
    tokenizer: Literal["bytes", "bytes_split", "prepend", "first", "bare", "unigram"]
    template: str | None = None
    bos: str | None = None
    eos: str
    end: str = ""
    adds_bos: bool = False
    marks: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    listed: bool = False
    writes_end: bool = True
    options: dict[str, Any] = Field(default_factory=dict)
    between: str = ""
    closes: str = ""
    parts: bool = False
    melts: bool = False
    refused: str | None = None

    @property
    def ends_with(self) -> str:
        """The token that ends a reply."""
        return self.end or self.eos

    @property
    def special(self) -> list[str]:
        """All tokens that are special."""
        return list(dict.fromkeys(t for t in (self.bos, self.eos, self.end, *self.marks) if t))

    def turns(self, prompt: str, reply: str | None = None) -> list[dict[str, Any]]:
        """The exchange as the template wants it."""
        said = [("user", prompt)] + ([("assistant", reply)] if reply is not None else [])
        return [{"role": r, "content": [{"type": "text", "text": t}] if self.parts else t} for r, t in said]

    def asked(self, prompt: str) -> str:
        """The template's own rendering of a prompt."""
        if self.template is None:
            return f"### Instruction:\n{prompt}\n\n### Response:\n"
        return self.apply(self.turns(prompt), add_generation_prompt=True)

    def told(self, prompt: str, reply: str) -> str:
        """The template's own rendering of an exchange, as far as the end of the turn."""
        if self.template is None:
            return self.asked(prompt) + reply + self.eos
        text = self.apply(self.turns(prompt, reply))
        if not self.writes_end:
            return text + self.ends_with
        begun = self.asked(prompt) + self.closes
        if self.closes and not text.startswith(
            begun
        ):  # the history holds no thought, and the prompt opens one
            after = text[text.rindex(reply) + len(reply) :]
            text = begun + self.between + reply + after
        return text[: text.index(self.ends_with, text.rindex(reply.strip())) + len(self.ends_with)]

    @property
    def drops_thought(self) -> bool:
        """Whether the prompt opens a thought that the rendering of an exchange does not hold."""
        whole = self.apply(self.turns("Hi", REFUSAL))
        return bool(self.closes) and not whole.startswith(self.asked("Hi") + self.closes)

    def apply(self, turns: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """The template on these turns."""
        known = {"bos_token": self.bos, "eos_token": self.eos}
        return self._compiled.render(
            messages=turns,
            add_generation_prompt=add_generation_prompt,
            **{name: token for name, token in known.items() if token},
            **self.options,
        )

    @cached_property
    def _compiled(self) -> Template:
        def refuse(message: str) -> None:
            raise TemplateError(message)

        # Not the tokenizer's `apply_chat_template`, whose clock cannot be set.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals |= {"raise_exception": refuse, "strftime_now": TODAY.strftime}
        return environment.from_string(self.template or "")

    def ids(self, text: str) -> list[int]:
        """The tokenizer's own token ids of a rendered text."""
        ids: list[int] = self.made(text, add_special_tokens=self.template is None)["input_ids"]
        return ids

    def decoded(self, text: str) -> str:
        """What this kind of tokenizer makes of a text when it encodes and decodes it."""
        if self.template is None and self.adds_bos:
            text = f"{self.bos}{text}"
        marks = "|".join(map(re.escape, [*self.special, *self.words]))
        if self.strips:
            text = re.sub(f"({'|'.join(map(re.escape, self.strips))})\\s+", r"\1", text)
        if self.tokenizer in ("prepend", "unigram"):
            text = re.sub(f"({marks})(?!{marks})(?=.)", r"\1 ", text, flags=re.DOTALL)
        return text

    @cached_property
    def made(self) -> PreTrainedTokenizerFast:
        """The tokenizer; trained on what the template writes, so that its tokens are words as in a large one."""
        backend = _trained(self)
        made = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.bos,
            eos_token=self._token(self.eos),
            pad_token="<pad>",
            unk_token="<unk>" if self.tokenizer not in ("bytes", "bytes_split") else None,
            additional_special_tokens=[self._token(t) for t in self.special] if self.listed else None,
            clean_up_tokenization_spaces=False,
        )
        made.add_tokens([self._token(t) for t in self.special])
        made.add_tokens([AddedToken(t, special=False, normalized=False) for t in self.words])
        made.chat_template = self.template
        if self.adds_bos:
            made.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A",
                special_tokens=[(self.bos, made.convert_tokens_to_ids(self.bos))],
            )
        return made

    def _token(self, text: str) -> AddedToken:
        return AddedToken(text, special=True, normalized=False, rstrip=text in self.strips)


def _trained(form: Form) -> Tokenizer:
    corpus = _corpus(form)
    if form.tokenizer.startswith("bytes"):
        made = Tokenizer(models.BPE())
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=form.tokenizer == "bytes")
        split = [] if form.tokenizer == "bytes" else [pre_tokenizers.Split(WORDS, "isolated")]
        made.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<pad>", *form.special]
    else:
        made = Tokenizer(
            models.Unigram()
            if form.tokenizer == "unigram"
            else models.BPE(byte_fallback=True, unk_token="<unk>")
        )
        scheme = {"first": "first", "bare": "never"}.get(form.tokenizer, "always")
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
        alphabet = [*LETTERS, "▁"]
        if form.tokenizer != "unigram":  # a newline is a byte there, and never one token with letters
            corpus = [line for text in corpus for line in text.split("\n") if line]
        fallback = [] if form.tokenizer == "unigram" else [f"<0x{n:02X}>" for n in range(256)]
        special = ["<unk>", "<pad>", *form.special, *fallback]
    kind = trainers.UnigramTrainer if form.tokenizer == "unigram" else trainers.BpeTrainer
    more = {"unk_token": "<unk>"} if form.tokenizer == "unigram" else {}
    made.train_from_iterator(
        corpus,
        kind(
            vocab_size=len(special) + 400,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
            **more,
        ),
    )
    if form.tokenizer.startswith("bytes"):
        return made
    _as_converted(form, made)
    strip = [] if form.tokenizer == "bare" else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return made


def _as_converted(form: Form, made: Tokenizer) -> None:
    """Cut text as the tokenizers do that are converted from SentencePiece, which have no words."""
    space = normalizers.Replace(" ", "▁")
    if form.tokenizer == "prepend":
        made.pre_tokenizer, made.normalizer = None, normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif form.tokenizer == "bare":
        made.pre_tokenizer, made.normalizer = pre_tokenizers.Split(" ", "merged_with_previous"), space
    else:
        scheme = "first" if form.tokenizer == "first" else "always"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


def _corpus(form: Form) -> list[str]:
    """Texts without the marks, which are tokens of their own."""
    quoted = re.findall(r"'((?:[^'\\]|\\.)*)'", form.template or "")
    texts = [
        *CORPUS,
        *PROMPTS,
        *REPLIES,
        *(t.replace("\\n", "\n") for t in quoted),
        "user assistant system model",
    ]
    marks = "|".join(map(re.escape, [*form.special, *form.words]))
    return [part for text in texts for part in re.split(marks, text) if part] * 3


def load_forms() -> list[Form]:
    """All forms of `forms.yaml`."""
    entries = yaml.safe_load(Path(__file__).with_name("forms.yaml").read_text(encoding="utf-8"))
    return [Form(name=name, **fields) for name, fields in entries.items()]


FORMS = load_forms()
