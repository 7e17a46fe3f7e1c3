"""Every method runs in the reduced recipe of all of them, and stands in the report."""

import pytest

from discernment.evaluation.results import Results
from discernment.evaluation.sample import read_samples
from discernment.files import read_json
from page import Page
from reduced import METHODS

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_every_method_of_the_field_runs_and_stands_in_the_table(field, field_run):
    results = Results.model_validate(read_json(field_run / "results.json"))
    assert results.methods == METHODS
    assert len(METHODS) >= 20
    evaluated = list((field_run / "stages").glob("evaluate-*/samples.jsonl"))
    assert len(evaluated) >= 15  # some strengths make no difference to a random model
    benchmarks = field.recipe["evaluate"]["benchmarks"]
    assert {len(read_samples(path)) for path in evaluated} == {2 * len(benchmarks)}
    strict = {r.method for r in results.safety_levels if r.measure == "strict_compliance"}
    assert strict == set(METHODS)
    for attack in field.recipe["evaluate"]["attacks"]:
        assert {d.method for d in results.attack_drops if d.attack == attack} == set(METHODS)
    page = Page((field_run / "report.html").read_text())
    assert page.source.count('<tr role="row" style=') == len(METHODS)
    assert "Perplexity / base" in page.text("th")
    assert "frontier" in page.source
