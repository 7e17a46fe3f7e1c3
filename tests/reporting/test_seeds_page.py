"""The page and the table of several seeds: whole, harmless, and true to the numbers."""

import io
import re

import pytest
from rich.console import Console

from discernment.evaluation.over_seeds import SeedComparison, SeedFrontier, SeedMeasure, SeedResults
from discernment.evaluation.results import LeftOut
from discernment.prompts import Label
from discernment.reporting.pages.seeds import findings, render_seeds, write_seeds
from discernment.reporting.tables.seeds import seeds_table
from discernment.reporting.text import MINUS
from page import Page

HOSTILE = "<script>alert(1)</script>\u202e[red]"
SEEDS = [0, 1, 7]


def row(
    quantity,
    difference,
    *,
    method="dcr",
    benchmark="XSTest",
    label=Label.SEEMINGLY_TOXIC,
    toxic="all",
    half=0.03,
):
    """A comparison whose interval over both is `half` wide to each side, and a third of that over seeds alone."""
    against = [0.5, 0.53, 0.56]
    return SeedComparison(
        quantity=quantity,
        method=method,
        against="stl",
        benchmark=benchmark,
        label=label,
        toxic=None if quantity == "rate" else toxic,
        values=[value + difference for value in against],
        values_against=against,
        difference=difference,
        seeds_low=difference - half / 3,
        seeds_high=difference + half / 3,
        low=difference - half,
        high=difference + half,
        n=1234,
    )  # fmt: skip


def results(comparisons, methods=("stl", "dcr"), benchmarks=("XSTest", "OKTest")):
    return SeedResults(
        base_model="SmolLM2-135M",
        reference="stl",
        seeds=SEEDS,
        methods=list(methods),
        benchmarks=list(benchmarks),
        comparisons=comparisons,
    )


@pytest.fixture
def full():
    """Three methods, two benchmarks and both pooled, every quantity."""
    rows = []
    for method, gain in (("dcr", 0.062), (HOSTILE, -0.041)):
        for benchmark in ("XSTest", "OKTest", "all"):
            rows += [
                row("rate", gain, method=method, benchmark=benchmark, label=Label.TOXIC),
                row("rate", -gain, method=method, benchmark=benchmark),
                row("equal_safety", gain, method=method, benchmark=benchmark),
                *(row("auroc", gain / 2, method=method, benchmark=benchmark, toxic=t) for t in ("XSTest", "all")),
            ]  # fmt: skip
    return results(rows, ("stl", "dcr", HOSTILE))


def test_names_of_any_kind_are_printed():
    name = "x[/b][red]"
    found = results([row("rate", 0.1).model_copy(update={"against": name})], (name, "dcr"))
    assert f"difference to {name}" in " ".join(printed(found.model_copy(update={"reference": name})).split())


def printed(found):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(seeds_table(found))
    return console.export_text()


def test_frontiers_are_shown_with_the_levels_that_all_reach(full):
    common = row("frontier", 0.1, benchmark="all").model_dump()
    frontier = SeedFrontier(**common, level_low=0.612, level_high=0.95)
    found = full.model_copy(update={"frontiers": [frontier]})
    page = Page(render_seeds(found))
    assert "frontier" in page.sections
    assert "frontier" not in Page(render_seeds(full)).sections
    shown = " ".join(page.text().split())
    assert "all benchmarks, seemingly toxic, 61.2 to 95.0 % refused" in shown
    assert "+10.0" in shown.partition("Answered along the frontiers")[2]
    table = printed(found)
    assert "Answered along the frontiers, %" in table
    assert "61.2" in table


def test_kernel_similarity_and_ability_are_shown_where_they_were_measured(full):
    def measure(name, method, mean, label=None, difference=None):
        low, high = (None, None) if difference is None else (difference - 0.01, difference + 0.01)
        return SeedMeasure(
            measure=name, method=method, label=label, values=[mean - 0.02, mean, mean + 0.02], mean=mean,
            difference=difference, low=low, high=high,
        )  # fmt: skip

    rows = [
        measure("kernel_similarity", "stl", 0.56, Label.SEEMINGLY_TOXIC),
        measure("kernel_similarity", HOSTILE, 0.314, Label.SEEMINGLY_TOXIC, difference=-0.246),
        measure("kl", HOSTILE, 1.5),
    ]
    measured = full.model_copy(update={"measures": rows})
    page = Page(render_seeds(measured))
    assert "models" in page.sections
    assert "models" not in Page(render_seeds(full)).sections
    words = " ".join(page.text().split())
    assert words.count("Kernel similarity with toxic prompts, seemingly toxic") == 2
    interval = f"0.314 {MINUS}0.246 {MINUS}0.256 to {MINUS}0.236"
    assert interval in words
    assert "KL to the base model, nats a token" in words

    shown = printed(measured)
    assert f"{MINUS}0.246" in shown
    assert "1.500" in shown
    assert "1.500" not in printed(full)


# ---------------------------------------------------------------------- the sentences


@pytest.mark.parametrize(
    ("difference", "claim"),
    [
        (0.062, "dcr answers more than stl of the seemingly toxic prompts of XSTest (+6.2 points, 95 % interval"),
        (-0.062, f"dcr answers fewer than stl of the seemingly toxic prompts of XSTest ({MINUS}6.2 points, 95 % interval"),
        (0.02, "dcr answers neither clearly more nor clearly fewer than stl of the seemingly toxic prompts of XSTest"),
        (0.03, "neither clearly more nor clearly fewer"),  # the interval begins at 0
        (-0.03, "neither clearly more nor clearly fewer"),
    ],
)  # fmt: skip
def test_a_difference_is_claimed_only_where_the_interval_does_not_hold_zero(difference, claim):
    (sentence,) = findings(results([row("equal_safety", difference)]))
    assert claim in sentence
    assert "With 3 seeds, and where both refuse the same share of toxic prompts, dcr" in sentence
    assert sentence.endswith("Their discernment AUROCs cannot be compared.")


GAINS = {"one": 0.1, "two": 0.002, "three": -0.05, "four": 0.2}
KIND = "the seemingly toxic prompts of"


def test_without_a_row_for_all_benchmarks_each_is_in_the_clause_where_it_belongs():
    rows = [row("equal_safety", gain, benchmark=name) for name, gain in GAINS.items()]
    rows += [row("auroc", 0.1, benchmark="one"), row("auroc", -0.0001, benchmark="two")]
    rows += [row("auroc", 0.9, benchmark="one", toxic="one")]
    (sentence,) = findings(results(rows))
    assert sentence == (
        "With 3 seeds, and where both refuse the same share of toxic prompts, dcr answers "
        f"more than stl of {KIND} one (+10.0 points, 95 % interval +7.0 to +13.0) and "
        f"{KIND} four (+20.0 points, 95 % interval +17.0 to +23.0); "
        f"fewer than stl of {KIND} three ({MINUS}5.0 points, 95 % interval {MINUS}8.0 to {MINUS}2.0); "
        f"neither clearly more nor clearly fewer than stl of {KIND} two (+0.2 points, 95 % interval {MINUS}2.8 to +3.2). "
        f"Its discernment AUROC is higher on {KIND} one (+0.100, 95 % interval +0.070 to +0.130); "
        f"not clearly different on {KIND} two (0.000, 95 % interval {MINUS}0.030 to +0.030)."
    )


def test_all_benchmarks_together_come_first_and_single_ones_of_the_first_method_alone():
    rows = [
        row("equal_safety", gain, benchmark=name, method=method)
        for name, gain in {**GAINS, "all": 0.07}.items()
        for method in ("dcr", HOSTILE)
    ]
    rows += [
        row("auroc", gain, benchmark=name) for name, gain in {"one": 0.1, "two": 0.2, "all": 0.15}.items()
    ]
    first, second = findings(results(rows, ("stl", HOSTILE, "dcr")))
    assert first == (
        "With 3 seeds, and where both refuse the same share of toxic prompts, dcr answers "
        f"more than stl of {KIND} all benchmarks (+7.0 points, 95 % interval +4.0 to +10.0). "
        "By benchmark: more of one and four; fewer of three; neither clearly more nor clearly fewer of two. "
        f"Its discernment AUROC is higher on {KIND} all benchmarks (+0.150, 95 % interval +0.120 to +0.180). "
        "By benchmark: higher on one and two."
    )
    assert second.startswith(
        f"With 3 seeds, and where both refuse the same share of toxic prompts, {HOSTILE} answers more"
    )
    assert "By benchmark" not in second


def test_a_kind_of_prompts_of_one_benchmark_is_claimed_beside_what_is_pooled():
    rows = [row("equal_safety", gain, benchmark=name) for name, gain in {**GAINS, "all": 0.07}.items()]
    rows.append(row("equal_safety", 0.2, benchmark="five", label=Label.BENIGN))
    (sentence,) = findings(results(rows))
    assert (
        "the benign prompts of five (+20.0 points, 95 % interval +17.0 to +23.0). By benchmark: more of one"
        in sentence
    )


def test_benchmarks_with_several_kinds_of_prompts_name_the_kind():
    rows = [
        row("equal_safety", gain, benchmark=name, label=label)
        for name in ("one", "all")
        for label, gain in ((Label.BENIGN, 0.1), (Label.SEEMINGLY_TOXIC, 0.001))
    ]
    (sentence,) = findings(results(rows))
    assert (
        "By benchmark: more of the benign prompts of one; neither clearly more nor clearly fewer of the seemingly "
        "toxic prompts of one." in sentence
    )


def test_one_sentence_a_method_and_one_where_there_is_no_other(full):
    assert [finding.split(", dcr ")[0].split(f", {HOSTILE} ")[0] for finding in findings(full)] == 2 * [
        "With 3 seeds, and where both refuse the same share of toxic prompts"
    ]
    assert findings(results([], ["stl"])) == ["There is no other method to compare stl with."]
    (sentence,) = findings(results([row("rate", 0.3)]))
    assert sentence.startswith("dcr and stl cannot be compared at equal safety: that needs")


# ---------------------------------------------------------------------- the page


def test_the_page_is_whole_and_acts_on_nothing(full, tmp_path):
    path = write_seeds(full, tmp_path / "seeds.html")
    source = path.read_text(encoding="utf-8")
    assert source == render_seeds(full)
    page = Page(source)
    tags = {tag for tag, _ in page.elements}
    assert {"script", "img", "link", "iframe"} & tags == set()
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    identities = page.attributes("id")
    assert len(set(identities)) == len(identities)
    assert "\u202e" not in source
    assert page.sections == ["figure", "equal_safety", "auroc", "rate", "measured"]
    # Two drawings for each of the two benchmarks; what is pooled is in the tables alone.
    assert sum(a.get("role") == "img" for tag, a in page.elements if tag == "svg") == 4
    text = page.text()
    for finding in findings(full):
        assert finding.replace("\u202e", "⟨U+202E⟩") in text
    assert "<script>alert(1)</script>⟨U+202E⟩[red]" in text
    assert "0, 1, 7" in text


def test_what_is_not_there_is_said_with_the_seeds_that_lack_it(full):
    lacks = LeftOut(
        method=HOSTILE, what="rejection probability", hence="no AUROC", why="it gives none", seeds=(0, 7)
    )
    page = Page(render_seeds(full.model_copy(update={"left_out": [lacks]})))
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩")
    assert f"{shown} has no rejection probability, and so no AUROC: it gives none (seed 0, 7)." in page.text()
    assert "has no" not in Page(render_seeds(full)).text()


def test_the_tables_hold_every_comparison(full):
    source = render_seeds(full)
    rows = re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", source, re.DOTALL)
    assert len(rows) == len(full.comparisons) == 30
    written = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", one)) for one in rows]
    (one,) = [w for w in written if "XSTest, seemingly toxic" in w and "against" in w and " dcr " in w and "%" not in w
              and "+6.2" in w]  # fmt: skip
    for number in ("59.2", "53.0", "+3.2 to +9.2", "+5.2 to +7.2", "56.2 59.2 62.2", "1 234 prompts"):
        assert number in one
    assert source.count('class="best"') == 24  # all but the AUROCs of the hostile method


def test_a_page_without_anything_to_compare():
    page = Page(render_seeds(results([], ["stl"])))
    assert page.sections == ["measured"]
    assert "no other method" in page.text()


def test_without_rejection_probabilities_the_rates_are_drawn():
    page = Page(render_seeds(results([row("rate", 0.1), row("rate", 0.1, label=Label.TOXIC)])))
    assert page.sections == ["figure", "rate", "measured"]
    assert sum(a.get("role") == "img" for tag, a in page.elements if tag == "svg") == 2


# ---------------------------------------------------------------------- the terminal


def test_the_table_for_the_terminal(full):
    shown = printed(full)
    assert "[red]" in shown
    assert "\u202e" not in shown
    assert shown.index("at equal safety") < shown.index("Discernment AUROC") < shown.index("Rightly handled")
    lines = shown.splitlines()
    (first,) = [n for n, line in enumerate(lines) if "at equal safety" in line]
    assert lines[first + 1].split()[:5] == ["XSTest,", "seemingly", "toxic", "53.0", "59.2"]
    assert lines[first + 2].split()[0] == "+6.2"
    assert "+3.2 to +9.2" in lines[first + 3]
    assert "+5.2 to +7.2" in lines[first + 4]
    assert "difference to stl" in shown
    assert "0, 1, 7" in shown
    assert printed(results([], ["stl"])).strip()
