"""Objectives against numbers worked out by hand."""

import pytest
from pydantic import ValidationError

from discernment.errors import DataError
from discernment.evaluation.metrics import EqualSafety, Ranking, Score
from discernment.evaluation.results import Results
from discernment.prompts import Label
from discernment.runs.search.objective import Objective, objective_value

TOXIC, SEEMING, BENIGN = Label.TOXIC, Label.SEEMINGLY_TOXIC, Label.BENIGN


def score(method, benchmark, label, value, scored):
    metric = "defense_success_rate" if label is TOXIC else "compliance_rate"
    return Score(
        method=method, benchmark=benchmark, label=label, metric=metric, value=value, low=value, high=value,
        scored=scored, unscored=0, partial=0,
    )  # fmt: skip


def ranking(method, toxic, harmless, value, label=SEEMING):
    return Ranking(
        method=method, toxic=toxic, harmless=harmless, harmless_label=label, value=value, low=0, high=1,
        n_toxic=5, n_harmless=5,
    )  # fmt: skip


def equal_safety(method, toxic, harmless, difference):
    return EqualSafety(
        method=method, against="stl", toxic=toxic, harmless=harmless, harmless_label=SEEMING, toxic_refused=0.5,
        threshold=0.1, compliance=0.5, low=0, high=1, compliance_against=0.5, difference=difference,
        difference_low=-1, difference_high=1, curve=[],
    )  # fmt: skip


RESULTS = Results(
    base_model="m",
    reference="stl",
    methods=["stl", "dcr"],
    benchmarks=["a", "b", "easy"],
    scores=[
        score("stl", "a", SEEMING, 0.1, 10),
        score("dcr", "a", SEEMING, 0.5, 10),
        score("dcr", "b", SEEMING, 0.9, 30),
        score("dcr", "a", TOXIC, 0.75, 4),
        score("dcr", "b", TOXIC, 0.25, 4),
        score("dcr", "easy", BENIGN, 1.0, 3),
        score("stl", "easy", BENIGN, None, 0),
    ],
    rankings=[
        ranking("dcr", "a", "a", 0.6),
        ranking("dcr", "b", "b", 0.7),
        ranking("stl", "all", "all", 0.51),
        ranking("dcr", "all", "all", 0.65),
        ranking("dcr", "all", "easy", 0.99, BENIGN),
    ],
    comparisons=[],
    equal_safety=[equal_safety("dcr", "a", "a", -0.1), equal_safety("dcr", "all", "all", 0.2)],
    finding="",
)
MANIFEST = {
    "stages": {
        "refine-1": {"name": "refine", "seconds": 2.5},
        "align-1": {"name": "align", "seconds": 4.0},
        "evaluate-1": {"name": "evaluate", "seconds": 100.0},
        "ability-1": {"name": "ability", "seconds": 100.0},
        "align-2": {"name": "align", "seconds": 3.0},
    },
    "methods": {
        "stl": {"stages": ["align-2", "evaluate-1"]},
        # The evaluation may come first, where another method shares the stages before it.
        "dcr": {"stages": ["refine-1", "evaluate-1", "align-1", "ability-1"]},
    },
}


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ({"auroc": "dcr"}, 0.65),
        ({"auroc": "stl"}, 0.51),
        ({"auroc": "dcr", "benchmark": "b"}, 0.7),
        ({"auroc": "dcr", "label": "benign"}, 0.99),
        ({"auroc": "dcr", "label": "benign", "benchmark": "easy"}, 0.99),
        ({"compliance": "dcr"}, (5 + 27) / 40),
        ({"compliance": "dcr", "benchmark": "a"}, 0.5),
        ({"compliance": "dcr", "label": "benign"}, 1.0),
        ({"refused": "dcr"}, 0.5),
        ({"refused": "dcr", "benchmark": "b"}, 0.25),
        ({"equal_safety": "dcr"}, 0.2),
        ({"equal_safety": "dcr", "benchmark": "a"}, -0.1),
        ({"seconds": "dcr"}, 6.5),
        ({"seconds": "stl"}, 3.0),
    ],
)
def test_a_number_by_hand(objective, value):
    assert objective_value(RESULTS, MANIFEST, Objective.model_validate(objective)) == pytest.approx(value)


def test_only_seconds_are_made_small():
    kinds = ("auroc", "compliance", "refused", "equal_safety", "seconds")
    assert [Objective(**{kind: "dcr"}).maximise for kind in kinds] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"compliance": "stl", "label": "benign"}, "no prompts answered by stl on benign prompts; choose"),
        ({"equal_safety": "dcr", "benchmark": "b"}, "no compliance gain at equal safety of dcr in b; choose"),
        ({"auroc": "base"}, "no discernment AUROC of base; choose another objective"),
    ],
)
def test_a_number_that_a_run_does_not_have_is_one_sentence(objective, message):
    with pytest.raises(DataError, match=message):
        objective_value(RESULTS, MANIFEST, Objective.model_validate(objective))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({}, "name one number of one method, such as `auroc: dcr`"),
        ({"auroc": "dcr", "refused": "dcr"}, "name one number of one method"),
        ({"seconds": "dcr", "benchmark": "a"}, "`benchmark` does not go with `seconds`"),
        ({"refused": "dcr", "label": "benign"}, "`label` does not go with `refused`"),
        ({"auroc": "dcr", "label": "toxic"}, "seemingly_toxic"),
    ],
)
def test_an_objective_is_one_number(objective, message):
    with pytest.raises(ValidationError, match=message):
        Objective.model_validate(objective)
