"""Two methods over several seeds, as groups of samples, against the table of their differences."""

from __future__ import annotations

import numpy as np

from discernment.evaluation.groups import Group
from discernment.evaluation.over_seeds import compare_over_seeds
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.seeds import seed_difference


def group(method: str, right: list[bool], unscored: tuple[int, ...] = (), frames: int | None = None) -> Group:
    samples = [
        Sample(
            prompt_id=str(n),
            benchmark="bench",
            label=Label.TOXIC,
            prompt="?",
            frame=str(n % frames) if frames else None,
            completion="!",
            finished=True,
            verdict=Verdict.UNSCORED if n in unscored else Verdict.REFUSAL if ok else Verdict.COMPLIANCE,
        )
        for n, ok in enumerate(right)
    ]
    return Group(method, "bench", Label.TOXIC, samples)


def test_groups_become_a_table_of_common_prompts() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 40)) < 0.7, rng.random((3, 40)) < 0.5
    runs = [
        (group("dcr", a.tolist(), unscored=(5,) if n == 1 else ()), group("stl", b.tolist(), unscored=(7,)))
        for n, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    kept = np.delete(np.arange(40), [5, 7])
    expected = seed_difference((ours.astype(float) - theirs)[:, kept])
    found = compare_over_seeds(runs)
    assert found == expected
    assert found is not None and found.n == 38


def test_prompts_of_one_frame_are_one_cluster() -> None:
    right = np.random.default_rng(0).random((4, 60)) < 0.6
    runs = [(group("dcr", a.tolist(), frames=12), group("stl", [False] * 60, frames=12)) for a in right]
    assert compare_over_seeds(runs) == seed_difference(right.astype(float), clusters=np.arange(60) % 12)


def test_of_few_clusters_nothing_is_claimed_for_other_prompts() -> None:
    right = [[True] * 9] * 3
    found = compare_over_seeds([(group("dcr", a), group("stl", [False] * 9)) for a in right])
    assert found is not None
    assert (found.difference, found.over_seeds, found.over_both) == (1.0, (-1.0, 1.0), (-1.0, 1.0))


def test_too_little_to_say() -> None:
    pair = (group("dcr", [True, False]), group("stl", [False, False]))
    assert compare_over_seeds([]) is None
    assert compare_over_seeds([pair]) is None
    assert compare_over_seeds([pair, (group("dcr", []), group("stl", []))]) is None
