"""The built-in refusal openings of each language."""

from importlib import resources

import yaml

from discernment.judges.languages import LANGUAGES
from discernment.policies.rejection import load_openings


def test_every_language_of_the_keyword_judge_has_openings():
    text = resources.files("discernment.policies").joinpath("openings.yaml").read_text(encoding="utf-8")
    by_language = yaml.safe_load(text)
    assert tuple(by_language) == LANGUAGES
    for language, openings in by_language.items():
        assert len(openings) == len(set(openings)) > 20, language
        assert load_openings(language) == openings
    assert load_openings() == by_language["en"]


def test_all_are_the_openings_of_every_language_once():
    every = load_openings("all")
    assert len(every) == len(set(every))
    assert set(every) == {opening for language in LANGUAGES for opening in load_openings(language)}
    assert len(every) < sum(len(load_openings(language)) for language in LANGUAGES)  # "Sorry" is German, too
