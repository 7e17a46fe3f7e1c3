"""What the entry of a method may say: sets and options of its own, and what it stands on."""

import re

import pytest
import yaml

from discernment.errors import RecipeError
from discernment.methods.method import find_method, known_methods
from discernment.policies.rule import known_rules
from discernment.runs.recipe import MethodEntry, parse_recipe, read_recipe
from good_recipe import GOOD, changed
from tiny import make_prompts


def test_a_method_may_have_sets_of_its_own(tmp_path):
    for name, pairs in (("mixed", 4), ("confounded", 2)):
        make_prompts(pairs).to_jsonl(tmp_path / f"{name}.jsonl")
    content = changed("data", {"general": "starter/benign", "contrast": str(tmp_path / "mixed.jsonl")})
    content["methods"][2]["data"] = {"contrast": str(tmp_path / "confounded.jsonl")}
    recipe = parse_recipe(content, "r")
    own = recipe.materials()
    assert {label: len(m.contrast) for label, m in own.items()} == {"base": 8, "stl": 8, "deep": 4}
    assert own["deep"].general.fingerprint == own["stl"].general.fingerprint
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "again") == recipe


def stacked(*methods):
    """What each method is built of, from the base model on: methods, and the labels that their prompts are under."""
    recipe = parse_recipe({**GOOD, "methods": list(methods)}, "r")
    return {m.label: [(s.method, s.label) for s in recipe.steps(m)] for m in recipe.methods}, recipe


def test_a_method_may_stand_on_another():
    found, recipe = stacked(
        "stl",
        {"method": "dcr", "name": "deep", "refine": {"layer": 3}},
        "self_cd",
        {"method": "self_cd", "name": "deep + self_cd", "on": "deep"},
        {"method": "scans", "name": "dcr + scans", "on": "dcr"},
        "prompted",
        {"method": "prompted", "name": "prompted stl", "on": "stl"},
        {"method": "surgical", "rule": {"weights": True}},
        {"method": "adacd", "on": "surgical"},
        {"method": "dcr", "name": "mended", "on": "stl"},
        {"method": "stl", "name": "stl twice", "on": "stl"},
    )
    assert found == {
        "stl": [("stl", "stl")],
        "deep": [("dcr", "deep")],
        "self_cd": [("stl", "stl"), ("self_cd", "self_cd")],
        "deep + self_cd": [("dcr", "deep"), ("self_cd", "deep + self_cd")],
        "dcr + scans": [("dcr", "dcr below dcr + scans"), ("scans", "dcr + scans")],
        "prompted": [("base", "base below prompted"), ("prompted", "prompted")],
        "prompted stl": [("stl", "stl"), ("prompted", "prompted stl")],
        "surgical": [("stl", "stl"), ("surgical", "surgical")],
        "adacd": [("stl", "stl"), ("surgical", "surgical"), ("adacd", "adacd")],
        "mended": [("stl", "stl"), ("dcr", "mended")],
        "stl twice": [("stl", "stl"), ("stl", "stl twice")],
    }
    layers = [recipe.options(recipe.steps(m)[0]).refine.layer for m in recipe.methods[3:5]]
    assert layers == [3, 2]  # that of the entry, and the recipe's
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "again") == recipe


@pytest.mark.parametrize("key", ["on", "'on'", '"on"'])
def test_on_is_a_key_however_yaml_reads_it(key, tmp_path):
    content = yaml.safe_dump({k: v for k, v in GOOD.items() if k != "methods"})
    (tmp_path / "r.yaml").write_text(f"{content}methods:\n  - {{method: self_cd, {key}: dcr}}\n")
    recipe = read_recipe(tmp_path / "r.yaml")
    assert recipe.methods[0].on == "dcr"
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_what_differs_for_a_method_differs_for_what_it_stands_on(tmp_path):
    for name, pairs in (("many", 4), ("few", 2)):
        make_prompts(pairs).to_jsonl(tmp_path / f"{name}.jsonl")
    content = changed("data", {"general": "starter/benign", "contrast": str(tmp_path / "many.jsonl")})
    content["methods"] = [
        {"method": "dcr", "align": {"epochs": 2, "batch_size": 4}},
        {
            "method": "scans",
            "on": "dcr",
            "data": {"contrast": str(tmp_path / "few.jsonl")},
            "align": {"epochs": 3},
        },
        {"method": "self_cd", "on": "dcr"},
    ]
    recipe = parse_recipe(content, "r")
    (own,), (below, scans), (same, _) = map(recipe.steps, recipe.methods)
    assert (own, own) == (same, recipe.methods[0])
    materials = recipe.materials()
    assert [len(materials[s.label].contrast) for s in (own, below, scans)] == [8, 4, 4]
    options = [recipe.options(s).align for s in (own, below)]
    assert [(o.epochs, o.batch_size) for o in options] == [(2, 4), (3, 4)]


@pytest.mark.parametrize("others", [[], ["stl"], [{"method": "stl", "align": {"epochs": 4}}]])
def test_what_trains_once_more_has_its_options_for_itself(others):
    twice = {"method": "stl", "name": "twice", "on": "stl", "align": {"epochs": 3}}
    recipe = parse_recipe({**GOOD, "methods": [*others, twice]}, "r")
    below, own = recipe.steps(recipe.methods[-1])
    assert below == (recipe.methods[0] if others else MethodEntry(method="stl"))
    epochs = 4 if others and others != ["stl"] else recipe.options(MethodEntry(method="stl")).align.epochs
    assert [recipe.options(step).align.epochs for step in (below, own)] == [epochs, 3]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            [{"method": "self_cd", "on": "dcrr"}],
            "'self_cd' stands on 'dcrr', which is no method of the recipe and no known one; of the recipe: self_cd; known: ",
        ),
        (
            [{"method": "base", "name": "as it is", "on": "stl"}],
            "The method 'base' is the base model as it is, so 'as it is' takes no `on`; leave it out.",
        ),
        ([{"method": "self_cd", "on": "self_cd"}], "'self_cd', 'self_cd' stand on each other in a circle"),
        (
            [{"method": "scans", "name": "a", "on": "b"}, {"method": "ablated", "name": "b", "on": "a"}],
            "The methods 'a', 'b', 'a' stand on each other in a circle; change an `on`, or give one of them a `name`.",
        ),
        (
            ["stl", {"method": "self_cd", "onn": "stl"}],
            "`methods.1.onn` is not a known option; did you mean `on`?",
        ),
    ],
)
def test_what_cannot_be_stood_on(methods, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe({**GOOD, "methods": methods}, "r")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"method": "dcr", "rule": {"system": "x"}},
            "`methods.0.rule`: the method 'dcr' acts by no rule; leave it out.",
        ),
        ({"method": "base", "rule": {"nonsense": 3}}, "`methods.0.rule`: the method 'base' acts by no rule"),
        (
            {"method": "stl", "data": {"validation": None}},
            "`methods.0.data.validation` is empty, which would leave",
        ),
        (
            {"method": "base", "align": {"epochs": 3}},
            "`methods.0.align`: the method 'base' trains nothing; leave it out.",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(method, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        parse_recipe({**GOOD, "methods": [method]}, "r")


def test_methods_that_act_by_a_rule_say_so():
    acting = [name for name in known_methods() if find_method(name).acts_by_rule]
    assert set(acting) == {*known_rules()} & {*known_methods()}
    assert len(acting) > 3
