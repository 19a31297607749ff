"""A plot as SVG inside the page: in the page's colours, light or dark, with the value under the pointer.

The drawing is matplotlib's; only its colours become the page's variables, and what a page has no use for goes. Styles
become attributes, so that the page's content security policy can forbid styles that are not its own.
"""

import re
from html import escape

from lora_mnist.report.figures import Mark, Plot
from lora_mnist.report.plots import BLUE, GREY, INK, ORANGE, SERIES

COLOURS = {
    "#000000": "currentColor",
    INK: "currentColor",
    GREY: "var(--quiet)",
    "#ffffff": "var(--paper)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES) if colour not in (BLUE, ORANGE)},
}
REACH = 7  # points: how near the pointer has to be


def inline(plot: Plot) -> str:
    """The <svg> element of `plot`, with its marks."""
    drawing = plot.svg_with_text.decode()
    drawing = drawing[drawing.index("<svg") : drawing.rindex("</svg>")]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", drawing)
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every plot; what is referred to is no group
    drawing = re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), drawing)
    drawing = re.sub(r' transform="rotate\(-0 [^"]*"', "", drawing)
    drawing = re.sub(r"-?\d+\.\d{3,}(?![\w%])", lambda found: f"{float(found[0]):.2f}", drawing)
    drawing = re.sub(r"\s*\n\s*", "\n", drawing)
    head = f'<svg class="plot" role="img" aria-label="{escape(plot.alt)}" fill="currentColor" stroke-linejoin="round"'
    return drawing.replace("<svg", head, 1) + "".join(_mark(plot, mark) for mark in plot.marks) + "</svg>"


def _attributes(style: str) -> str:
    """`a: b; c: d` as attributes; fonts are the page's own."""
    entries = (entry.partition(":") for entry in style.split(";") if entry.strip())
    named = {name.strip(): value.strip() for name, _, value in entries}
    named.pop("font-family", None)
    return "".join(f' {name}="{COLOURS.get(value, value)}"' for name, value in named.items())


def _mark(plot: Plot, mark: Mark) -> str:
    """An unseen circle that has a title; none outside the axes, but for a strength, which then stays at their edge."""
    x, y = plot.place(mark)
    if not (0 <= x <= 1 and 0 <= y <= 1) and mark.strength is None:
        return ""
    across, down = plot.on_paper(min(max(x, 0), 1), min(max(y, 0), 1))
    strength = "" if mark.strength is None else f' data-strength="{mark.strength:g}"'
    circle = f'<circle class="mark"{strength} cx="{across:.2f}" cy="{down:.2f}" r="{REACH}">'
    return f"{circle}<title>{escape(mark.words)}</title></circle>"
