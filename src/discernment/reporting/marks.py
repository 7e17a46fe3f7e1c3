"""How a method looks in every figure and legend: colour and marker, so that nothing depends on hue alone."""

from dataclasses import dataclass

from markupsafe import Markup

from discernment.prompts import Label

# A figure is drawn in stand-in colours; figures/drawing.py replaces each by the style sheet's variable of that name, which has
# a value for light and one for dark pages.
INK, MUTED, RULE, SURFACE = "#010001", "#010002", "#010003", "#010004"
SERIES = [f"#0200{number:02x}" for number in range(1, 9)]
LABEL_COLOURS = {Label.TOXIC: "#030001", Label.SEEMINGLY_TOXIC: "#030002", Label.BENIGN: "#030003"}

VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    SURFACE: "var(--page)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
    **{colour: f"var(--{label.replace('_', '-')})" for label, colour in LABEL_COLOURS.items()},
}

# The marker in matplotlib, and the same shape as a path in a box from -6 to 6.
MARKERS = [
    ("o", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z"),
    ("s", "M-3.6,-3.6H3.6V3.6H-3.6z"),
    ("^", "M0,-4.2L4.2,3.6H-4.2z"),
    ("D", "M0,-4.8L4.8,0L0,4.8L-4.8,0z"),
    ("v", "M0,4.2L4.2,-3.6H-4.2z"),
    ("P", "M-1.5,-4.4h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9v-3h2.9z"),
    ("X", "M-4.4,-2.4L-2.4,-4.4L0,-2L2.4,-4.4L4.4,-2.4L2,0L4.4,2.4L2.4,4.4L0,2L-2.4,4.4L-4.4,2.4L-2,0z"),
    ("<", "M-4.2,0L3.6,-4.2V4.2z"),
    (">", "M4.2,0L-3.6,-4.2V4.2z"),
]


@dataclass(frozen=True)
class Mark:
    """Colour (a stand-in), marker, and the marker's path for legends."""

    colour: str
    marker: str
    path: str


def mark(number: int) -> Mark:
    """The look of the `number`-th series; colours repeat after 8 and markers after 9, so that 72 can be told apart."""
    marker, path = MARKERS[number % len(MARKERS)]
    return Mark(SERIES[number % len(SERIES)], marker, path)


# Similarity within a label, and across the labels.
WITHIN, ACROSS = mark(3), mark(1)


def label_mark(label: Label) -> Mark:
    """The look of the line of a label."""
    marker, path = MARKERS[list(Label).index(label)]
    return Mark(LABEL_COLOURS[label], marker, path)


def legend_symbol(look: Mark) -> Markup:
    """A piece of line with the marker on it, as inline SVG."""
    return Markup(
        '<svg class="symbol" viewBox="-12 -7 24 14" width="24" height="14" aria-hidden="true">'
        '<path d="M-12,0H12" style="stroke:{colour};stroke-width:1.8"/>'
        '<path d="{path}" style="fill:{colour}"/></svg>'
    ).format(colour=VARIABLES[look.colour], path=look.path)
