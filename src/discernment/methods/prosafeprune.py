"""ProSafePrune: what seemingly toxic prompts share with toxic ones is projected out of the weights (Chen et al., ICLR 2026).

Of each linear module of the middle layers, the outputs for safe, toxic and seemingly toxic prompts span three subspaces,
of which truncated singular value decompositions give the projectors Ps, Pu and Pp. Omega = (I - Ps) Pu Pp leads from what
seemingly toxic prompts look like, by what toxic ones look like, to what safe ones lack; W' = (I - lambda Omega) W.
No gradients are taken and nothing is trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from torch import Tensor

from discernment.cost import StageCost
from discernment.diagnosis.separability import LayerSeparation, layer_states, separability
from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.methods.sides import seemingly_toxic
from discernment.models.layers import LayerList, find_layers
from discernment.models.linear_outputs import (
    Product,
    linear_modules,
    linear_outputs,
    take_product_out,
)
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, PromptSet
from discernment.training.adapters import check_leaving, leave_policy

if TYPE_CHECKING:
    from discernment.models.linear import Linear

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
RANKS = (1, 2, 4, 8, 16)
"""What `auto` tries."""


def _or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:  # which would say of each alternative what is wrong
        raise ValueError("Input should be a number in its range, or `auto`") from None


class ProSafePruneOptions(Frozen):
    """Options of `prosafeprune`."""

    strength: Annotated[Annotated[float, Field(ge=0, le=1)] | Literal["auto"], WrapValidator(_or_auto)] = (
        Field(1.0, description="lambda; `auto` chooses it by validation prompts.")
    )
    rank: Annotated[Annotated[int, Field(ge=1, strict=True)] | Literal["auto"], WrapValidator(_or_auto)] = (
        Field(8, description="Dimensions of each subspace; `auto` chooses it by validation prompts.")
    )
    first_layer: int | None = Field(None, ge=1, description="The first layer that is changed.")
    last_layer: int | None = Field(None, ge=1, description="The last one.")
    pooling: Literal["last", "mean"] = Field(
        "last", description="The output at the last token of a prompt, or the mean over its tokens."
    )
    prompts: int = Field(128, ge=2, description="At most so many training prompts of each kind.")
    validation: int = Field(32, ge=1, description="At most so many validation prompts of each kind.")
    tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="With `auto`: how far the refusal of toxic validation prompts may fall.",
    )
    seed: int = 0

    @property
    def chooses(self) -> bool:
        """Whether anything is left to the validation prompts."""
        return "auto" in (self.strength, self.rank)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.first_layer is None) != (self.last_layer is None):
            raise ValueError("name both `first_layer` and `last_layer`, or neither")
        if (
            self.first_layer is not None
            and self.last_layer is not None
            and self.first_layer > self.last_layer
        ):
            raise ValueError(f"`first_layer: {self.first_layer}` lies behind `last_layer: {self.last_layer}`")
        return self


class Found(NamedTuple):
    """What `auto` tried, and what it measured.

    Attributes:
        strength: lambda.
        rank: Dimensions of each subspace.
        toxic: Mean refusal probability of the toxic validation prompts.
        seemingly_toxic: That of the seemingly toxic ones.
    """

    strength: float
    rank: int
    toxic: float
    seemingly_toxic: float


class ProSafePrune(Method):
    """Project what makes a model over-refuse out of the weights of its middle layers."""

    name: ClassVar[str] = "prosafeprune"
    on: ClassVar[str | None] = "stl"
    options_type: ClassVar[type[ProSafePruneOptions]] = ProSafePruneOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the subspaces and take what they say out of the weights."""
        own: ProSafePruneOptions = options.own or ProSafePruneOptions()
        if base.model.quantization is not None:
            raise RecipeError(
                "Nothing can be projected out of quantised weights; leave 'prosafeprune' out, or `quantization` of the model."
            )
        kinds = {
            "safe": materials.need("general", self.name).with_label(Label.BENIGN),
            "toxic": materials.need("safety", self.name).with_label(Label.TOXIC),
            "seemingly": seemingly_toxic(materials, self.name),
        }
        return stage(
            "prune",
            prune,
            start=base,
            options=own,
            validation=self._validation(materials, own) if own.chooses else None,
            **{kind: prompts.sample(own.prompts, own.seed) for kind, prompts in kinds.items()},
        )

    def _validation(self, materials: Materials, own: ProSafePruneOptions) -> PromptSet:
        given = materials.need("contrast_validation", self.name)
        kinds = [
            given.with_label(label).sample(own.validation, own.seed)
            for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)
        ]
        return PromptSet([p for kind in kinds for p in kind], given.provenance)


def prune(
    start: PolicySpec,
    safe: PromptSet,
    toxic: PromptSet,
    seemingly: PromptSet,
    options: ProSafePruneOptions,
    out: Path,
    validation: PromptSet | None = None,
) -> StageCost:
    """Project outputs of linear modules by changing their weights, and leave a policy in `out`.

    All outputs are those of the model as it was, before any module is changed.

    Args:
        start: An aligned model; adapters are folded in first.
        safe: Benign prompts.
        toxic: Toxic prompts.
        seemingly: Seemingly toxic prompts.
        options: How it is done.
        out: The stage's directory; gets `model/` and `policy.json`.
        validation: Toxic and seemingly toxic prompts by which `auto` chooses.

    Raises:
        ModelError: If the model cannot be loaded, is quantised, has experts or no such layer, or the policy has a rule.
        DataError: If a prompt does not fit the model's positions, or there are too few to find the layers.
        DiskError: If there is no room for the model; that is seen before anything is measured.
    """
    policy = Policy.load(start.without_rule("Pruning"), training=True)
    layers = find_layers(policy.model, policy.layer_path)
    kinds = (safe, toxic, seemingly)
    counts = dict(zip(("safe", "toxic", "seemingly_toxic"), map(len, kinds), strict=True))
    notes: dict[str, Any] = {"prompts": counts}
    linear_modules(policy.model, layers, [1])  # refuses what cannot be changed before anything is measured
    check_leaving(policy.model, None, out)
    numbers, notes["layers_reason"] = _numbers(policy, layers, kinds, options)
    notes["layers"] = [numbers[0], numbers[-1]]
    modules = linear_modules(policy.model, layers, numbers)
    encoded = [policy.encode(prompts.asked) for prompts in kinds]
    for sequences, prompts in zip(encoded, kinds, strict=True):
        check_context(policy, sequences, names_of(prompts))
    outputs = [
        linear_outputs(policy.model, layers, modules, sequences, options.pooling, policy.pad_id)
        for sequences in encoded
    ]
    bases = {name: [directions(of_kind[name]) for of_kind in outputs] for name in modules}
    strength, rank = options.strength, options.rank
    if options.chooses:
        assert validation is not None
        strength, rank, tried = choose(policy, modules, bases, validation, options)
        notes["tried"] = [{k: round(v, 4) for k, v in found._asdict().items()} for found in tried]
    assert strength != "auto"
    assert rank != "auto"
    for name, module in modules.items():
        take_product_out(module, omega(bases[name], rank), strength)
    leave_policy(start, policy.model, policy.chat, None, out)
    return StageCost(
        steps=sum(map(len, kinds)),
        tokens=sum(len(ids) for sequences in encoded for ids in sequences),
        notes={**notes, "strength": strength, "rank": rank, "modules": len(modules)},
    )


def directions(outputs: Tensor) -> Tensor:
    """Right singular vectors of outputs, largest singular value first, without those that nothing lies along.

    Args:
        outputs: Of one module for the prompts of one kind, `[prompts, width]`; their mean is not subtracted.

    Returns:
        Orthonormal columns, `[width, at most prompts]`, float64.
    """
    _, values, vectors = torch.linalg.svd(outputs.double(), full_matrices=False)
    noise = torch.finfo(torch.float32).eps * max(outputs.shape)
    along: Tensor = vectors[values > noise * values.max()].T
    return along


def omega(bases: Sequence[Tensor], rank: int) -> Product:
    """Omega = (I - Ps) Pu Pp, of projectors on the first directions of each kind.

    Args:
        bases: Directions of safe, of toxic and of seemingly toxic prompts, `[width, directions]` each.
        rank: How many of each count.
    """
    safe, toxic, seemingly = (of_kind[:, :rank] for of_kind in bases)
    met = toxic @ (toxic.T @ seemingly)
    return Product(met - safe @ (safe.T @ met), seemingly)


def choose(
    policy: Policy,
    modules: "Mapping[str, Linear]",
    bases: Mapping[str, Sequence[Tensor]],
    validation: PromptSet,
    options: ProSafePruneOptions,
) -> tuple[float, int, list[Found]]:
    """The strength and rank that leave the least refusal of seemingly toxic prompts, of those that keep it of toxic ones.

    Changing nothing is among what is tried. The model is left as it was.

    Args:
        policy: The policy.
        modules: Modules by name.
        bases: Directions of safe, toxic and seemingly toxic prompts of each.
        validation: Toxic and seemingly toxic prompts.
        options: What is left to choose, and how far the refusal of toxic prompts may fall.

    Returns:
        The strength, the rank, and all that was tried, the unchanged model first.
    """
    strengths = STRENGTHS if options.strength == "auto" else (options.strength,)
    ranks = RANKS if options.rank == "auto" else (options.rank,)
    toxic, seemingly = (validation.with_label(label).asked for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))

    def measure(strength: float, rank: int) -> Found:
        means = [
            sum(masses) / len(masses)
            for masses in (rejection_probability(policy, asked) for asked in (toxic, seemingly))
        ]
        return Found(strength, rank, *means)

    tried = [measure(0.0, ranks[0])]
    for rank, strength in product(ranks, strengths):
        with _as_they_were(modules):
            for name, module in modules.items():
                take_product_out(module, omega(bases[name], rank), strength)
            tried.append(measure(strength, rank))
    safe = [found for found in tried if found.toxic >= tried[0].toxic - options.tolerance]
    best = min(safe, key=lambda found: found.seemingly_toxic)
    return best.strength, best.rank, tried


@contextmanager
def _as_they_were(modules: "Mapping[str, Linear]") -> Iterator[None]:
    """Puts weights back that are changed within."""
    kept = {name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, module in modules.items():
                for parameter, before in zip(module.parameters(), kept[name], strict=True):
                    parameter.copy_(before)


def _numbers(
    policy: Policy, layers: LayerList, kinds: Sequence[PromptSet], options: ProSafePruneOptions
) -> tuple[list[int], str]:
    """The layers, counted from 1, and why these."""
    if options.first_layer is not None and options.last_layer is not None:
        layers.check(options.last_layer)
        return list(range(options.first_layer, options.last_layer + 1)), "They are those of the recipe."
    together = PromptSet.concatenate(kinds, "safe, toxic and seemingly toxic")
    return clearest_stretch(separability(layer_states(policy, together), together))


def clearest_stretch(found: Sequence[LayerSeparation]) -> tuple[list[int], str]:
    """The quarter of all layers, side by side in the middle half, with the best mean silhouette of the labels.

    Args:
        found: What was measured, one a layer, first to last; not empty.

    Returns:
        The layers, counted from 1, and the reason in plain words.
    """
    edge, count = len(found) // 4, max(1, round(len(found) / 4))
    starts = range(edge, len(found) - edge - count + 1)
    means = {n: sum(f.silhouette for f in found[n : n + count]) / count for n in starts}
    best = max(means, key=means.__getitem__)
    numbers = [f.layer for f in found[best : best + count]]
    return numbers, (
        f"Layers {numbers[0]} to {numbers[-1]} have the highest mean silhouette of the labels ({means[best]:.3f}) of "
        f"stretches of {count} in the middle half of the layers."
    )
