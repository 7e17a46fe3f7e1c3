"""Rejection probability: the probability mass of refusal openings as the start of a reply.

The paper tracks it through training (Lu et al. 2026, arXiv 2603.03323, appendix A.5, whose list is not public).
Here the openings are data (`openings.yaml`). Their token sequences form a prefix-free set, so that their
probabilities add up to the exact probability of a reply that starts with one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from discernment.errors import DataError, NotFiniteError
from discernment.files import packaged_yaml
from discernment.models.batch import common_prefix, length_sorted_batches
from discernment.models.chat import ChatFormat
from discernment.models.logits import why_not_finite
from discernment.models.prefix import Begun, fits_window, prefix_cache
from discernment.models.token_tree import TokenTree, read_with_tree, takes_tree, tree_logits
from discernment.policies.context import beginnings_of, check_context
from discernment.policies.generation import ReplyWay, reply_way
from discernment.policies.policy import Policy
from discernment.policies.rule import DecodingRule
from discernment.prompts import Asked
from discernment.prompts.conversation import text_of

Node = tuple[int, ...]
"""A place in the tree: the tokens that lead to it."""


def load_openings(language: str = "en") -> list[str]:
    """The built-in refusal openings of a language, or of every one for `all`.

    Raises:
        DataError: If there are none for it.
    """
    by_language: dict[str, list[str]] = packaged_yaml("discernment.policies", "openings.yaml")
    if language == "all":
        return list(dict.fromkeys(opening for openings in by_language.values() for opening in openings))
    if language not in by_language:
        raise DataError(
            f"There are no refusal openings for {language!r}; take `all` or one of {', '.join(by_language)}, or give "
            "a list of your own."
        )
    return by_language[language]


class OpeningTrie:
    """Token sequences of openings as a tree.

    An opening that extends another one is dropped, since the shorter one's mass holds the longer one's: the
    remaining sequences are prefix-free, and their probabilities add up.

    Args:
        sequences: Token ids of each opening, none empty.

    Attributes:
        sequences: The prefix-free sequences, sorted.
        nodes: The places from which an opening goes on, parents before children; the first is the root `()`.
        leaves: `(index of the node, token)` for the last token of every sequence.

    Raises:
        DataError: If there is no opening or one is empty.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        wanted = sorted({tuple(s) for s in sequences})
        if not wanted or not wanted[0]:
            raise DataError(
                "The list of refusal openings is empty, or one of them has no tokens; mend the list."
            )
        self.sequences: list[Node] = []
        for sequence in wanted:  # sorted, so a prefix comes right before what extends it
            if not self.sequences or sequence[: len(self.sequences[-1])] != self.sequences[-1]:
                self.sequences.append(sequence)
        inner = {s[:depth] for s in self.sequences for depth in range(len(s))}
        self.nodes = sorted(inner, key=lambda node: (len(node), node))
        index = {node: n for n, node in enumerate(self.nodes)}
        self.leaves = [(index[s[:-1]], s[-1]) for s in self.sequences]
        self.parents = [index[node[:-1]] for node in self.nodes[1:]]

    @classmethod
    def from_openings(cls, openings: Sequence[str], chat: ChatFormat) -> OpeningTrie:
        """Tokenise openings the way the model says them, behind a prompt."""
        return cls(chat.encode_opening(opening) for opening in openings)

    @property
    def tree(self) -> TokenTree:
        """The same, to be read behind prompts."""
        return TokenTree(self.nodes, self.parents)

    def mass(self, logits: Tensor) -> Tensor:
        """Probability mass of all openings.

        Args:
            logits: Next-token logits at every node, `[batch, nodes, vocabulary]`.

        Returns:
            `[batch]`, float64.
        """
        edges = [(parent, node[-1]) for parent, node in zip(self.parents, self.nodes[1:], strict=True)]
        at, token = (torch.tensor(x, device=logits.device) for x in zip(*edges, *self.leaves, strict=True))
        # Row by row: in float32, all of them are more than the model's weights.
        steps = torch.stack([torch.log_softmax(row.float(), dim=-1)[at, token].double() for row in logits])
        # log-probability of reaching each node, built up from the root
        reach = [torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)]
        for number, parent in enumerate(self.parents):
            reach.append(reach[parent] + steps[:, number])
        leaves = torch.stack(reach, dim=1)[:, at[len(edges) :]] + steps[:, len(edges) :]
        return leaves.exp().sum(1)


@torch.inference_mode()
def rejection_probability(
    policy: Policy,
    prompts: Sequence[Asked],
    openings: Sequence[str] | OpeningTrie | None = None,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Probability that the reply to each prompt starts with one of the refusal openings.

    The tree of openings is appended to the prompt under an attention mask in which each node sees the prompt and
    the nodes that lead to it, and what all prompts have in common (the system message) is run only once: all
    openings together cost about one forward pass over the prompts. Where the template writes something before every
    reply (a closed thought, the marks of a channel), the openings stand behind that.

    Args:
        policy: The policy.
        prompts: Texts without template, or conversations.
        openings: Refusal openings, or the tree that was made of them; the built-in English ones by default.
        batch_size: Prompts a forward pass.
        progress: Called with the number of prompts done after each batch.

    Returns:
        One probability a prompt, in order; exact up to rounding.

    Raises:
        DataError: If `openings` is empty, or a prompt with the longest of them does not fit the model's positions.
        ModelError: If the model gives logits that are not finite.
    """
    if openings is None:
        openings = load_openings()
    trie = openings if isinstance(openings, OpeningTrie) else OpeningTrie.from_openings(openings, policy.chat)
    sequences = policy.encode(prompts)
    _check_openings_fit(policy, prompts, sequences, trie)
    measure = _tree_masses if _tree_fits(policy, sequences, trie) else _sequence_masses
    masses = [0.0] * len(prompts)
    batches = length_sorted_batches([len(s) for s in sequences], batch_size)
    for rows, found in measure(policy, sequences, trie, list(batches)):
        for row, value in zip(rows, found.tolist(), strict=True):
            masses[row] = _finite(value, policy, prompts[row])
        if progress is not None:
            progress(len(rows))
    return masses


@torch.inference_mode()
def read_once(
    policy: Policy, prompts: Sequence[Asked], trie: OpeningTrie, max_new_tokens: int
) -> tuple[list[float], Begun | None]:
    """Rejection probabilities of one batch, and what the replies to it go on from, of one pass over the prompts.

    Args:
        policy: The policy.
        prompts: Texts without template, or conversations.
        trie: The tree of refusal openings.
        max_new_tokens: Token cap of the replies.

    Returns:
        What `rejection_probability` gives, and what `Policy.generate` takes as `begun`; nothing of the latter where the
        model replies otherwise when it goes on from there, so that `generate` has to read the prompts itself.

    Raises:
        DataError: If a prompt with the longest opening does not fit the model's positions.
        ModelError: If the model gives logits that are not finite.
    """
    lead, sequences = policy.chat.lead, policy.encode(prompts)
    rows, tree = policy.stack(sequences), trie.tree.behind(lead)
    longest = max(map(len, rows), default=0) + max(len(tree.nodes) - 1, max_new_tokens)
    way = reply_way(policy.model, policy.pad_id)
    joined = way <= ReplyWay.PADDED and fits_window(policy.model, longest)
    if not (prompts and joined and _tree_fits(policy, sequences, trie)):
        return rejection_probability(policy, prompts, trie, batch_size=max(1, len(prompts))), None
    _check_openings_fit(policy, prompts, sequences, trie)
    share = policy.alike and way is ReplyWay.SHARED
    with policy.acting(sequences):
        logits, begun = read_with_tree(policy.model, rows, tree, policy.pad_id, max_new_tokens, share=share)
    masses = trie.mass(_combined(policy, logits[:, len(lead) :], len(prompts), trie)).tolist()
    return [_finite(mass, policy, prompt) for mass, prompt in zip(masses, prompts, strict=True)], begun


def _check_openings_fit(
    policy: Policy, prompts: Sequence[Asked], sequences: Sequence[Sequence[int]], trie: OpeningTrie
) -> None:
    longest = len(policy.chat.lead) + max(map(len, trie.sequences))
    check_context(policy, sequences, beginnings_of(prompts), longest)


def _finite(mass: float, policy: Policy, prompt: Asked) -> float:
    if not math.isfinite(mass):
        raise NotFiniteError(
            f"{policy.name} gives logits that are not finite for the prompt {text_of(prompt)[:60]!r}; "
            f"{why_not_finite(policy.model)}."
        )
    return mass


def _combined(policy: Policy, logits: Tensor, prompts: int, trie: OpeningTrie) -> Tensor:
    """Logits at every node, of all contexts, as the policy's rule makes one row a prompt of them."""
    if not isinstance(policy.rule, DecodingRule):
        return logits
    begun = len(policy.chat.lead)  # tokens of the reply like any other
    steps = [policy.combine(logits[:, n], prompts, begun + len(node)) for n, node in enumerate(trie.nodes)]
    return torch.stack(steps, dim=1)


def _tree_fits(policy: Policy, sequences: Sequence[Sequence[int]], trie: OpeningTrie) -> bool:
    """Whether one forward pass over prompt and tree means the same as one pass an opening.

    It does not where the policy's rule says so, or where a sliding window would cut the prompt: the tree lies behind
    the prompt as one stretch, which a window cannot tell from a long reply. Nor can a recurrent state, or a bias that
    counts tokens; whether the model has the like is tried out.
    """
    if policy.rule is not None and not policy.rule.tree:
        return False
    longest = max(map(len, policy.stack(sequences)), default=0) + len(policy.chat.lead) + len(trie.nodes)
    return fits_window(policy.model, longest) and takes_tree(policy.model, policy.pad_id)


def _tree_masses(
    policy: Policy, sequences: Sequence[Sequence[int]], trie: OpeningTrie, batches: Iterable[list[int]]
) -> Iterable[tuple[list[int], Tensor]]:
    lead = policy.chat.lead
    read = [[*context, *lead] for context in policy.stack(sequences)]
    shared = common_prefix([row[:-1] for row in read]) if policy.alike else []
    beginning = None
    if shared:
        with policy.acting():
            beginning = prefix_cache(policy.model, policy.batch([shared]))
    if beginning is None:
        shared = []
    for rows in batches:
        prompts = [sequences[r] for r in rows]
        rest = policy.batch([[*context, *lead][len(shared) :] for context in policy.stack(prompts)])
        with policy.acting(prompts):
            logits = tree_logits(policy.model, rest, trie.tree, beginning, len(shared))
        yield rows, trie.mass(_combined(policy, logits, len(rows), trie))


def _sequence_masses(
    policy: Policy, sequences: Sequence[Sequence[int]], trie: OpeningTrie, batches: Iterable[list[int]]
) -> Iterable[tuple[list[int], Tensor]]:
    """Slower, for any policy: every prompt once with each node behind it."""
    for rows in batches:
        prompts = [sequences[r] for r in rows]
        logits = [policy.next_token_logits(prompts, [*policy.chat.lead, *node]) for node in trie.nodes]
        yield rows, trie.mass(torch.stack(logits, dim=1))
