"""One training step, and one pass of an evaluation, of a model without data: the largest of the stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.cut import CutModel
from discernment.models.loading import cannot_load, load_config
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, choose_dtype, trains_mixed
from discernment.runs.planning.trace import Traced, fill, trace, without_data
from discernment.training.adapters import add_adapter
from discernment.training.attention import quick_attention
from discernment.training.contrastive import RefineOptions
from discernment.training.options import OptimizerOptions
from discernment.training.supervised import AlignOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


STATES = {
    "adamw_torch_fused": 8,
    "adafactor": 0,
    "sgd": 0,
    "adamw_bnb_8bit": 2,
    "paged_adamw_32bit": 8,
    "paged_adamw_8bit": 2,
}
"""Bytes of state that an optimizer keeps for each parameter; of Adafactor, only those of rows and columns."""


class Batch(NamedTuple):
    """The largest batch that a stage runs at once.

    Attributes:
        rows: Sequences.
        length: Tokens of the longest.
        shared: Tokens that all begin with, where these are run once.
        predicted: Tokens whose logits are made, of all rows.
    """

    rows: int
    length: int
    shared: int = 0
    predicted: int = 0


class StepCost(NamedTuple):
    """What a step takes.

    Attributes:
        parameters: Of the model, adapters included.
        trained: Of these, those that are trained.
        weights: Bytes of all of them.
        gradients: Bytes of gradients.
        optimizer: Bytes of the optimizer's states.
        most: Most bytes of all together.
        operations: Floating-point operations.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    most: int
    operations: int

    @property
    def activations(self) -> int:
        """What else is held at the worst moment: activations, logits, casts."""
        return self.most - self.weights - self.gradients - self.optimizer


def depth_of(spec: ModelSpec) -> int:
    """How many layers the model has."""
    depth: int = load_config(spec).get_text_config().num_hidden_layers
    return depth


def skeleton(spec: ModelSpec, *, training: bool) -> PreTrainedModel:
    """The model of a configuration on the device `meta`.

    Raises:
        ModelError: If there is no such model, or it cannot be made.
    """
    from transformers import AutoModelForCausalLM

    config, device = load_config(spec), choose_device(spec)
    dtype = torch.float32 if training and spec.dtype == "auto" else choose_dtype(spec, device)
    given = {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=spec.trust_remote_code, **given
            )
    except Exception as error:  # custom code raises what it likes
        raise ModelError(cannot_load(spec.model, error)) from error
    return model


def refine_step(spec: ModelSpec, options: RefineOptions, layer: int, batch: Batch) -> StepCost:
    """A step of stage 1 up to a layer."""
    network: Any = skeleton(spec, training=True)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    held = options.first_layer
    cut = CutModel(network, layer, path=spec.layers, train_embeddings=options.train_embeddings, held=held)
    if options.lora is not None:
        network = add_adapter(network, cut.found, range(held + 1, layer + 1), options.lora)

    def loss(ids: Tensor, mask: Tensor) -> Tensor:
        with _precision(spec, ids, options):
            states = cut.behind(batch.shared, ids, mask).float()[:, -1]
        return (states @ states.T).logsumexp(-1).mean()

    off = cut.cut_off()
    behind = sum(weights.nbytes for weights in off)
    found = _step(spec, options, network, cut, batch, loss)
    return found._replace(
        parameters=found.parameters + sum(weights.numel() for weights in off),
        weights=found.weights + behind,
        most=found.most + behind,
    )


def align_step(spec: ModelSpec, options: AlignOptions, batch: Batch) -> StepCost:
    """A step of stage 2, which makes logits of replies alone."""
    from trl.trainer.utils import add_fused_lm_head

    from discernment.training.supervised_trainer import choose_parameters

    network = skeleton(spec, training=True)
    add_fused_lm_head(network, outputs=("log_probs", "entropy", "is_top1"))  # as TRL does
    chosen: Any = choose_parameters(network, spec, options)
    if options.gradient_checkpointing:
        chosen.gradient_checkpointing_enable({"use_reentrant": False})
    own = chosen.get_base_model() if options.lora is not None else chosen

    def loss(ids: Tensor, mask: Tensor) -> Tensor:
        picked = torch.zeros(max(1, batch.predicted), dtype=torch.long, device=ids.device)

        def keep(decoder: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[picked][None]
            return output

        handle = own.base_model.register_forward_hook(keep)
        with _precision(spec, ids, options):
            found = chosen(input_ids=ids, attention_mask=mask, shift_labels=picked[None], fused_lm_head=True)
        handle.remove()
        loss: Tensor = found.loss
        return loss

    return _step(spec, options, chosen, chosen, batch, loss)


def reading(spec: ModelSpec, batch: Batch) -> StepCost:
    """A pass that reads prompts, keeps their keys and values, and makes logits of the last places of each."""
    model: Any = skeleton(spec, training=False).eval().requires_grad_(requires_grad=False)
    logits = max(1, batch.predicted // batch.rows)
    with without_data():
        fill(model, choose_device(spec))
        ids, mask = _rows(spec, Batch(batch.rows, batch.length - batch.shared))

        def read() -> None:
            with torch.inference_mode():
                output = model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=logits)
                _ = output.logits[0].float().log_softmax(-1)

        found = trace(model, read)
    return _cost(model, found, 0, 0)


def _step(
    spec: ModelSpec,
    options: OptimizerOptions,
    network: nn.Module,
    run: nn.Module,
    batch: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> StepCost:
    """Forward, back and the optimizer's step, with the optimizer's states there from the beginning."""
    with without_data():
        fill(network, choose_device(spec))
        rows = _rows(spec, batch)
        trained = [weights for weights in run.train().parameters() if weights.requires_grad]
        states = sum(w.numel() for w in trained) * STATES[options.optim]
        adam = options.optim == "adamw_torch_fused"
        optimizer: Any = torch.optim.AdamW(trained, fused=True) if adam else torch.optim.SGD(trained)

        def step() -> None:
            loss(*rows).backward()
            optimizer.step()
            optimizer.zero_grad()

        if adam:
            for weights in trained:
                weights.grad = torch.zeros_like(weights)
            optimizer.step()
            optimizer.zero_grad()
        found = trace(network, step)
    return _cost(network, found, sum(w.nbytes for w in trained), states)


def _cost(network: nn.Module, found: Traced, gradients: int, optimizer: int) -> StepCost:
    parameters = list(network.parameters())
    return StepCost(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        found.start,
        gradients,
        optimizer,
        found.most + optimizer,
        found.operations,
    )


def _rows(spec: ModelSpec, batch: Batch) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(batch.rows, max(1, batch.length), dtype=torch.long, device=choose_device(spec))
    return ids, torch.ones_like(ids)


def _precision(spec: ModelSpec, ids: Tensor, options: OptimizerOptions) -> ExitStack:
    """As in training; only, what is computed again must be so by the same attention, which is behind the block then."""
    mixed, stack = trains_mixed(spec), ExitStack()
    stack.enter_context(torch.autocast(ids.device.type, torch.bfloat16, enabled=mixed))
    stack.enter_context(quick_attention(ids, mixed=mixed and not options.gradient_checkpointing))
    return stack
