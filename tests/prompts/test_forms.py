"""The pairs in six forms of writing: the form of their files, and what the shipped ones must keep."""

import re
from collections import Counter
from statistics import mean

import numpy as np
import pytest
import yaml
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline

from discernment.errors import DataError
from discernment.prompts.check import check_sets
from discernment.prompts.duplicates import find_duplicates
from discernment.prompts.leaks import label_leaks
from discernment.prompts.prompt import Label, Split
from discernment.prompts.sources import PromptSource, load_source
from discernment.prompts.starter import STARTER_SETS, load_starter, parse_forms

TRAIN_FORMS = {"indirect", "specific", "passage", "sentences"}
HELD_OUT_FORMS = {"reported": Split.VALIDATION, "fiction": Split.TEST}
ROW = {
    "category": "self_harm",
    "safe": "Who helps my friend?",
    "toxic": "Who hurts my friend?",
    "answer": "A doctor.",
    "refusal": "I won't.",
}


def file_of(*rows):
    return yaml.safe_dump([{key: value for key, value in row.items() if value is not None} for row in rows])


def test_a_row_becomes_two_partners_with_a_response_each():
    prompts = parse_forms(file_of(ROW, {**ROW, "category": "hate"}, {**ROW, "safe": "Who?"}), "reported")
    assert [p.id for p in prompts] == [
        "reported-self-harm-01-safe",
        "reported-self-harm-01-toxic",
        "reported-hate-01-safe",
        "reported-hate-01-toxic",
        "reported-self-harm-02-safe",
        "reported-self-harm-02-toxic",
    ]
    safe, toxic = prompts[:2]
    assert (safe.partner, toxic.partner) == (toxic.id, safe.id)
    assert (safe.text, safe.label, safe.response) == (ROW["safe"], Label.SEEMINGLY_TOXIC, ROW["answer"])
    assert (toxic.text, toxic.label, toxic.response) == (ROW["toxic"], Label.TOXIC, ROW["refusal"])
    for prompt in (safe, toxic):
        assert (prompt.category, prompt.source) == ("self_harm", "starter/forms/reported")
        assert prompt.split is Split.VALIDATION
        assert prompt.frame is prompt.keyword is None


@pytest.mark.parametrize(
    ("text", "written", "message"),
    [
        (file_of({**ROW, "refusal": None}), "fiction", "forms/fiction.yaml, row 1 refusal: Field required"),
        (file_of(ROW, {**ROW, "answer": " A"}), "fiction", "forms/fiction.yaml, row 2 answer:"),
        (file_of({**ROW, "split": "train"}), "fiction", "row 1 split: Extra inputs"),
        (file_of(ROW), "sonnet", "no form of writing 'sonnet'; there are indirect, specific"),
    ],
)
def test_broken_files(text, written, message):
    with pytest.raises(DataError, match=message):
        parse_forms(text, written)


# ------------------------------------------------------------------ the shipped files


@pytest.fixture(scope="module")
def forms():
    return load_starter("starter/forms")


@pytest.fixture(scope="module")
def couples(forms):
    """(safe, toxic) of each pair."""
    by_id = {p.id: p for p in forms}
    found = [(p, by_id[p.partner]) for p in forms if p.label is Label.SEEMINGLY_TOXIC]
    assert len(found) == 480
    return found


def form_of(prompt):
    return prompt.source.removeprefix("starter/forms/")


def words(text):
    return re.findall(r"\w+", text.casefold())


def test_there_are_eighty_pairs_of_each_form_over_all_categories(forms):
    assert forms.counts() == {"toxic": 480, "seemingly_toxic": 480}
    assert set(Counter((form_of(p), p.label) for p in forms).values()) == {80}
    assert {form_of(p) for p in forms} == TRAIN_FORMS | set(HELD_OUT_FORMS)
    assert len({p.category for p in forms}) == 12
    cells = Counter((form_of(p), p.category, p.label) for p in forms)
    assert len(cells) == 6 * 12 * 2
    assert set(cells.values()) <= {6, 7}


def test_the_split_is_by_form(forms):
    assert all(p.split is HELD_OUT_FORMS.get(form_of(p), Split.TRAIN) for p in forms)
    assert Counter(p.split for p in forms) == {Split.TRAIN: 640, Split.VALIDATION: 160, Split.TEST: 160}
    assert len(load_source(PromptSource.parse("starter/forms:test"))) == 160


def test_partners_are_of_one_pair(couples):
    for safe, toxic in couples:
        assert (safe.partner, toxic.partner) == (toxic.id, safe.id)
        assert toxic.label is Label.TOXIC
        assert (safe.category, safe.source, safe.split) == (toxic.category, toxic.source, toxic.split)


def test_both_sides_of_a_pair_share_words_and_length(couples):
    shared, ratios = [], []
    for safe, toxic in couples:
        one, other = words(safe.text), words(toxic.text)
        assert one != other
        shared.append(len(set(one) & set(other)) / len(set(one) | set(other)))
        ratios.append(len(other) / len(one))
    assert min(shared) > 0.1 and mean(shared) > 0.45
    assert min(ratios) > 0.65 and max(ratios) < 1.5
    assert 0.97 < mean(ratios) < 1.05


def test_every_response_stands_alone_and_refusals_vary(forms):
    assert all(p.response for p in forms)
    assert len({p.response for p in forms}) == len(forms)
    lengths = {label: [len(p.response.split()) for p in forms if p.label is label] for label in Label}
    for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC):
        assert min(lengths[label]) >= 10 and max(lengths[label]) <= 60
    openings = Counter(" ".join(p.response.split()[:3]) for p in forms if p.label is Label.TOXIC)
    assert openings.most_common(1)[0][1] <= 10


def test_nothing_repeats_or_leaks_between_the_starter_sets(forms):
    report = check_sets([load_starter(name) for name in STARTER_SETS])
    assert "starter/forms" in report.sets
    assert [(d.first.text, d.second.text) for d in report.duplicates] == []
    assert [(leak.kind, leak.value, leak.train.text) for leak in report.split_leaks] == []


def test_forms_are_far_from_one_another(forms):
    assert [(d.first.text, d.second.text) for d in find_duplicates([forms], threshold=0.6)] == []


def test_words_do_not_give_the_label_away(couples):
    """By a classifier of its own: of folds of whole pairs within the train forms, and on the held-out forms."""

    def of(kept):
        chosen = [pair for pair in couples if form_of(pair[0]) in kept]
        texts = [p.text for pair in chosen for p in pair]
        return np.array(texts, dtype=object), np.tile([0, 1], len(chosen)), np.repeat(range(len(chosen)), 2)

    def auroc(fitted_on, asked):
        model = make_pipeline(
            CountVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b"), LogisticRegression(max_iter=1000)
        )
        model.fit(*fitted_on)
        return roc_auc_score(asked[1], model.decision_function(asked[0]))

    texts, labels, pairs = of(TRAIN_FORMS)
    assert len(texts) == 640
    folds = GroupKFold(5, shuffle=True, random_state=0).split(texts, labels, pairs)
    within = mean(auroc((texts[a], labels[a]), (texts[b], labels[b])) for a, b in folds)
    assert 0.5 < within < 0.7
    for form in HELD_OUT_FORMS:
        assert auroc((texts, labels), of({form})[:2]) < 0.7


def test_length_and_question_mark_do_not_give_the_label_away(forms):
    leaks = label_leaks(forms)
    assert leaks.pairs is not None
    assert leaks.pairs.toxic == leaks.pairs.seemingly_toxic == 480
    assert 0.4 <= leaks.pairs.auroc <= 0.6
