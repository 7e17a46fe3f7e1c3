"""Kernel similarity against values worked by hand, plain loops over pairs, and simulated studies."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.diagnosis.entanglement import matched_pairs, most_entangled
from discernment.diagnosis.similarity import group_table, part_shares, row_normalised, symmetric
from discernment.errors import DataError
from discernment.kernel.kernel import Kernel, KernelCost
from discernment.prompts import Label, Prompt
from effort import calls, peak_bytes
from tiny import make_benign, make_prompts

NAN = float("nan")
T, S, B = Label.TOXIC, Label.SEEMINGLY_TOXIC, Label.BENIGN


def prompt(key: str, label: Label, partner: str | None = None, frame: str | None = None) -> Prompt:
    return Prompt(id=key, text=f"Text of {key}", label=label, source="made", partner=partner, frame=frame)


def gram_norms(seed: int, prompts: int, rows: int = 3, parameters: int = 5) -> np.ndarray:
    """||J_i J_j^T||_F of random Jacobians."""
    jacobians = np.random.default_rng(seed).normal(size=(prompts, rows, parameters))
    return np.array([[np.linalg.norm(a @ b.T) for b in jacobians] for a in jacobians])


def entry(table, row: Label, column: Label):
    (found,) = [pair for pair in table if (pair.row, pair.column) == (row, column)]
    return found


grams = st.builds(gram_norms, st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 4), st.integers(1, 6))


# ---------------------------------------------------------------------- similarity


def test_both_similarities_by_hand() -> None:
    norms = [[4.0, 2.0, 1.0], [2.0, 1.0, 0.5], [1.0, 0.5, 9.0]]
    rows = [[1, 1 / 2, 1 / 4], [2, 1, 1 / 2], [1 / 9, 1 / 18, 1]]
    even = [[1, 1, 1 / 6], [1, 1, 1 / 6], [1 / 6, 1 / 6, 1]]
    np.testing.assert_allclose(row_normalised(norms), rows)
    np.testing.assert_allclose(symmetric(norms), even)


@given(grams)
def test_the_symmetric_similarity_of_gram_blocks_lies_between_0_and_1(norms) -> None:
    similarity = symmetric(norms)
    assert (similarity >= 0).all()
    assert (similarity <= 1 + 1e-12).all()
    np.testing.assert_allclose(similarity, similarity.T)
    np.testing.assert_allclose(similarity.diagonal(), 1)


@given(grams)
def test_the_symmetric_similarity_is_the_geometric_mean_of_the_two_directions(norms) -> None:
    rows = row_normalised(norms)
    np.testing.assert_allclose(rows * rows.T, symmetric(norms) ** 2)
    assert (rows.diagonal() == 1).all()


@given(grams, st.floats(1e-6, 1e6))
def test_the_scale_of_the_gradients_does_not_matter(norms, scale) -> None:
    np.testing.assert_allclose(row_normalised(scale * norms), row_normalised(norms))
    np.testing.assert_allclose(symmetric(scale * norms), symmetric(norms))


@given(grams, st.randoms(use_true_random=False))
def test_the_order_of_prompts_does_not_matter(norms, random) -> None:
    order = random.sample(range(len(norms)), len(norms))
    block = np.ix_(order, order)
    np.testing.assert_array_equal(row_normalised(norms[block]), row_normalised(norms)[block])
    np.testing.assert_allclose(symmetric(norms[block]), symmetric(norms)[block])


def test_unscored_prompts_stay_nan_and_touch_no_other() -> None:
    norms = gram_norms(0, 4)
    expected = row_normalised(norms), symmetric(norms)
    norms[1, :] = norms[:, 1] = NAN
    others = np.ix_([0, 2, 3], [0, 2, 3])
    for found, full in zip((row_normalised(norms), symmetric(norms)), expected, strict=True):
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        np.testing.assert_array_equal(found[others], full[others])


@pytest.mark.filterwarnings("error")
def test_a_prompt_without_any_gradient_has_no_similarity() -> None:
    norms = [[0.0, 0.0], [0.0, 2.0]]
    np.testing.assert_array_equal(row_normalised(norms), [[NAN, NAN], [0, 1]])
    np.testing.assert_array_equal(symmetric(norms), [[NAN, NAN], [NAN, 1]])
    assert [pair.pairs for pair in group_table(row_normalised(norms), [T, S])] == [0, 0, 0, 0]


# ---------------------------------------------------------------------- groups


def test_group_means_by_hand() -> None:
    similarity = [
        [1.0, 0.8, 0.3, 0.1],
        [0.6, 1.0, 0.5, 0.2],
        [0.4, 0.2, 1.0, 0.9],
        [0.1, 0.3, 0.7, 1.0],
    ]
    table = group_table(similarity, [T, T, S, B])
    expected = {
        (T, T): (0.7, 2),
        (T, S): (0.4, 2),
        (T, B): (0.15, 2),
        (S, T): (0.3, 2),
        (S, S): (None, 0),
        (S, B): (0.9, 1),
        (B, T): (0.2, 2),
        (B, S): (0.7, 1),
        (B, B): (None, 0),
    }
    assert {(p.row, p.column): (p.mean and round(p.mean, 12), p.pairs) for p in table} == expected
    assert all(pair.low is pair.high is None for pair in table)


@given(st.integers(0, 10**6), st.lists(st.sampled_from(Label), min_size=1, max_size=12), st.data())
@settings(max_examples=30, deadline=None)
def test_group_means_equal_loops_and_do_not_depend_on_the_order(seed, labels, data) -> None:
    n = len(labels)
    similarity = row_normalised(gram_norms(seed, n))
    for unscored in data.draw(st.sets(st.integers(0, n - 1), max_size=2)):
        similarity[unscored, :] = similarity[:, unscored] = NAN
    table = group_table(similarity, labels)
    order = data.draw(st.permutations(range(n)))
    shuffled = group_table(similarity[np.ix_(order, order)], [labels[i] for i in order])
    assert len(table) == len(set(labels)) ** 2
    for found, again in zip(table, shuffled, strict=True):
        pairs = [
            similarity[i, j]
            for i in range(n)
            for j in range(n)
            if i != j and (labels[i], labels[j]) == (found.row, found.column)
        ]
        pairs = [value for value in pairs if value == value]
        assert found.pairs == again.pairs == len(pairs)
        assert found.mean == pytest.approx(sum(pairs) / len(pairs) if pairs else None)
        assert again.mean == pytest.approx(found.mean)


def loop_interval(similarity, draw, resamples: int = 5000) -> tuple[float, float]:
    """Percentiles of the mean over pairs, with one list of drawn rows and one of drawn columns a resample."""
    means = []
    for _ in range(resamples):
        rows, columns = draw()
        means.append(similarity[np.ix_(rows, columns)][rows[:, None] != columns].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def test_intervals_agree_with_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(0)
    similarity = row_normalised(gram_norms(1, 27))
    similarity[3, :] = similarity[:, 3] = NAN
    toxic, other = np.r_[0:3, 4:15], np.arange(15, 27)

    def draw_one() -> tuple[np.ndarray, np.ndarray]:
        rows = rng.choice(toxic, len(toxic))
        return rows, rows

    def draw_two() -> tuple[np.ndarray, np.ndarray]:
        return rng.choice(toxic, len(toxic)), rng.choice(other, len(other))

    table = group_table(similarity, [T] * 15 + [S] * 12, seed=1)
    for column, draw in ((T, draw_one), (S, draw_two)):
        found = entry(table, T, column)
        low, high = loop_interval(similarity, draw)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_clusters_are_drawn_whole_and_across_groups() -> None:
    rng = np.random.default_rng(0)
    pairs = 14
    effect = np.tile(rng.normal(size=pairs), 2)  # a pair's prompts fall together
    similarity = effect[:, None] + effect + rng.normal(0, 0.1, (2 * pairs, 2 * pairs))

    def draw() -> tuple[np.ndarray, np.ndarray]:
        drawn = rng.integers(0, pairs, pairs)
        return drawn, drawn + pairs

    labels = [T] * pairs + [S] * pairs
    together = entry(group_table(similarity, labels, list(range(pairs)) * 2), T, S)
    apart = entry(group_table(similarity, labels), T, S)
    low, high = loop_interval(similarity, draw)
    assert (together.low, together.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    assert together.high - together.low > 1.25 * (apart.high - apart.low)


def coverage(studies: int, clusters: int, size: int) -> np.ndarray:
    """The share of intervals of T with T, and of T with S, that hold the truth.

    Each prompt has an effect on its row and one on its column, and so does each cluster of `size` prompts.
    """
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(2 * clusters), size)
    labels = [T] * (clusters * size) + [S] * (clusters * size)
    found = []
    for seed in range(studies):
        own, shared = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], (2, len(ids)))
        rows, columns = (own + shared[ids]).T
        similarity = rows[:, None] + columns + rng.normal(size=(len(ids), len(ids)))
        table = group_table(similarity, labels, ids, seed)
        found.append([pair.low <= 0 <= pair.high for pair in (entry(table, T, T), entry(table, T, S))])
    return np.mean(found, axis=0)


def test_the_interval_over_prompts_covers_the_truth() -> None:
    rates = coverage(studies=150, clusters=32, size=1)
    assert ((rates >= 0.9) & (rates <= 0.98)).all(), rates


@pytest.mark.slow
def test_the_interval_over_clusters_covers_the_truth() -> None:
    _, across = coverage(studies=80, clusters=20, size=3)
    assert 0.88 <= across <= 0.99


def test_an_interval_needs_ten_scored_clusters_on_both_sides() -> None:
    similarity = symmetric(gram_norms(0, 20))
    labels = [T] * 10 + [S] * 10
    assert all(pair.low < pair.mean < pair.high for pair in group_table(similarity, labels))
    halved = group_table(similarity, labels, [*range(10), *(10 + n // 2 for n in range(10))])
    similarity[0, :] = similarity[:, 0] = NAN
    unscored = group_table(similarity, labels)
    for few, table in ((S, halved), (T, unscored)):
        lacking = [p.low is None and p.high is None and p.mean is not None for p in table]
        assert lacking == [few in (p.row, p.column) for p in table]


def test_the_seed_fixes_the_interval() -> None:
    similarity, labels = symmetric(gram_norms(0, 24)), [T, S] * 12
    assert group_table(similarity, labels, seed=3) == group_table(similarity, labels, seed=3)
    assert group_table(similarity, labels, seed=3) != group_table(similarity, labels, seed=4)


def test_all_pairs_and_resamples_are_done_at_once_without_a_value_for_each() -> None:
    few, many = (
        partial(group_table, symmetric(np.random.default_rng(0).random((3 * n, 3 * n)) + 1), [T, S, B] * n)
        for n in (10, 67)
    )
    assert calls(many) < 1.2 * calls(few)
    every_pair = 2000 * 201 * 201  # of every resample, in one byte each
    assert peak_bytes(many) < every_pair / 2


def test_tables_are_written_as_json_without_nan() -> None:
    table = group_table([[1.0, NAN], [NAN, NAN]], [T, S])
    rows = json.loads(json.dumps([pair.model_dump(mode="json") for pair in table], allow_nan=False))
    assert rows[1] == {
        "row": "toxic",
        "column": "seemingly_toxic",
        "mean": None,
        "low": None,
        "high": None,
        "pairs": 0,
    }


# ---------------------------------------------------------------------- matched pairs


def test_matched_pairs_by_hand() -> None:
    prompts = [
        prompt("t1", T, partner="s1"),
        prompt("s1", S, partner="t1"),  # named from both sides: one pair
        prompt("t2", T, partner="s2"),
        prompt("s2", S),
        prompt("s3", S, partner="elsewhere"),
        prompt("b1", B, partner="t1"),
    ]
    similarity = np.full((6, 6), 9.0)
    similarity[1, 0], similarity[3, 2] = 0.9, 0.7
    similarity[1, 2], similarity[3, 0], similarity[4, 0], similarity[4, 2] = 0.1, 0.2, 0.3, 0.6
    found = matched_pairs(similarity, prompts)
    assert [(p.seemingly_toxic_id, p.toxic_id, p.similarity) for p in found.pairs] == [
        ("s1", "t1", 0.9),
        ("s2", "t2", 0.7),
    ]
    assert (found.matched.mean, found.matched.pairs) == (pytest.approx(0.8), 2)
    assert (found.unmatched.mean, found.unmatched.pairs) == (pytest.approx(0.3), 4)
    assert found.difference == pytest.approx(0.5)
    assert found.matched.low is found.unmatched.low is found.difference_low is None

    similarity[2] = NAN  # as of a prompt without any gradient: unscored, though its column has values
    found = matched_pairs(similarity, prompts)
    assert [p.similarity for p in found.pairs] == [0.9, None]
    assert (found.matched.mean, found.matched.pairs) == (0.9, 1)
    assert (found.unmatched.mean, found.unmatched.pairs) == (pytest.approx(0.25), 2)


def test_matched_intervals_agree_with_a_loop_over_pairs() -> None:
    rng = np.random.default_rng(0)
    pairs = 16
    prompts = list(make_prompts(pairs))
    assert [p.label for p in prompts[:2]] == [T, S]
    effect = np.repeat(rng.normal(size=pairs), 2)
    similarity = effect[:, None] + effect + rng.normal(0, 0.3, (2 * pairs, 2 * pairs))
    block = similarity[1::2, 0::2]
    means = []
    for _ in range(5000):
        drawn = rng.integers(0, pairs, pairs)
        others = drawn[:, None] != drawn
        means.append((block[drawn, drawn].mean(), block[np.ix_(drawn, drawn)][others].mean()))
    matched, unmatched = np.array(means).T
    found = matched_pairs(similarity, prompts, seed=5)
    assert found.matched.mean == pytest.approx(block.diagonal().mean())
    assert found.difference == pytest.approx(found.matched.mean - found.unmatched.mean)
    for (low, high), expected in (
        ((found.matched.low, found.matched.high), matched),
        ((found.unmatched.low, found.unmatched.high), unmatched),
        ((found.difference_low, found.difference_high), matched - unmatched),
    ):
        low_expected, high_expected = np.percentile(expected, [2.5, 97.5])
        assert (low, high) == pytest.approx(
            (low_expected, high_expected), abs=0.08 * (high_expected - low_expected)
        )


def test_prompts_without_partners_have_no_matched_pairs() -> None:
    found = matched_pairs(np.eye(2) + 1, [prompt("t", T), prompt("s", S)])
    assert found.pairs == ()
    assert found.matched.mean is found.difference is found.difference_low is None
    assert found.unmatched.mean == 1


def test_one_matched_pair_alone_has_no_other_pairs() -> None:
    found = matched_pairs(np.eye(2) + 1, [prompt("t", T, partner="s"), prompt("s", S)])
    assert (found.matched.mean, found.unmatched.mean, found.difference) == (1, None, None)


# ---------------------------------------------------------------------- shares


def kernel_with(shares: dict[str, np.ndarray]) -> Kernel:
    stacked = np.stack(list(shares.values()))
    return Kernel(
        norms=np.ones_like(stacked[0]),
        errors=None,
        parts=tuple(shares),
        part_norms=np.ones_like(stacked),
        shares=stacked,
        traces=np.ones(stacked.shape[:2]),
        tokens=None,
        unscored={},
        noise_floor=0.0,
        cost=KernelCost(0, 0.0, 0.0, 0.0),
    )


def test_shares_by_hand() -> None:
    head = np.array([[0.9, 0.2, 0.4], [0.2, 0.9, 0.5], [0.4, 0.5, 0.9]])
    kernel = kernel_with({"layers": 1 - head, "head": head})
    labels = [T, T, S]
    found = part_shares(kernel, labels)
    assert [(p.part, p.pairs) for p in found] == [("layers", 2), ("head", 2)]
    assert [p.mean for p in found] == pytest.approx([0.55, 0.45])
    table = group_table(kernel.shares[kernel.parts.index("head")], labels)
    assert entry(table, T, T).mean == pytest.approx(0.2)
    assert entry(table, S, T).mean == entry(table, T, S).mean == pytest.approx(0.45)


def test_shares_add_up_over_the_parts_of_a_kernel() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 24, 2, 4))  # part, prompt, output row, parameter
    grams = np.einsum("pirk,pjsk->pijrs", parts, parts)
    whole = grams.sum(0)
    shares = (grams * whole).sum((-2, -1)) / (whole**2).sum((-2, -1))
    found = part_shares(
        kernel_with(dict(zip(["embeddings", "layers", "head"], shares, strict=True))), [T, S] * 12
    )
    assert sum(p.mean for p in found) == pytest.approx(1)
    assert all(p.low < p.mean < p.high for p in found)


# ---------------------------------------------------------------------- entangled prompts


def test_the_most_entangled_pairs_by_hand() -> None:
    prompts = [prompt("t1", T), prompt("s1", S), prompt("b1", B), prompt("t2", T)]
    similarity = [
        [1.0, 5.0, 5.0, 5.0],
        [0.6, 1.0, 5.0, NAN],
        [0.1, 5.0, 1.0, 0.8],
        [5.0, 5.0, 5.0, 1.0],
    ]
    found = most_entangled(similarity, prompts)
    assert [(p.harmless_id, p.toxic_id, p.similarity) for p in found] == [
        ("b1", "t2", 0.8),
        ("s1", "t1", 0.6),
        ("b1", "t1", 0.1),
    ]
    assert (found[0].harmless_label, found[0].harmless_text, found[0].toxic_text) == (
        B,
        "Text of b1",
        "Text of t2",
    )
    assert most_entangled(similarity, prompts, count=2) == found[:2]


def test_the_most_entangled_pairs_equal_a_sorted_list() -> None:
    prompts = [*make_prompts(6), *make_benign(4)]
    similarity = symmetric(gram_norms(0, len(prompts)))
    pairs = sorted(
        (-similarity[i, j], p.id, q.id)
        for i, p in enumerate(prompts)
        for j, q in enumerate(prompts)
        if p.label is not T and q.label is T
    )
    found = [(-p.similarity, p.harmless_id, p.toxic_id) for p in most_entangled(similarity, prompts)]
    assert found == pairs[:10]


# ---------------------------------------------------------------------- mistakes


def test_what_does_not_fit_is_an_error() -> None:
    square = np.ones((2, 2))
    with pytest.raises(DataError, match=r"shape \(2, 3\) cannot be normalised"):
        symmetric(np.ones((2, 3)))
    with pytest.raises(DataError, match=r"shape \(4,\) cannot be normalised"):
        row_normalised(np.ones(4))
    with pytest.raises(DataError, match=r"shape \(2, 2\) do not fit the pairs of 3 prompts"):
        group_table(square, [T, S, B])
    with pytest.raises(DataError, match="0 prompts"):
        group_table(np.ones((0, 0)), [])
    with pytest.raises(DataError, match=r"shape \(3,\) do not fit 2 prompts"):
        group_table(square, [T, S], clusters=[0, 1, 2])
    with pytest.raises(DataError, match="do not fit the pairs of 1 prompts"):
        most_entangled(square, [prompt("t", T)])


def test_an_absent_group_is_an_error() -> None:
    toxic, seeming = [prompt("t1", T), prompt("t2", T)], [prompt("s1", S), prompt("b1", B)]
    square = np.ones((2, 2))
    with pytest.raises(DataError, match="There is no seemingly_toxic prompt among the 2 prompts"):
        matched_pairs(square, toxic)
    with pytest.raises(DataError, match="There is no toxic prompt among the 2 prompts"):
        part_shares(kernel_with({"head": square}), [S, B])
    with pytest.raises(DataError, match="There is no toxic prompt among the 2 prompts"):
        most_entangled(square, seeming)
    with pytest.raises(DataError, match="There is no prompt that should be answered"):
        most_entangled(square, toxic)
