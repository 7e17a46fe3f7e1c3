"""What a run took: seconds, tokens and memory of each method's stages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from discernment.reporting.run_files import Manifest, Stage


@dataclass(frozen=True)
class Cost:
    """What one or more stages took; None where it is not known.

    Attributes:
        seconds: Seconds together.
        tokens: Tokens together.
        peak_memory_bytes: The highest peak among them.
        shared_with: Other methods that use the same stages.
    """

    seconds: float | None
    tokens: int | None
    peak_memory_bytes: int | None
    shared_with: list[str]


@dataclass(frozen=True)
class CostTable:
    """Costs by method and stage.

    Attributes:
        stages: The names of the stages, in the order in which a method goes through them.
        rows: For each method the cost of each stage that it has, and of all together.
        run: The same for the whole run, where every stage counts once however many methods share it.
    """

    stages: list[str]
    rows: list[tuple[str, dict[str, Cost], Cost]]
    run: tuple[dict[str, Cost], Cost]


def cost_table(methods: Iterable[str], manifest: Manifest) -> CostTable | None:
    """The costs of a run; None if its manifest has no stage of these methods."""
    rows = []
    distance_to_end: dict[str, int] = {}
    for method in methods:
        ids = manifest.methods[method].stages if method in manifest.methods else []
        ids = [i for i in ids if i in manifest.stages]
        ids = ids or [i for i, stage in manifest.stages.items() if method in stage.methods]
        if ids:
            shared = {i: [m for m in manifest.methods_of(i) if m != method] for i in ids}
            stages = {i: manifest.stages[i] for i in ids}
            rows.append((method, _by_name(stages, shared), total(stages.values())))
        for distance, stage_id in enumerate(reversed(ids)):
            name = manifest.stages[stage_id].name
            distance_to_end[name] = max(distance, distance_to_end.get(name, 0))
    if not rows:
        return None
    names = sorted(distance_to_end, key=lambda name: -distance_to_end[name])
    run = _by_name(manifest.stages, {}), total(manifest.stages.values())
    return CostTable(names, rows, run)


def _by_name(stages: Mapping[str, Stage], shared: Mapping[str, list[str]]) -> dict[str, Cost]:
    ids: dict[str, list[str]] = {}
    for stage_id, stage in stages.items():
        ids.setdefault(stage.name, []).append(stage_id)
    return {
        name: total([stages[i] for i in found], [m for i in found for m in shared.get(i, [])])
        for name, found in ids.items()
    }


def total(stages: Iterable[Stage], shared_with: Sequence[str] = ()) -> Cost:
    """What stages took together; None of what no stage knows."""
    stages = list(stages)
    seconds = [s.seconds for s in stages if s.seconds is not None]
    tokens = [s.tokens for s in stages if s.tokens is not None]
    peaks = [s.peak_memory_bytes for s in stages if s.peak_memory_bytes is not None]
    return Cost(
        seconds=sum(seconds) if seconds else None,
        tokens=sum(tokens) if tokens else None,
        peak_memory_bytes=max(peaks, default=None),
        shared_with=list(dict.fromkeys(shared_with)),
    )
