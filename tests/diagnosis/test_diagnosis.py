"""The whole diagnosis: against the parts called by themselves, on prompts of any mix, and what its words may claim."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from discernment.diagnosis.diagnosis import DiagnoseOptions, Diagnosis, diagnose
from discernment.diagnosis.draw import choose_prompts
from discernment.diagnosis.entanglement import RowDifference
from discernment.diagnosis.finding import describe
from discernment.diagnosis.group_rejection import rejections
from discernment.errors import DataError, ModelError
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from tiny import make_benign, make_model, make_prompts

T, S, B = Label.TOXIC, Label.SEEMINGLY_TOXIC, Label.BENIGN
QUICK = DiagnoseOptions(kernel=KernelOptions(k=2, by_layer=True), per_group=3)


def make_set(pairs: int = 6, benign: int = 4) -> PromptSet:
    return PromptSet.concatenate([make_prompts(pairs), make_benign(benign)][: 1 + (benign > 0)], "made")


@pytest.fixture
def found(tiny_policy: Policy) -> Diagnosis:
    return diagnose(tiny_policy, make_set(), QUICK)


def pair(table, row: Label, column: Label):
    (only,) = [entry for entry in table if (entry.row, entry.column) == (row, column)]
    return only


# ---------------------------------------------------------------------- numbers


def test_the_numbers_are_those_of_the_parts(tiny_policy: Policy, found: Diagnosis) -> None:
    prompts = make_set()
    assert found.prompts == {T: 6, S: 6, B: 4}
    assert found.unscored == ()
    rejections = np.array(rejection_probability(tiny_policy, prompts.texts))
    labels = np.array([p.label for p in prompts])
    for group in found.rejection:
        of_label = rejections[labels == group.label]
        assert group.prompts == len(of_label)
        assert group.mean == pytest.approx(of_label.mean(), rel=1e-6)
    assert [r.harmless for r in found.rankings] == [S, B]
    for ranking in found.rankings:
        both = np.isin(labels, [T, ranking.harmless])
        expected = roc_auc_score(labels[both] == T, rejections[both])
        assert ranking.mean == pytest.approx(expected)

    texts = [p.text for p in found.kernel_prompts]
    assert [p.label for p in found.kernel_prompts] == [T] * 3 + [S] * 3 + [B] * 3
    norms = gradient_kernel(tiny_policy, texts, KernelOptions(k=2)).norms
    expected = norms / norms.diagonal()[:, None]
    np.testing.assert_allclose(found.row_normalised, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.symmetric, norms / np.sqrt(np.outer(*[norms.diagonal()] * 2)), rtol=1e-4)
    assert pair(found.groups, S, T).mean == pytest.approx(expected[3:6, :3].mean(), rel=1e-4)
    others = ~np.eye(3, dtype=bool)  # the diagonal of a block of two labels are matched pairs
    unmatched, of_others = expected[3:6, :3][others].mean(), expected[:3, :3][others].mean()
    steps = {g.row: g.mean for g in found.steps_on_toxic}
    assert steps == {
        S: pytest.approx(unmatched, rel=1e-4),
        T: pytest.approx(of_others, rel=1e-4),
        B: pytest.approx(expected[6:, :3].mean(), rel=1e-4),
    }
    (against_toxic, against_benign) = found.differences
    assert against_toxic.difference == pytest.approx(unmatched - of_others, rel=1e-3)
    assert against_benign.difference == pytest.approx(unmatched - expected[6:, :3].mean(), rel=1e-3)
    assert against_toxic.low is None  # three prompts are too few

    assert [f.layer for f in found.separability] == [1, 2, 3, 4]
    assert found.recommendation.layer in (1, 2, 3)
    assert [p.part for p in found.parts] == [
        "embeddings",
        *(f"layer {n}" for n in range(1, 5)),
        "norm",
        "head",
    ]
    assert sum(p.mean or 0 for p in found.parts) == pytest.approx(1)
    assert found.head is not None
    assert len(found.matched.pairs) == 3
    highest = max(expected[row, column] for row in range(3, 9) for column in range(3))
    assert found.entangled[0].similarity == pytest.approx(highest, rel=1e-4)
    assert found.cost.backward_passes == 9 * 2
    assert found.noise_floor < 1e-3
    assert found.output_tokens is not None
    assert len(found.output_tokens) == 2


def test_intervals_of_differences_hold_them(tiny_policy: Policy) -> None:
    options = DiagnoseOptions(kernel=KernelOptions(k=1, layers=(4, 4)), per_group=11)
    found = diagnose(tiny_policy, make_set(11, 11), options)
    for difference in found.differences:
        assert difference.low is not None
        assert difference.low < difference.difference < difference.high
    assert found.head is None
    assert "cannot be said" not in found.finding


def test_the_same_call_gives_the_same_json(tiny_policy: Policy, found: Diagnosis) -> None:
    again = diagnose(tiny_policy, make_set(), QUICK)
    without_seconds = [json.dumps(d.model_dump(mode="json", exclude={"cost"})) for d in (found, again)]
    assert without_seconds[0] == without_seconds[1]


def test_json_round_trip(found: Diagnosis) -> None:
    written = json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert Diagnosis.model_validate(json.loads(written)) == found
    assert json.loads(written)["separability"][0]["layer"] == 1
    assert json.loads(written)["recommendation"].keys() == {"layer", "reason"}


@pytest.mark.parametrize("rows", ["own", "probes", "exact"])
def test_other_output_rows(tiny_policy: Policy, rows: str) -> None:
    options = DiagnoseOptions.model_validate({"kernel": {"rows": rows, "k": 2, "probes": 4}, "per_group": 2})
    found = diagnose(tiny_policy, make_set(4, 0), options)
    assert found.output_tokens is None
    assert (found.sampling_error is not None) == (rows == "probes")
    assert bool(found.parts) == bool(found.head) == (rows != "exact")
    assert all(value is not None for row in found.row_normalised for value in row)


# ---------------------------------------------------------------------- which prompts


def framed(frames: int, pairs: int) -> PromptSet:
    """Frames of some pairs each, one after another."""
    rows = [
        Prompt(
            id=f"{frame}-{n}-{label}", text=f"{label} {frame} {n}", label=label, source="made", frame=str(frame),
            partner=f"{frame}-{n}-{S if label is T else T}",
        )
        for frame in range(frames) for n in range(pairs) for label in (T, S)
    ]  # fmt: skip
    return PromptSet(rows, Provenance(name="framed"))


@pytest.mark.parametrize("seed", range(5))
def test_pairs_stay_together_and_frames_take_turns(seed: int) -> None:
    chosen = choose_prompts(framed(frames=6, pairs=4), 6, seed)
    toxic, other = chosen.prompts[:6], chosen.prompts[6:]
    assert [p.id for p in toxic] == [p.partner for p in other]
    assert len({p.frame for p in toxic}) == 6
    assert chosen.prompts == choose_prompts(framed(frames=6, pairs=4), 6, seed).prompts


def test_seeds_draw_different_prompts_and_partners_come_first() -> None:
    drawn = {tuple(p.id for p in choose_prompts(framed(6, 4), 6, seed)) for seed in range(5)}
    assert len(drawn) == 5
    single = Prompt(id="alone", text="alone", label=T, source="made")
    mixed = PromptSet([single, *framed(2, 2)], Provenance(name="mixed"))
    assert "alone" not in {p.id for p in choose_prompts(mixed, 4, 0)}
    assert {p.id for p in choose_prompts(mixed, 9, 0)} == {p.id for p in mixed}


# ---------------------------------------------------------------------- bad input


def test_without_benign_prompts_their_rows_are_left_out(tiny_policy: Policy) -> None:
    found = diagnose(tiny_policy, make_set(4, 0), QUICK)
    assert {g.row for g in found.groups} == {g.column for g in found.groups} == {T, S}
    assert [d.against for d in found.differences] == [T]
    assert [r.harmless for r in found.rankings] == [S]
    assert "benign" not in found.finding


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (make_benign(4), r"has no toxic ones; it has 4 benign\.$"),
        (make_prompts(4).with_label(T), r"has no seemingly_toxic ones; it has 4 toxic\.$"),
        (make_prompts(4).with_label(S), r"has no toxic ones; it has 4 seemingly_toxic\.$"),
        (
            PromptSet([make_prompts(1)[0]], Provenance(name="one")),
            r"^A diagnosis .* two of each at least, and one has 1 toxic one; it has 1 toxic\.$",
        ),
        (make_prompts(1), r"has 1 toxic one; it has 1 toxic and 1 seemingly_toxic\.$"),
        (PromptSet(make_prompts(2)[:3], Provenance(name="three")), r"three has 1 \w+ one; it has"),
        (PromptSet([], Provenance(name="none")), r"none has no toxic ones; it has no prompts\.$"),
    ],
)
def test_a_group_too_few_is_one_sentence(tiny_policy: Policy, prompts: PromptSet, message: str) -> None:
    with pytest.raises(DataError, match=message):
        diagnose(tiny_policy, prompts, QUICK)


def test_a_prompt_longer_than_the_context(tiny_policy: Policy) -> None:
    long = Prompt(id="long", text="how " * 300, label=B, source="made")
    prompts = PromptSet([*make_prompts(2), long], Provenance(name="mine"))
    with pytest.raises(DataError, match=r"The prompt 'long' of mine has \d+ tokens and tiny can read 256"):
        diagnose(tiny_policy, prompts, QUICK)


def spoil(policy: Policy, word: str) -> None:
    """Give a token that only some prompts have a state without values."""
    (token,) = policy.chat.tokenizer(word, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[token] = float("nan")


@pytest.fixture
def untied_policy(tokenizer) -> Policy:
    return Policy(
        make_model("llama", len(tokenizer), tie_word_embeddings=False), ChatFormat(tokenizer), "tiny"
    )


def test_a_prompt_without_finite_values_is_unscored(untied_policy: Policy) -> None:
    spoil(untied_policy, "%")
    bad = Prompt(id="bad", text="How do I kill 5%?", label=T, source="source-0")
    prompts = PromptSet([*make_prompts(4), bad], Provenance(name="mine"))
    found = diagnose(untied_policy, prompts, QUICK)
    assert [(u.prompt_id, u.reason) for u in found.unscored] == [
        ("bad", "the model's values for it are not finite")
    ]
    assert found.prompts[T] == 5
    assert next(g.prompts for g in found.rejection if g.label is T) == 4
    assert "bad" not in {p.id for p in found.kernel_prompts}
    assert all(value is not None for row in found.row_normalised for value in row)


def test_nothing_finite_is_an_error(untied_policy: Policy) -> None:
    spoil(untied_policy, "?")
    with pytest.raises(ModelError, match="not finite for 8 of 8 prompts"):
        diagnose(untied_policy, make_prompts(4), QUICK)


def test_weights_of_less_than_float32_are_seen_before_anything_is_measured(tiny_policy: Policy) -> None:
    tiny_policy.model.bfloat16()
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(ModelError, match="load it with `dtype: float32`"):
        diagnose(tiny_policy, make_prompts(4), QUICK, progress=lambda *report: seen.append(report))
    assert seen == []


def test_a_prompt_whose_gradients_are_not_finite_is_unscored(tokenizer) -> None:
    """Without an epsilon, the slope of the norm of a token of size 1e-15 is beyond float32; its value is not."""
    model = make_model("llama", len(tokenizer), tie_word_embeddings=False, rms_norm_eps=0.0)
    policy = Policy(model, ChatFormat(tokenizer), "tiny")
    (token,) = tokenizer("%", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] *= 1e-14
    bad = Prompt(id="bad", text="How do I kill 5%?", label=T, source="source-0")
    prompts = PromptSet([*make_prompts(3), bad], Provenance(name="mine"))
    found = diagnose(policy, prompts, QUICK.model_copy(update={"per_group": 4}))
    assert [(u.prompt_id, u.reason) for u in found.unscored] == [
        ("bad", "its gradients in the model are not finite")
    ]
    assert next(g.prompts for g in found.rejection if g.label is T) == 4
    place = [p.id for p in found.kernel_prompts].index("bad")
    assert {value for row in found.row_normalised for value in (row[place],)} == {None}
    assert pair(found.steps_on_toxic, T, T).mean is not None


def test_another_mistake_is_not_taken_for_values_that_are_not_finite(tokenizer) -> None:
    refusing = copy.deepcopy(tokenizer)
    refusing.chat_template = "{{ raise_exception('Only in German.') }}"
    policy = Policy(make_model("llama", len(tokenizer)), ChatFormat(refusing), "tiny")
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(ModelError, match="Only in German"):
        rejections(policy, make_prompts(2), 8, lambda *report: seen.append(report))
    assert seen == []


def test_options() -> None:
    assert DiagnoseOptions().kernel.by_layer
    assert DiagnoseOptions.model_validate({"kernel": {"k": 3}}).kernel == KernelOptions(k=3, by_layer=True)
    assert not DiagnoseOptions(kernel=KernelOptions()).kernel.by_layer
    assert not DiagnoseOptions.model_validate({"kernel": {"by_layer": False}}).kernel.by_layer
    with pytest.raises(ValidationError, match="a diagnosis does not look at"):
        DiagnoseOptions(kernel=KernelOptions(rows="likelihood"))
    with pytest.raises(ValidationError, match="extra"):
        DiagnoseOptions.model_validate({"kernels": {}})


# ---------------------------------------------------------------------- interruption


def test_an_interrupted_diagnosis_goes_on(
    tiny_policy: Policy, found: Diagnosis, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("discernment.kernel.job.SAVE_EVERY_SECONDS", 0)

    def stop(what: str, done: int, of: int) -> None:
        if what == "layers of the kernel" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(tiny_policy, make_set(), QUICK, tmp_path, stop)
    assert (tmp_path / "kernel.safetensors").is_file()
    seen: list[tuple[str, int, int]] = []
    again = diagnose(tiny_policy, make_set(), QUICK, tmp_path, lambda *report: seen.append(report))
    np.testing.assert_allclose(again.row_normalised, found.row_normalised, rtol=1e-5)
    assert again.finding == found.finding
    assert not any(tmp_path.iterdir())
    assert ("rejection probabilities", 16, 16) in seen
    assert ("hidden states", 12, 12) in seen
    assert seen[-1] == ("layers of the kernel", 4, 4)


# ---------------------------------------------------------------------- words


def reworded(found: Diagnosis, **intervals: tuple[float, float]) -> str:
    """The finding if the differences had other intervals."""
    differences = tuple(
        RowDifference(against=label, difference=sum(intervals[label]) / 2, low=intervals[label][0],
                      high=intervals[label][1])
        for label in (T, B) if label in intervals
    )  # fmt: skip
    return describe(found.model_copy(update={"differences": differences}))


def test_the_finding_claims_what_the_intervals_say(found: Diagnosis) -> None:
    assert "cannot be said" in found.finding
    reaches, nothing = "reaches them more than it reaches benign ones", "no entanglement beyond"
    leaked = reworded(found, toxic=(-0.1, 0.1), benign=(0.2, 0.4))
    assert "compared with benign prompts they are moved further (+0.30, +0.20 to +0.40)" in leaked
    assert "compared with other toxic prompts they are moved no further and no less, as far as" in leaked
    assert f"{reaches}." in leaked
    in_part = reworded(found, toxic=(-0.3, -0.1), benign=(0.2, 0.4))
    assert f"{reaches}, though less than it reaches toxic ones." in in_part
    for benign in ((-0.1, 0.3), (-0.4, -0.1)):
        shown = reworded(found, toxic=(-0.3, -0.1), benign=benign)
        assert nothing in shown
        assert reaches not in shown
    alone = reworded(found, toxic=(-0.3, -0.1))
    assert reaches not in alone
    assert nothing not in alone


def with_ranking(found: Diagnosis, **ends: float | None) -> str:
    first, *others = found.rankings
    changed = first.model_copy(update={"mean": 0.6, **ends})
    return describe(found.model_copy(update={"rankings": (changed, *others)}))


def test_a_ranking_is_called_better_than_chance_only_by_its_interval(found: Diagnosis) -> None:
    assert "0.60 (0.45 to 0.75), which is not shown to differ from chance." in with_ranking(
        found, low=0.45, high=0.75
    )
    assert "0.60 (0.55 to 0.65), which is better than chance." in with_ranking(found, low=0.55, high=0.65)
    assert "(0.35 to 0.45), which is worse than chance." in with_ranking(found, low=0.35, high=0.45)
    assert "0.60, where 0.5 is chance." in with_ranking(found, low=None, high=None)


def test_layers_that_tell_nothing_apart_are_said_to(found: Diagnosis) -> None:
    def described(auroc: float | None) -> str:
        layers = tuple(f._replace(probe_auroc=auroc, probe_error=0.05) for f in found.separability)
        return describe(found.model_copy(update={"separability": layers}))

    assert "refinement has little to build on" in described(0.55)
    assert "refinement has little to build on" not in described(0.9)
    assert "The labels mix most after layer 1 (probe AUROC 0.900)." in described(0.9)
    assert "mix most" not in described(None)


def test_the_command_says_how_the_model_was_spoken_to(tokenizer) -> None:
    model = make_model("llama", len(tokenizer))
    options = QUICK.model_copy(update={"per_group": 1})
    spoken = Policy(model, ChatFormat(tokenizer, "plain", "Be kind; rm"), "my model")
    command = diagnose(spoken, make_prompts(4), options).command
    assert re.fullmatch(
        r"discern refine 'my model' --layer \d --out refined --system 'Be kind; rm' --model-option template=plain",
        command,
    )
    assert (
        "--"
        not in diagnose(Policy(model, ChatFormat(tokenizer), "m"), make_prompts(4), options).command.split(
            "--out refined"
        )[1]
    )
