"""What a recipe will take: nothing is run, done stages are found, and the memory is that of a real step."""

import copy
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import MambaConfig

from discernment.evaluation.evaluate import EvaluateOptions
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label
from discernment.runs.planning.estimate import smaller, work_of
from discernment.runs.planning.plan import Looker, look_through, make_plan
from discernment.runs.planning.rate import measure_rate
from discernment.runs.planning.steps import Batch, align_step, refine_step
from discernment.runs.planning.trace import LiveBytes
from discernment.runs.recipe import Recipe
from discernment.runs.run import run_recipe
from discernment.training.contrastive import RefineOptions
from discernment.training.derta import DertaOptions, derta_rows
from discernment.training.options import LoraOptions
from discernment.training.replies import ReplyOptions
from discernment.training.supervised import AlignOptions
from good_recipe import GOOD
from tiny import make_benign, make_model, make_prompts


@pytest.fixture
def recipe(model_folder):
    content = copy.deepcopy(GOOD)
    content |= {
        "model": {"model": str(model_folder()), "device": "cpu"},
        "methods": ["base", "stl", "dcr"],
        "refine": {"layer": 2, "steps": 2, "batch_size": 4, "stopping": "none"},
    }
    content["data"]["general"] |= {"limit": 4}
    content["data"]["safety"] = {"set": "starter/toxic", "split": "train", "limit": 4}
    content["data"]["contrast"] |= {"limit": 12}
    content["evaluate"] = {
        "benchmarks": [{"set": "starter/pairs", "split": "test", "limit": 4}],
        "max_new_tokens": 2,
        "unscored_limit": 1.0,
    }
    return Recipe.model_validate(content)


def test_all_stages_are_named_and_none_is_run(recipe, tmp_path):
    plan = make_plan(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [(stage.name, stage.methods) for stage in plan.stages] == [
        ("evaluate", ["base"]),
        ("align", ["stl"]),
        ("evaluate", ["stl"]),
        ("refine", ["dcr"]),
        ("align", ["dcr"]),
        ("evaluate", ["dcr"]),
    ]
    assert not any(stage.done for stage in plan.stages)
    assert all(stage.fits and stage.memory > plan.process > 0 and stage.seconds > 0 for stage in plan.stages)
    network = make_model("llama", 398)
    layers = sum(p.numel() for p in network.model.layers[:2].parameters())
    assert plan.stages[3].trained == layers
    assert plan.stages[1].trained == sum(p.numel() for p in network.parameters())
    assert [stage.trained for stage in plan.stages if stage.name == "evaluate"] == [0, 0, 0]


def test_of_several_runs_the_first_is_looked_at(recipe, tmp_path):
    (contrast,) = recipe.data.contrast
    others = [b.model_copy(update={"split": None, "set": contrast.set}) for b in recipe.evaluate.benchmarks]
    data = recipe.data.model_copy(update={"contrast": [contrast, *recipe.data.safety]})
    changed = {"seeds": [3, 4], "seed": 0, "data": data}
    left_out = {"leave_out": {"pairs": [contrast.set]}, "methods": recipe.methods[:2]}
    evaluate = recipe.evaluate.model_copy(update={"benchmarks": others})
    of_seeds = recipe.model_copy(update={**changed, "methods": recipe.methods[:1]})
    assert make_plan(of_seeds, tmp_path / "run").runs == 2
    plan = make_plan(of_seeds.model_copy(update={**left_out, "evaluate": evaluate}), tmp_path / "run")
    assert (plan.runs, [stage.name for stage in plan.stages]) == (2, ["evaluate", "align", "evaluate"])


def test_of_a_model_behind_an_endpoint_nothing_is_estimated(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    served = {"model": {"model": "openai:gpt@http://127.0.0.1:9/v1"}, "methods": ["base"]}
    content = recipe.model_dump(mode="json", exclude_defaults=True) | served
    plan = make_plan(Recipe.model_validate(content), tmp_path / "run")
    assert [(stage.name, stage.memory) for stage in plan.stages] == [("evaluate", None)]


def test_done_stages_are_found_and_those_behind_them_too(recipe, tmp_path):
    run_recipe(recipe.model_copy(update={"methods": recipe.methods[:2]}), tmp_path / "run")
    looker = Looker(tmp_path / "run" / "stages")
    look_through(recipe, looker)
    done = [(name, owners) for name, owners, _, final in looker.seen.values() if final is not None]
    assert done == [("evaluate", ["base"]), ("align", ["stl"]), ("evaluate", ["stl"])]
    assert len(looker.seen) == 6


def test_a_damaged_evaluation_is_to_be_done_again_with_what_looks_at_it(recipe, tmp_path):
    flips = recipe.evaluate.model_copy(update={"flips": 1, "batch_size": 2})
    asked = recipe.model_copy(update={"methods": recipe.methods[:1], "evaluate": flips})
    run_recipe(asked, tmp_path / "run")
    assert [(s.name, s.done) for s in make_plan(asked, tmp_path / "run").stages] == [
        ("evaluate", True), ("flips", True),
    ]  # fmt: skip
    (samples,) = (tmp_path / "run/stages").glob("evaluate-*/samples.jsonl")
    samples.write_text("".join(samples.read_text().splitlines(keepends=True)[1:]))
    first, *_ = make_plan(asked, tmp_path / "run").stages
    assert (first.name, first.done) == ("evaluate", False)


def test_stages_that_differ_in_their_prompts_alone_are_two(recipe, tmp_path):
    (general,) = recipe.data.general
    other = {"general": {**general.model_dump(mode="json", exclude_defaults=True), "seed": 5}}
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [
        "dcr",
        {"method": "dcr", "name": "other", "data": other},
        {"method": "dcr", "name": "same"},
    ]
    planned = make_plan(Recipe.model_validate(content), tmp_path / "run").stages
    assert [(s.name, s.methods) for s in planned if s.name == "align"] == [
        ("align", ["dcr", "same"]),
        ("align", ["other"]),
    ]
    once, again = (
        run_recipe(Recipe.model_validate(content), tmp_path / "run"),
        make_plan(Recipe.model_validate(content), tmp_path / "run"),
    )
    assert once.results.methods == ["dcr", "other", "same"]
    assert [(s.name, s.methods) for s in again.stages] == [(s.name, s.methods) for s in planned]


def test_every_draw_takes_time_and_judging_again_takes_none_of_a_model(model_folder, tokenizer):
    spec, chat = ModelSpec(model=str(model_folder()), device="cpu"), ChatFormat(tokenizer)
    inputs = {"policy": PolicySpec.of(spec), "benchmarks": [make_prompts(8)]}

    def operations(**options):
        given = {**inputs, "options": EvaluateOptions(rejection=False, **options)}
        work = work_of(given, spec, chat)
        return work.of(work.options).operations

    once, two, eight = (operations(max_new_tokens=16, sampling={"n": n}) for n in (1, 2, 8))
    assert once == operations(max_new_tokens=16)
    assert eight - once == pytest.approx(7 * (two - once))
    assert two > 1.2 * once
    assert work_of({**inputs, "options": EvaluateOptions(), "replies": "x"}, spec, chat) is None
    again = work_of({**inputs, "options": EvaluateOptions(batch_size=2), "batch_size": 16}, spec, chat)
    few = work_of({**inputs, "options": EvaluateOptions(batch_size=2)}, spec, chat)
    assert again.of(again.options).activations > 4 * few.of(few.options).activations


def test_means_over_the_last_steps_count(recipe, tmp_path):
    def refinement(**more):
        asked = recipe.model_copy(update={"methods": recipe.methods[2:], "refine": recipe.refine | more})
        return make_plan(asked, tmp_path / "run").stages[0]

    plain, averaged = refinement(), refinement(average_last=2)
    assert averaged.estimate.held == plain.estimate.held + 4 * plain.trained


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_a_first_restart_that_is_done_is_found(recipe, tmp_path, combine):
    (contrast,) = recipe.data.contrast
    data = recipe.data.model_copy(update={"contrast_validation": [contrast]})
    once = recipe.model_copy(update={"methods": recipe.methods[2:], "data": data})
    run_recipe(once, tmp_path / "run")
    options = {"restarts": 2, "combine": combine}
    again = once.model_copy(update={"methods": [recipe.methods[2].model_copy(update={"options": options})]})
    stages = make_plan(again, tmp_path / "run").stages
    assert [(stage.name, stage.done) for stage in stages] == [
        ("refine", True),
        ("refine", False),
        ("average" if combine == "mean" else "choose", False),
        ("align", False),
        ("evaluate", False),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_bytes_and_operations_are_those_of_a_real_step(family, model_folder):
    """The same step on real tensors: forward, back and AdamW on the first layers."""
    spec = ModelSpec(model=str(model_folder(family)), device="cpu")
    options = RefineOptions(layer=2, batch_size=4)
    found = refine_step(spec, options, 2, Batch(4, 12))

    from discernment.models.cut import CutModel
    from discernment.models.loading import load_model

    network = load_model(spec, training=True)
    with CutModel(network, 2) as cut:
        trained = [p for p in cut.train().parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        ids = torch.zeros(4, 12, dtype=torch.long)
        mask = torch.ones_like(ids)
        with LiveBytes() as live, FlopCounterMode(display=False) as counted:
            for _ in range(2):
                live.hold([*network.parameters(), *network.buffers(), *cut.cut_off()])
                states = cut.behind(0, ids, mask).float()[:, -1]
                (states @ states.T).logsumexp(-1).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    assert found.trained == sum(p.numel() for p in trained)
    assert found.optimizer == pytest.approx(8 * found.trained, rel=0.01)
    assert found.most == pytest.approx(live.most, rel=0.1)
    assert found.operations == pytest.approx(counted.get_total_flops() / 2, rel=0.01)


def test_a_step_that_computes_activations_again_can_be_looked_at_in_bfloat16(model_folder, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_DTYPE", "bfloat16")
    spec = ModelSpec(model=str(model_folder()), device="cpu")
    for step, options, batch in (
        (partial(refine_step, layer=2), RefineOptions(layer=2, batch_size=4), Batch(4, 64)),
        (align_step, AlignOptions(), Batch(4, 64, 0, 20)),
    ):
        again = options.model_copy(update={"gradient_checkpointing": True})
        plain, saving = (step(spec, how, batch=batch) for how in (options, again))
        assert 0 < saving.activations < plain.activations


@pytest.mark.slow
def test_what_is_advised_needs_less(model_folder, tokenizer):
    spec, chat = ModelSpec(model=str(model_folder()), device="cpu"), ChatFormat(tokenizer)
    for inputs in (
        {"options": RefineOptions(layer=3, batch_size=16), "prompts": make_prompts()},
        {"options": AlignOptions(batch_size=8), "examples": make_benign()},
    ):
        work = work_of({"start": PolicySpec.of(spec), **inputs}, spec, chat)
        now = work.of(work.options)
        needs = {words: work.of(options).memory for words, options in smaller(work.options)}
        assert len(needs) > 3
        assert min(needs.values()) < 0.7 * now.memory
        assert now.memory == sum((now.weights, now.gradients, now.optimizer, now.activations, now.held))


@pytest.mark.parametrize("embeddings", [True, False])
def test_what_is_advised_can_be_written_into_a_recipe(embeddings):
    for options in (
        RefineOptions(layer=3, train_embeddings=embeddings),
        AlignOptions(train_embeddings=embeddings),
    ):
        advised = smaller(options)
        assert len(advised) > 3
        for words, change in advised:
            assert type(options).model_validate(change.model_dump()) == change
            assert ("lora" in words) <= (not embeddings)


def test_adapters_train_little(model_folder):
    spec = ModelSpec(model=str(model_folder()), device="cpu")
    full = align_step(spec, AlignOptions(), Batch(2, 10, 0, 8))
    adapted = align_step(spec, AlignOptions(lora=LoraOptions(rank=2)), Batch(2, 10, 0, 8))
    assert 0 < adapted.trained < full.trained / 4
    assert adapted.optimizer < full.optimizer / 4


@pytest.mark.parametrize(
    ("options", "package"),
    [({"optim": "adamw_bnb_8bit"}, "bitsandbytes"), ({"use_liger_kernel": True}, "liger_kernel")],
)
def test_a_package_that_is_missing_is_named(options, package, monkeypatch):
    for module in ("options", "supervised"):
        monkeypatch.setattr(f"discernment.training.{module}.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=package.replace("_", ".")):
        AlignOptions(**options)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValidationError, match="adafactor"):
        AlignOptions(optim="adamm")


@pytest.mark.parametrize("optim", ["adafactor", "sgd"])
def test_the_optimizer_reaches_the_trainer(optim, model_folder, tmp_path, monkeypatch):
    from transformers import Trainer

    from discernment.training.contrastive import refine
    from discernment.training.supervised import align

    seen = []
    create = Trainer.create_optimizer

    def noted(self, *given, **named):
        made = create(self, *given, **named)
        seen.append((self.args.optim, type(made).__name__.casefold()))
        return made

    monkeypatch.setattr(Trainer, "create_optimizer", noted)
    spec = ModelSpec(model=str(model_folder()), device="cpu")
    align(spec, make_benign(), AlignOptions(batch_size=8, optim=optim), tmp_path / "align")
    options = RefineOptions(layer=2, steps=1, batch_size=8, stopping="none", optim=optim)
    refine(spec, make_prompts(), options, tmp_path / "refine")
    assert seen == [(optim, optim), (optim, optim)]


def test_the_rate_is_measured_for_models_without_attention(tmp_path):
    MambaConfig(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    assert measure_rate(ModelSpec(model=str(tmp_path), device="cpu")) > 0


def test_measuring_the_rate_leaves_the_threads_as_they_were(model_folder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measure_rate(ModelSpec(model=str(model_folder()), device="cpu")) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_harmful_replies_count_as_if_they_went_to_their_cap(model_folder, tokenizer):
    spec, chat = ModelSpec(model=str(model_folder()), device="cpu"), ChatFormat(tokenizer)
    examples = make_prompts(12).with_label(Label.TOXIC)
    options = AlignOptions(batch_size=4, max_length=512)
    text = "Write a short letter to the editor about the weather. " * 4
    cap = len(chat.encode_reply(examples[0].asked, text))
    own = DertaOptions(plain_every=None, harmful=ReplyOptions(max_tokens=cap))
    inputs = {"start": PolicySpec.of(spec), "examples": examples, "options": options}
    plain, decoupled = (work_of(given, spec, chat).of(options) for given in (inputs, {**inputs, "own": own}))
    made = derta_rows(examples, {p.id: text for p in examples}, chat, options, own).rows["input_ids"]
    before = [len(chat.encode(p.asked)) + len(chat.encode_reply(p.asked, p.response)) for p in examples]
    assert len(made) == 2 * len(before)
    assert decoupled.operations / plain.operations == pytest.approx(
        sum(map(len, made)) / sum(before), rel=0.15
    )
    assert decoupled.activations > 1.5 * plain.activations
