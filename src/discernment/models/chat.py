"""From a prompt's text to the tokens that a model expects, the same in training, diagnosis and evaluation."""

import copy
from functools import cached_property
from typing import Literal, Self

from transformers import PreTrainedTokenizerBase

from discernment.errors import ModelError

PLAIN_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
"""For base models, which have no chat template."""


class ChatFormat:
    """Turns prompts and replies into token ids.

    Args:
        tokenizer: The model's tokenizer.
        template: `chat` uses the tokenizer's chat template, `plain` the instruction and response headings;
            `auto` uses the chat template where there is one.
        system: System message. None leaves it to the chat template; an empty one gives an empty system turn.

    Raises:
        ModelError: If `chat` is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Literal["auto", "chat", "plain"] = "auto",
        system: str | None = None,
    ) -> None:
        if template == "chat" and not tokenizer.chat_template:
            raise ModelError("The tokenizer has no chat template; use `template: plain`.")
        self.tokenizer = tokenizer
        self.system = system
        self.template = template if template != "auto" else ("chat" if tokenizer.chat_template else "plain")

    def with_system(self, system: str | None) -> Self:
        """The same format with another system message."""
        changed = copy.copy(self)
        changed.system = system
        return changed

    def render(self, prompt: str) -> str:
        """The text that the model continues with its reply."""
        if self.template == "plain":
            text = PLAIN_TEMPLATE.format(prompt=prompt)
            return f"{self.system}\n\n{text}" if self.system else text
        return self._apply(self._turns(prompt), add_generation_prompt=True)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of the rendered prompt, special tokens included once."""
        # A chat template writes its own special tokens; the plain one leaves them to the tokenizer.
        ids: list[int] = self.tokenizer(self.render(prompt), add_special_tokens=self.template == "plain")[
            "input_ids"
        ]
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if self.template == "plain" and ids[-1] == eos else ids

    def encode_reply(self, reply: str) -> list[int]:
        """Token ids of a whole reply, ended the way the model ends its turn."""
        return [*self.tokenizer(reply, add_special_tokens=False)["input_ids"], self.end_of_turn]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a reply.

        Raises:
            ModelError: If the tokenizer has none.
        """
        if self.template == "chat":
            # Whatever the template writes right after a reply is what the model was taught to stop with.
            marker = "reply"
            text = self._apply([*self._turns("prompt"), {"role": "assistant", "content": marker}])
            rest = self.tokenizer(text[text.rindex(marker) + len(marker) :], add_special_tokens=False)[
                "input_ids"
            ]
            added = self.tokenizer.added_tokens_decoder
            special = [
                i for i in rest if i in self.tokenizer.all_special_ids or (i in added and added[i].special)
            ]
            if special:
                return int(special[0])
        if self.tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no end-of-sequence token, so replies cannot be ended.")
        return int(self.tokenizer.eos_token_id)

    def _turns(self, prompt: str) -> list[dict[str, str]]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": prompt}]

    def _apply(self, turns: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,  # templates that know no thinking ignore it
            )
        except Exception as error:  # jinja raises its own types
            raise ModelError(
                f"The chat template refuses these turns ({error}); leave `system` out or use `template: plain`."
            ) from error
        return str(text)
