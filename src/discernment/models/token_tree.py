"""A tree of continuations, read behind every row of a batch in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from discernment.models.batch import Batch, pad
from discernment.models.logits import last_logits, unpadded_logits
from discernment.models.prefix import Begun, behind, keys_and_values, prefix_cache, shared_beginning
from discernment.models.self_check import BEGINNING, Probes, Rows, Way, exact_way

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


class TokenTree(NamedTuple):
    """The tree; its root is what it stands behind.

    Attributes:
        nodes: The tokens that lead to each node, parents before children; the first is the root `()`.
        parents: Index of the parent of each node but the root.
    """

    nodes: Sequence[tuple[int, ...]]
    parents: Sequence[int]

    def ancestors(self) -> Tensor:
        """Which nodes each node but the root sees: itself and those that lead to it, `[nodes - 1, nodes - 1]`."""
        sees = torch.eye(len(self.nodes) - 1, dtype=torch.bool)
        for n, parent in enumerate(self.parents):
            if parent > 0:
                sees[n] |= sees[parent - 1]
        return sees

    def behind(self, lead: Sequence[int]) -> TokenTree:
        """The tree behind some tokens that all continuations begin with, which are its first nodes."""
        chain = [tuple(lead[:depth]) for depth in range(len(lead))]
        parents = [*range(len(lead)), *(parent + len(lead) for parent in self.parents)]
        return TokenTree([*chain, *((*lead, *node) for node in self.nodes)], parents)


def tree_logits(
    model: PreTrainedModel,
    rest: Batch,
    tree: TokenTree,
    beginning: DynamicCache | None = None,
    shared: int = 0,
) -> Tensor:
    """Logits at every node behind every row, `[batch, nodes, vocabulary]`.

    Args:
        model: The model.
        rest: The rows without what all begin with, padded on the left.
        tree: The tree.
        beginning: Keys and values of what all rows begin with; left as they are.
        shared: How many tokens that is.
    """
    cache = copy.deepcopy(beginning)
    if cache is not None:
        cache.batch_repeat_interleave(len(rest.input_ids))
    logits: Tensor = _run(model, rest, tree, cache, shared, keep=cache is not None).logits
    return logits


def read_with_tree(
    model: PreTrainedModel, rows: Rows, tree: TokenTree, pad_id: int, new: int, *, share: bool
) -> tuple[Tensor, Begun | None]:
    """Logits at every node behind every row, `[rows, nodes, vocabulary]`, and what replies to the rows go on from.

    Args:
        model: The model.
        rows: Token ids.
        tree: The tree; its nodes are read, and left out of what replies go on from.
        pad_id: The padding token.
        new: How many tokens the replies have at most.
        share: Run what all rows begin with once; see `shared_beginning`.
    """
    behind_rows = max(len(tree.nodes) - 1, new)
    shared, cache = shared_beginning(model, rows, pad_id, behind_rows, share=share)
    rest = pad([row[len(shared) :] for row in rows], pad_id, "left", model.device)
    output = _run(model, rest, tree, cache, len(shared), keep=True)
    kept = keys_and_values(output)
    if kept is not None:
        kept.crop(-len(tree.nodes))  # the last token of the rows goes too: `generate` has to read something
    logits: Tensor = output.logits
    return logits, None if kept is None else Begun(behind(shared, rest), kept)


def _run(
    model: PreTrainedModel,
    rest: Batch,
    tree: TokenTree,
    cache: DynamicCache | None,
    shared: int,
    *,
    keep: bool,
) -> Any:
    run: Any = model
    batch, device = len(rest.input_ids), rest.input_ids.device
    tokens = torch.tensor([node[-1] for node in tree.nodes[1:]], dtype=torch.long, device=device)
    depths = torch.tensor([len(node) - 1 for node in tree.nodes[1:]], dtype=torch.long, device=device)
    lengths = rest.attention_mask.sum(1, keepdim=True)
    sees = tree.ancestors().to(device)
    return run(
        input_ids=torch.cat([rest.input_ids, tokens.expand(batch, -1)], dim=1),
        attention_mask=_mask(rest.attention_mask.bool(), sees, shared, model.dtype),
        position_ids=shared + torch.cat([rest.position_ids, lengths + depths], dim=1),
        past_key_values=cache,
        use_cache=keep,
        logits_to_keep=len(tree.nodes),
    )


def takes_tree(model: PreTrainedModel, pad_id: int) -> bool:
    """Whether a tree behind a shared beginning and padding gives what each of its branches gives by itself."""

    def small_tree(probes: Probes) -> TokenTree:
        (first, *others), below = probes.branches, probes.reply[0]
        children: list[tuple[int, ...]] = [(token,) for token in (first, *others)]
        return TokenTree([(), *children, (first, below)], [0] * len(children) + [1])

    def alone(probes: Probes) -> list[Tensor]:
        *_, last, deepest = small_tree(probes).nodes
        return [
            torch.cat(
                [
                    unpadded_logits(model, [[*row, *deepest]], 3)[0],
                    unpadded_logits(model, [[*row, *last]], 1)[0],
                ]
            )
            for row in probes.rows
        ]

    def picked(nodes: Tensor) -> list[Tensor]:
        return list(nodes[:, [0, 1, -1, -2]])

    def one_pass(rows: Rows, tree: TokenTree) -> list[Tensor]:
        beginning = prefix_cache(model, pad([rows[0][:BEGINNING]], pad_id, "left", model.device))
        shared = 0 if beginning is None else BEGINNING
        rest = pad([row[shared:] for row in rows], pad_id, "left", model.device)
        return picked(tree_logits(model, rest, tree, beginning, shared))

    def many_passes(rows: Rows, tree: TokenTree) -> list[Tensor]:
        nodes = [tree.nodes[n] for n in (0, 1, -2, -1)]
        found = [last_logits(model, [[*row, *node] for row in rows], 1, pad_id)[:, 0] for node in nodes]
        return picked(torch.stack(found, dim=1))

    ways = (
        Way("one pass for all openings", lambda probes: one_pass(probes.rows, small_tree(probes))),
        Way("one pass an opening", lambda probes: many_passes(probes.rows, small_tree(probes))),
    )
    return exact_way(model, model.config, "refusal probabilities", alone, ways) == 0


def _mask(rest: Tensor, sees: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, `[batch, 1, rest + nodes, shared + rest + nodes]`.

    Args:
        rest: True for the rows' own tokens, padding on the left, `[batch, rest]`.
        sees: Which nodes each node sees, `[nodes, nodes]`.
        shared: Number of cached tokens that all rows share.
        dtype: The model's dtype.
    """
    batch, length = rest.shape
    nodes = sees.shape[0]
    allowed = torch.zeros(
        batch, length + nodes, shared + length + nodes, dtype=torch.bool, device=rest.device
    )
    allowed[:, :, :shared] = True
    prompt = allowed[:, :, shared : shared + length]
    prompt[:, :length] = (
        torch.ones(length, length, dtype=torch.bool, device=rest.device).tril() & rest[:, None, :]
    )
    prompt[:, length:] = rest[:, None, :]
    allowed[:, length:, shared + length :] = sees
    # A padding row that sees nothing would give NaN.
    allowed[:, :, shared:].diagonal(dim1=1, dim2=2).fill_(True)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=rest.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
