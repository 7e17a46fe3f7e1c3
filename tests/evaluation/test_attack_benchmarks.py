"""Attacked benchmarks hold the toxic prompts of all benchmarks, attacked, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from discernment.errors import DataError, RecipeError
from discernment.evaluation.attacks import (
    ATTACKS,
    COMPLETION_PREFIX,
    COMPLETION_PREFIX_ATTACK,
    attack_benchmarks,
    attacks,
)
from discernment.prompts import Label
from tiny import make_benign, make_prompts

BENCHMARKS = [make_prompts(3, name="a"), make_benign(2), make_prompts(2, name="b")]
TOXIC = [[p for p in benchmark if p.label is Label.TOXIC] for benchmark in (BENCHMARKS[0], BENCHMARKS[2])]


def test_every_attack_in_order() -> None:
    names = [name for name in reversed(ATTACKS) if name != "low_resource"]
    found, skipped = attack_benchmarks(names, BENCHMARKS)
    assert [a.attack for a in found] == names
    assert skipped == {}
    assert len(names) == len(attacks())
    for attacked in found:
        assert [b.provenance.name for b in attacked.benchmarks] == [f"{n}+{attacked.attack}" for n in "ab"]
        for before, after in zip(TOXIC, attacked.benchmarks, strict=True):
            assert [p.id for p in after] == [p.id for p in before]
            if attacked.attack == COMPLETION_PREFIX_ATTACK:
                assert list(after) == before
            else:
                rewrite = attacks()[attacked.attack].rewrite
                assert after.texts == [rewrite(p.text) for p in before] != [p.text for p in before]
        prefix = COMPLETION_PREFIX if attacked.attack == COMPLETION_PREFIX_ATTACK else None
        assert attacked.reply_prefix == prefix


def test_translations(tmp_path: Path) -> None:
    found, skipped = attack_benchmarks(["rot13", "low_resource"], BENCHMARKS)
    assert [a.attack for a in found] == ["rot13"]
    assert skipped.keys() == {"low_resource"}
    assert skipped["low_resource"].startswith("it needs translations")
    path = tmp_path / "zu.jsonl"
    texts = {p.text for toxic in TOXIC for p in toxic}
    path.write_text("".join(json.dumps({"prompt": t, "translation": f"zu {t}"}) + "\n" for t in texts))
    (only,), skipped = attack_benchmarks(["low_resource"], BENCHMARKS, path)
    assert skipped == {}
    assert [b.texts for b in only.benchmarks] == [[f"zu {p.text}" for p in toxic] for toxic in TOXIC]
    with pytest.raises(DataError, match="no translation of the prompt"):
        attack_benchmarks(["low_resource"], [make_prompts(4)], path)


def test_attacks_without_toxic_prompts() -> None:
    assert attack_benchmarks([], [make_benign(2)]) == ([], {})
    with pytest.raises(RecipeError, match="Attacks need toxic prompts, and no benchmark has any"):
        attack_benchmarks(["rot13"], [make_benign(2)])
