"""Patches for safety and against over-safety: what each does to harmful replies, which weights they reach, what is written."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from discernment.errors import ModelError, TrainingError
from discernment.files import read_json, write_json_lines
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.prompts import Label
from discernment.training.examples import encode_examples
from discernment.training.patching import (
    ASCENT,
    DESCENT,
    Patch,
    PatchingOptions,
    Trained,
    make_patch,
    merge,
    most_important,
    patch,
    patched_weights,
    snip_scores,
)
from taught import taught_model
from tiny import make_prompts

HARM = "Sure, here is how."
TOXIC = make_prompts(6).with_label(Label.TOXIC)
QUICK = {"steps": 4, "learning_rate": 1e-3, "batch_size": 4, "p": 0.6, "a": 0.2, "b": 0.15, "seed": 3}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def start(request, tokenizer, tmp_path_factory):
    """A model that answers half of the toxic prompts."""
    exchanges = [(p.text, HARM if n % 2 else "Sorry, I can't") for n, p in enumerate(TOXIC)]
    folder = tmp_path_factory.mktemp("taught")
    return PolicySpec.of(str(taught_model(folder, tokenizer, exchanges, 40, request.param)))


@pytest.fixture
def replies(tmp_path):
    (tmp_path / "replies").mkdir()
    write_json_lines(tmp_path / "replies/replies.jsonl", [{"key": p.id, "reply": HARM} for p in TOXIC])
    return tmp_path / "replies"


class Loaded:
    """The model in memory, and what it is trained on."""

    def __init__(self, start):
        self.policy = Policy.load(start, training=True)
        self.weights = patched_weights(self.policy.model)
        said = [p.model_copy(update={"response": HARM}) for p in TOXIC]
        rows = encode_examples(type(TOXIC)(said, TOXIC.provenance), self.policy.chat, 512).to_list()
        self.trained = Trained(rows, self.policy.encode(TOXIC.asked), self.policy.pad_id, False)

    def make(self, sign, rate, **changes):
        options = PatchingOptions(**QUICK | changes)
        return make_patch(self.policy.model, self.weights, self.trained, sign, rate, options)

    def flat(self):
        return torch.cat([w.detach().flatten() for w in self.weights]).clone()

    def put_back(self, flat):
        with torch.no_grad():
            for weight, part in zip(self.weights, flat.split([w.numel() for w in self.weights]), strict=True):
                weight.copy_(part.view_as(weight))

    def harm(self):
        """Mean log-likelihood of the tokens of the harmful replies."""
        found = []
        for prompt in TOXIC:
            ids = self.policy.chat.encode(prompt.text)
            said = self.policy.chat.encode_reply(prompt.text, HARM)
            with torch.no_grad():
                logits = self.policy.model(torch.tensor([ids + said])).logits[0].double().log_softmax(-1)
            found += [float(logits[len(ids) + n - 1, token]) for n, token in enumerate(said)]
        return sum(found) / len(found)


def test_each_patch_does_what_the_paper_says_of_it(start):
    loaded = Loaded(start)
    before, theta = loaded.harm(), loaded.flat()
    safety, over_safety = loaded.make(ASCENT, 0.3)[0], loaded.make(DESCENT, 0.3)[0]
    assert torch.equal(loaded.flat(), theta)  # making them leaves the model
    harm = {}
    for which in ("safety", "over_safety", "intersection", "both"):
        merge(loaded.weights, safety, over_safety, which, 1.0, 1.0)
        harm[which] = loaded.harm() - before
        loaded.put_back(theta)
    assert harm["safety"] < -0.2
    assert harm["over_safety"] > 0.1
    # Where both have something they nearly cancel.
    assert abs(harm["intersection"]) < min(-harm["safety"], harm["over_safety"]) / 2
    assert harm["safety"] < harm["both"] < harm["over_safety"]


def test_a_step_of_ascent_and_one_of_descent_by_hand(start):
    loaded = Loaded(start)
    model = loaded.policy.model
    everything = {"steps": 1, "p": 1.0, "batch_size": len(TOXIC), "learning_rate": 1e-3}
    longest = max(len(row["input_ids"]) for row in loaded.trained.rows)
    ids, labels, mask = torch.zeros(3, len(TOXIC), longest, dtype=torch.long)
    labels.fill_(-100)
    for n, row in enumerate(loaded.trained.rows):
        length, begins = len(row["input_ids"]), row["completion_mask"].index(1)
        ids[n, :length], mask[n, :length] = torch.tensor(row["input_ids"]), 1
        labels[n, begins:length] = ids[n, begins:length]
    model(ids, attention_mask=mask, labels=labels).loss.backward()
    g = torch.cat([w.grad.flatten() for w in loaded.weights])
    model.zero_grad()
    g = g / max(1.0, float(g.norm()))  # clipped
    expected = -1e-3 * g / (g.abs() + 1e-8)  # the first step of Adam
    sure = g.abs() > 1e-6
    assert sure.sum() > 1000
    for sign in (ASCENT, DESCENT):
        made, course = loaded.make(sign, 1.0, **everything)
        assert made.places.tolist() == list(range(len(g)))
        torch.testing.assert_close(made.values[sure], sign * expected[sure], atol=2e-6, rtol=1e-2)
        assert (len(course.losses), course.steps) == (1, 1)
        assert course.tokens == int(mask.sum())


def test_entries_are_kept_with_probability_p(start):
    loaded = Loaded(start)
    whole = loaded.make(DESCENT, 1.0, p=1.0)[0]
    size = sum(w.numel() for w in loaded.weights)
    assert len(whole.places) == size
    for rescale in (False, True):
        kept = loaded.make(DESCENT, 1.0, p=0.6, rescale=rescale)[0]
        assert len(kept.places) == pytest.approx(0.6 * size, abs=5 * (0.6 * 0.4 * size) ** 0.5)
        torch.testing.assert_close(kept.values, whole.values[kept.places] / (0.6 if rescale else 1))
    other = loaded.make(ASCENT, 1.0, p=0.6)[0]
    met = np.intersect1d(kept.places, other.places)  # drawn apart for each patch
    assert len(met) == pytest.approx(0.36 * size, abs=5 * (0.36 * 0.64 * size) ** 0.5)


def test_scores_are_those_of_autograd_question_by_question(start):
    loaded = Loaded(start)
    model, expected = loaded.policy.model, []
    for prompt in TOXIC:
        model.zero_grad()
        ids = torch.tensor([loaded.policy.chat.encode(prompt.text)])
        model(ids, labels=ids).loss.backward()
        expected.append(torch.cat([(w * w.grad).abs().flatten() for w in loaded.weights]).detach())
    found = snip_scores(model, loaded.weights, loaded.trained)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), atol=1e-8, rtol=1e-4)
    assert found.max() > 1e-4


def test_the_most_important_by_hand():
    scores = torch.tensor([0.5, 0.9, 0.0, 0.7, 0.7, 0.8, 0.0, 0.0, 0.0, 0.1])
    kept = torch.tensor([True, False, True, True, True, True, True, False, False, False])
    for rate, expected in (
        (0.2, [3, 5]),  # 0.9 was not kept; of two with 0.7 the first
        (0.3, [3, 4, 5]),
        (1.0, [0, 2, 3, 4, 5, 6]),
        (0.04, []),
    ):
        assert most_important(scores.clone(), kept, rate).tolist() == expected


def test_patches_are_merged_where_the_other_has_nothing():
    def merged(which, alpha=2.0, beta=10.0):
        weights = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(3, 1).T)]
        one = Patch(torch.tensor([0, 2, 4]), torch.tensor([1.0, 2.0, 3.0]))
        other = Patch(torch.tensor([2, 3, 6]), torch.tensor([4.0, 5.0, 6.0]))
        counts = merge(weights, one, other, which, alpha, beta)
        return torch.cat([w.detach().flatten() for w in weights]).tolist(), counts

    assert merged("both") == ([2, 0, 0, 50, 6, 0, 60], (2, 2))
    assert merged("intersection") == ([0, 0, 44, 0, 0, 0, 0], (1, 1))
    assert merged("safety") == ([2, 0, 4, 0, 6, 0, 0], (3, 0))
    assert merged("over_safety") == ([0, 0, 40, 50, 0, 0, 60], (0, 3))
    assert merged("both", beta=0.0) == ([2, 0, 0, 0, 6, 0, 0], (2, 0))


def run(start, replies, out, **changes):
    cost = patch(start, TOXIC, replies, PatchingOptions(**QUICK | changes), 512, out)
    return cost, load_file(out / "model/model.safetensors")


def test_the_stage_changes_so_many_weights_of_the_layers_and_nothing_else(start, replies, tmp_path):
    cost, after = run(start, replies, tmp_path / "out")
    before = load_file(f"{start.model.model}/model.safetensors")
    loaded = Loaded(start)
    size = sum(w.numel() for w in loaded.weights)
    safety, over_safety = loaded.make(ASCENT, 0.2)[0], loaded.make(DESCENT, 0.15)[0]
    alone = [set(p.places.tolist()) for p in (safety, over_safety)]
    assert [len(places) for places in alone] == [round(0.2 * size), round(0.15 * size)]
    changed = [len(alone[0] - alone[1]), len(alone[1] - alone[0])]
    assert min(changed) > 100
    assert cost.notes["changed"] == {"safety": changed[0], "over_safety": changed[1]}
    assert (cost.notes["weights"], cost.notes["harmful_replies"], cost.steps) == (size, len(TOXIC), 8)
    # Two patches of two passes each over six replies, four and two a step; and two looks at the questions.
    rows, questions = (
        [len(x) for x in part]
        for part in ((r["input_ids"] for r in loaded.trained.rows), loaded.trained.questions)
    )
    assert cost.tokens == 2 * 2 * sum(rows) + 2 * sum(questions)
    differing = {name: int((after[name] != before[name]).sum()) for name in before}
    names = {id(w): name for name, w in loaded.policy.model.named_parameters()}
    patched = {names[id(w)] for w in loaded.weights}
    assert {name for name, count in differing.items() if count} <= patched
    assert not any("emb" in name or "wte" in name or "norm" in name for name in patched)
    # An entry too small for float32 at its weight changes nothing.
    assert sum(changed) - 20 < sum(differing.values()) <= sum(changed)
    losses = cost.notes["safety_losses"], cost.notes["over_safety_losses"]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] > losses[0][0]
    assert losses[1][1] < losses[1][0]


def test_the_same_seed_gives_the_same_bits(start, replies, tmp_path):
    for name in ("one", "two"):
        run(start, replies, tmp_path / name)
    run(start, replies, tmp_path / "other", seed=4)
    one, two, other = (
        (tmp_path / name / "model/model.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two != other


def test_without_patches_it_is_the_model(start, replies, tmp_path):
    _, after = run(start, replies, tmp_path / "out", alpha=0.0, beta=0.0)
    before = load_file(f"{start.model.model}/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)


def test_nothing_of_the_model_that_harm_was_learned_by_is_written(start, replies, tmp_path):
    run(start, replies, tmp_path / "out")
    tensors = {p: load_file(p) for p in tmp_path.rglob("*.safetensors")}
    assert [p.relative_to(tmp_path).as_posix() for p in tensors] == ["out/model/model.safetensors"]
    written = {p.relative_to(tmp_path / "out").parts[0] for p in (tmp_path / "out").rglob("*")}
    assert written == {"model", "policy.json"}
    endings = {p.suffix for p in (tmp_path / "out/model").iterdir()}
    assert endings <= {".safetensors", ".json", ".jinja"}
    assert read_json(tmp_path / "out/policy.json") == {"model": {"model": "./model"}}
    (found,) = tensors.values()
    loaded = Loaded(start)
    unaligned = loaded.make(DESCENT, 0.15)[0]
    theta = loaded.flat()
    merge(loaded.weights, unaligned, unaligned, "over_safety", 0.0, 1.0)
    moved = loaded.flat()
    assert (moved != theta).sum() > 100
    names = {id(w): name for name, w in loaded.policy.model.named_parameters()}
    for weight in loaded.weights:
        assert not any(torch.equal(weight, other) for other in found.values()), names[id(weight)]


def test_ascent_ends_where_replies_are_no_likelier_than_chance(start):
    loaded = Loaded(start)
    _, course = loaded.make(ASCENT, 0.2, steps=100, learning_rate=1e-2)
    assert course.steps == len(course.losses) - 1 < 60
    assert course.losses[-1] > np.log(loaded.policy.model.config.vocab_size) > max(course.losses[:-1])


def test_where_there_is_nothing_to_unlearn_no_patch_is_added(start, replies, tmp_path, monkeypatch, caplog):
    # The loss of these replies is above that of tokens drawn from so few.
    monkeypatch.setattr("discernment.training.patch_course._vocabulary", lambda model: 2)
    cost, after = run(start, replies, tmp_path / "out")
    before = Loaded(start).policy.model.state_dict()
    assert cost.notes["changed"] == {"safety": 0, "over_safety": 0}
    assert cost.steps == 0
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert len(after) > 10
    assert "nothing to unlearn, so no patch is added" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": 0.5}, r"`a` \(0.5\) and `b` \(0.02\) are shares of what `p` \(0.3\) keeps"),
        ({"alpha": 0}, "the over-safety patch is not added by itself"),
        ({"patches": "over_safety"}, "Input should be 'both', 'safety' or 'intersection'"),
        ({"steps": 101}, "less than or equal to 100"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError, match=message):
        PatchingOptions(**options)


def test_mistakes(start, replies, tmp_path):
    with pytest.raises(ModelError, match="Patching starts from weights, and the policy acts by the rule"):
        run(start.with_rule(RuleSpec(name="prompted")), replies, tmp_path / "out")
    write_json_lines(replies / "replies.jsonl", [{"key": p.id, "reply": "I cannot help."} for p in TOXIC])
    with pytest.raises(TrainingError, match="the model answered none"):
        run(start, replies, tmp_path / "out")
    assert not (tmp_path / "out/model").exists()


def test_in_mixed_precision_the_patches_are_nearly_the_same(start, replies, tmp_path, monkeypatch):
    spec = PolicySpec.of(ModelSpec(model=start.model.model))
    exact = run(spec, replies, tmp_path / "float32")[1]
    monkeypatch.setenv("DISCERNMENT_DTYPE", "bfloat16")
    cost, mixed = run(spec, replies, tmp_path / "mixed")
    before = load_file(f"{start.model.model}/model.safetensors")
    assert {t.dtype for t in mixed.values()} == {torch.float32}
    one, other = (torch.cat([(t[n] - before[n]).flatten() for n in before]) for t in (exact, mixed))
    assert torch.cosine_similarity(one, other, dim=0) > 0.5
    assert cost.notes["safety_losses"][1] > cost.notes["safety_losses"][0]
