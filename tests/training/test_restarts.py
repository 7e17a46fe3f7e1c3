"""What is made of several models of stage 1: their mean, or the best of them."""

import pytest
import torch
from safetensors.torch import load_file

from discernment.errors import TrainingError
from discernment.files import read_json_lines, write_json_lines
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.options import LoraOptions
from discernment.training.restarts import average, choose
from tiny import make_prompts

OPTIONS = {"layer": 2, "steps": 4, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 2}
VALIDATION = make_prompts(6, sources=2)


@pytest.fixture
def refined(model_folder, tmp_path):
    """Three models of stage 1 with different seeds; says how they are to be made."""
    base = ModelSpec(model=str(model_folder("qwen2", tie_word_embeddings=True)))

    def make(validation=VALIDATION, **options):
        policies = []
        for seed in range(3):
            out = tmp_path / f"seed-{seed}"
            refine(
                base,
                make_prompts(),
                RefineOptions(**{**OPTIONS, "stopping": "none", **options}, seed=seed),
                out,
                validation,
            )
            policies.append(PolicySpec.read(out))
        return policies

    return make


def tensors(policy):
    return load_file(f"{policy.model.model}/model.safetensors")


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, keep="both")], ids=["full", "lora"])
def test_the_average_has_the_mean_of_all_weights(refined, tmp_path, lora):
    policies = refined(lora=lora)
    cost = average(policies[0], policies[1:], tmp_path / "mean")
    mean = tensors(PolicySpec.read(tmp_path / "mean"))
    each = [tensors(policy) for policy in policies]
    assert cost.notes == {"models": 3}
    assert mean.keys() == each[0].keys()
    moved = [name for name in mean if not torch.equal(each[0][name], each[1][name])]
    assert moved
    for name, weights in mean.items():
        torch.testing.assert_close(weights, torch.stack([other[name] for other in each]).mean(0))
        if name not in moved:
            assert weights.numpy().tobytes() == each[0][name].numpy().tobytes(), name
    policy = Policy.load(PolicySpec.read(tmp_path / "mean"))
    assert policy.next_token_logits([policy.chat.encode("Hello")]).isfinite().all()


@pytest.mark.parametrize("stopping", ["none", "cross_similarity"])
def test_the_best_is_known_by_its_similarity_across_labels(refined, tmp_path, stopping):
    policies = refined(stopping=stopping, steps=6)
    cost = choose(policies[0], policies[1:], stopping, tmp_path / "best")
    ends = []
    for policy in policies:
        rows = [row for _, row in read_json_lines(policy.folder / "history.jsonl")]
        looks = [row["cross_similarity"] for row in rows if "cross_similarity" in row]
        ends.append(looks[-1] if stopping == "none" else min(looks[1:]))  # the first is before training
    assert len(set(ends)) == 3
    best = ends.index(min(ends))
    assert cost.notes == {"chosen": best + 1, "cross_similarity": ends}
    assert PolicySpec.read(tmp_path / "best").fingerprint() == policies[best].fingerprint()
    assert [file.name for file in (tmp_path / "best").iterdir()] == ["policy.json"]


def test_the_best_is_known_by_its_probe(model_folder, tmp_path):
    base = PolicySpec(model=str(model_folder()))
    policies = []
    for number, looks in enumerate([(0.9, 0.5), (0.6, 0.8), (0.7, 0.7)]):
        policies.append(base.with_model(model=str(tmp_path / f"{number}" / "model")))
        rows = [{"step": 2 * n, "probe_auroc": look} for n, look in enumerate((0.99, *looks))]
        write_json_lines(tmp_path / f"{number}" / "history.jsonl", rows)
    cost = choose(policies[0], policies[1:], "probe_auroc", tmp_path / "best")
    assert cost.notes == {"chosen": 1, "probe_auroc": [0.9, 0.8, 0.7]}  # 0.99 is before training
    assert PolicySpec.read(tmp_path / "best") == policies[0]


def test_the_best_is_not_known_without_validation_prompts(refined, tmp_path):
    policies = refined(validation=None)
    with pytest.raises(TrainingError, match=r"has no look at validation prompts.*refine with some"):
        choose(policies[0], policies[1:], "none", tmp_path / "best")
