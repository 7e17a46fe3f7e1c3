"""A sweep says what is wrong with it, and where its options go in the recipe."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from discernment.errors import RecipeError
from discernment.prompts import Split
from discernment.runs.search.objective import Kind
from discernment.runs.search.sweep import Dimension, Sweep, read_sweep

ROOT = Path(__file__).parents[3]
RECIPE = {
    "name": "try",
    "model": "some/model",
    "data": {"general": {"set": "starter/benign", "split": "train"}},
    "refine": {"layer": 2, "loss": {"name": "supcon", "temperature": 0.2}},
    "methods": ["stl", "dcr", {"method": "dcr", "name": "dcr.held", "align": {"frozen_layers": 2}}],
    "evaluate": {"benchmarks": [{"set": "starter/pairs", "name": "pairs", "split": "validation"}]},
}
GOOD = {
    "name": "search",
    "recipe": RECIPE,
    "space": {"refine.layer": [1, 2, 3], "align.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}},
    "objectives": [{"auroc": "dcr"}],
}


def read(tmp_path, **changes):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return read_sweep(path)


def test_options_go_where_their_keys_say(tmp_path):
    space = {
        "refine.layer, methods.dcr.align.frozen_layers": [1, 3],
        "methods.dcr.held.align.frozen_layers": [2, 4],
        "methods.dcr.refine.loss.temperature": [0.1, 0.5],
        "data.general.0.limit": [5, 6],
        "model.dtype": ["float32", "bfloat16"],
        "align.lora": [None],
    }
    sweep = read(tmp_path, space=space)
    values = {key: choices[-1] for key, choices in space.items()}
    recipe = sweep.recipe_at(values, "search-7", 5)
    assert (recipe.name, recipe.seed) == ("search-7", 5)
    stl, dcr, held = (recipe.options(entry) for entry in recipe.methods)
    assert [o.refine.layer for o in (stl, dcr, held)] == [3, 3, 3]
    assert [o.align.frozen_layers for o in (stl, dcr, held)] == [None, 3, 4]
    # The method's own loss keeps what the recipe says of the rest of it.
    assert (dcr.refine.loss.name, dcr.refine.loss.temperature) == ("supcon", 0.5)
    assert held.refine.loss.temperature == 0.2
    assert recipe.data.general[0].limit == 6
    assert recipe.data.general[0].split is Split.TRAIN
    assert recipe.model.dtype == "bfloat16"
    assert dcr.align.lora is None
    assert sweep.recipe == sweep.recipe_at({}, "try", 0)  # which is left as it was


def test_a_recipe_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(RECIPE))
    assert read(tmp_path, recipe="own.yaml") == read(tmp_path)
    nameless = {key: value for key, value in RECIPE.items() if key != "name"}
    assert read(tmp_path, recipe=nameless).recipe.name == "search"
    with pytest.raises(RecipeError, match=r"There is no recipe .*other\.yaml"):
        read(tmp_path, recipe="other.yaml")
    with pytest.raises(RecipeError, match=r"There is no sweep .*none\.yaml"):
        read_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spce": {}}, "`spce` is not a known option; did you mean `space`?"),
        ({"space": {}}, "`space`: Dictionary should have at least 1 item"),
        ({"seeds": [0, -1]}, "`seeds.1`: Input should be greater than or equal to 0"),
        ({"space": {"refine.lyer": [1]}}, "`refine.lyer` is not a known option; did you mean `layer`?"),
        ({"space": {"refine.layer": [1, -2]}}, "`refine.layer`"),
        ({"space": {"refine.layer": {"low": 1, "high": 4}}}, "`refine.layer`"),
        ({"space": {"refine.layer": {"low": 1}}}, "`space.refine.layer`: give a list of values, or a range"),
        ({"space": {"refine.layer": {"low": 4, "high": 1}}}, "`low` is 4 and must be below `high`, which is 1"),
        ({"space": {"refine.layer": {"low": 1, "high": 3.5, "int": True}}}, "`int` needs whole numbers"),
        ({"space": {"refine.layer": {"low": 1, "high": 3, "lg": True}}}, "`space.refine.layer.lg` .* `log`?"),
        ({"space": {"align.warmup": {"low": 0, "high": 1, "log": True}}}, "`log` needs a `low` above 0"),
        ({"space": {"refine.layer": [2, 2]}}, "at least one value, and none twice"),
        ({"space": {"refine.layer": [[2]]}}, "`space.refine.layer.choices.0"),
        ({"space": {"refine.layer": {"low": 1, "high": float("inf")}}}, "`space.refine.layer.high`.* finite number"),
        (
            {"space": {"align.epochs": {"low": 1, "high": 2, "step": 0.7}}},
            r"`space.align.epochs`: `step` is 0\.7 and does not lead from 1 to 2; make `high` 1\.7, or choose another",
        ),
        (
            {"space": {"align.epochs": {"low": 1.0, "high": 1.5, "step": 5}}},
            r"`step` is 5 and does not lead from 1 to 1\.5; make `high` 6, or",
        ),
        (
            {"space": {"refine.layer": {"low": 1, "high": 6, "step": 2, "int": True}}},
            "`step` is 2 and does not lead from 1 to 6; make `high` 5, or",
        ),
        ({"space": {"seed": [1, 2]}}, "`seed` cannot be searched over; `seeds` runs every trial with several"),
        ({"space": {"refine.layer, seed": [1, 2]}}, "`seed` cannot be searched over"),
        ({"space": {"align.seed": [1, 2]}}, "`align.seed` cannot be searched over; `seeds` runs every trial with"),
        ({"space": {"methods.dcr.refine.seed": [1, 2]}, "seeds": [0, 1]}, "`methods.dcr.refine.seed` cannot be"),
        (
            {"recipe": {**RECIPE, "align": {"seed": 5}}, "seeds": [0, 1, 2]},
            "`recipe`: with `seeds`, `seed` in align would be the same for all of them; leave it out",
        ),
        (
            {
                "recipe": {**RECIPE, "seed": 3, "methods": ["stl", {"method": "dcr", "refine": {"seed": 5}}]},
                "seeds": [0, 1],
            },
            "`recipe`: with `seeds`, `seed` in refine of 'dcr' would be the same for all of them",
        ),
        (
            {"space": {"methods.dpo.align.warmup": [0.1]}},
            "must name an option of a method, .* the methods are stl, dcr, dcr.held",
        ),
        (
            {"space": {"data.general.limit": [2]}},
            "leads nowhere in the recipe: there is a list where `limit` stands; number its entry, from 0 to 0",
        ),
        ({"space": {"refine.layer.deep": [2]}}, "leads nowhere in the recipe: there is the value 2 before `deep`"),
        ({"objectives": []}, "`objectives`: List should have at least 1 item"),
        ({"objectives": [{"auroc": "dcr"}] * 4}, "`objectives`: List should have at most 3 items"),
        ({"objectives": [{"aurok": "dcr"}]}, "`objectives.0.aurok` is not a known option.* `auroc`?"),
        ({"objectives": [{"auroc": "dpo"}]}, "`objectives.0`: there is no method 'dpo'; there are stl, dcr"),
        (
            {"objectives": [{"auroc": "dcr"}, {"refused": "dcr", "benchmark": "x"}]},
            "`objectives.1`: there is no benchmark 'x'; there are pairs",
        ),
        ({"objectives": [{"equal_safety": "stl"}]}, "stl is the reference that others are compared with"),
        ({"sampler": "grid"}, "the sampler `grid` needs lists, and `space.align.learning_rate` is a range"),
        ({"sampler": "grit"}, "`sampler`: Input should be 'tpe', 'random' or 'grid'"),
        ({"seeds": [1, 1]}, "`seeds` names one twice"),
        ({"recipe": {**RECIPE, "sed": 1}}, "`recipe`: `sed` is not a known option; did you mean `seed`?"),
        (
            {"recipe": {**RECIPE, "evaluate": {**RECIPE["evaluate"], "rejection": False}}},
            "`auroc` needs `evaluate.rejection`, which the recipe turns off",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, **changes)


def test_a_seed_of_a_stage_stands_beside_a_single_seed(tmp_path):
    own = {**RECIPE, "seed": 3, "align": {"seed": 5}}
    assert read(tmp_path, recipe=own).every_seed == (3,)
    assert read(tmp_path, recipe=own, seeds=[4]).every_seed == (4,)
    assert read(tmp_path, recipe={**RECIPE, "seed": 3}, seeds=[4, 5]).every_seed == (4, 5)


@pytest.mark.parametrize(
    ("low", "high", "step", "values"),
    [
        (0, 0.3, 0.1, [0, 0.1, 0.2, 0.3]),  # 0.3 / 0.1 is below 3
        (0.1, 0.7, 0.2, [0.1, 0.3, 0.5, 0.7]),
        (1e-5, 4e-5, 1e-5, [1e-5, 2e-5, 3e-5, 4e-5]),
        (-1, 1, 2, [-1, 1]),
    ],
)
def test_steps_lead_from_one_end_of_a_range_to_the_other(low, high, step, values):
    optuna = pytest.importorskip("optuna")
    dimension = Dimension(low=low, high=high, step=step)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = {round(dimension.suggest(study.ask(), "x") / step, 6) for _ in range(60)}
    assert sorted(drawn) == [pytest.approx(value / step) for value in values]


def test_the_grid_holds_every_combination_once_in_an_order_of_its_own(tmp_path):
    space = {"refine.layer": [1, 2, 3], "align.epochs": [1, 2], "align.train_embeddings": [True, False]}
    sweep = read(tmp_path, space=space, sampler="grid")
    brute_force = {(a, b, c) for a in (1, 2, 3) for b in (1, 2) for c in (True, False)}
    grid = [tuple(point.values()) for point in sweep.grid()]
    assert len(grid) == 12
    assert set(grid) == brute_force
    assert grid == [tuple(point.values()) for point in read(tmp_path, space=space, sampler="grid").grid()]
    assert grid != [tuple(p.values()) for p in read(tmp_path, space=space, sampler="grid", seed=1).grid()]
    assert (sweep.planned(), sweep.planned(5), sweep.planned(50)) == (12, 5, 12)
    assert (read(tmp_path).planned(), read(tmp_path, trials=7).planned(), read(tmp_path).planned(3)) == (
        20,
        7,
        3,
    )


def test_every_listed_value_is_looked_at_before_the_first_trial(tmp_path):
    seen = [tuple(point.values()) for point in read(tmp_path).samples()]
    assert {layer for layer, _ in seen} == {1, 2, 3}
    assert {rate for _, rate in seen} >= {1e-5, 1e-3}
    assert Dimension.model_validate({"low": 2, "high": 9, "int": True}).landmarks == [2, 9]


def test_the_recipe_of_the_example_stays_off_the_test_split():
    sweep = read_sweep("layers")
    assert {b.split for b in sweep.recipe.evaluate.sets} == {Split.VALIDATION}


def test_the_example_of_the_document_is_a_sweep(tmp_path):
    text = (ROOT / "docs/sweep.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "layers.yaml").write_text(example)
    sweep = read_sweep(tmp_path / "layers.yaml")
    assert (sweep.planned(), len(sweep.space), len(sweep.objectives)) == (20, 3, 2)
    keys = {
        key
        for row in re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
        for key in re.findall(r"`(\w+)`", row)
    }
    documented = {*Sweep.model_fields, *Dimension.model_fields, *get_args(Kind)} - {"choices", "integer"}
    assert documented | {"int"} <= keys
