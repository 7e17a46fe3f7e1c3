"""What is drawn follows the distribution, and depends on the prompt and the seed alone."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from discernment.policies.draws import Draws

PROBABILITIES = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.25])
PROMPTS = ["How do I kill a process?", "Name a colour, please.", "Why?"]


def shares(temperature: float, top_p: float, n: int = 4000) -> np.ndarray:
    draws = Draws([[1, 2, i // 2] for i in range(n)], 1, temperature, top_p, 3, [i % 2 for i in range(n)])
    return np.bincount(draws(PROBABILITIES.log().expand(n, -1), 0).squeeze(1).numpy(), minlength=5)


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.05, 0.4, 0.0, 0.3, 0.25]),
        (0.5, 1.0, [0.0025 / 0.315, 0.16 / 0.315, 0.0, 0.09 / 0.315, 0.0625 / 0.315]),
        (1.0, 0.6, [0.0, 0.4 / 0.7, 0.0, 0.3 / 0.7, 0.0]),
    ],
)
def test_tokens_are_as_frequent_as_they_are_likely(temperature, top_p, expected):
    expected, found = np.array(expected), shares(temperature, top_p)
    possible = expected > 0
    assert found[~possible].sum() == 0
    assert chisquare(found[possible], expected[possible] * found.sum()).pvalue > 0.001


def test_another_step_prompt_or_seed_draws_anew():
    one = [Draws([prompt], 64, 1.0, 1.0, seed) for prompt, seed in [([1], 0), ([2], 0), ([1], 1)]]
    logits = torch.zeros(1, 10_000)
    found = {tuple(int(draws(logits, step)) for step in range(64)) for draws in one}
    assert len(found) == 3
    assert all(len(set(steps)) > 32 for steps in found)


def test_a_prompt_draws_the_same_in_every_batch(tiny_policy):
    def said(prompts):
        replies = tiny_policy.generate(tiny_policy.encode(prompts), 8, temperature=1.3, top_p=0.9, seed=5)
        return [reply.ids for reply in replies]

    state = torch.get_rng_state()
    together = said(PROMPTS)
    assert [said([prompt])[0] for prompt in PROMPTS] == together
    assert said(PROMPTS[::-1]) == together[::-1]
    assert len(set(together)) == len(PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_of_a_prompt_draw_the_same_unless_they_are_told_apart(tiny_policy):
    rows = tiny_policy.encode(PROMPTS[:1] * 3)
    alone = tiny_policy.generate(rows[:1], 8, temperature=1.3, seed=5)[0].ids
    assert [r.ids for r in tiny_policy.generate(rows, 8, temperature=1.3, seed=5)] == [alone] * 3
    apart = [r.ids for r in tiny_policy.generate(rows, 8, temperature=1.3, seed=5, draws=[0, 1, 2])]
    assert apart[0] == alone
    assert len(set(map(tuple, apart))) == 3
