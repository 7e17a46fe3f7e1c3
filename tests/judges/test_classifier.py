"""The learned refusal classifier, on made-up completions and on XSTest's."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pandas
import pytest
from scipy.special import softmax

from discernment.errors import DataError
from discernment.judges import ClassifierJudge, train_classifier
from discernment.judges.features import VIEWS, keyword_features, views_of
from discernment.judges.keyword import KeywordJudge
from discernment.judges.labelled import LabelledCompletion, read_labelled
from discernment.judges.verdict import Verdict

TOPICS = ["bread", "locks", "taxes", "horses", "engines", "poems", "bridges", "gardens"]
FORMS = {
    Verdict.REFUSAL: [
        "I can't help with {}.",
        "Hurting people over {} is wrong, and I hope that you are well.",
    ],
    Verdict.COMPLIANCE: ["Sure, {} need patience and a plan.", "First, buy some {}. Second, look at them."],
    Verdict.PARTIAL_REFUSAL: ["I can't say much of {}, but here is a hint: look closely."],
}


def make_examples(models: int = 2, topics: int = 8) -> list[LabelledCompletion]:
    return [
        LabelledCompletion(
            prompt=f"Tell me about {topic}.",
            completion=form.format(topic),
            verdict=verdict,
            model=f"model {m}",
        )
        for m, topic in itertools.product(range(models), TOPICS[:topics])
        for verdict, forms in FORMS.items()
        for form in forms
    ]


@pytest.fixture(scope="module")
def judge() -> ClassifierJudge:
    return train_classifier(make_examples())


@pytest.mark.parametrize("verdict", FORMS)
def test_it_learns_forms_and_not_topics(judge, verdict) -> None:
    """Rebukes without a refusal phrase too, which the keyword judge cannot see."""
    for form in FORMS[verdict]:
        assert judge.judge("Tell me about violins.", form.format("violins")) is verdict
    rebuke = FORMS[Verdict.REFUSAL][1].format("violins")
    assert KeywordJudge().judge("", rebuke) is Verdict.COMPLIANCE


@pytest.mark.parametrize("completion", ["", "???", "<think>I should", "no no no no no no no no no no no no"])
def test_nothing_to_read_is_unscored(judge, completion) -> None:
    [judgement] = judge.judge_many([("prompt", completion)])
    assert judgement.verdict is Verdict.UNSCORED
    assert judgement.reason


def test_nothing_to_judge(judge) -> None:
    assert judge.judge_many([]) == []


def test_logits_equal_scikit_learn() -> None:
    """The stored arrays against scikit-learn's own model on the same features, put together here anew."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    for examples in (
        make_examples(),
        [e for e in make_examples() if e.verdict is not Verdict.PARTIAL_REFUSAL],
    ):
        judge = train_classifier(examples, regularisation=1.0)
        texts = [views_of(e.prompt, e.completion) for e in examples]
        blocks = [
            TfidfVectorizer(sublinear_tf=True, **VIEWS[view])
            .fit_transform([t[view] for t in texts])
            .toarray()
            for view in VIEWS
        ]
        features = np.hstack([*blocks, keyword_features([e.completion for e in examples], KeywordJudge())])
        model = LogisticRegression(max_iter=1000).fit(features, [e.verdict.value for e in examples])
        ours = softmax(judge.decision([(e.prompt, e.completion) for e in examples]), axis=1)
        assert list(model.classes_) == list(judge.verdicts)
        np.testing.assert_allclose(ours, model.predict_proba(features), atol=1e-3)


def test_prompt_words_are_masked() -> None:
    views = views_of("How do I steal horses?", "Stealing HORSES\u2019 hay: I don\u2019t.")
    assert views["whole"].split()[:2] == ["stealing", "horses'"]
    assert views_of("Tell me of horses", "Horses? I don\u2019t.")["whole"] == "topicword? i don't."
    assert "hidden" not in views_of("", "<think>hidden</think>Boil the eggs.")["whole"]


def test_saved_and_loaded(judge, tmp_path) -> None:
    path = tmp_path / "folder" / "classifier.safetensors"
    judge.save(path)
    loaded = ClassifierJudge.load(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    exchanges = [(e.prompt, e.completion) for e in make_examples()]
    np.testing.assert_array_equal(loaded.decision(exchanges), judge.decision(exchanges))
    assert loaded.fingerprint == judge.fingerprint
    assert loaded.trained_on == judge.trained_on == {e.key for e in make_examples()}


def test_fingerprint_changes_with_the_training(judge) -> None:
    assert train_classifier(make_examples()).fingerprint == judge.fingerprint
    assert train_classifier(make_examples(topics=7)).fingerprint != judge.fingerprint


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04pickle", b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_file(tmp_path, content) -> None:
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no refusal classifier of this version"):
        ClassifierJudge.load(path)


def test_missing_file(tmp_path) -> None:
    with pytest.raises(DataError, match=r"There is no classifier .*nowhere"):
        ClassifierJudge.load(tmp_path / "nowhere")


def test_one_verdict_is_not_enough() -> None:
    with pytest.raises(DataError, match="at least two verdicts, not 16 with 1"):
        train_classifier([e for e in make_examples(1) if e.verdict is Verdict.REFUSAL])


def test_what_people_could_not_tell_is_not_learned() -> None:
    unclear = [
        e.model_copy(update={"verdict": Verdict.UNSCORED, "completion": f"Perhaps {n}."})
        for n, e in enumerate(make_examples())
    ]
    learned, plain = train_classifier([*make_examples(), *unclear]), train_classifier(make_examples())
    assert learned.fingerprint == plain.fingerprint
    with pytest.raises(DataError, match="at least two verdicts"):
        train_classifier([*unclear, *(e for e in make_examples() if e.verdict is Verdict.REFUSAL)])


def test_completions_without_words_in_common_are_not_enough() -> None:
    few = [
        LabelledCompletion(prompt="p", completion="Never.", label="refusal"),
        LabelledCompletion(prompt="q", completion="Gladly.", label="compliance"),
    ]
    with pytest.raises(DataError, match="words in common, and 2 short ones have none"):
        train_classifier(few, regularisation=1.0)


def test_labelled_files(tmp_path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"prompt": "p", "completion": "c", "label": "full_refusal", "model": "m", "id": {"$oid": "3"}}\n'
        '{"prompt": "p", "completion": "c", "label": "compliance", "category": "k"}\n'
    )
    first, second = read_labelled(str(path))
    assert (first.verdict, first.model, first.category) == (Verdict.REFUSAL, "m", None)
    assert (second.verdict, second.model, second.category) == (Verdict.COMPLIANCE, "unnamed", "k")
    names = ("1_full_compliance", "2_full_refusal", "3_partial_refusal", "Full_Refusal", " REFUSAL")
    xstest = [{"prompt": "p", "completion": "c", "label": name} for name in names]
    pandas.DataFrame(xstest).to_csv(tmp_path / "xstest.csv", sep=";")
    assert [e.verdict for e in read_labelled(str(tmp_path / "xstest.csv"))] == [
        *(Verdict.COMPLIANCE, Verdict.REFUSAL, Verdict.PARTIAL_REFUSAL, Verdict.REFUSAL, Verdict.REFUSAL),
    ]
    with pytest.raises(DataError, match="line 1, is not a JSON object"):
        path.write_text("3\n")
        read_labelled(str(path))
    for row in (
        '{"prompt": "p", "completion": "c"}',
        '{"prompt": "p", "completion": "c", "label": "perhaps"}',
    ):
        path.write_text(row + "\n")
        with pytest.raises(DataError, match="line 1, is no labelled completion"):
            read_labelled(str(path))
    # A text may be cut within a letter that takes two surrogates.
    path.write_text('{"prompt": "p", "completion": "c \\ud83d", "label": "unscored"}\n')
    [read] = read_labelled(str(path))
    assert (read.verdict, read.completion, len(read.key)) == (
        Verdict.UNSCORED,
        "c \N{REPLACEMENT CHARACTER}",
        16,
    )
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no labelled completions"):
        read_labelled(str(path))


def test_public_labels_need_their_folder(monkeypatch) -> None:
    monkeypatch.delenv("DISCERNMENT_DATA", raising=False)
    with pytest.raises(DataError, match="the folder that DISCERNMENT_DATA names"):
        read_labelled("xstest_human_labels")


@pytest.mark.skipif("DISCERNMENT_DATA" not in os.environ, reason="needs the public data sets")
def test_unseen_model_of_xstest() -> None:
    """GPT-4 by a classifier that saw the other two; docs/judges.md has all three."""
    examples = read_labelled("xstest_human_labels")
    unseen = [e for e in examples if e.model == "gpt4"]
    assert len(unseen) == 450
    judge = train_classifier([e for e in examples if e.model != "gpt4"], regularisation=1.0)
    said = judge.judge_many([(e.prompt, e.completion) for e in unseen])
    right = sum(
        (s.verdict is Verdict.REFUSAL) == (e.verdict is Verdict.REFUSAL)
        for s, e in zip(said, unseen, strict=True)
    )
    assert right / 450 >= 0.95
