"""Batches of stage 1 are balanced by label and by source, and hold partners together."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import TrainingError
from discernment.prompts import Label, Prompt
from discernment.training.batches import BalancedBatches
from tiny import make_prompts


def prompts_of(sizes):
    """`sizes[label][source]` prompts each."""
    return [
        Prompt(id=f"{label}-{source}-{n}", text="x", label=label, source=f"{label}-{source}")
        for label, sources in sizes.items()
        for source, count in enumerate(sources)
        for n in range(count)
    ]


def blocks_of(sampler):
    rows = list(sampler)
    assert len(rows) == len(sampler)
    return [rows[i : i + sampler.block_size] for i in range(0, len(rows), sampler.block_size)]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.integers(4, 12),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_labels_and_sources_take_equal_turns(toxic, seeming, batch_size, seed):
    prompts = prompts_of({Label.TOXIC: toxic, Label.SEEMINGLY_TOXIC: seeming})
    sampler = BalancedBatches(prompts, batch_size, seed)
    blocks = blocks_of(sampler)
    assert blocks
    drawn = Counter()
    for block in blocks:
        labels = Counter(prompts[row].label for row in block)
        assert abs(labels[Label.TOXIC] - labels[Label.SEEMINGLY_TOXIC]) <= 1
        assert sum(labels.values()) == batch_size
        drawn.update(prompts[row].source for row in block)
    for label, sizes in ((Label.TOXIC, toxic), (Label.SEEMINGLY_TOXIC, seeming)):
        turns = [drawn[f"{label}-{source}"] for source in range(len(sizes))]
        # A prompt that is in the block already may be passed over, which shifts a turn once in a while.
        if min(sizes) >= batch_size:
            assert max(turns) - min(turns) <= 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({}, (4, 4, 4)), ({Label.TOXIC: 2}, (6, 3, 3)), ({Label.TOXIC: 3, Label.BENIGN: 2}, (6, 2, 4))],
)
def test_labels_come_in_the_proportion_that_was_asked_for(weights, expected):
    prompts = prompts_of({Label.TOXIC: [9, 9], Label.SEEMINGLY_TOXIC: [20], Label.BENIGN: [5, 30]})
    blocks = blocks_of(BalancedBatches(prompts, 12, seed=0, weights=weights))
    assert len(blocks) == 7
    for block in blocks:
        labels = Counter(prompts[row].label for row in block)
        assert (labels[Label.TOXIC], labels[Label.SEEMINGLY_TOXIC], labels[Label.BENIGN]) == expected


@given(
    st.lists(st.integers(1, 40).map(lambda k: k / 10), min_size=3, max_size=3),
    st.integers(2, 40),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_blocks_are_full_whatever_the_weights(weights, more, seed):
    prompts = prompts_of({label: [4, 3] for label in Label})
    weights = dict(zip(Label, weights, strict=True))
    batch_size = math.ceil(2 * sum(weights.values()) / min(weights.values())) + more
    sampler = BalancedBatches(prompts, batch_size, seed, weights=weights)
    assert len(list(sampler)) == len(sampler) > 0


def test_a_batch_has_room_for_two_of_the_rarest_label():
    prompts = prompts_of({Label.TOXIC: [9], Label.BENIGN: [9]})
    weights = {Label.TOXIC: 3}
    assert blocks_of(BalancedBatches(prompts, 8, seed=0, weights=weights))
    with pytest.raises(TrainingError, match=r"A batch of 7 has .* at least 8\."):
        BalancedBatches(prompts, 7, seed=0, weights=weights)


def test_equal_weights_that_are_no_whole_numbers_are_equal():
    prompts = prompts_of({label: [9] for label in Label})
    tenths = dict.fromkeys(Label, 0.1)
    assert blocks_of(BalancedBatches(prompts, 6, seed=0, weights=tenths))
    for block in blocks_of(BalancedBatches(prompts, 9, seed=0, weights=tenths)):
        assert Counter(prompts[row].label for row in block) == dict.fromkeys(Label, 3)


def test_no_prompt_comes_twice_in_a_block_while_others_are_left():
    prompts = make_prompts(pairs=20)
    for block in blocks_of(BalancedBatches(prompts, 8, seed=1)):
        assert len(set(block)) == len(block)


def test_partners_come_together_only_when_matched():
    prompts = make_prompts(pairs=24)

    def share(matched):
        together = total = 0
        for block in blocks_of(BalancedBatches(prompts, 8, seed=0, matched=matched)):
            ids = {prompts[row].id for row in block}
            for row in block:
                if prompts[row].label is prompts[block[0]].label:
                    total += 1
                    together += prompts[row].partner in ids
        assert total > 0
        return together / total

    assert share(matched=True) == 1.0
    assert share(matched=False) < 0.7


def test_every_prompt_is_seen_and_epochs_differ_but_seeds_decide():
    prompts = make_prompts(pairs=24)  # eight pairs a source, so that none has to start over
    sampler = BalancedBatches(prompts, 8, seed=5)
    first = list(sampler)
    assert set(first) == set(range(len(prompts)))
    assert first == list(BalancedBatches(prompts, 8, seed=5))
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert first != list(BalancedBatches(prompts, 8, seed=6))


def test_extra_rows_end_every_block():
    prompts = make_prompts(pairs=8)
    extra = range(len(prompts), len(prompts) + 5)
    sampler = BalancedBatches(prompts, 8, seed=0, extra=extra, extra_size=2)
    blocks = blocks_of(sampler)
    assert [set(b[-2:]) <= set(extra) and not set(b[:-2]) & set(extra) for b in blocks] == [True] * len(
        blocks
    )
    assert len({row for b in blocks for row in b[-2:]}) > 2


def test_one_label_or_too_small_a_batch_is_an_error():
    prompts = make_prompts(pairs=4)
    with pytest.raises(TrainingError, match="needs prompts of two labels and has only toxic"):
        BalancedBatches(list(prompts.with_label(Label.TOXIC)), 8, 0)
    with pytest.raises(TrainingError, match="use a batch size of at least 4"):
        BalancedBatches(prompts, 3, 0)


def test_prompts_without_a_partner_are_drawn_too():
    pairs = make_prompts(pairs=20)
    lone = [
        Prompt(id=f"lone-{n}", text="x", label=Label.SEEMINGLY_TOXIC, source="elsewhere") for n in range(10)
    ]
    prompts = [*pairs, *lone]
    blocks = blocks_of(BalancedBatches(prompts, 8, seed=0))
    drawn = Counter(prompts[row].source for block in blocks for row in block)
    # Half the blocks take their seemingly toxic prompts in turns from four sources, of which it is one.
    assert drawn["elsewhere"] >= len(blocks) // 2
