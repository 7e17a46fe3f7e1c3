"""How training moved the probe prompts: rejection probability and kernel similarity over the steps of both stages.

Lu et al. 2026, figures 1, 3 and 5, with one panel a method. All panels of a figure share their axes, and alignment
begins at the same place in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from discernment.prompts import Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import MUTED, RULE, SURFACE, label_mark
from discernment.reporting.run_files import Look, Watch

Value = Callable[[Look, Label], float | None]


class LooksCost(NamedTuple):
    """What all looks of a run took.

    Attributes:
        seconds: Seconds.
        training_seconds: What the watched stages took without them.
    """

    seconds: float
    training_seconds: float

    @property
    def share(self) -> float:
        """Share of the stages' time that the looks took."""
        return self.seconds / ((self.seconds + self.training_seconds) or 1)


def looks_cost(watches: Iterable[Watch]) -> LooksCost:
    """What the looks took; a stage that methods share counts once."""
    watches = list(watches)
    return LooksCost(
        sum(look.cost.seconds for w in watches for look in w.looks),
        sum(max(look.cost.training_seconds for look in w.looks) for w in watches),
    )


def watched_labels(watches: Iterable[Watch]) -> list[Label]:
    """The labels that some look has a value for."""
    found = {label for w in watches for look in w.looks for label in (*look.rejection, *look.row_normalised)}
    return [label for label in Label if label in found]


def rejection_dynamics(watches: Sequence[Watch], methods: Sequence[str]) -> list[drawing.Panel]:
    """Mean rejection probability of each group of probe prompts over the steps, one panel a method."""
    what = "Mean rejection probability"
    return _panels(
        watches, methods, lambda look, label: look.rejection.get(label), what, "dynamics-rejection"
    )


def kernel_dynamics(watches: Sequence[Watch], methods: Sequence[str]) -> list[drawing.Panel]:
    """Row-normalised kernel similarity of each group with the toxic prompts over the steps, one panel a method."""
    what = "Kernel similarity with toxic prompts"
    return _panels(
        watches,
        methods,
        lambda look, label: look.row_normalised.get(label, {}).get(Label.TOXIC),
        what,
        "dynamics-kernel",
    )


@drawing.style()
def _panels(
    watches: Sequence[Watch], methods: Sequence[str], value: Value, what: str, identity: str
) -> list[drawing.Panel]:
    values = [v for w in watches for look in w.looks for label in Label if _finite(v := value(look, label))]
    if not values:
        return []
    axis = _Axis.over(watches)
    height = 1.2 * (max(v for v in values if v is not None) or 1.0)
    watched = {m: found for m in methods if (found := [w for w in watches if m in w.methods])}
    return [
        _panel(method, found, value, what, axis, height, f"{identity}-{number}")
        for number, (method, found) in enumerate(watched.items(), start=1)
    ]


class _Axis(NamedTuple):
    """Places of the steps: 0 is where alignment begins, and each doubling of (1 + step) is as wide as the next.

    Attributes:
        refine: Steps of the looks of any stage 1.
        align: Steps of the looks of any stage 2.
    """

    refine: list[int]
    align: list[int]

    @classmethod
    def over(cls, watches: Iterable[Watch]) -> _Axis:
        steps = [(watch.stage, look.step) for watch in watches for look in watch.looks]
        return cls(*(sorted({step for of, step in steps if of == stage}) for stage in cls._fields))

    @property
    def gap(self) -> float:
        """Width of the gap between the stages, so that their last and first step number have room."""
        doublings = sum(math.log2(1 + steps[-1]) for steps in (self.refine, self.align) if steps)
        return doublings * (10 + 3.5 * len(str(self.refine[-1]))) / 300

    @property
    def start(self) -> float:
        """Where stage 1 begins; 0 where there is none."""
        return -math.log2(1 + self.refine[-1]) - self.gap if self.refine else 0.0

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis."""
        end = math.log2(1 + self.align[-1]) if self.align else 0.0
        margin = 0.02 * (end - self.start) + 0.05
        return self.start - margin, end + margin

    def place(self, stage: str, step: int) -> float:
        """Where a step of a stage stands."""
        return math.log2(1 + step) + (self.start if stage == "refine" else 0.0)

    def ticks(self) -> dict[float, str]:
        """The steps that leave each other room for their numbers; the first and the last of a stage always do."""
        low, high = self.limits
        pixel = (high - low) / (drawing.WIDTH - 56)
        labelled: dict[float, str] = {}
        for stage, steps in self._asdict().items():
            if not steps:
                continue
            places = {self.place(stage, step): str(step) for step in steps}
            *others, last = places
            kept = others[:1]
            for place in others[1:]:
                room = pixel * (5 + 7 * len(places[last]))
                if place - kept[-1] >= room and last - place >= room:
                    kept.append(place)
            labelled |= {place: places[place] for place in [*kept, last]}
        return labelled


def _panel(
    method: str, watches: Sequence[Watch], value: Value, what: str, axis: _Axis, height: float, identity: str
) -> drawing.Panel:
    figure, axes = drawing.axes_of(drawing.WIDTH, 250)
    drawing.name_axes(axes, "step", what.lower())
    ticks = axis.ticks()
    axes.set(xlim=axis.limits, ylim=(0, height), xticks=list(ticks), xticklabels=list(ticks.values()))
    axes.axhline(0, color=RULE, linewidth=0.8)
    if axis.refine and axis.align:
        axes.axvline(-axis.gap / 2, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
        refined = any(w.stage == "refine" for w in watches)
        over: dict[str, Any] = {
            "color": MUTED,
            "fontsize": drawing.FONT_SIZE - 1,
            "va": "top",
            "bbox": {"facecolor": SURFACE, "edgecolor": "none", "pad": 1},
        }
        axes.text(axis.start, 0.97 * height, "stage 1" if refined else "no stage 1", ha="left", **over)
        axes.text(0, 0.97 * height, "alignment begins", ha="left", **over)
    for watch in watches:
        for label in Label:
            looks = [look for look in watch.looks if _finite(value(look, label))]
            places = [axis.place(watch.stage, look.step) for look in looks]
            values = [value(look, label) for look in looks]
            drawing.line(axes, label_mark(label), places, values, 1.6, 5, clip_on=False, zorder=3)
    return drawing.panel_of(figure, identity, method, f"{what} over the steps of {method}")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
