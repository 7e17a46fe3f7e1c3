"""A model of 70 billion weights, of which nothing but the configuration is there: the plan against arithmetic by hand.

The numbers are those of docs/many_devices.md, which `-s` prints.
"""

import pytest
import torch
from transformers import LlamaConfig

from discernment.models.model_spec import ModelSpec
from discernment.runs.planning.steps import Batch, align_step, reading, refine_step
from discernment.training.contrastive import RefineOptions
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions

pytestmark = pytest.mark.slow

HIDDEN, WIDE, HEADS, KEYS, DEPTH, VOCABULARY = 8192, 28_672, 64, 8, 80, 128_256
GB = 1e9
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KEYS // HEADS + 3 * HIDDEN * WIDE + 2 * HIDDEN
TABLE = VOCABULARY * HIDDEN
AGAIN = 2 * (1 - WIDE * HIDDEN / LAYER)
"""Operations a weight and token of running a layer again on the way back: nobody needs what its last product gives."""
WEIGHTS = DEPTH * LAYER + 2 * TABLE + HIDDEN


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Trains with float32 weights under bfloat16 autocast, as on a GPU."""
    monkeypatch.setenv("DISCERNMENT_DTYPE", "bfloat16")
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=8192,
    ).save_pretrained(tmp_path)
    return ModelSpec(model=str(tmp_path), device="cpu")


def told(what, step):
    parts = {name: getattr(step, name) / GB for name in ("weights", "gradients", "optimizer", "activations")}
    shown = ", ".join(f"{name} {size:.1f}" for name, size in parts.items())
    print(
        f"{what}: {step.trained / GB:.2f} billion trained; {shown} GB; {step.operations / 1e15:.2f}e15 operations"
    )
    return step


def test_stage_1_up_to_the_middle(spec):
    options = RefineOptions(layer=40, gradient_checkpointing=True)
    rows, length = 4, 64
    step = told("refine", refine_step(spec, options, 40, Batch(rows, length)))
    assert (step.parameters, step.trained) == (WEIGHTS, 40 * LAYER)
    assert step.weights == pytest.approx(4 * WEIGHTS, rel=0.01)
    assert step.gradients == 4 * step.trained
    assert step.optimizer == pytest.approx(8 * step.trained, rel=0.01)
    # Forward, again, and back.
    assert step.operations == pytest.approx((2 + AGAIN + 4) * step.trained * rows * length, rel=0.05)


@pytest.mark.parametrize(
    ("what", "changes", "trained", "passes"),
    [
        ("align", {"train_embeddings": False}, DEPTH * LAYER + HIDDEN, 2 + AGAIN + 4),
        ("align, 40 layers held", {"frozen_layers": 40}, 40 * LAYER + HIDDEN, 2 + AGAIN + 3),
        ("align, LoRA", {"lora": LoraOptions()}, None, 2 + AGAIN + 2),
    ],
)
def test_stage_2(spec, what, changes, trained, passes):
    options = AlignOptions(gradient_checkpointing=True, **changes)
    step = told(what, align_step(spec, options, Batch(1, 512, 0, 200)))
    if trained is not None:
        assert step.trained == pytest.approx(trained, rel=1e-3)
        assert step.weights == pytest.approx(4 * WEIGHTS, rel=0.01)
    # With activations that are computed again, transformers asks for gradients down to the embeddings: the way back goes
    # through the layers that are held as well.
    assert step.operations == pytest.approx(passes * DEPTH * LAYER * 512, rel=0.15)


def test_reading_prompts(spec):
    step = told("evaluate", reading(spec, Batch(64, 128, 0, 64)))
    assert step.weights == pytest.approx(2 * WEIGHTS, rel=0.01)
    cache = 2 * 2 * DEPTH * HIDDEN * KEYS // HEADS * 64 * 128
    assert step.activations > cache
    assert step.operations == pytest.approx(2 * DEPTH * LAYER * 64 * 128, rel=0.05)
    assert torch.get_default_dtype() is torch.float32
