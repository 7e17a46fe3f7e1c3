import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from discernment.errors import DataError
from discernment.prompts.leaks import _auroc, form_features, label_leaks
from discernment.prompts.prompt import Label, Prompt

NOUNS = [
    "dog",
    "car",
    "knife",
    "server",
    "boss",
    "park",
    "soup",
    "weekend",
    "neighbor",
    "hospital",
    "gun",
    "clock",
]


def prompt(number, text, label, source, partner=None):
    return Prompt(id=str(number), text=text, label=label, source=source, partner=partner)


def sample(texts, sources=("a", "b", "c"), count=20):
    """`count` prompts for each source and label; `texts` makes one from (label, source, random generator)."""
    draw = random.Random(0)
    return [
        prompt(f"{source}-{label}-{n}", texts(label, source, draw), label, source)
        for source in sources
        for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)
        for n in range(count)
    ]


def nouns(draw, count=6):
    return " ".join(draw.sample(NOUNS, count))


def test_a_word_that_gives_the_label_away():
    leaks = label_leaks(
        sample(
            lambda label, source, draw: f"{nouns(draw)} {'illegally' if label is Label.TOXIC else 'today'}"
        )
    )
    assert leaks.bag_of_words.auroc > 0.99
    assert leaks.bag_of_words.low > 0.95
    assert leaks.bag_of_words.toxic == leaks.bag_of_words.seemingly_toxic == 60
    assert leaks.bag_of_words.folds == 3
    assert leaks.pairs is None


def test_a_form_that_gives_the_label_away():
    leaks = label_leaks(
        sample(lambda label, source, draw: nouns(draw) + ("." if label is Label.TOXIC else "?"))
    )
    assert leaks.form.auroc > 0.99
    assert abs(leaks.bag_of_words.auroc - 0.5) < 0.15


def test_texts_without_a_tell_tale():
    leaks = label_leaks(sample(lambda label, source, draw: nouns(draw), count=60))
    for score in (leaks.bag_of_words, leaks.form):
        assert abs(score.auroc - 0.5) < 0.1
        assert score.low < 0.5 < score.high


def test_what_is_learned_of_one_source_only_does_not_count():
    """Within every source a word tells the label, and in half of the sources it is the other word."""

    def text(label, source, draw):
        tells = (label is Label.TOXIC) == (source in "ab")
        return f"{nouns(draw)} {'quickly' if tells else 'slowly'}"

    leaks = label_leaks(sample(text, sources="abcd"))
    assert leaks.bag_of_words.auroc < 0.7


def test_sources_of_one_label_each_are_not_biased_by_the_shares():
    """Leaving out a toxic source makes toxic rarer in training; comparing across folds would fall below chance."""
    draw = random.Random(1)
    prompts = [
        prompt(f"{source}-{n}", nouns(draw), label, source)
        for source, label in zip("abcdef", [Label.TOXIC, Label.SEEMINGLY_TOXIC] * 3, strict=True)
        for n in range(60)
    ]
    leaks = label_leaks(prompts)
    assert leaks.bag_of_words.folds == 3
    assert abs(leaks.bag_of_words.auroc - 0.5) < 0.1


def pairs(longer, sources="abcd", count=15):
    draw = random.Random(2)
    made = []
    for source in sources:
        for n in range(count):
            start = nouns(draw)
            safe, toxic = f"{source}{n}-safe", f"{source}{n}-toxic"
            made.append(prompt(safe, f"{start} clocks.", Label.SEEMINGLY_TOXIC, source, toxic))
            made.append(
                prompt(
                    toxic, f"{start} {'people tonight' if longer else 'people'}.", Label.TOXIC, source, safe
                )
            )
    return made


def test_matched_pairs_of_one_form():
    leaks = label_leaks(pairs(longer=False))
    assert leaks.pairs is not None
    assert leaks.pairs.auroc == pytest.approx(0.5)
    assert leaks.bag_of_words.auroc > 0.99


def test_matched_pairs_where_the_toxic_one_is_longer():
    leaks = label_leaks(pairs(longer=True))
    assert leaks.pairs is not None
    assert leaks.pairs.auroc > 0.7


def test_pairs_are_measured_apart_from_the_rest():
    questions = [
        prompt(f"q{s}{n}", f"{NOUNS[n]}?", Label.SEEMINGLY_TOXIC, s) for s in "abcd" for n in range(10)
    ]
    leaks = label_leaks(pairs(longer=False) + questions)
    assert leaks.pairs is not None
    assert leaks.pairs.auroc == pytest.approx(0.5)
    assert leaks.pairs.toxic == leaks.pairs.seemingly_toxic == 60
    assert leaks.form.auroc > 0.6


def test_benign_prompts_are_passed_over():
    made = pairs(longer=True)
    benign = [prompt(f"benign-{n}", "Hello there?", Label.BENIGN, "e") for n in range(30)]
    assert label_leaks(made + benign) == label_leaks(made)


def test_of_few_prompts_nothing_is_claimed_for_others():
    def told(label, source, draw):
        return f"{nouns(draw)} {'illegally' if label is Label.TOXIC else 'today'}"

    eight, twelve = (label_leaks(sample(told, sources="ab", count=count)).bag_of_words for count in (2, 3))
    assert (eight.toxic, eight.low, eight.high) == (4, 0.0, 1.0)
    assert twelve.low > 0.0


def test_the_seed_decides_about_the_interval_only():
    made = sample(lambda label, source, draw: nouns(draw))
    first, again, other = (label_leaks(made, seed=seed).bag_of_words for seed in (1, 1, 2))
    assert first == again
    assert first.auroc == other.auroc
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize(
    ("labels_of_sources", "message"),
    [
        ({"a": [Label.TOXIC], "b": [Label.TOXIC]}, "seemingly_toxic has no prompt"),
        ({"a": [Label.SEEMINGLY_TOXIC], "b": [Label.BENIGN]}, "toxic has no prompt"),
        ({"a": [Label.TOXIC, Label.SEEMINGLY_TOXIC]}, "toxic has prompts of one source only .a."),
        (
            {"a": [Label.TOXIC], "b": [Label.TOXIC], "c": [Label.SEEMINGLY_TOXIC]},
            "seemingly_toxic has prompts of one",
        ),
    ],
)
def test_what_cannot_be_measured(labels_of_sources, message):
    made = [
        prompt(f"{source}{label}{n}", nouns(random.Random(n)), label, source)
        for source, labels in labels_of_sources.items()
        for label in labels
        for n in range(10)
    ]
    with pytest.raises(DataError, match=message):
        label_leaks(made)


def test_prompts_without_words_have_no_leaks_to_measure():
    with pytest.raises(DataError, match="no words to tell"):
        label_leaks(sample(lambda label, source, draw: "?" * draw.randint(1, 9)))


def test_what_can_be_seen_of_a_form():
    features = form_features("Who, me?  ")
    assert features == pytest.approx(
        {"log_words": np.log(3), "log_characters": np.log(9), "question": 1, "first=who": 1}
    )
    assert form_features("Stop.")["question"] == 0.0
    chinese = form_features("怎样结束进程\N{FULLWIDTH QUESTION MARK}")
    assert (chinese["question"], chinese["first=怎"]) == (1.0, 1.0)
    assert chinese["log_words"] == pytest.approx(np.log(7))


def test_what_chinese_words_give_away_is_seen():
    """Without spaces each prompt would be one word, which no other source has."""
    told = {Label.TOXIC: "炸弹", Label.SEEMINGLY_TOXIC: "气球"}
    places = "东南西北山水火木金土"
    leaks = label_leaks(
        sample(lambda label, source, draw: f"在{draw.choice(places)}{draw.choice(places)}怎样做{told[label]}")
    )
    assert leaks.bag_of_words.auroc == 1.0
    assert leaks.form.auroc < 0.7


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_auroc_against_scikit_learn(rows):
    ranks, toxic, weights = (np.array(column) for column in zip(*rows, strict=True))
    kept = weights > 0
    assume(0 < toxic[kept].sum() < kept.sum())
    expected = roc_auc_score(toxic, ranks, sample_weight=weights)
    assert _auroc([(ranks, toxic, weights)]) == pytest.approx(expected)


def test_folds_count_by_their_couples():
    first = (np.array([0, 1]), np.array([False, True]), np.array([1, 1]))  # 1 couple, ranked rightly
    second = (
        np.array([1, 0, 1]),
        np.array([False, True, True]),
        np.array([1, 1, 1]),
    )  # 2 couples: wrong, tied
    assert _auroc([first, second]) == pytest.approx((1 + 0 + 0.5) / 3)
