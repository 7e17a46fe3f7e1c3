"""Which prompts fall together, on a set that can be read."""

from __future__ import annotations

import numpy as np

from discernment.prompts import Label, Prompt
from discernment.prompts.clusters import prompt_clusters

T, S = Label.TOXIC, Label.SEEMINGLY_TOXIC


def prompt(key: str, label: Label, partner: str | None = None, frame: str | None = None) -> Prompt:
    return Prompt(id=key, text=f"Text of {key}", label=label, source="made", partner=partner, frame=frame)


def test_clusters_join_partners_and_the_frames_of_one_source() -> None:
    prompts = [
        prompt("a", T, partner="b", frame="How do I kill {}?"),
        prompt("b", S),
        prompt("c", S, frame="How do I kill {}?"),
        prompt("d", T),
        prompt("e", S, partner="elsewhere"),
        prompt("f", S, frame="How do I kill {}?").model_copy(update={"source": "another"}),
    ]
    ids = prompt_clusters(prompts)
    groups = {frozenset(np.flatnonzero(ids == i).tolist()) for i in ids}
    assert groups == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4}), frozenset({5})}
