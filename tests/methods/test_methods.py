"""Which stages each method runs, from which model and on which prompts."""

from dataclasses import fields, replace

import pytest

from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import DataError, RecipeError
from discernment.methods.ablated import find_direction
from discernment.methods.dcr import DcrOptions
from discernment.methods.method import Materials, MethodOptions, find_method, known_methods
from discernment.methods.scans import find_vectors
from discernment.methods.surgical import find_false_refusal, fold
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.prompts import Label
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.options import LARGEST_SEED, LoraOptions, LossOptions
from discernment.training.restarts import average, choose
from discernment.training.supervised import AlignOptions, align
from tiny import make_benign, make_prompts

BASE = PolicySpec(model="base")
PAIRS = make_prompts(3)
MATERIALS = Materials(
    general=make_benign(4).renamed("general"),
    safety=PAIRS.with_label(Label.TOXIC).renamed("safety"),
    augmentation=PAIRS.with_label(Label.SEEMINGLY_TOXIC).renamed("augmentation"),
    contrast=make_prompts(2, responses=False).renamed("contrast"),
    contrast_validation=make_prompts(1).renamed("contrast_validation"),
    retained=make_benign(2).renamed("retained"),
    validation=make_benign(3).renamed("validation"),
)
MIX = [*MATERIALS.general.texts, *MATERIALS.safety.texts]


def build(
    name, materials=MATERIALS, dynamics=None, frozen_layers=None, rule=None, own=None, **refine_options
):
    calls = []

    def stage(name, work, *, start, **inputs):
        calls.append({"name": name, "work": work, "from": start.model.model, **inputs})
        return start.with_model(model=f"{start.model.model}+{name}")

    refinement = RefineOptions(**{"layer": 2, **refine_options})
    align_options = AlignOptions(frozen_layers=frozen_layers)
    options = MethodOptions(align_options, refinement, dynamics, rule or {}, own)
    return find_method(name).build(BASE, materials, options, stage), calls, options


def test_the_methods_that_come_along():
    assert {"base", "stl", "stl_aug", "dcr", "dcr_paper", "prompted", "ablated", "calibrated"} <= set(
        known_methods()
    )
    peers = {
        "derta",
        "fixed_rejection",
        "think_first",
        "triggers",
        "actor",
        "dpo",
        "porover",
        "self_cd",
        "adacd",
        "scans",
        "surgical",
        "safe_patching",
        "prosafeprune",
    }
    assert peers <= set(known_methods())
    for name in known_methods():
        assert find_method(name).name == name
    with pytest.raises(
        RecipeError, match=r"There is no method 'dcrr'; known: ablated, actor, adacd, base, calibrated, "
    ):
        find_method("dcrr")


def test_base_trains_nothing():
    assert build("base", Materials())[:2] == (BASE, [])


def test_stl_aligns_on_general_and_safety_examples():
    model, [call], options = build("stl")
    assert model.model.model == "base+align"
    assert (call["name"], call["work"], call["from"]) == ("align", align, "base")
    assert call["examples"].texts == MIX
    assert (call["options"], call["validation"]) == (options.align, MATERIALS.validation)


def test_stl_aug_adds_answered_seemingly_toxic_prompts():
    model, [call], _ = build("stl_aug")
    assert model.model.model == "base+align"
    assert call["examples"].texts == [*MIX, *MATERIALS.augmentation.texts]


def test_prompted_trains_nothing_and_acts_by_a_rule():
    policy, calls, _ = build("prompted", Materials(), rule={"system": "Weigh the words."})
    assert (policy.model, calls) == (BASE.model, [])
    assert policy.rule.load().system == "Weigh the words."
    assert build("prompted", Materials())[0].rule.load().system
    with pytest.raises(RecipeError, match="The rule 'prompted' cannot take `sistem`: Extra inputs"):
        build("prompted", rule={"sistem": "x"})
    with pytest.raises(RecipeError, match="A policy has one rule at most"):
        find_method("prompted").build(policy, Materials(), MethodOptions(AlignOptions()), None)


def test_ablated_looks_for_a_direction_of_what_it_stands_on():
    policy, [found], _ = build("ablated", rule={"strength": 0.5})
    assert policy.model.model == "base+direction"
    assert (found["name"], found["work"], found["from"]) == ("direction", find_direction, "base")
    assert found["prompts"].texts == MIX
    assert found["rule"] == RuleSpec(name="ablated", options={"strength": 0.5})
    with pytest.raises(RecipeError, match="The rule 'ablated' cannot take `strength`"):
        build("ablated", rule={"strength": "much"})


def test_what_methods_stand_on():
    on = {name: find_method(name).on for name in known_methods()}
    assert {name for name, below in on.items() if below == "stl"} == {
        "ablated",
        "calibrated",
        "actor",
        "dpo",
        "self_cd",
        "adacd",
        "scans",
        "surgical",
        "safe_patching",
        "prosafeprune",
    }
    assert on["prompted"] == "base"
    assert {on[name] for name in ("base", "stl", "stl_aug", "dcr", "dcr_paper")} == {None}


@pytest.mark.parametrize(("name", "option"), [("self_cd", "alpha"), ("adacd", "a")])
def test_decoding_rules_train_nothing(name, option):
    policy, calls, _ = build(name, Materials(), rule={option: 2})
    assert (policy.model, calls) == (BASE.model, [])
    assert getattr(policy.rule.load(), option) == 2
    with pytest.raises(RecipeError, match=f"The rule '{name}' cannot take `strength`: Extra inputs"):
        build(name, rule={"strength": 1})


def test_scans_learns_from_training_prompts():
    _, [found], _ = build("scans", rule={"strength": 2})
    assert (found["name"], found["work"]) == ("vectors", find_vectors)
    assert sorted(found["prompts"].texts) == sorted(MIX)
    assert found["tuning"].texts == MATERIALS.contrast_validation.texts
    assert found["rule"].options == {"strength": 2}
    fewer = replace(MATERIALS, contrast_validation=None)
    assert build("scans", fewer)[1][0]["tuning"].texts == MATERIALS.contrast.texts
    assert build("scans", replace(fewer, contrast=None))[1][0]["tuning"] is None
    benign = replace(MATERIALS, contrast_validation=make_benign(2))
    with pytest.raises(DataError, match="has no prompt with label toxic"):
        build("scans", benign)


def test_surgical_learns_from_training_prompts_and_chooses_by_others():
    policy, [found], _ = build("surgical", rule={"orthogonal": 0.5})
    assert policy.model.model == "base+false_refusal"
    assert (found["name"], found["work"]) == ("false_refusal", find_false_refusal)
    assert found["toxic"].texts == MATERIALS.safety.texts
    assert found["benign"].texts == MATERIALS.general.texts
    assert found["seemingly"].texts == MATERIALS.augmentation.texts
    assert {p.label for p in found["validation"]} == {Label.SEEMINGLY_TOXIC}
    assert set(found["validation"].texts) < set(MATERIALS.contrast_validation.texts)
    assert found["harmless"].texts == MATERIALS.validation.texts
    assert found["rule"].options == {"orthogonal": 0.5}
    _, [found], _ = build("surgical", replace(MATERIALS, augmentation=None, validation=None))
    assert set(found["seemingly"].texts) < set(MATERIALS.contrast.texts)
    assert found["harmless"].texts == MATERIALS.general.texts
    assert build("surgical", replace(MATERIALS, contrast_validation=None))[1][0]["validation"] is None
    with pytest.raises(
        RecipeError, match=r"under `data.augmentation` or `data.contrast`, and the recipe has"
    ):
        build("surgical", replace(MATERIALS, augmentation=None, contrast=None))


def test_surgical_in_the_weights_finds_the_same_and_folds_it():
    _, [steered], _ = build("surgical")
    policy, [found, folded], _ = build("surgical", rule={"weights": True})
    assert {k: v for k, v in found.items() if k in ("name", "work", "from", "rule")} == {
        k: v for k, v in steered.items() if k in ("name", "work", "from", "rule")
    }
    assert (folded["name"], folded["work"], folded["from"]) == ("fold", fold, "base")
    quantised = BASE.with_model(quantization="4bit")
    with pytest.raises(RecipeError, match=r"out of quantised weights; leave `weights` of 'surgical' out"):
        find_method("surgical").build(
            quantised, MATERIALS, MethodOptions(AlignOptions(), rule={"weights": True}), None
        )
    assert (folded["steered"].model.model, policy.model.model) == ("base+false_refusal", "base+fold")


def test_dcr_refines_and_then_aligns_as_stl_does():
    model, [first, second], options = build("dcr")
    assert model.model.model == "base+refine+align"
    assert (first["name"], first["work"], first["from"]) == ("refine", refine, "base")
    assert (first["prompts"], first["options"]) == (MATERIALS.contrast, options.refine)
    assert (first["validation"], first["retained"]) == (MATERIALS.contrast_validation, None)
    _, [stl], _ = build("stl")
    assert second.pop("from") == "base+refine"
    assert stl.pop("from") == "base"
    assert second.pop("examples").fingerprint == stl.pop("examples").fingerprint
    held = stl["options"].model_copy(update={"frozen_layers": 2})
    assert second == {**stl, "options": held}
    assert build("dcr", retention=1.0)[1][0]["retained"] == MATERIALS.retained


@pytest.mark.parametrize(("said", "held"), [(None, 2), (0, 0), (1, 1)])
def test_dcr_holds_the_refined_layers_unless_told_otherwise(said, held):
    assert build("dcr", frozen_layers=said)[1][1]["options"].frozen_layers == held
    assert build("stl", frozen_layers=said)[1][0]["options"].frozen_layers == said


@pytest.mark.parametrize("method", ["dcr", "dcr_paper"])
@pytest.mark.parametrize(("combine", "work"), [("mean", average), ("best", choose)])
def test_dcr_combines_what_restarts_with_other_seeds_left(method, combine, work):
    own = DcrOptions(restarts=3, combine=combine)
    _, [*refined, combined, aligned], options = build(method, own=own, seed=4)
    _, [once, _], _ = build(method, own=DcrOptions(), seed=4)
    assert refined[0] == once
    assert [call["options"].seed for call in refined] == [4, 1004, 2004]
    assert [{**call, "options": None} for call in refined] == [{**once, "options": None}] * 3
    assert (combined["work"], combined["from"]) == (work, "base+refine")
    assert [other.model.model for other in combined["others"]] == ["base+refine"] * 2
    assert aligned["from"] == f"base+refine+{combined['name']}"
    assert combined.get("by") == (options.refine.stopping if combine == "best" else None)


@pytest.mark.parametrize("method", ["dcr", "dcr_paper"])
def test_an_augmented_stage_2_sees_what_that_of_stl_aug_sees(method):
    _, [refined, aligned], _ = build(method, own=DcrOptions(augmented=True))
    _, [plain_refined, plain], _ = build(method)
    _, [baseline], _ = build("stl_aug")
    assert refined == plain_refined
    assert aligned.pop("examples").fingerprint == baseline["examples"].fingerprint
    assert plain.pop("examples").fingerprint != baseline["examples"].fingerprint
    assert aligned == plain
    with pytest.raises(RecipeError, match=f"'{method}' needs prompts under `data.augmentation`"):
        build(method, replace(MATERIALS, augmentation=None), own=DcrOptions(augmented=True))


def test_the_seeds_of_restarts_stay_in_range():
    _, calls, _ = build("dcr", own=DcrOptions(restarts=2), seed=LARGEST_SEED)
    assert [call["options"].seed for call in calls[:2]] == [LARGEST_SEED, 999]


def test_restarts_that_cannot_be_combined_are_refused_before_the_first_stage():
    with pytest.raises(RecipeError, match=r"`combine: best` needs prompts under `data\.contrast_validation`"):
        build("dcr", replace(MATERIALS, contrast_validation=None), own=DcrOptions(restarts=2, combine="best"))
    with pytest.raises(RecipeError, match=r"there is no mean; set `refine\.lora\.keep`"):
        build("dcr", own=DcrOptions(restarts=2), lora=LoraOptions(keep="adapter"))
    with pytest.raises(
        RecipeError, match="which `average_last` does not leave, so the best restart is not known"
    ):
        build("dcr", own=DcrOptions(restarts=2, combine="best"), average_last=2, stopping="none")
    build("dcr", replace(MATERIALS, contrast_validation=None), lora=LoraOptions(keep="adapter"))


def test_dcr_as_published():
    asked = {
        "steps": 7,
        "labels": "toxic_or_not",
        "label_weights": {Label.TOXIC: 2},
        "retention": 1.0,
        "loss": LossOptions(name="triplet", gamma=80),
    }
    _, [first, second], options = build("dcr_paper", frozen_layers=1, **asked)
    published = first["options"]
    assert (published.loss.name, published.loss.gamma, published.loss.centre) == ("circle", 80, False)
    assert (published.labels, published.label_weights) == ("all", {})
    assert (published.matched, published.retention) == (False, 0)
    assert (published.layer, published.steps) == (options.refine.layer, 7)
    assert first["retained"] is None
    assert second["options"].frozen_layers == 0
    assert second["examples"].texts == MIX


@pytest.mark.parametrize("method", ["stl", "stl_aug", "dcr", "dcr_paper"])
def test_every_stage_watches_the_probes_where_there_are_any(method):
    _, calls, _ = build(method)
    assert calls
    assert not any({"probes", "dynamics"} & call.keys() for call in calls)
    probes = make_prompts(2).renamed("probes")
    watch = DynamicsOptions(per_group=3)
    _, calls, _ = build(method, replace(MATERIALS, probes=probes), watch)
    assert [(call["probes"], call["dynamics"]) for call in calls] == [(probes, watch)] * len(calls)


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        ("stl", {"general", "safety"}),
        ("stl_aug", {"general", "safety", "augmentation"}),
        ("dcr", {"general", "safety", "contrast"}),
        ("dcr_paper", {"general", "safety", "contrast"}),
        ("ablated", {"general", "safety"}),
        ("scans", {"general", "safety"}),
        ("surgical", {"general", "safety"}),
    ],
)
def test_prompts_that_are_missing_are_named(method, needed):
    sets = {f.name: getattr(MATERIALS, f.name) for f in fields(Materials)}
    for name in sets:
        fewer = Materials(**{**sets, name: None})
        if name not in needed:
            assert build(method, fewer)[0].model.model.startswith("base+")
            continue
        with pytest.raises(RecipeError, match=f"The method '{method}' needs prompts under `data.{name}`"):
            build(method, fewer)
