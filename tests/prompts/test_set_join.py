import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.feature_extraction import DictVectorizer

from discernment.prompts.set_join import similar_sets
from effort import calls

THRESHOLDS = [0.1, 0.5, 0.75, 0.8, 0.9, 1.0]


def by_distances(sets, threshold):
    """The similar pairs by the distances of all pairs."""
    rows = DictVectorizer(dtype=np.bool_, sparse=False).fit_transform([dict.fromkeys(s, True) for s in sets])
    near = 1 - pdist(rows, "jaccard")
    return {
        pair: similarity
        for pair, similarity in zip(combinations(range(len(sets)), 2), near, strict=True)
        if similarity >= threshold - 1e-12
    }


def check(sets, threshold):
    """Compare the two ways, and give the pairs."""
    expected, pairs = by_distances(sets, threshold), joined(sets, threshold)
    assert pairs.keys() == expected.keys()
    assert np.allclose([pairs[pair] for pair in expected], list(expected.values()), rtol=1e-12)
    return pairs


def joined(sets, threshold):
    found = list(similar_sets(sets, threshold))
    pairs = {(first, second): similarity for first, second, similarity in found}
    assert len(pairs) == len(found)
    return pairs


def frames(count, seed, *, kinds=(40, 30, 300, 20), name=None):
    """Sets of the words of questions in one frame, whose open words are drawn from few; `name` is a word of each alone."""
    draw = random.Random(seed)
    sets = [
        frozenset(["how", "do", "i", "a", "in"])
        | {f"{place}-{draw.randrange(kind)}" for place, kind in enumerate(kinds)}
        | ({f"{name}{n}"} if name else set())
        for n in range(count)
    ]
    return list(dict.fromkeys(sets))


@settings(max_examples=40, deadline=None)
@given(
    # Enough sets of few words for buckets that are split.
    st.lists(
        st.frozensets(st.sampled_from("abcdefghijkl"), min_size=1), min_size=20, max_size=80, unique=True
    ),
    st.sampled_from(THRESHOLDS),
)
def test_the_same_pairs_as_by_all_distances(sets, threshold):
    check(sets, threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.65])
@pytest.mark.parametrize(
    "sets",
    [
        frames(300, 1),
        frames(300, 2, kinds=(4, 3, 30, 5)),
        frames(300, 3, kinds=(4, 3), name="process"),
        frames(150, 4, kinds=(9,) * 8 + (1,) * 25) + frames(150, 5, kinds=(9,) * 6 + (1,) * 22),
    ],
    ids=["frames", "few words", "a word of its own", "long"],
)
def test_the_same_pairs_in_one_frame(sets, threshold):
    assert check(sets, threshold)


def test_sets_without_words_are_similar_to_none():
    assert joined([frozenset(), frozenset("a"), frozenset("ab")], 0.5) == {(1, 2): 0.5}


@pytest.mark.parametrize(
    "options", [{"kinds": (4, 3), "name": "process"}, {"kinds": (40, 30, 300, 20, 30, 300, 40, 300, 20)}]
)
def test_the_work_grows_with_the_number_of_sets(options):
    few, many = (frames(count, 0, **options) for count in (1000, 4000))
    effort = [calls(lambda sets=sets: list(similar_sets(sets, 0.8))) for sets in (few, many)]
    assert effort[0] > len(few)
    assert effort[1] < 4 * 1.5 * effort[0]
