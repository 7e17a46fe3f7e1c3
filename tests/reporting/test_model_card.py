"""The card of a published method: its table holds every number of `results.json`, and none that is not there."""

from dataclasses import replace

import yaml

from discernment.files import read_json
from discernment.policies.policy_spec import PolicySpec
from discernment.reporting.model_card import model_card
from discernment.reporting.naming import pair_in_words
from discernment.reporting.run_files import read_run
from discernment.reporting.tables.methods import AUROC, RATES
from discernment.reporting.text import DASH

BENCHMARKS = {
    "XSTest": {"toxic": 40, "seemingly_toxic": 50},
    "OKTest": {"seemingly_toxic": 30},
    "easy": {"benign": 20},
}
SHOWN = ["base", "stl", "dcr"]


def plain(text):
    return " ".join(text.split())


def test_every_number_is_that_of_the_results(build_run, tmp_path):
    run = build_run(tmp_path / "run", benchmarks=BENCHMARKS, hostile=False)
    card = model_card(read_run(run), "dcr", PolicySpec.of("someone/model"))
    lines = card.partition("## Results")[2].partition("##")[0].splitlines()
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    assert header == ["", *(f"`{method}`" for method in SHOWN)]
    found = {
        (plain(row[0]), method): cell for row in rows for method, cell in zip(SHOWN, row[1:], strict=True)
    }

    results, expected = read_json(run / "results.json"), {}
    for s in results["scores"]:
        what = plain(f"{RATES[s['label']]}: {s['benchmark']}")
        expected[what, s["method"]] = (
            f"{100 * s['value']:.1f} ({100 * s['low']:.1f}{DASH}{100 * s['high']:.1f})"
        )
    for r in results["rankings"]:
        what = plain(f"{AUROC}: {pair_in_words(r['toxic'], r['harmless'], r['harmless_label'])}")
        expected[what, r["method"]] = f"{r['value']:.3f} ({r['low']:.3f}{DASH}{r['high']:.3f})"
    expected = {key: cell for key, cell in expected.items() if key[1] in SHOWN}
    assert found == expected
    assert len(found) == len(SHOWN) * (4 + 3)
    assert len(set(found.values())) > 12
    assert results["finding"] in card


def test_the_sets_of_what_a_method_stands_on_count_too(build_run, tmp_path):
    run = build_run(tmp_path / "run", benchmarks=BENCHMARKS, hostile=False)
    known = read_run(run)
    recipe = {
        "name": "r",
        "model": "m",
        "data": {"general": "starter/benign", "safety": "starter/toxic", "augmentation": "starter/pairs"},
        "methods": [
            "base",
            "stl",
            {"method": "stl", "name": "safe", "data": {"safety": "falsereject"}},
            {"method": "dpo", "name": "dcr", "on": "safe"},
        ],
        "evaluate": {"benchmarks": ["xstest"]},
    }
    card = model_card(replace(known, recipe=yaml.safe_dump(recipe)), "dcr", PolicySpec.of("someone/model"))
    assert "| falsereject |" in card
    assert "commercial" in card.partition("## Sets")[2].partition("## How")[0]
    alone = model_card(replace(known, recipe=yaml.safe_dump(recipe)), "stl", PolicySpec.of("someone/model"))
    assert "falsereject" not in alone.partition("## Sets")[2].partition("## How")[0]
