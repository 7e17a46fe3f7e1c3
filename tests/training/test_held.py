"""Layers that do not change are run once a row, and training comes to the same."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from safetensors.torch import load_file

from architectures import make_tiny
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import TrainingError
from discernment.files import read_json_lines
from discernment.models.held import HeldLayers
from discernment.models.layers import find_layers
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet, Provenance
from discernment.training import contrastive_trainer, held, supervised_trainer
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.examples import encode_examples
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions, align
from stopping import stopped_at
from tiny import FAMILIES, MOE_FAMILIES, SIZES, make_benign, make_model, make_prompts

PLAIN = {"gpt2"}
"""Their layers have dropout by default, so what they put out is another thing each time."""
QUICK = {("llama", None), ("gemma3", "lora"), ("gpt2", None), ("gpt_oss", None)}
CASES = [
    pytest.param(named, lora, marks=() if (named, lora) in QUICK else pytest.mark.slow)
    for named in [*FAMILIES, *MOE_FAMILIES]
    for lora in (None, "lora")
]
ALIGN = {"batch_size": 4, "learning_rate": 3e-3, "epochs": 3.0, "frozen_layers": 2}
REFINE = {
    "layer": 3,
    "first_layer": 1,
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "evaluate_every": 2,
    "stopping": "none",
}
EXAMPLES = PromptSet([*make_prompts(3), *make_benign(4)], Provenance(name="of several lengths"))
VALIDATION = make_prompts(6, sources=2)


def train(stage, base, out, validated=True, **changes):
    if stage == "align":
        options = AlignOptions(**{**ALIGN, **changes})
        return align(str(base), EXAMPLES, options, out, make_benign(3) if validated else None)
    options = RefineOptions(**{**REFINE, **changes})
    kept = make_benign(4) if options.retention else None
    return refine(str(base), make_prompts(), options, out, VALIDATION if validated else None, kept)


def history(out):
    return [row for _, row in read_json_lines(out / "history.jsonl")]


def weights(folder):
    return load_file(folder / "model/model.safetensors")


@pytest.fixture
def runs(monkeypatch):
    """How many rows the first layer is run on, in training and before it; and whether states were stored."""

    class Runs:
        rows = 0
        stored = 0

        @contextmanager
        def plainly(self):
            with monkeypatch.context() as patch:
                patch.setattr(HeldLayers, "can_be_recalled", lambda *_: False)
                yield

    runs = Runs()
    original = held.HeldStates.put

    def put(self, row, states):
        runs.stored += 1
        original(self, row, states)

    monkeypatch.setattr(held.HeldStates, "put", put)

    def count(module, arguments, keywords, output):
        # The layer itself is called where it is passed over, too.
        if getattr(module, "layer_idx", None) == 0 and type(module).__name__.endswith("Attention"):
            first = output[0] if isinstance(output, tuple) else output
            runs.rows += len(first)

    handle = torch.nn.modules.module.register_module_forward_hook(count, with_kwargs=True)
    yield runs
    handle.remove()


def felt(name, value):
    """A parameter without the keys' bias: a softmax does not feel it, so AdamW moves it by what rounding leaves."""
    if not name.endswith("query_key_value.bias"):  # of GPT-NeoX: queries, keys and values of each head
        return value
    return value.view(SIZES["num_attention_heads"], 3, -1)[:, [0, 2]]


@pytest.mark.parametrize("stage", ["align", "refine"])
@pytest.mark.parametrize(("named", "lora"), CASES)
@pytest.mark.thinned(3)
def test_training_comes_to_the_same(named, stage, lora, model_folder, tmp_path, runs):
    base = model_folder(named)
    changes = {"lora": lora and LoraOptions(rank=4)} | (
        {"retention": 0.5, "retention_batch": 2} if stage == "refine" else {}
    )
    train(stage, base, tmp_path / "once", **changes)
    assert (runs.stored == 0) == (named in PLAIN)
    with runs.plainly():
        train(stage, base, tmp_path / "plain", **changes)

    found, expected = history(tmp_path / "once"), history(tmp_path / "plain")
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    assert {"loss", "validation_loss" if stage == "align" else "probe_auroc"} <= {k for r in found for k in r}
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=5e-5)  # what rounding leaves of a KL near 0
    before, after, plain = load_file(base / "model.safetensors"), weights(tmp_path / "once"), weights(tmp_path / "plain")  # fmt: skip
    # States are centred in stage 1, so that it does not feel a bias of the refined layer either.
    compared = {n: v for n, v in plain.items() if stage == "align" or not n.endswith(".bias")}
    assert len(compared) > 10
    for name, value in compared.items():
        torch.testing.assert_close(felt(name, after[name]), felt(name, value), rtol=1e-3, atol=1e-4)
    path = find_layers(make_model(named)).path
    layers = range(2) if stage == "align" else (0, 3)
    still = [n for n in before if n.startswith(tuple(f"{path}.{layer}." for layer in layers))]
    assert still
    assert all(after[name].equal(before[name]) for name in still)
    assert any(not after[name].equal(before[name]) for name in before)


def test_the_loss_is_that_of_the_reply(model_folder, tmp_path):
    """By hand: cross-entropy of the tokens of the replies, averaged over those of the batch."""
    base = model_folder()
    align(str(base), EXAMPLES, AlignOptions(**{**ALIGN, "batch_size": len(EXAMPLES)}), tmp_path / "out")
    policy = Policy.load(str(base))
    losses = []
    for row in encode_examples(EXAMPLES, policy.chat, 512):
        ids, reply = torch.tensor([row["input_ids"]]), torch.tensor(row["completion_mask"][1:]).bool()
        with torch.no_grad():
            found = policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        losses.append(-found[reply].gather(1, ids[0, 1:][reply, None])[:, 0])
    assert len(losses) == len(EXAMPLES)
    assert history(tmp_path / "out")[0]["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("stage", ["align", "refine"])
def test_held_layers_run_once_a_row_however_long_the_training(stage, validated, model_folder, tmp_path, runs):
    rows = []
    longer = {"align": ("epochs", (2.0, 4.0)), "refine": ("steps", (6, 12))}[stage]
    for value in longer[1]:
        runs.rows = runs.stored = 0
        train(stage, model_folder(), tmp_path / str(value), validated, **{longer[0]: value})
        rows.append((runs.rows, runs.stored))
    assert rows[0] == rows[1]
    sets = {"align": (len(EXAMPLES), 3), "refine": (len(make_prompts()), len(VALIDATION))}[stage]
    assert rows[0][1] == (sum(sets) if validated else sets[0])


def test_one_epoch_is_run_plainly(model_folder, tmp_path, runs):
    train("align", model_folder(), tmp_path / "out", epochs=1.0)
    assert runs.stored == 0


@pytest.mark.parametrize(
    ("stage", "changes", "config"),
    [
        ("align", {"gradient_checkpointing": True}, {}),
        ("refine", {"gradient_checkpointing": True}, {}),
        ("align", {"train_embeddings": True}, {}),
        ("refine", {"train_embeddings": True}, {}),
        ("align", {}, {"attention_dropout": 0.5}),
        ("refine", {}, {"attention_dropout": 0.5}),
    ],
)
def test_what_does_not_come_to_the_same_is_run_plainly(stage, changes, config, model_folder, tmp_path, runs):
    base = model_folder("llama", **config)
    train(stage, base, tmp_path / "out", **changes)
    assert runs.stored == 0
    with runs.plainly():
        train(stage, base, tmp_path / "plain", **changes)
    assert history(tmp_path / "out") == history(tmp_path / "plain")


@pytest.mark.parametrize("shared", [0, 2])
def test_layers_that_hand_on_more_than_states_are_not_passed_over(shared):
    """The last layers of Gemma 4 may take their keys from earlier ones."""
    model = make_tiny("gemma4_text", num_kv_shared_layers=shared).requires_grad_(False)
    first = HeldLayers(find_layers(model).layers[:2])

    def logits(input_ids, attention_mask, states):
        with first.recalled(states):
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    assert first.can_be_recalled(model, model.config, "logits", logits, 0) == (shared == 0)


@pytest.mark.parametrize("stage", ["align", "refine"])
def test_an_interrupted_stage_ends_with_the_same_bytes(stage, model_folder, tmp_path, monkeypatch, runs):
    base = model_folder()
    module, trainer = {
        "align": (supervised_trainer, "SupervisedTrainer"),
        "refine": (contrastive_trainer, "ContrastiveTrainer"),
    }[stage]
    train(stage, base, tmp_path / "whole", checkpoint_every=2)
    with stopped_at(5, module, trainer, monkeypatch):
        train(stage, base, tmp_path / "broken", checkpoint_every=2)
    train(stage, base, tmp_path / "broken", checkpoint_every=2)
    assert runs.stored > 0
    assert history(tmp_path / "whole") == history(tmp_path / "broken")
    found, expected = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("stage", ["align", "refine"])
def test_large_states_lie_in_a_file_that_is_gone_afterwards(stage, model_folder, tmp_path, monkeypatch, runs):
    base = model_folder()
    train(stage, base, tmp_path / "memory")
    monkeypatch.setattr(held, "LIMIT", 0)
    train(stage, base, tmp_path / "file")
    assert runs.stored > 0
    assert history(tmp_path / "memory") == history(tmp_path / "file")
    assert sorted(p.name for p in (tmp_path / "file").iterdir()) == sorted(
        p.name for p in (tmp_path / "memory").iterdir()
    )


@pytest.mark.parametrize("stage", ["align", "refine"])
def test_looks_see_the_whole_model(stage, model_folder, tmp_path, runs):
    base, options = str(model_folder()), DynamicsOptions(per_group=2, rejection_per_group=2, k=2)
    rows = {}
    for way in ("once", "plain"):
        out = tmp_path / way
        with runs.plainly() if way == "plain" else nullcontext():
            if stage == "align":
                align(base, EXAMPLES, AlignOptions(**ALIGN), out, None, make_prompts(2), options)
            else:
                refine(
                    base, make_prompts(), RefineOptions(**REFINE), out, None, None, make_prompts(2), options
                )
        rows[way] = [row["rejection_by_prompt"] for _, row in read_json_lines(out / "dynamics.jsonl")]
    assert runs.stored > 0
    assert len(rows["once"]) > 2
    for row, other in zip(rows["once"], rows["plain"], strict=True):
        assert row.keys() == other.keys()
        assert all(row[g] == pytest.approx(other[g], rel=1e-3) for g in other)


def test_a_first_layer_that_leaves_nothing_is_told(model_folder, tmp_path):
    for first in (3, 4):
        with pytest.raises(
            ValueError, match=rf"`first_layer: {first}` leaves nothing to train up to layer 3"
        ):
            RefineOptions(**{**REFINE, "first_layer": first})
    options = RefineOptions(**{**REFINE, "layer": "auto", "first_layer": 4})
    with pytest.raises(
        TrainingError, match=r"leaves nothing to train up to layer \d, which `layer: auto` has found"
    ):
        refine(ModelSpec(model=str(model_folder())), make_prompts(), options, tmp_path)
