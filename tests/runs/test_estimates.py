"""Memory and time of a training that has not been run: bounds worked out by hand, and what follows from them."""

import pytest
import torch
from transformers import LlamaConfig

from discernment.models.model_spec import ModelSpec
from discernment.policies.rejection import OpeningTrie, load_openings
from discernment.runs.first_recipe.circumstances import Machine, look_at_model
from discernment.runs.first_recipe.estimate import (
    FIXED,
    PER_METHOD,
    Asked,
    Work,
    choose_way,
    in_minutes,
    seconds,
)
from discernment.runs.first_recipe.sets import Sizes
from tiny import make_benign, make_prompts

GIB = 2**30
WORK = Work(make_benign(8), make_benign(16), make_prompts(), max_length=64, batch=8, steps=10)
ASKED = Asked([make_prompts(4)], tokens=16, methods=4)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tokenizer):
    """A model of 136 million weights of which nothing but the configuration is there."""
    folder = tmp_path_factory.mktemp("wide")
    LlamaConfig(
        vocab_size=400, hidden_size=2048, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=16
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = ModelSpec(model=str(folder), device="cpu")
    return spec, look_at_model(spec)


def machine(gib, dtype=torch.bfloat16):
    return Machine("cuda", 1, int(gib * GIB), dtype)


def test_all_weights_take_sixteen_bytes_and_activations(wide):
    spec, facts = wide
    way = choose_way(spec, facts.chat, machine(1000), WORK)
    layers = facts.parameters - 2 * 400 * 2048  # neither the embeddings nor the head are trained
    trained = 16 * layers + 4 * 2 * 400 * 2048
    assert trained < way.needed < 1.3 * trained
    assert (way.name, way.lora, way.batch, way.before) == ("full fine-tuning", False, 8, ())


@pytest.mark.slow
def test_the_plainest_way_that_fits_is_taken(wide):
    spec, facts = wide
    all_of_it = choose_way(spec, facts.chat, machine(1000), WORK).needed / GIB
    seen = []
    for free in (1.2 * all_of_it, 0.5 * all_of_it, 0.01):
        way = choose_way(spec, facts.chat, machine(free), WORK)
        assert way.fits == (way.needed <= 0.9 * free * GIB)
        assert len(way.before) >= len(seen[-1].before if seen else ())
        seen.append(way)
    assert [way.name for way in seen[:2]] == ["full fine-tuning", "LoRA"]
    assert [way.needed for way in seen] == sorted((way.needed for way in seen), reverse=True)
    assert not seen[-1].fits
    assert all(way.batch * way.accumulation == 8 for way in seen)
    assert seen[2].model in ({"dtype": "bfloat16"}, {"quantization": "4bit"})
    assert len(seen[2].before) >= 4


@pytest.mark.slow
def test_without_units_for_bfloat16_no_weights_are_held_in_it(wide):
    spec, facts = wide
    ways = [choose_way(spec, facts.chat, machine(free, torch.float32), WORK) for free in (10, 1, 0.01)]
    assert all("dtype" not in way.model for way in ways)


def test_a_process_on_a_processor_takes_memory_of_its_own(wide):
    spec, facts = wide
    on_cpu, on_gpu = (
        choose_way(spec, facts.chat, Machine(kind, 1, 1000 * GIB, torch.float32), WORK).needed
        for kind in ("cpu", "cuda")
    )
    assert on_cpu > on_gpu + 100 * 2**20


def test_seconds_grow_with_the_tokens_and_shrink_with_the_speed(wide):
    spec, facts = wide
    way = choose_way(spec, facts.chat, machine(1000), WORK)
    fixed, growing = seconds(spec, facts, way, WORK, ASKED, 1, 1000.0)
    aligning = fixed - FIXED - 4 * PER_METHOD
    faster = FIXED + 4 * PER_METHOD + aligning / 2, growing / 2
    assert seconds(spec, facts, way, WORK, ASKED, 1, 2000.0) == pytest.approx(faster)
    # By hand: a training step is three passes, of stage 1 through one of two layers, which are held in the last.
    chat = facts.chat
    short, long = (
        sum(len(chat.encode(p.asked)) + len(chat.encode_reply(p.asked, p.response)) for p in prompts)
        for prompts in (WORK.examples, WORK.augmented)
    )
    contrasted = sum(len(chat.encode(p.asked)) for p in WORK.contrast) / len(WORK.contrast)
    aligned = 3 * (short + long) + (1 + 1) * long
    refined = 3 / 2 * 10 * 8 * contrasted
    tree = len(OpeningTrie.from_openings(load_openings("en"), chat).nodes)
    (prompts,) = ASKED.benchmarks
    asked = sum(len(chat.encode(p.asked)) + tree + 3 * ASKED.tokens for p in prompts)
    assert aligning * 1000 == pytest.approx(aligned, rel=0.25)
    assert growing * 1000 == pytest.approx(refined + 4 * asked, rel=0.25)


def test_a_time_is_a_range():
    assert in_minutes(240) == "4 to 10 minutes"


def test_what_teaches_refusals_is_not_made_smaller():
    half = Sizes().scaled(0.5)
    assert half == Sizes(general=160, safety=96, augmentation=40, steps=50, share=0.5)
    assert Sizes().scaled(1.0) == Sizes()
    assert Sizes().scaled(1e-6).steps == 1
