"""The page of a sweep: whole, harmless, and with every trial."""

import re

import pytest

from discernment.reporting.pages.sweep import best_in_words, render_sweep, write_sweep
from discernment.runs.search.objective import Objective
from discernment.runs.search.sweep import Dimension, SweepResults, SweepTrial
from page import Page

HOSTILE = "<script>alert(1)</script>\u202e"
SPACE = {
    "refine.layer": Dimension.model_validate([3, None, HOSTILE]),
    "align.learning_rate": Dimension.model_validate({"low": 1e-5, "high": 1e-3, "log": True}),
    "align.frozen_layers": Dimension.model_validate({"low": 0, "high": 9, "int": True}),
}
KINDS = [{"auroc": "dcr"}, {"refused": HOSTILE}, {"seconds": "dcr"}]


def results(objectives, trials):
    return SweepResults(
        name="try <b>",
        sampler="tpe",
        seeds=(0, 1),
        space=SPACE,
        objectives=[Objective.model_validate(o) for o in objectives],
        trials=trials,
    )


def trial(number, values, *, best=False, state="complete", choice=3, error=None):
    parameters = {"refine.layer": choice, "align.learning_rate": 2.5e-4, "align.frozen_layers": number}
    return SweepTrial(
        number=number, state=state, parameters=parameters, values=values, seconds=75, error=error, best=best
    )


def trials_of(n):
    return [
        trial(0, [0.625, 0.5, 30.0][:n]),
        trial(1, [0.875, 0.25, 90.0][:n], best=True, choice=HOSTILE),
        trial(2, None, state="failed", error=f"It {HOSTILE} diverged."),
        *([trial(3, [0.5], state="pruned", choice=None)] if n == 1 else [trial(3, [0.75, 0.75, 60.0][:n], best=True)]),
    ]  # fmt: skip


@pytest.mark.parametrize(("n", "drawings"), [(1, 3), (2, 1), (3, 3)])
def test_the_page_has_every_trial_and_acts_on_nothing(n, drawings, tmp_path):
    found = results(KINDS[:n], trials_of(n))
    path = write_sweep(found, tmp_path / "sweep.html")
    source = path.read_text(encoding="utf-8")
    assert source == render_sweep(found)
    page = Page(source)
    tags = [tag for tag, _ in page.elements]
    assert {"script", "img", "link", "iframe"} & set(tags) == set()
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    identities = page.attributes("id")
    assert len(set(identities)) == len(identities)
    assert page.sections == ["figures", "trials"]
    assert sum(a.get("role") == "img" for tag, a in page.elements if tag == "svg") == drawings
    assert "\u202e" not in source
    text = page.text()
    assert "try <b>" in text
    assert "It <script>alert(1)</script>⟨U+202E⟩ diverged." in text
    assert "0.875" in text
    assert "1\u00a0min\u00a015\u00a0s" in text
    assert ("pruned" in text) == (n == 1)
    rows = re.findall(r'<th scope="row">(\d)', source)
    # the best first, then by the first objective, the failed one last
    assert rows == {1: ["1", "0", "3", "2"], 2: ["1", "3", "0", "2"], 3: ["1", "3", "0", "2"]}[n]


def test_a_page_without_a_complete_trial():
    page = Page(render_sweep(results(KINDS[:2], trials_of(2)[2:3])))
    assert page.sections == ["trials"]
    assert "No trial is complete." in page.text()


def test_the_best_in_words():
    one = results(KINDS[:1], trials_of(1))
    assert best_in_words(one).startswith(
        "Trial 1 is the best: discernment AUROC of dcr 0.875, with refine.layer: <"
    )
    assert best_in_words(one).endswith("align.learning_rate: 0.00025; align.frozen_layers: 1.")
    assert best_in_words(results(KINDS[:2], trials_of(2))).endswith("in every objective: trials 1, 3.")
    alone = best_in_words(results(KINDS[::2], [trial(4, [0.5, 12.0], best=True)]))
    assert alone == (
        "Trial 4 is the best in every objective: discernment AUROC of dcr 0.500, training time of dcr 12.0 s."
    )
