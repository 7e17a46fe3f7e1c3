# ruff: noqa: RUF001 - the report's own dashes and minus signs
from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernment.reporting import text

any_text = st.text(st.characters(codec=None))  # lone surrogates too


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain, with <b>, ü, 漢字 and 👩‍🔬", "plain, with <b>, ü, 漢字 and 👩‍🔬"),
        ("line\nline\tend", "line\nline\tend"),
        ("a\r\nb", "a\nb"),
        ("\x1b[31mred", "⟨U+001B⟩[31mred"),
        ("\x00\x07\x7f\x85\r", "⟨U+0000⟩⟨U+0007⟩⟨U+007F⟩⟨U+0085⟩⟨U+000D⟩"),
        ("\u202egnp.exe\u2069", "⟨U+202E⟩gnp.exe⟨U+2069⟩"),
        ("\ufeffa\u200bb\u2028c\u00ad", "⟨U+FEFF⟩a⟨U+200B⟩b⟨U+2028⟩c⟨U+00AD⟩"),
        ("\ud800 \ufffe \U0001ffff \U000e0041", "⟨U+D800⟩ ⟨U+FFFE⟩ ⟨U+1FFFF⟩ ⟨U+E0041⟩"),
    ],
)
def test_visible(written: str, shown: str) -> None:
    assert text.visible(written) == shown


@given(any_text)
def test_visible_leaves_nothing_that_acts(written: str) -> None:
    shown = text.visible(written)
    shown.encode("utf-8")
    categories = {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"}
    assert categories.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert text.visible(shown) == shown


@given(any_text)
def test_visible_text_goes_through_xml(written: str) -> None:
    element = ElementTree.Element("t")
    element.text = text.visible(written)
    assert (ElementTree.fromstring(ElementTree.tostring(element)).text or "") == element.text


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_visible_leaves_ordinary_text_alone(written: str) -> None:
    assert text.visible(written) == written


def test_shorten() -> None:
    assert text.shorten("x" * 10, 10) == "x" * 10
    assert text.shorten("x" * 2010, 10) == "xxxxxxxxxx … (2\u202f000 more characters)"


@pytest.mark.parametrize(
    ("form", "value", "written"),
    [
        (text.percent, 0.83333, "83.3"),
        (text.percent, 1.0, "100.0"),
        (text.percent, None, "–"),
        (text.percent, float("nan"), "–"),
        (text.points, 0.05, "+5.0"),
        (text.points, -0.123, "−12.3"),
        (text.points, -0.0001, "0.0"),
        (text.decimal, 0.9586, "0.959"),
        (text.decimal, float("inf"), "–"),
        (text.p_value, 0.0009, "<0.001"),
        (text.p_value, 0.0312, "0.031"),
        (text.count, 1234567, "1\u202f234\u202f567"),
        (text.duration, 4.23, "4.2 s"),
        (text.duration, 59.97, "1 min 00 s"),
        (text.duration, 187, "3 min 07 s"),
        (text.duration, 7500, "2 h 05 min"),
        (text.bytes_size, 880803840, "840 MiB"),
        (text.bytes_size, 2484094402, "2.31 GiB"),
        (text.moment, "2026-03-02T09:14:07+00:00", "2026-03-02 09:14 UTC"),
        (text.moment, "yesterday", "yesterday"),
    ],
)
def test_numbers(form: object, value: object, written: str) -> None:
    assert callable(form)
    assert form(value) == written


def test_interval() -> None:
    assert text.interval(0.615, 0.8193) == "61.5–81.9"
    assert text.interval(-0.1, 0.05, "points") == "−10.0 to +5.0"
    assert text.interval(0.5, 0.75, "decimal") == "0.500–0.750"
    assert text.interval(None, 0.75) == ""
