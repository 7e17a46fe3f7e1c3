"""Untrusted text and numbers, made fit to be read.

Prompts and completions are written by strangers and by models. Markup in them is escaped by jinja2, by matplotlib
or by `rich`; what those let through (control characters, bidirectional overrides, invisible characters that can
make a text look like another one) is made visible here.
"""

import math
import unicodedata
from datetime import datetime

DASH = "\N{EN DASH}"
MISSING = DASH
MINUS = "\N{MINUS SIGN}"
REDACTED = "[redacted]"
"""What stands where a text is left out."""

# Joiners shape emoji and Persian or Indic words; they neither reorder nor separate anything.
HARMLESS_FORMAT = {"\N{ZERO WIDTH NON-JOINER}", "\N{ZERO WIDTH JOINER}"}


def visible(text: str) -> str:
    r"""Show control, bidirectional, invisible and unencodable characters by name instead of acting on them.

    Line breaks and tabs stay; an escape becomes `⟨U+001B⟩`, a right-to-left override `⟨U+202E⟩`, and so on.
    The result is valid in UTF-8 and in XML, and `visible` leaves it as it is.
    """
    return "".join(_visible(character) for character in text.replace("\r\n", "\n"))


def _visible(character: str) -> str:
    if character in "\n\t" or character in HARMLESS_FORMAT:
        return character
    code = ord(character)
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if is_noncharacter or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f"⟨U+{code:04X}⟩"
    return character


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, with a note of how many were cut off."""
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()} … ({count(len(text) - limit)} more characters)"


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """A share as a percentage with one digit: 0.8333 is `83.3`."""
    return f"{100 * value:.1f}" if value is not None and math.isfinite(value) else MISSING


def points(value: float | None) -> str:
    """A difference of shares in percentage points, always with a sign: `+5.0`."""
    return _signed(value, 100, 1)


def decimal_difference(value: float | None) -> str:
    """A difference of numbers such as AUROCs with three digits, always with a sign."""
    return _signed(value, 1, 3)


def _signed(value: float | None, scale: int, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    written = f"{scale * value:+.{digits}f}"
    return written[1:] if float(written) == 0 else written.replace("-", MINUS)


def decimal(value: float | None) -> str:
    """A number such as an AUROC with three digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, form: str = "percent") -> str:
    """An interval; empty when an end is not known.

    Args:
        low: Lower end.
        high: Upper end.
        form: `percent` or `decimal`, or of differences `points` or `decimal_difference`.
    """
    if not (_known(low) and _known(high)):
        return ""
    signed = {"points": points, "decimal_difference": decimal_difference}
    write = ({"percent": percent, "decimal": decimal} | signed)[form]
    return f"{write(low)} to {write(high)}" if form in signed else f"{write(low)}{DASH}{write(high)}"


def p_value(value: float) -> str:
    """A p-value with three digits, never `0.000`."""
    return "<0.001" if value < 0.001 else decimal(value)


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float | None) -> str:
    """A time such as `4.2 s`, `3 min 07 s` or `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(written: str) -> str:
    """An ISO 8601 time to the minute, such as `2026-03-02 09:14 UTC`; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(written):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return written


def bytes_size(value: float | None) -> str:
    """A size in memory such as `840 MiB` or `2.31 GiB`."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
