"""What all pages have in common: templates that escape whatever they print, and the forms of numbers and names."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from discernment.reporting import text
from discernment.reporting.marks import legend_symbol
from discernment.reporting.naming import benchmark_in_words, label_in_words


def render(page: str, context: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """A page as HTML text; every value is escaped, and what could act on the page is shown by name.

    Args:
        page: The name of its template.
        context: What the template prints.
        filters: Forms of values that only this page has.
    """
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
    environment.filters |= {"symbol": legend_symbol, **filters}
    environment.globals |= {"in_words": label_in_words, "benchmark_in_words": benchmark_in_words}
    return environment.get_template(f"{page}.html.j2").render(context) + "\n"
