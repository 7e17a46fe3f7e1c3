"""What all pages have in common: templates that escape whatever they print, and the forms of numbers."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from discernment.reporting import text

__all__ = ["templates"]


def templates() -> jinja2.Environment:
    """The templates of this room; every value is escaped, and what could act on the page is shown by name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("discernment.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Every value that the template prints goes through here before it is escaped.
        finalize=lambda value: (
            text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    for form in (
        text.percent, text.points, text.decimal, text.decimal_difference, text.interval, text.p_value, text.count, text.duration,
        text.bytes_size, text.shorten,
    ):  # fmt: skip
        environment.filters[form.__name__] = form
    return environment
