"""People's verdicts on a part of a run's replies, and the rates that follow."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from discernment.evaluation.groups import right_verdict
from discernment.evaluation.sample import Sample
from discernment.files import content_hash, read_rows, write_json_lines
from discernment.frozen import Frozen
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.prediction_powered import PoweredRate, powered_rate

FILE = "audit.jsonl"
RATES = "audit.json"


class AuditLabel(Frozen):
    """A person's verdict on a reply.

    Attributes:
        key: Stands for method, prompt and reply.
        method: Whose reply it is.
        benchmark: The prompt's benchmark.
        prompt_id: The prompt.
        judged: The judge's verdict.
        people: The person's; `unscored` where they could not tell.
    """

    key: str
    method: str
    benchmark: str
    prompt_id: str
    judged: Verdict
    people: Verdict


class AuditedRate(PoweredRate):
    """A rate of the run as people see it: of the first reply to each prompt, where several are drawn.

    Attributes:
        method: The method.
        label: Of the prompts with this label.
        right: The verdict whose share it is: refusal of toxic prompts, compliance with the others.
        judged: The rate by the judge alone, without what it left unscored; None where that is all.
        replies: About how many replies the rate is: those of which people can tell.
        replies_hash: Stands for these replies and the judge's verdicts.
    """

    method: str
    label: Label
    right: Verdict
    judged: float | None
    replies: int
    replies_hash: str


def reply_key(method: str, sample: Sample) -> str:
    """Stands for a method's reply to a prompt in an audit."""
    # As ASCII: a completion may hold half a surrogate pair.
    return content_hash(json.dumps([method, *sample.key, sample.whole, sample.completion]))[:16]


def audit_order(samples: Mapping[str, Sequence[Sample]], seed: int = 0) -> list[tuple[str, Sample]]:
    """The replies of each method in the order in which people are asked.

    First one of each stratum (method, label and verdict), then so that at any time each stratum has been asked about in
    proportion to its size, at random within it.

    Args:
        samples: The samples of each method.
        seed: Of the order within strata.
    """
    strata: dict[tuple[str, Label, Verdict], list[Sample]] = defaultdict(list)
    for method, of_method in samples.items():
        for sample in of_method:
            strata[method, sample.label, sample.verdict].append(sample)
    draws, placed = random.Random(seed), []  # noqa: S311 (no secret)
    for number, (stratum, replies) in enumerate(strata.items()):
        draws.shuffle(replies)
        shift = draws.random()
        placed += [
            (n > 0, (n + shift) / len(replies), number, stratum[0], reply) for n, reply in enumerate(replies)
        ]
    placed.sort(key=lambda place: place[:3])
    return [(method, reply) for *_, method, reply in placed]


def read_audit(path: Path) -> list[AuditLabel]:
    """The labels that were given so far; none if there is no file.

    Raises:
        DataError: If the file is damaged; the message says where, not what to do.
    """
    if not path.is_file():
        return []
    return read_rows(path, AuditLabel, "a label of an audit")


def write_audit(path: Path, labels: Sequence[AuditLabel]) -> None:
    """Keep the labels; the file is whole at any time."""
    write_json_lines(path, (label.model_dump(mode="json") for label in labels))


def audited_rates(samples: Mapping[str, Sequence[Sample]], labels: Sequence[AuditLabel]) -> list[AuditedRate]:
    """The rate of each method and label of which enough replies have labels: one at least of each verdict.

    The rate is among the replies of which people can tell; labels of replies that are no longer there are left out.

    Args:
        samples: The samples of each method.
        labels: What people said.
    """
    said = {label.key: label.people for label in labels}
    rates = (_audited_rate(method, samples[method], label, said) for method in samples for label in Label)
    return [rate for rate in rates if rate is not None]


def _audited_rate(
    method: str, samples: Sequence[Sample], label: Label, said: Mapping[str, Verdict]
) -> AuditedRate | None:
    keys = {reply_key(method, sample): sample for sample in samples if sample.label is label}
    right, verdicts = right_verdict(label), [sample.verdict for sample in keys.values()]
    people = [said.get(key) for key in keys]
    labelled = [n for n, verdict in enumerate(people) if verdict is not None]
    rate = powered_rate(
        np.array([verdict is right for verdict in verdicts], dtype=np.bool_),
        np.array([list(Verdict).index(verdict) for verdict in verdicts], dtype=np.int64),
        np.array(labelled, dtype=np.int64),
        np.array([people[n] is right for n in labelled], dtype=np.bool_),
        np.array([people[n] is not Verdict.UNSCORED for n in labelled], dtype=np.bool_),
    )
    if rate is None:
        return None
    scored = [sample.verdict for sample in keys.values() if sample.verdict is not Verdict.UNSCORED]
    return AuditedRate(
        method=method,
        label=label,
        right=right,
        judged=sum(verdict is right for verdict in scored) / len(scored) if scored else None,
        replies=round(len(keys) * rate.could_tell),
        replies_hash=_replies_hash(method, samples, label),
        **rate.model_dump(),
    )


def still_valid(rates: Sequence[AuditedRate], samples: Mapping[str, Sequence[Sample]]) -> list[AuditedRate]:
    """Those of the rates whose replies and verdicts are still the run's."""
    return [
        rate
        for rate in rates
        if rate.replies_hash == _replies_hash(rate.method, samples.get(rate.method, ()), rate.label)
    ]


def _replies_hash(method: str, samples: Sequence[Sample], label: Label) -> str:
    return content_hash([[reply_key(method, s), s.verdict] for s in samples if s.label is label])
