"""The contrastive losses against hand-worked values."""

import math

import pytest
import torch
from pydantic import ValidationError

from discernment.training.contrastive import RefineOptions
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.options import LossOptions
from discernment.training.worst_sources import WorstSources

# Two labels, unit vectors in the plane at 0, 60 degrees (label 0) and 90 degrees (label 1).
ANGLES = [0.0, 60.0, 90.0]
STATES = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in ANGLES])
LABELS = torch.tensor([0, 0, 1])
COS60, COS30, COS90 = 0.5, math.sqrt(3) / 2, 0.0


def softplus(x):
    return math.log1p(math.exp(x))


def test_circle_per_anchor_by_hand():
    m, gamma = 0.25, 2.0
    # Sun et al. 2020, eq. 6: a_p = [1 + m - s_p]+, a_n = [s_n + m]+, margins 1 - m and m.
    positive = -gamma * (1 + m - COS60) * (COS60 - (1 - m))
    near = gamma * (COS30 + m) * (COS30 - m)
    far = gamma * (COS90 + m) * (COS90 - m)
    first = softplus(positive + far)  # anchor at 0 degrees: positive at 60, negative at 90
    second = softplus(positive + near)  # anchor at 60 degrees: positive at 0, negative at 30 apart
    # The third anchor has no positive and does not count.
    expected = (first + second) / 2
    loss = ContrastiveLoss(LossOptions(name="circle", margin=m, gamma=gamma, centre=False))
    assert loss(STATES, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_circle_global_by_hand():
    m, gamma = 0.25, 2.0
    positive = -gamma * (1 + m - COS60) * (COS60 - (1 - m))
    negatives = [gamma * (c + m) * (c - m) for c in (COS30, COS90)]
    expected = softplus(math.log(sum(map(math.exp, negatives))) + positive)
    loss = ContrastiveLoss(
        LossOptions(name="circle", margin=m, gamma=gamma, centre=False, reduction="global")
    )
    assert loss(STATES, LABELS).item() == pytest.approx(expected, rel=1e-5)


def test_supcon_by_hand():
    t = 0.5
    anchors = []
    for positive, others in ((COS60, [COS60, COS90]), (COS60, [COS60, COS30])):
        anchors.append(-(positive / t - math.log(sum(math.exp(c / t) for c in others))))
    loss = ContrastiveLoss(LossOptions(name="supcon", temperature=t, centre=False))
    assert loss(STATES, LABELS).item() == pytest.approx(sum(anchors) / 2, rel=1e-4)


@pytest.mark.parametrize("name", ["circle", "supcon", "ntxent", "triplet"])
@pytest.mark.parametrize("reduction", ["per_anchor", "global"])
def test_a_step_down_the_gradient_takes_the_labels_apart(name, reduction):
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(16, 8, generator=generator) + 4.0
    labels = torch.tensor([0, 1] * 8)
    states.requires_grad_(True)
    loss = ContrastiveLoss(LossOptions(name=name, reduction=reduction, gamma=8.0))

    def cross(x):
        unit = torch.nn.functional.normalize(x - x.mean(0), dim=-1)
        return float((unit[labels == 0] @ unit[labels == 1].T).mean())

    before = cross(states.detach())
    value = loss(states, labels)
    value.backward()
    assert states.grad.abs().sum() > 0
    assert cross(states.detach() - 0.5 * states.grad / states.grad.norm(dim=-1, keepdim=True)) < before


def test_one_label_only_gives_no_gradient():
    states = torch.randn(4, 3, requires_grad=True)
    for name in ("circle", "supcon", "ntxent", "triplet"):
        loss = ContrastiveLoss(LossOptions(name=name))(states, torch.zeros(4, dtype=torch.long))
        assert loss.item() == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_ignores_padding(side):
    tokens = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    padding = torch.full((2, 2), 99.0)
    rows = [tokens, padding] if side == "right" else [padding, tokens]
    hidden = torch.cat(rows)[None]
    mask = torch.tensor([[1, 1, 0, 0] if side == "right" else [0, 0, 1, 1]])
    assert pool(hidden, mask, "last").tolist() == [[3.0, 6.0]]
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 4.0]]


def test_memory_contrasts_with_past_batches_by_hand():
    t = 0.5
    loss = ContrastiveLoss(LossOptions(temperature=t, centre=False, memory=4), width=2)
    assert loss(STATES[:2], torch.tensor([0, 0])).item() == 0  # one label, in the batch and in the memory
    # A batch of one prompt a label has no loss of its own. Remembered are 0 and 60 degrees (label 0), 90 (label 1), and
    # 0 degrees, which is the prompt itself and does not count.
    batch, labels = STATES[[2, 0]], torch.tensor([1, 0])
    total = sum(math.exp(c / t) for c in (1.0, COS60, COS90))
    expected = -sum(c / t - math.log(total) for c in (1.0, COS60)) / 2
    assert loss(batch, labels).item() == pytest.approx(expected, rel=1e-4)
    # The memory holds four: the batch takes the place of the first two, and each finds itself as it was before.
    expected = -(1 / t - math.log(math.exp(1 / t) + 2 * math.exp(COS90 / t)))
    assert loss(batch, labels).item() == pytest.approx(expected, rel=1e-4)


def test_the_worst_source_gains_weight_by_hand():
    t, step = 0.5, 0.7
    states = torch.cat([STATES, STATES.flip(0)])
    labels, sources = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    each = []
    for anchor in range(6):
        logits = {n: float(states[anchor] @ states[n]) / t for n in range(6) if n != anchor}
        total = math.log(sum(map(math.exp, logits.values())))
        positives = [n for n in logits if labels[n] == labels[anchor]]
        each.append(-sum(logits[n] - total for n in positives) / len(positives))
    loss = ContrastiveLoss(LossOptions(temperature=t, centre=False, worst_sources=step), sources=3)
    means = [sum(each[:3]) / 3, sum(each[3:]) / 3]
    weights = [1 / 3, 1 / 3]  # and one third of a source that does not come, which keeps it
    for _ in range(2):
        grown = [w * math.exp(step * m) for w, m in zip(weights, means, strict=True)]
        weights = [2 / 3 * w / sum(grown) for w in grown]
        expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        assert loss(states, labels, sources).item() == pytest.approx(expected, rel=1e-4)
    assert loss.metric_loss.reducer.log_weights.exp().tolist() == pytest.approx([*weights, 1 / 3], rel=1e-5)


def test_sources_do_not_gain_by_coming_often():
    reducer = WorstSources(5, step=0.1)
    for batch in range(100):  # source 0 is in every batch, the others take turns
        reducer.of_rows = torch.tensor([0, 1 + batch % 4])
        losses = torch.tensor([[1.0], [3.0]]) if batch % 2 else torch.tensor([1.0, 3.0])
        reducer.element_reduction(losses, torch.arange(2), torch.zeros(2, 1), torch.zeros(2))
    weights = reducer.log_weights.exp()
    assert float(weights.sum()) == pytest.approx(1, rel=1e-4)
    assert weights[0] < 0.01
    assert float(weights[1:].min()) > 0.2


@pytest.mark.parametrize("step", [10.0, 1e4])
def test_weights_stay_finite_however_high_losses_are(step):
    reducer = WorstSources(3, step)
    for _ in range(50):
        for rows in ([0, 1], [2, 2], [0, 2]):
            reducer.of_rows = torch.tensor(rows)
            losses = torch.tensor([300.0, 0.1])
            found = reducer.element_reduction(losses, torch.arange(2), torch.zeros(2, 1), torch.zeros(2))
            assert 0 < float(found) <= 300


@pytest.mark.parametrize("name", ["supcon", "circle"])
@pytest.mark.parametrize("more", [{"worst_sources": 0.5}, {"memory": 32}])
def test_more_of_a_loss_takes_the_labels_apart(name, more):
    generator = torch.Generator().manual_seed(3)
    states = (torch.randn(16, 8, generator=generator) + 4.0).requires_grad_(True)
    labels, sources = torch.tensor([0, 1] * 8), torch.tensor([0, 0, 1, 1] * 4)
    loss = ContrastiveLoss(LossOptions(name=name, gamma=8.0, **more), width=8, sources=2)
    before = loss(states, labels, sources)
    before.backward()
    with torch.no_grad():
        moved = states - 0.5 * states.grad / states.grad.norm(dim=-1, keepdim=True)
    plain = ContrastiveLoss(LossOptions(name=name, gamma=8.0))
    assert plain(moved, labels) < plain(states.detach(), labels)


@pytest.mark.parametrize("more", [{"worst_sources": 0.1}, {"memory": 64}])
def test_more_of_a_loss_needs_a_term_a_prompt(more):
    for options in ({"name": "triplet"}, {"name": "ntxent"}, {"name": "circle", "reduction": "global"}):
        with pytest.raises(
            ValidationError, match=f"`{next(iter(more))}` needs a loss with one term a prompt"
        ):
            LossOptions(**options, **more)


def test_weighing_sources_and_memory_do_not_go_together():
    with pytest.raises(ValidationError, match="`worst_sources` and `memory` do not go together"):
        LossOptions(worst_sources=0.1, memory=64)


def test_a_memory_holds_more_than_the_batch():
    with pytest.raises(ValidationError, match=r"`loss\.memory: 32` holds nothing beside a batch of 32"):
        RefineOptions(layer=2, loss=LossOptions(memory=32))
    assert RefineOptions(layer=2, loss=LossOptions(memory=33))
