"""`dpo` and `porover`: their stages, what they train on, and whole runs that are done once."""

from pathlib import Path

import pytest

from discernment.cost import StageCost
from discernment.errors import ModelError, RecipeError
from discernment.files import read_json, read_json_lines
from discernment.methods.dpo import Dpo, DpoOptions
from discernment.methods.method import Materials, MethodOptions
from discernment.methods.porover import Porover, PoroverOptions, align_accepted
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.prompts import Label, PromptSet
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from discernment.training.options import LoraOptions
from discernment.training.preference import prefer
from discernment.training.replies import FILE, write_replies
from discernment.training.supervised import AlignOptions
from said import NO, YES, script
from tiny import make_benign, make_prompts

PAIRS = make_prompts(4)
TOXIC, SEEMINGLY = (PAIRS.with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
SETS = {"general": make_benign(3), "safety": TOXIC, "augmentation": SEEMINGLY}
BASE, ALIGNED = PolicySpec.of("base"), PolicySpec.of("aligned")


class Called:
    """Stages that are only called: what they are given, and a name for what they would leave."""

    def __init__(self):
        self.policies, self.texts = [], []

    def __call__(self, name, work, *, start, **inputs):
        self.policies.append((name, work, start.model.model, inputs))
        return start.with_model(model=f"{start.model.model}+{name}")

    def run(self, name, work, inputs):
        assert (name, work) == ("replies", write_replies)
        self.texts.append(inputs)
        return Path(f"texts-{len(self.texts)}")


def build(method, own=None, align=None, base=ALIGNED, **changes):
    stage = Called()
    options = MethodOptions(align or AlignOptions(seed=5), own=own, untrained=BASE)
    policy = method.build(base, Materials(**SETS | changes), options, stage)
    return policy.model.model, stage


def asked(stage):
    return [(i["start"].model.model, [p.id for p in i["prompts"]], i["seed"]) for i in stage.texts]


def ids(prompts):
    return [p.id for p in prompts]


def test_dpo_asks_the_aligned_model_and_the_base_model():
    policy, stage = build(Dpo())
    assert policy == "aligned+prefer"
    assert asked(stage) == [("aligned", ids(SEEMINGLY), 5), ("base", ids(TOXIC), 5)]
    [(_, work, start, inputs)] = stage.policies
    assert (work, start) == (prefer, "aligned")
    assert (ids(inputs["examples"]), ids(inputs["seemingly"])) == (ids(TOXIC), ids(SEEMINGLY))
    assert [inputs[name] for name in ("refusals", "answers", "harmful")] == [
        Path("texts-1"),
        None,
        Path("texts-2"),
    ]


def test_dpo_without_answers_has_the_base_model_answer():
    silent = make_prompts(4, responses=False)
    _, stage = build(Dpo(), DpoOptions(containment=0), augmentation=None, contrast=silent)
    assert asked(stage) == [("aligned", ids(SEEMINGLY), 5), ("base", ids(SEEMINGLY), 5)]
    [(_, _, _, inputs)] = stage.policies
    assert (inputs["answers"], inputs["harmful"]) == (Path("texts-2"), None)
    with pytest.raises(
        RecipeError, match=r"'dpo' needs seemingly toxic prompts under `data.augmentation` or `data.contrast`"
    ):
        build(Dpo(), augmentation=None)
    with pytest.raises(ModelError, match="The training on pairs starts from weights"):
        build(Dpo(), base=ALIGNED.with_rule(RuleSpec(name="prompted")))


def test_porover_overgenerates_aligns_and_prefers():
    own = PoroverOptions(overgenerated={"draws": 3})
    policy, stage = build(Porover(), own, base=BASE)
    assert policy == "base+align+prefer"
    assert asked(stage) == [
        ("base", ids([*make_benign(3), *PAIRS.with_label(Label.TOXIC), *SEEMINGLY]), 5),
        ("base+align", ids(SEEMINGLY), 5),
    ]
    assert [i.get("draws", 1) for i in stage.texts] == [3, 1]
    [(_, first, _, aligned), (_, second, start, preferred)] = stage.policies
    assert (first, second, start) == (align_accepted, prefer, "base+align")
    assert ids(aligned["examples"]) == ids([*make_benign(3), *TOXIC])
    assert ids(preferred["examples"]) == ids(TOXIC)
    assert [preferred[name] for name in ("refusals", "answers", "harmful")] == [
        Path("texts-2"),
        Path("texts-1"),
        Path("texts-1"),
    ]


def test_adapters_are_those_of_stage_2_unless_the_method_says_otherwise():
    lora = LoraOptions(rank=2)
    found = [
        build(method, own, AlignOptions(lora=lora))[1].policies[-1][3]["options"].lora
        for method, kind in ((Dpo(), DpoOptions), (Porover(), PoroverOptions))
        for own in (None, kind(beta=1), kind(lora=None), kind(lora=LoraOptions(rank=3)))
    ]
    assert found == [lora, lora, None, LoraOptions(rank=3)] * 2
    for method, kind in ((Dpo(), DpoOptions), (Porover(), PoroverOptions)):
        assert build(method, kind(train_embeddings=True, lora=None), AlignOptions(lora=lora))
        with pytest.raises(RecipeError, match="add `lora: null` to these options"):
            build(method, kind(train_embeddings=True), AlignOptions(lora=lora))


def test_no_harmful_reply_is_learned_as_a_reply(tmp_path, monkeypatch):
    mix = PromptSet.concatenate([make_benign(2), TOXIC], "mix")
    quiet = make_prompts(4, responses=False).with_label(Label.SEEMINGLY_TOXIC)
    said = [[NO, YES], [NO], [YES, NO], [YES], ["", YES], [NO], [YES], [NO, YES], [NO], [""]]
    replies = script(tmp_path / "said", [*mix, *quiet], *said)
    seen = []

    def align(start, examples, *rest):
        seen.append(examples)
        return StageCost(steps=0, tokens=0)

    monkeypatch.setattr("discernment.methods.porover.align", align)
    cost = align_accepted(BASE, mix, quiet, replies, AlignOptions(), tmp_path / "out")
    own = TOXIC[0].response
    assert [(p.id, p.response) for p in seen[0]] == [
        ("b0", YES),
        ("b1", mix[1].response),
        ("0-toxic", NO),
        ("1-toxic", own),
        ("2-toxic", own),
        ("3-toxic", NO),
        ("0-safe", YES),
        ("1-safe", YES),
    ]
    assert cost.notes == {"accepted": {"benign": 1, "toxic": 2, "seemingly_toxic": 2}}


def make_recipe(folder, tmp_path, methods):
    for name, prompts in SETS.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    return parse_recipe(
        {
            "name": "pairs",
            "model": str(folder),
            "data": {name: str(tmp_path / f"{name}.jsonl") for name in SETS},
            "align": {"batch_size": 4, "learning_rate": 3e-3, "epochs": 6},
            "methods": methods,
            "evaluate": {
                "max_new_tokens": 4,
                "unscored_limit": 1,
                "rejection": False,
                "benchmarks": [str(tmp_path / "augmentation.jsonl")],
            },
        },
        "pairs",
    )


def test_a_run_with_both_is_done_once_and_hides_what_is_harmful(model_folder, tmp_path):
    few = {"max_tokens": 12, "temperature": 0}
    common = {"containment": None, "written": few, "learning_rate": 1e-3}
    recipe = make_recipe(
        model_folder(),
        tmp_path,
        [
            "stl",
            {"method": "dpo", "options": {**common, "harmful": {"max_tokens": 12}}},
            {
                "method": "porover",
                "options": {**common, "overgenerated": {"max_tokens": 12, "draws": 2}},
            },
        ],
    )
    run_recipe(recipe, tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    names = {
        label: [manifest["stages"][key]["name"] for key in entry["stages"]]
        for label, entry in manifest["methods"].items()
    }
    assert names == {
        "stl": ["align", "evaluate"],
        "dpo": ["align", "replies", "replies", "prefer", "evaluate"],
        "porover": ["replies", "align", "replies", "prefer", "evaluate"],
    }
    assert manifest["methods"]["dpo"]["stages"][0] == manifest["methods"]["stl"]["stages"][0]
    for label in ("dpo", "porover"):
        notes = manifest["stages"][manifest["methods"][label]["stages"][3]]["notes"]
        assert sum(notes["pairs"].values()) > 0
    assert run_recipe(recipe, tmp_path / "run").stages_run == 0

    files = [*(tmp_path / "run").glob(f"stages/replies-*/{FILE}")]
    said = {row["reply"].strip() for file in files for _, row in read_json_lines(file)}
    known = {p.response for each in SETS.values() for p in each}
    hidden = [reply for reply in said if len(reply) > 10 and not any(reply in text for text in known)]
    assert hidden
    elsewhere = [p for p in (tmp_path / "run").rglob("*.json*") if p not in files]
    assert len(elsewhere) > 10
    texts = [p.read_text(encoding="utf-8") for p in elsewhere]
    assert not any(reply in text for reply in hidden for text in texts)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"method": "dpo", "options": {"containment": 1}},
            "`methods.0.options.containment`: Input should be less",
        ),
        (
            {"method": "dpo", "options": {"bta": 1}},
            "`methods.0.options.bta` is not a known option; did you mean `beta`?",
        ),
        (
            {"method": "porover", "options": {"overgenerated": {"draws": 0}}},
            "overgenerated.draws`: Input should be",
        ),
    ],
)
def test_options_are_checked_with_the_recipe(tmp_path, entry, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe("some/model", tmp_path, [entry])
