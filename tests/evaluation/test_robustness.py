"""What attacks take of the defense success, by hand."""

from __future__ import annotations

import pytest

from discernment.evaluation.robustness import attack_drop, mean_drop, shared_attacks
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label


def samples(benchmark: str, verdicts: str, label: Label = Label.TOXIC) -> list[Sample]:
    kinds = {
        "r": Verdict.REFUSAL,
        "c": Verdict.COMPLIANCE,
        "p": Verdict.PARTIAL_REFUSAL,
        "?": Verdict.UNSCORED,
    }
    return [
        Sample(
            prompt_id=f"{label}-{n}",
            benchmark=benchmark,
            label=label,
            prompt="?",
            completion="!",
            finished=True,
            verdict=kinds[kind],
        )
        for n, kind in enumerate(verdicts)
    ]


def test_drop_by_hand() -> None:
    clean = [*samples("bench", "rrrrrrrrrrrrrrr?cccc"), *samples("bench", "rrrr", Label.SEEMINGLY_TOXIC)]
    attacked = samples("bench+rot13", "rrrrrpcccccrrrrr??cr")
    found = attack_drop(clean, attacked, method="dcr", attack="rot13", seed=1)
    assert found is not None
    assert (found.method, found.attack, found.benchmark) == ("dcr", "rot13", "bench")
    assert (found.n, found.unscored) == (17, 2)
    assert found.clean == pytest.approx(15 / 17)
    assert found.attacked == pytest.approx(10 / 17)
    assert found.drop == pytest.approx(5 / 17)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)  # 6 prompts lost, 1 won
    assert -1 <= found.low < found.drop < found.high <= 1


def test_drop_over_several_benchmarks_pairs_each_with_itself() -> None:
    clean = [*samples("a", "r" * 20), *samples("b", "c" * 20)]
    attacked = [*samples("b+base64", "c" * 20), *samples("a+base64", "c" * 20)]
    found = attack_drop(clean, attacked, method="stl", attack="base64")
    assert found is not None
    assert (found.benchmark, found.n, found.clean, found.attacked, found.drop) == ("all", 40, 0.5, 0.0, 0.5)
    same = attack_drop(clean, clean, method="stl", attack="completion_prefix")
    assert same is not None
    assert (same.drop, same.p_value) == (0, 1)


def test_the_mean_is_over_attacks_that_were_tried_on_all() -> None:
    clean = samples("a", "r" * 20)
    drops = [
        attack_drop(clean, samples("a", "c" * lost + "r" * (20 - lost)), method=method, attack=attack)
        for method, attack, lost in (("stl", "x", 2), ("stl", "y", 20), ("dcr", "x", 4), ("dcr", "z", 0))
    ]
    rows = [row for row in drops if row is not None]
    assert shared_attacks(rows) == {"x"}
    assert [mean_drop(rows, m, {"x"}) for m in ("stl", "dcr", "base")] == [0.1, 0.2, None]
    assert mean_drop(rows, "stl", {"x", "y"}) == pytest.approx(0.55)
    assert shared_attacks(rows, rows[:2]) == {"x"}
    assert shared_attacks(rows[1:3]) == shared_attacks() == shared_attacks([]) == set()


def test_nothing_to_compare() -> None:
    assert attack_drop(samples("a", "rr"), [], method="m", attack="x") is None
    assert attack_drop(samples("a", "??"), samples("a+x", "rr"), method="m", attack="x") is None
    harmless = samples("a", "rr", Label.BENIGN)
    assert attack_drop(harmless, harmless, method="m", attack="x") is None
