"""A matplotlib figure as inline SVG that follows the page's colours and font."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from discernment.reporting.marks import INK, MUTED, RULE, VARIABLES
from discernment.reporting.text import visible

__all__ = ["drawing_style", "inline_svg"]

FONT_SIZE = 11.5
STAND_IN = re.compile("|".join(VARIABLES))
FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
LONG_FRACTION = re.compile(r"(\d\.\d\d)\d+")
REFERENCE = re.compile(r"url\(#([^)]+)\)")


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw with our settings and none of the user's `matplotlibrc`."""
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


def inline_svg(figure: Figure, identity: str, title: str) -> Markup:
    """Write `figure` as an `<svg>` element to stand inside an HTML page.

    Args:
        figure: The figure, drawn in the stand-in colours of `marks`.
        identity: Goes in front of every id, so that figures on one page do not share any.
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
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - the serialiser escapes all text


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
