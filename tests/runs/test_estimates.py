"""Memory and time of a training that has not been run: numbers worked out by hand, and what follows from them."""

import pytest
import torch

from discernment.runs.first_recipe.circumstances import Machine, ModelFacts
from discernment.runs.first_recipe.estimate import Work, choose_way, seconds
from discernment.runs.first_recipe.sets import Sizes

GIB = 2**30
SEVEN = ModelFacts(
    parameters=7_000_000_000, layers=32, hidden=4096, vocabulary=32_000, positions=4096, linear=2_000_000, chat=None,
    own_system=0,
)  # fmt: skip
WORK = Work(examples=10_000, augmented=12_000, contrast=30.0, tests=100, asked=20.0)


def machine(gib, dtype=torch.bfloat16):
    return Machine("cuda", 1, int(gib * GIB), dtype)


def test_all_weights_take_sixteen_bytes_and_activations():
    way = choose_way(SEVEN, machine(1000), 256, 1000)
    tokens = 8 * 256
    kept = (
        17 * 2 * 4096 * 33 * tokens
    )  # 34 bytes a number of the state, of 32 layers and of one that is computed
    logits = tokens * 32_000 * 10  # float32 and its gradient, and bfloat16
    assert way.needed == pytest.approx(16 * 7e9 + kept + logits)
    assert (way.name, way.lora, way.batch, way.before) == ("full fine-tuning", False, 8, ())


def test_the_plainest_way_that_fits_is_taken():
    seen = []
    for free in (1000, 120, 60, 35, 22, 4):
        way = choose_way(SEVEN, machine(free), 256, 1000)
        assert way.fits == (way.needed <= 0.9 * free * GIB)
        assert len(way.before) >= len(seen[-1].before if seen else ())
        seen.append(way)
    assert [way.name for way in seen[:5]] == [
        "full fine-tuning", "full fine-tuning in small batches", "LoRA", "LoRA in small batches", "LoRA beside bfloat16 weights",
    ]  # fmt: skip
    assert [way.needed for way in seen] == sorted((way.needed for way in seen), reverse=True)
    assert not seen[-1].fits
    assert all(way.batch * way.accumulation == 8 for way in seen)
    assert seen[4].model == {"dtype": "bfloat16"}


def test_without_units_for_bfloat16_no_weights_are_held_in_it():
    ways = [choose_way(SEVEN, machine(free, torch.float32), 256, 1000) for free in (1000, 60, 35, 22, 16, 4)]
    assert all("dtype" not in way.model for way in ways)


def test_seconds_by_hand():
    # 4 methods: 40 + 4 * 10; stl and stl_aug 4 * 22,000; dcr at half the depth 2.5 * 10,000; stage 1 4 * 0.5 * 10 * 32 * 30;
    # 4 * 100 prompts of 1.7 * 20 + 3 * 16 tokens.
    tokens = 88_000 + 25_000 + 19_200 + 400 * 82
    assert seconds(WORK, Sizes(steps=10), 0.5, 32, 16, 4, 1000.0) == pytest.approx(80 + tokens / 1000)


def test_sizes_keep_their_proportions():
    half = Sizes().scaled(0.5)
    assert half == Sizes(general=80, safety=48, augmentation=20, steps=50, share=0.5)
    assert Sizes().scaled(1.0) == Sizes()
    assert min(Sizes().scaled(1e-6)[:4]) == 1
