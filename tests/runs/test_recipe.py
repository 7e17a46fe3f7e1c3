"""A recipe says exactly what is wrong with it, and what is written reads back the same."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import DataError, RecipeError
from discernment.evaluation.evaluate import EvaluateOptions
from discernment.files import read_yaml, write_text
from discernment.models.model_spec import ModelSpec
from discernment.prompts import Label, Split
from discernment.prompts.sources import PromptSource
from discernment.runs.proposition import PropositionPlan
from discernment.runs.recipe import Recipe, first_problem, parse_recipe, read_recipe
from discernment.training.contrastive import RefineOptions
from good_recipe import GOOD, changed
from tiny import make_benign, make_prompts


def test_a_recipe_says_what_every_method_is_to_do():
    recipe = parse_recipe({**GOOD, "seed": 5, "align": {"seed": 7}}, "r")
    assert recipe.model == ModelSpec(model="some/model")
    assert [m.label for m in recipe.methods] == ["base", "stl", "deep"]
    assert recipe.data.general == [PromptSource(set="starter/benign", split=Split.TRAIN)]
    stl, deep = (recipe.options(m) for m in recipe.methods[1:])
    assert (stl.refine.layer, deep.refine.layer) == (2, 3)
    auto = parse_recipe(changed("methods.2.refine", {"layer": "auto"}), "r")
    assert [auto.options(m).refine.layer for m in auto.methods] == [2, 2, "auto"]
    assert (deep.refine.seed, deep.align.seed) == (5, 7)
    assert recipe.reference == "stl"
    assert parse_recipe(changed("evaluate.reference", "deep"), "r").reference == "deep"
    assert parse_recipe(changed("methods", ["base", "dcr"]), "r").reference == "base"
    asked = parse_recipe(changed("evaluate.max_new_tokens", 9), "r").evaluate.options
    assert asked == EvaluateOptions(max_new_tokens=9)
    assert type(asked) is EvaluateOptions


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sed", 1, "`sed` is not a known option; did you mean `seed`?"),
        ("zzz", 1, "`zzz` is not a known option; known: name, model, seed,"),
        (
            "model",
            {"modell": "x"},
            r"`model.modell` is not a known option \(and 1 more\); did you mean `model`?",
        ),
        ("data.safty", "x", "`data.safty` is not a known option; did you mean `safety`?"),
        ("data.general.splt", "x", "`data.general.0.splt` is not a known option; did you mean `split`?"),
        ("data.safety", [{"set": "a"}, {"set": "b", "lim": 1}], "`data.safety.1.lim` .* `limit`?"),
        ("data.safety", [{"split": "train"}], "`data.safety.0.set` is missing"),
        ("evaluate.max_tokens", 1, "`evaluate.max_tokens` .* did you mean `max_new_tokens`?"),
        ("evaluate.benchmarks", [{"set": "a", "nam": "b"}], "`evaluate.benchmarks.0.nam` .* `name`?"),
        ("evaluate.benchmarks", [], "`evaluate`: name `benchmarks`, a `suite`, or both."),
        ("evaluate", {}, "`evaluate`: name `benchmarks`, a `suite`, or both."),
        ("evaluate.suite", "fast", "`evaluate.suite`: there is no suite 'fast'; choose one of paper, quick"),
        ("evaluate.attacks", ["rot14"], "`evaluate.attacks`: there is no attack 'rot14'; known: prefix_inj"),
        ("evaluate.attacks", ["rot13", "rot13"], "the attack 'rot13' is named twice"),
        ("evaluate.translations", "zu.jsonl", "`translations` are for the attack `low_resource`"),
        ("evaluate.tasks", ["arc_easy", "arc_easy"], "the task 'arc_easy' is named twice"),
        ("evaluate.tasks_limit", 5, "`tasks_limit` is for `tasks`, and there are none"),
        ("evaluate.flips", 64, "64 is `batch_size`, that of the first; choose another"),
        ("evaluate.ability", {"set": "a", "splt": "b"}, "`evaluate.ability.0.splt` .* `split`?"),
        (
            "evaluate.unscored_limit",
            1.5,
            "`evaluate.unscored_limit`: Input should be less than or equal to 1",
        ),
        (
            "evaluate.judge",
            "keyword",
            "`evaluate.judge.kind`: Input should be 'keywords', 'encoder', 'classifier', 'hub'",
        ),
        ("evaluate.judge", {"kynd": "llm"}, "`evaluate.judge.kynd` .* did you mean `kind`?"),
        ("evaluate.judge", {"kind": "hub"}, "`evaluate.judge`: the judge `hub` needs `model`."),
        (
            "evaluate.judge",
            {"kind": "ensemble", "judges": ["keywords", {"kind": "classifier", "model": "m", "path": "p"}]},
            "`evaluate.judge.judges.1`: the judge `classifier` has no option `model`; leave it out.",
        ),
        ("evaluate", None, "`evaluate` is missing"),
        ("methods", None, "`methods` is missing"),
        ("methods", [], "`methods`: List should have at least 1 item"),
        ("methods.2.refin", {}, "`methods.2.refin` .* did you mean `refine`?"),
        ("methods.2.refine.stps", 1, "`methods.2.refine.stps` .* did you mean `steps`?"),
        (
            "methods.1",
            {"method": "stl", "align": {"batch_size": 0}},
            "`methods.1.align.batch_size`: Input should",
        ),
        (
            "methods.1",
            "kto",
            "There is no method 'kto'; known: ablated, actor, adacd, base, calibrated, dcr, dcr_derta, dcr_paper, derta, dpo, fixed_rejection, ",
        ),
        ("methods.1", "base", "two methods are called 'base'; give one of them a `name`"),
        ("methods.2.name", "stl", "two methods are called 'stl'"),
        ("refine.learning_rat", 1, "r: `refine.learning_rat` .* did you mean `learning_rate`?"),
        ("refine.loss", {"nme": "x"}, "`refine.loss.nme` .* did you mean `name`?"),
        (
            "refine.layer",
            0,
            "`refine.layer`: Input should be the number of a layer, counted from 1, or `auto`.",
        ),
        ("refine.layer", "deep", "`refine.layer`: Input should be the number of a layer"),
        ("align.epochs", "many", "`align.epochs`: Input should be a valid number"),
        ("evaluate.reference", "dcr", "`evaluate.reference` is 'dcr', which is not among the methods"),
        ("evaluate.benchmarks", ["a", {"set": "b", "name": "a"}], "two benchmarks are called 'a'"),
        (
            "evaluate.benchmarks",
            [{"set": "a", "name": "all"}],
            "a benchmark is called 'all', which stands for all",
        ),
        ("diagnose", {}, "`diagnose`: name `probes`, `kernel` or `proposition`"),
        (
            "diagnose",
            {"probes": "a", "dynamics": {"per_grp": 3}},
            "`diagnose.dynamics.per_grp` .* did you mean `per_group`?",
        ),
        ("diagnose", {"probes": {"set": "a", "splt": "b"}}, "`diagnose.probes.0.splt` .* `split`?"),
        ("name", "a/b", "`name`: String should match pattern"),
        *(
            ("methods", [{"method": "stl", "name": name}], "`methods.0.name`: a name is said as RUN/NAME")
            for name in ("../x", "a/b", "a\\b", "..", "a\nb")
        ),
        ("align", {"seed": 3}, "with `seeds`, `seed` in align would be the same for all of them"),
        (
            "methods",
            [{"method": "dcr", "refine": {"seed": 3}}],
            "with `seeds`, `seed` in refine of 'dcr' would",
        ),
        (
            "model",
            {"model": "some/model", "dtype": "float8"},
            "`model.dtype`: Input should be 'auto', 'float32'",
        ),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(path, value, message):
    content = changed(path, value) | ({"seeds": [1, 2]} if "`seeds`" in message else {})
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(content, "r")
    assert "\n" not in str(caught.value)


def test_options_that_do_not_go_together_in_what_a_method_stands_on_are_told():
    scans = {"method": "scans", "align": {"train_embeddings": True}}
    content = {**changed("methods", ["base", "stl", scans]), "align": {"lora": {"rank": 4}}}
    with pytest.raises(RecipeError, match=r"^r: `methods\.2\.align`: .*embeddings"):
        parse_recipe(content, "r")
    below = changed("methods", [{"method": "stl", "align": {"lora": {"rank": 4}}}, scans])
    with pytest.raises(RecipeError, match=r"^r: 'stl below scans': .*embeddings"):
        parse_recipe(below, "r")


def test_the_first_layer_of_all_may_stand_beside_layers_of_each():
    each = [{"method": "dcr", "name": f"up to {n}", "refine": {"layer": n}} for n in (8, 9)]
    content = {**changed("methods", each), "refine": {"first_layer": 5, "steps": 3}}
    recipe = parse_recipe(content, "r")
    assert [recipe.options(m).refine.first_layer for m in recipe.methods] == [5, 5]
    with pytest.raises(RecipeError, match="leaves nothing to train"):
        parse_recipe({**content, "refine": {"first_layer": 9, "steps": 3}}, "r")


def test_stage_1_has_no_default_layer():
    content = {
        **changed("methods", ["base", {"method": "dcr", "refine": {"layer": 3}}]),
        "refine": {"steps": 3},
    }
    recipe = parse_recipe(content, "r")
    base, dcr = (recipe.options(entry) for entry in recipe.methods)
    assert base.refine is None
    assert (dcr.refine.layer, dcr.refine.steps) == (3, 3)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"There is no recipe .*none\.yaml"):
        read_recipe(tmp_path / "none.yaml")
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: [a}\n")
    with pytest.raises(RecipeError, match=r"The recipe .*r\.yaml, line 2, is not valid YAML"):
        read_recipe(path)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(RecipeError, match=r"r\.yaml is not valid YAML"):
        read_recipe(path)
    for text in ("", "- base\n", "base"):
        path.write_text(text)
        with pytest.raises(RecipeError, match=r"must be a mapping with the keys name, model, seed"):
            read_recipe(path)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: x\nmodel: m\nname: y\n", 3, "name"),
        ("align: {epochs: 1, 'epochs': 2}\n", 1, "epochs"),
        ("data:\n  safety:\n    set: a.csv\n    label_map:\n      1: toxic\n      1: benign\n", 6, "1"),
        ("data: {safety: {set: a.csv, label_map: {yes: toxic, true: benign}}}\n", 1, "true"),
    ],
)
def test_a_key_twice_is_a_mistake(tmp_path, text, line, key):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"r\.yaml, line {line}, has the key '{key}' twice; leave one out"):
        read_recipe(tmp_path / "r.yaml")


def test_merged_keys_are_no_repeated_ones(tmp_path):
    text = """
        common: &common {a: 1, b: 2}
        own: &own {<<: *common, b: 3}
        other: {<<: *own, a: 4}
        same: [{a: 1}, {a: 1}]
    """
    assert read_yaml(text) == yaml.safe_load(text)
    assert read_yaml(text)["other"] == {"a": 4, "b": 3}


def test_a_problem_without_a_near_name_lists_the_names():
    with pytest.raises(ValidationError) as caught:
        RefineOptions.model_validate({"layer": 1, "loss": {"qqqq": 1}})
    assert first_problem(caught.value, RefineOptions).startswith(
        "`loss.qqqq` is not a known option; known: name,"
    )


def test_general_examples_are_drawn_to_the_ratio(tmp_path):
    make_benign(20).to_jsonl(tmp_path / "general.jsonl")
    make_prompts(4).with_label(Label.TOXIC).to_jsonl(tmp_path / "safety.jsonl")
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("general", "safety")}

    def load(ratio, seed=0):
        return parse_recipe(changed("data", {**data, "general_per_safety": ratio}), "r").data.load(seed)

    materials = load(2.5)
    assert (len(materials.general), len(materials.safety)) == (10, 4)
    assert (materials.general.provenance.name, materials.contrast) == ("general", None)
    assert load(2.5).general.fingerprint == materials.general.fingerprint
    assert load(2.5, seed=1).general.fingerprint != materials.general.fingerprint
    assert len(load(5).general) == 20
    with pytest.raises(
        RecipeError, match=r"`data.general_per_safety: 6.0` asks for 24 general .* there are 20"
    ):
        load(6)
    with pytest.raises(
        RecipeError, match=r"general_per_safety` is a ratio .* there is no `data.safety`; name it"
    ):
        parse_recipe(changed("data", {"general": data["general"], "general_per_safety": 2}), "r").data.load(0)
    with pytest.raises(DataError, match="There is no file"):
        parse_recipe(changed("data.general", "gone.jsonl"), "r").data.load(0)


def test_probes_are_read_where_the_recipe_watches_the_training(tmp_path):
    make_prompts(4).to_jsonl(tmp_path / "pairs.jsonl")
    content = changed("data", {})
    plain = parse_recipe(content, "r")
    assert [m.probes for m in plain.materials().values()] == [None] * 3
    assert plain.options(plain.methods[1]).dynamics is None
    watch = {"probes": [str(tmp_path / "pairs.jsonl"), "starter/benign"], "dynamics": {"k": 4}}
    recipe = parse_recipe({**content, "diagnose": watch}, "r")
    assert all(m.probes.texts[:8] == make_prompts(4).texts for m in recipe.materials().values())
    assert recipe.options(recipe.methods[1]).dynamics == DynamicsOptions(k=4)
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "again") == recipe


OUR_RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").rglob("*.yaml") if path.parent.name != "sweeps"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = TEXT.filter(lambda t: t.isprintable() and not {*t} & {"/", "\\"} and t not in (".", ".."))
SOURCE = st.one_of(
    TEXT,
    st.fixed_dictionaries(
        {"set": TEXT},
        optional={
            "label": st.sampled_from(["toxic", ["benign", "toxic"]]),
            "split": st.sampled_from(["train", "test"]),
            "category": TEXT | st.lists(TEXT, min_size=1, max_size=2),
            "limit": st.integers(1, 9),
            "seed": st.integers(0, 9),
        },
    ),
    st.fixed_dictionaries({"set": TEXT.map("{}.csv".format), "columns": st.just({"text": "question"})}),
)
RECIPES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True),
        "model": TEXT
        | st.fixed_dictionaries(
            {"model": TEXT, "system": TEXT | st.just("")}, optional={"dtype": st.just("float16")}
        ),
        "methods": st.lists(
            st.sampled_from(["base", "stl", "stl_aug"])
            | st.fixed_dictionaries(
                {
                    "method": st.just("dcr"),
                    "name": NAMES,
                    "refine": st.fixed_dictionaries({"layer": st.integers(1, 9)}),
                }
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda m: m if isinstance(m, str) else m["name"],
        ).filter(
            lambda ms: all(m["name"] not in ("base", "stl", "stl_aug") for m in ms if isinstance(m, dict))
        ),
        "evaluate": st.fixed_dictionaries(
            {
                "benchmarks": st.lists(
                    st.fixed_dictionaries({"set": TEXT, "name": TEXT.filter(lambda t: t != "all")}),
                    min_size=1,
                    max_size=2,
                    unique_by=lambda b: b["name"],
                )
            },
            optional={"rejection": st.booleans(), "openings": st.lists(TEXT, min_size=1, max_size=2)},
        ),
    },
    optional={
        "seed": st.integers(0, 99),
        "data": st.fixed_dictionaries(
            {},
            optional={
                "general": SOURCE,
                "safety": st.lists(SOURCE, max_size=2),
                "general_per_safety": st.just(2.5),
            },
        ),
        "refine": st.fixed_dictionaries({"learning_rate": st.just("1e-4") | st.floats(1e-7, 1e-2)}),
        "align": st.fixed_dictionaries({"lora": st.none() | st.just({"rank": 4})}),
    },
)


def test_proposition_1_is_switched_on_or_described(tmp_path):
    with_plan = {**GOOD, "diagnose": {"probes": "starter/toxic"}}

    def plan(value):
        with_plan["diagnose"]["proposition"] = value
        recipe = parse_recipe(with_plan, "r")
        path = tmp_path / "recipe.yaml"
        write_text(path, recipe.to_yaml())
        assert read_recipe(path) == recipe
        return recipe.diagnose

    assert plan(False).proposition is plan(None).proposition is None
    assert plan(True).proposition == plan({}).proposition == PropositionPlan()
    assert {p.label for p in plan(True).prompts_of(plan(True).proposition, "p")} == {Label.TOXIC}
    described = plan({"prompts": "starter/benign", "k": 3, "rows": "own"})
    assert (described.proposition.k, described.proposition.rows) == (3, "own")
    assert {p.label for p in described.prompts_of(described.proposition, "p")} == {Label.BENIGN}
    for wrong, message in (
        ({"kk": 3}, "did you mean `k`"),
        (7, "`diagnose.proposition`"),
        ({"k": 0}, "proposition.k`"),
    ):
        with pytest.raises(RecipeError, match=message):
            plan(wrong)


def test_kernel_similarity_is_measured_without_watching_the_training():
    def plan(**diagnose):
        return parse_recipe({**GOOD, "diagnose": diagnose}, "r").diagnose

    alone = plan(kernel={"prompts": "starter/benign", "k": 3, "per_group": 5})
    assert alone.watched_prompts() is None
    assert {p.label for p in alone.prompts_of(alone.kernel, "kernel")} == {Label.BENIGN}
    assert (alone.kernel.options.kernel.k, alone.kernel.options.per_group) == (3, 5)
    watched = plan(probes="starter/toxic", kernel=True)
    assert {p.label for p in watched.watched_prompts()} == {
        p.label for p in watched.prompts_of(watched.kernel, "kernel")
    }
    assert plan(probes="starter/toxic").kernel is None
    for wrong, message in (
        ({}, "name `probes`, `kernel` or `proposition`"),
        ({"kernel": True}, "`kernel` needs prompts: name its own `prompts`, or `probes`"),
        ({"kernel": {"prompts": "starter/toxic"}, "proposition": True}, "`proposition` needs prompts"),
        ({"kernel": {"prompts": "starter/toxic"}, "dynamics": {}}, "`dynamics` is about `probes`"),
    ):
        with pytest.raises(RecipeError, match=message):
            plan(**wrong)


@given(RECIPES)
@settings(deadline=None, max_examples=40)
def test_the_written_recipe_reads_back_as_the_same(tmp_path_factory, content):
    recipe = parse_recipe(content, "drawn")
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    write_text(path, recipe.to_yaml())
    again = read_recipe(path)
    assert again == recipe
    assert [again.options(m) for m in again.methods] == [recipe.options(m) for m in recipe.methods]
    assert again.to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("path", OUR_RECIPES, ids=lambda p: p.stem)
def test_the_recipes_that_come_along_are_valid(path):
    recipe = read_recipe(path)
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
