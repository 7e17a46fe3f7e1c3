"""The discernment AUROC by hand, and as the share of pairs in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernment.statistics.auroc import discernment_auroc


def test_auroc_by_hand() -> None:
    # pairs in order: .9 beats both, .5 ties with one and beats the other, .1 loses to both
    assert discernment_auroc([0.9, 0.5, 0.1], [0.5, 0.2]) == pytest.approx((2 + 1.5 + 0) / 6)


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]), min_size=1, max_size=12),
)
def test_auroc_is_the_share_of_pairs_in_order(toxic: list[float], harmless: list[float]) -> None:
    wins = sum((t > h) + (t == h) / 2 for t in toxic for h in harmless)
    assert discernment_auroc(toxic, harmless) == pytest.approx(wins / len(toxic) / len(harmless))
