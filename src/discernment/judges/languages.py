"""Which language a reply is written in: by its script, and Latin letters by py3langid, which works offline."""

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

LATIN = ("en", "es", "fr", "de", "pt", "it")
BY_SCRIPT = {
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "HANGUL": "ko",
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "LATIN": "en",
}
SYLLABIC = ("CJK", "HANGUL", "HIRAGANA", "KATAKANA")
LEAST_KANA = 0.1
"""Share of Kana among Kana and Chinese characters from which a text is Japanese."""
SYLLABLE_WEIGHT = 3
"""A Chinese, Japanese or Korean character says about as much as so many letters."""
LANGUAGES = (*LATIN, "ru", "zh", "ja", "ko", "hi", "ar")
LOOKED_AT = 300
"""Characters from the beginning; a reply that changes its language later is judged by the first one."""
SURE = 0.95


def likely_languages(text: str) -> list[str]:
    """The languages of `LANGUAGES` that a text may be written in, the likeliest first; English if nothing tells.

    A sentence or two in Latin letters are enough for one language alone. A word or two often are not: then it is as many
    languages as together are likelier than `SURE`.
    """
    text = text[:LOOKED_AT]
    scripts = Counter(script for c in text if c.isalpha() and (script := _script(c)))
    weights = {s: n * (SYLLABLE_WEIGHT if s in SYLLABIC else 1) for s, n in scripts.items()}
    kana = weights.pop("HIRAGANA", 0) + weights.pop("KATAKANA", 0)
    if kana > LEAST_KANA * (kana + weights.get("CJK", 0)):
        weights["HIRAGANA"] = kana + weights.pop("CJK", 0)
    main = max(weights, key=lambda script: weights[script], default="LATIN")
    return _latin(text) if main == "LATIN" else [BY_SCRIPT[main]]


@cache
def _script(letter: str) -> str | None:
    script = unicodedata.name(letter, "").split(" ")[0]
    return script if script in BY_SCRIPT else None


def _latin(text: str) -> list[str]:
    ranked = _identifier().rank(text)
    even = ranked[0][1] - ranked[-1][1] < 1e-6  # nothing in the text that the library knows
    found, total = [], 0.0
    for language, probability in [("en", 0.0)] * even + ranked:
        if language not in found:
            found.append(str(language))
        total += float(probability)
        if total > SURE:
            break
    return found


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(LATIN))
    return identifier
