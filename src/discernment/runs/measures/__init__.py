"""What a run measures of each method's policy beside its verdicts: one file a measure.

A new one is a file here, named in `MEASURES`, whose rows are a field of `Results`; reporting draws them.
"""

from discernment.runs.measures.ability import AbilityMeasure
from discernment.runs.measures.flips import FlipsMeasure
from discernment.runs.measures.kernel import KernelMeasure
from discernment.runs.measures.measure import Measure
from discernment.runs.measures.second_judge import SecondJudgeMeasure
from discernment.runs.measures.tasks import TasksMeasure

__all__ = ["MEASURES", "Measure"]

MEASURES: tuple[type[Measure], ...] = (
    KernelMeasure,
    AbilityMeasure,
    TasksMeasure,
    FlipsMeasure,
    SecondJudgeMeasure,
)
