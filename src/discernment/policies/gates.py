"""How much a steering rule that decides by prompt acts: on which rows of a batch, and from which token on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Gates:
    """How much of a rule's change each prompt of a batch gets.

    Args:
        strengths: One a prompt, `[batch]`.
        prompts: Token ids of the prompts, row by row, where nothing before their last token is changed.
    """

    def __init__(self, strengths: Tensor, prompts: Sequence[Sequence[int]] | None) -> None:
        self._strengths = strengths[:, None, None]
        self._prompts = prompts
        self._open = torch.ones(())

    def see(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Look at the token ids that a model is about to read: a forward pre-hook.

        A row that does not hold its whole prompt goes on from one that was read before.
        """
        ids: Tensor = named["input_ids"] if "input_ids" in named else given[0]
        self._open = torch.ones(*ids.shape, 1, device=ids.device)
        for row, prompt in enumerate(self._prompts or ()):
            if len(prompt) <= ids.shape[1]:
                sought = torch.tensor(list(prompt), device=ids.device)
                found = (ids[row].unfold(0, len(prompt), 1) == sought).all(1).nonzero()
                if len(found):
                    self._open[row, : int(found[0, 0]) + len(prompt) - 1] = 0

    def change(self, hidden: Tensor, steered: Tensor) -> Tensor:
        """The states as they shall be, `[batch, tokens, hidden]`, between those before and after the whole change."""
        return hidden + self._strengths.to(hidden) * self._open.to(hidden) * (steered - hidden)
