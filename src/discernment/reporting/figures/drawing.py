"""One panel of a figure: how it is begun, what is drawn alike in several, and how it becomes inline SVG.

The SVG follows the page's colours and font.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from discernment.reporting.marks import INK, MUTED, RULE, SURFACE, VARIABLES, Mark
from discernment.reporting.text import visible

WIDTH = 400
NARROW = 320
FONT_SIZE = 11.5
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
STAND_IN = re.compile("|".join(VARIABLES))
FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
LONG_FRACTION = re.compile(r"(\d\.\d\d)\d+")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Panel:
    """One drawing and what stands over it."""

    heading: str
    svg: Markup


@contextmanager
def style() -> Iterator[None]:
    """Draw with our settings and none of the user's `matplotlibrc`; a function that makes panels is decorated with it."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",  # text stays text: searchable, and set in the page's font
                "svg.hashsalt": "discernment",  # the same figure has the same ids
                "text.parse_math": False,  # a `$` in a name is a `$`
                "font.size": FONT_SIZE,
                "axes.labelsize": FONT_SIZE,
                "xtick.labelsize": FONT_SIZE,
                "ytick.labelsize": FONT_SIZE,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": RULE,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": RULE,
                "grid.linewidth": 0.7,
                "xtick.color": RULE,
                "ytick.color": RULE,
                "xtick.labelcolor": MUTED,
                "ytick.labelcolor": MUTED,
                "xtick.major.size": 0,
                "ytick.major.size": 0,
                "xtick.minor.size": 0,
                "lines.solid_capstyle": "round",
            }
        )
        yield


def axes_of(width: int, height: int, left: int = 44, top: int = 28, bottom: int = 44) -> tuple[Figure, Any]:
    """A figure of `width` x `height` CSS pixels (one is 1/72 inch here) with one pair of axes."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    right = 12
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def name_axes(axes: Any, x: str, y: str) -> None:
    """Both names set horizontally: the one of the vertical axis over it, where it is read first."""
    axes.set_xlabel(x, color=MUTED, labelpad=6)
    axes.set_title(y, loc="left", fontsize=FONT_SIZE, color=MUTED, pad=9, x=-0.02)


def set_log(axes: Any, names: str, most: int) -> None:
    """Make the axes that `names` lists logarithmic, with at most `most` powers of ten written at each."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_locator(LogLocator(base=10, numticks=most))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _power_of_ten(value)))
    axes.minorticks_off()


def _power_of_ten(value: float) -> str:
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else "10" + str(exponent).translate(SUPERSCRIPT)


def line(axes: Any, look: Mark, x: Sequence[float], y: Any, width: float, size: float, **more: Any) -> None:
    """A line with a series' markers on it, which a thin rim sets off from the line."""
    axes.plot(
        x, y, color=look.colour, linewidth=width, marker=look.marker, markersize=size,
        markeredgecolor=SURFACE, markeredgewidth=0.6, **more,
    )  # fmt: skip


def dots(axes: Any, look: Mark, x: Any, y: Any, size: float, rim: float, zorder: float) -> None:
    """A series' markers alone, each with a rim that sets it off from what lies under it."""
    axes.plot(
        x, y, look.marker, color=look.colour, markersize=size, markeredgecolor=SURFACE, markeredgewidth=rim,
        zorder=zorder, clip_on=False,
    )  # fmt: skip


def panel_of(figure: Figure, identity: str, heading: str, title: str) -> Panel:
    """The panel of a drawing, as an `<svg>` element to stand inside an HTML page.

    Args:
        figure: The figure, drawn in the stand-in colours of `marks`.
        identity: Goes in front of every id, so that figures on one page do not share any.
        heading: What stands over the drawing.
        title: What the figure is, for those who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - matplotlib wrote it a line ago
    _drop_namespaces(root)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {"metadata", "style"}:
                parent.remove(child)
    _settle_ids(root, identity)
    for element in root.iter():
        if element.tag != "text":
            element.text = element.tail = None
        element.tail = None
        for name, value in element.attrib.items():
            if name == "style":
                value = FONT_FAMILY.sub("", STAND_IN.sub(lambda found: VARIABLES[found.group()], value))
            if name != "href":
                element.set(name, LONG_FRACTION.sub(r"\1", " ".join(value.split())))
    for group in root.iter("g"):
        _share_style(group)
    title = visible(title)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update({"width": width, "height": height, "role": "img", "aria-label": title})
    caption = ElementTree.Element("title")
    caption.text = title
    root.insert(0, caption)
    svg = Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - the serialiser escapes all text
    return Panel(heading, svg)


def _drop_namespaces(root: ElementTree.Element) -> None:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if "}" in name:
                element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _settle_ids(root: ElementTree.Element, identity: str) -> None:
    """Prefix the ids that something refers to, and drop the others."""
    used = {element.get("href", "").removeprefix("#") for element in root.iter()}
    used |= {name for e in root.iter() for value in e.attrib.values() for name in REFERENCE.findall(value)}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if value in used:
                    element.set("id", f"{identity}-{value}")
                else:
                    del element.attrib["id"]
            elif name == "href":
                element.set("href", f"#{identity}-{value.removeprefix('#')}")
            else:
                element.set(name, REFERENCE.sub(rf"url(#{identity}-\1)", value))


def _share_style(group: ElementTree.Element) -> None:
    """Say once on the group what all its markers say alike: a strip of points gets a third of the size."""
    uses = [child for child in group if child.tag == "use"]
    if len(uses) > 1 and len(uses) == len(group) and len({use.get("style") for use in uses}) == 1:
        group.set("style", uses[0].get("style", ""))
        for use in uses:
            use.attrib.pop("style", None)
