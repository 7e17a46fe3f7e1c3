"""One gradient kernel from start to end: choose the output rows, pass backward, and put the result together."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from discernment.errors import ModelError
from discernment.files import content_hash
from discernment.kernel.backward import BackwardPass
from discernment.kernel.checks import nothing_asked_for
from discernment.kernel.collect import Lookup
from discernment.kernel.gram import Factor
from discernment.kernel.kernel import Floats, Kernel, KernelCost, KernelOptions, Tap
from discernment.kernel.rows import OutputRows, likelihood_rows, own_rows, probe_rows, reply_rows, shared_rows
from discernment.kernel.vocabulary import exact_norms, probe_inner
from discernment.models.layers import find_layers
from discernment.policies.policy import Policy

SAVE_EVERY_SECONDS = 20.0
FLOOR_ROWS = 2
"""Output rows for which the noise floor is looked at."""


class KernelJob:
    """The kernel of prompts that are sorted by length, longest first."""

    def __init__(
        self,
        policy: Policy,
        options: KernelOptions,
        sequences: list[list[int]],
        replies: list[list[int]],
        taps: Sequence[int],
        rows: OutputRows | None = None,
    ) -> None:
        self.policy = policy
        self.options = options
        self.sequences = sequences
        self.replies = replies
        self.tap_layers = taps
        layers = find_layers(policy.model, policy.layer_path)
        for layer in taps:
            layers.check(layer)
        if options.rows == "exact" and hasattr(policy.model.get_output_embeddings(), "base_layer"):
            raise ModelError(
                "Exact rows know nothing of an adapter beside the head; merge the adapter, or take `rows: shared` or "
                "`rows: probes`."
            )
        self.depth = len(layers.layers)
        self.positions = [max(1, len(reply)) for reply in replies]
        self.backward = BackwardPass(
            policy,
            sequences,
            self.positions,
            batch_size=options.batch_size,
            memory=options.memory_gib * 2**30,
            wanted=lambda name: options.counts(name, layers.path),
        )
        self.rows = rows if rows is not None or options.rows == "exact" else self._choose_rows()
        self.kernels: dict[str, Tensor] = {}
        self.taps: dict[int, Tap] = {}
        self.lookups: list[Lookup] = []

    # ------------------------------------------------------------------ what to measure

    def _choose_rows(self) -> OutputRows:
        options, logits = self.options, self.backward.logits()
        if options.rows == "probes":
            return probe_rows(logits, self.positions, options.probes, options.seed)
        if options.rows == "shared":
            return shared_rows(logits, self.positions, options.k)
        if options.rows == "likelihood":
            return likelihood_rows(logits, self.replies)
        if any(self.replies):
            return reply_rows(logits, self.replies)
        return own_rows(logits, self.positions, options.k)

    @property
    def _lowest(self) -> int:
        """How far down the backward pass has to go; 0 for the embeddings."""
        lowest = self.options.layers[0] if self.options.layers else 0
        return min([lowest, *self.tap_layers])

    # ------------------------------------------------------------------ the backward pass

    def run(
        self,
        resume: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Pass backward from the head to the embeddings; `keep` leaves the state of all layers in `resume`."""
        state = _State(resume, self)
        backward = self.backward
        begun = state.load()
        backward.tail(self.rows, self._add if begun is None else _drop)
        if begun is not None:
            state.put_back()
        lowest = max(self._lowest, 1)
        for number in range(self.depth, lowest - 1, -1):
            if begun is not None and number >= begun:
                for block in backward.blocks:
                    block.hidden.pop()
            else:
                self._tap(number)
                backward.layer(number, self._add)
                state.save(number)
            if progress is not None:
                progress(self.depth + 1 - number, self.depth + 1 - lowest)
        if keep:
            state.save(lowest, at_once=True)
        backward.check_whole(lowest, self.rows)
        if self._lowest == 0 and backward.has_front:
            self.lookups = backward.front(self._add)
            if self.options.head and self.rows is not None:
                self._add_tied()
        if resume is not None and not keep:
            resume.unlink(missing_ok=True)

    def _add(self, part: str, factor: Factor) -> None:
        if part == "head" and not self.options.head:
            return
        if part.startswith("layer ") and not self.options.by_layer:
            part = "layers"
        if part not in self.kernels:
            n, rows = len(self.sequences), self.backward.row_count
            self.kernels[part] = torch.zeros(n, rows, n, rows, dtype=torch.float64)
        factor.add_gram(self.kernels[part])

    def _tap(self, number: int) -> None:
        if number not in self.tap_layers:
            return
        states, jacobians = [], []
        for block in self.backward.blocks:
            assert block.gradient is not None
            at = [-n for n in block.positions]
            here = list(range(len(block.prompts)))
            states.append(block.hidden[number][here, at].cpu())
            jacobians.append(block.gradient[here, :, at].cpu())
        self.taps[number] = Tap(torch.cat(states), torch.cat(jacobians))

    def _tied_lookups(self) -> list[Lookup]:
        """The calls of the embedding whose weight is the head's, too."""
        tied = self.backward.head.weight
        return [lookup for lookup in self.lookups if getattr(lookup.call.module, "weight", None) is tied]

    def _add_tied(self) -> None:
        """What the head's use of the embedding matrix has in common with its use as an embedding."""
        if "head" not in self.kernels:
            return
        kernel, lookups = self.kernels["head"], self._tied_lookups()
        assert self.rows is not None
        for here in self.backward.blocks:
            assert here.head_gradient is not None and here.head_input is not None
            for lookup in lookups:
                columns = self.rows.columns_of(lookup.call.input)
                known = (columns >= 0) & lookup.trained
                for i, one in enumerate(here.prompts):
                    for j, other in enumerate(lookup.block.prompts):
                        at = known[j]
                        if not at.any():
                            continue
                        weights = here.head_gradient[i][..., columns[j, at]]
                        reads = torch.einsum("rlt,ld->rtd", weights, here.head_input[i])
                        found = torch.einsum("rtd,qtd->rq", reads, lookup.gradients[j][:, at]).double().cpu()
                        kernel[one, :, other] += found
                        kernel[other, :, one] += found.T

    # ------------------------------------------------------------------ the result

    def not_finite(self) -> list[int]:
        """The prompts whose gradients, or whose products with themselves, are not finite."""
        kernels = self.kernels.values()
        return [
            n for n in range(len(self.sequences)) if not all(k[n, :, n].isfinite().all() for k in kernels)
        ]

    def result(self) -> Kernel:
        """The kernel, with the prompts in the order of this job."""
        if not self.kernels:
            raise nothing_asked_for(self.policy, self.options)
        seconds = {f"{what}_seconds": took for what, took in self.backward.clock.seconds.items()}
        cost = KernelCost(len(self.sequences) * self.backward.row_count, **seconds)
        parts = tuple(sorted(self.kernels, key=_place))
        total = torch.stack([self.kernels[p] for p in parts]).sum(0)
        if self.rows is None:
            n, parts = len(total), ()
            norms, errors = self._exact(total), None
            part_norms, shares, traces = np.empty((0, n, n)), np.empty((0, n, n)), np.empty((0, n))
        else:
            norms, errors, part_norms, shares, traces = self._by_part(total, parts)
        return Kernel(
            norms=norms,
            errors=errors,
            parts=parts,
            part_norms=part_norms,
            shares=shares,
            traces=traces,
            tokens=None if self.rows is None else self.rows.tokens,
            unscored={},
            noise_floor=self._noise_floor(total) if self.options.noise_floor else None,
            cost=cost,
            taps=self.taps,
            blocks=None if self.rows is None else total,
        )

    def _by_part(
        self, total: Tensor, parts: tuple[str, ...]
    ) -> tuple[Floats, Floats | None, Floats, Floats, Floats]:
        probed = self.options.rows == "probes"
        inner = probe_inner if probed else _inner
        kernels = [self.kernels[p] for p in parts]
        squared, squared_errors = inner(total, total)
        norms = np.sqrt(squared)
        part_norms = np.sqrt(np.stack([inner(kernel, kernel)[0] for kernel in kernels]))
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = None if squared_errors is None else squared_errors / (2 * norms)  # delta method
            shares = np.stack([inner(kernel, total)[0] for kernel in kernels]) / squared
        diagonals = torch.stack([torch.einsum("irir->ir", kernel) for kernel in kernels])
        traces = diagonals.mean(2) if probed else diagonals.sum(2)
        return norms, errors, part_norms, shares, traces.numpy()

    def _exact(self, total: Tensor) -> Floats:
        return exact_norms(
            total,
            self.backward.head.weight.detach(),
            self.backward.blocks,
            self._tied_lookups(),
            head=self.options.head and self.options.layers is None and self.options.parameters == "all",
            bias=self.backward.head.bias is not None,
        )

    def _noise_floor(self, total: Tensor) -> float:
        """The shortest and the longest prompt alone, without padding, neighbours or a shared beginning.

        Returns:
            The largest difference from their entries in the batch, as a share of the largest entry.
        """
        bad = self.not_finite()
        finite = [n for n in range(len(self.sequences)) if n not in bad]
        pair = [finite[0], finite[-1]]
        some = None if self.rows is None else self.rows.select(pair, FLOOR_ROWS)
        alone = KernelJob(
            self.policy,
            self.options.model_copy(update={"batch_size": 1}),
            [self.sequences[p] for p in pair],
            [self.replies[p] for p in pair],
            (),
            some,
        )
        alone.backward.shared = 0
        alone.run()
        found = torch.stack(list(alone.kernels.values())).sum(0)
        rows = found.shape[1]
        return float((found - total[pair, :rows][:, :, pair, :rows]).abs().max() / found.abs().max())


class _State:
    """What an unfinished job has found so far, in a file."""

    def __init__(self, path: Path | None, job: KernelJob) -> None:
        self.path = path
        self.job = job
        self.saved = time.monotonic()
        self.key = ""
        self.tensors: dict[str, Tensor] = {}
        if path is not None:
            weights = [float(p.double().sum()) for p in job.policy.model.parameters()]
            asked = job.options.model_dump(mode="json", exclude={"memory_gib"})
            known = [job.sequences, job.replies, list(job.tap_layers), asked, repr(weights)]
            if (rule := job.policy.rule) is not None:
                learned = {name: float(tensor.double().sum()) for name, tensor in rule.tensors.items()}
                known += [rule.name, rule.version, rule.model_dump(mode="json"), repr(learned)]
            self.key = content_hash(known)

    def save(self, number: int, *, at_once: bool = False) -> None:
        """Write down that the backward pass is through layer `number`, if some time has gone by or `at_once`."""
        if self.path is None or not (at_once or time.monotonic() - self.saved >= SAVE_EVERY_SECONDS):
            return
        tensors = {f"kernel/{part}": kernel for part, kernel in self.job.kernels.items()}
        for place, block in enumerate(self.job.backward.blocks):
            assert block.gradient is not None
            tensors[f"gradient/{place}"] = block.gradient.contiguous()
        for layer, tap in self.job.taps.items():
            tensors |= {f"states/{layer}": tap.states, f"jacobians/{layer}": tap.jacobians}
        part = self.path.with_name(f"{self.path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"key": self.key, "layer": str(number)})
        part.replace(self.path)
        self.saved = time.monotonic()

    def load(self) -> int | None:
        """Take up the state, if the file holds that of the same job; the layer that was passed last."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                known = file.metadata() or {}
                if known.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None
        self.tensors = tensors
        return int(known["layer"])

    def put_back(self) -> None:
        """Go on from what was loaded."""
        for name, tensor in self.tensors.items():
            kind, _, which = name.partition("/")
            if kind == "kernel":
                self.job.kernels[which] = tensor
            elif kind == "gradient":
                block = self.job.backward.blocks[int(which)]
                block.gradient = tensor.to(block.logits.device)
            elif kind == "states":
                self.job.taps[int(which)] = Tap(tensor, self.tensors[f"jacobians/{which}"])
        self.tensors = {}


def _drop(part: str, factor: Factor) -> None:
    """Its inner products are known already."""


def _inner(one: Tensor, other: Tensor) -> tuple[Floats, None]:
    """<A, B>_F of the blocks of all pairs, `[prompts, prompts]`; it has no error."""
    return torch.einsum("irjq,irjq->ij", one, other).numpy(), None


def _place(part: str) -> tuple[int, int]:
    kind, _, number = part.partition(" ")
    return ["embeddings", "layers", "layer", "norm", "head"].index(kind), int(number or 0)
