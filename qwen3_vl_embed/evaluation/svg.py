"""Matplotlib figures as inline SVG that follows the page's colours.

Points are embedded as pixels (thousands of shapes make a page slow), lines and words stay vectors and text.
"""

import html
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

INK = "#123456"  # stands for the page's own text colour, light or dark, and is replaced by it
SIZE = (5.4, 4.0)  # inches at 72 dots: two fit side by side, one fills a phone
DOTS = 200  # per inch, of what is embedded as pixels
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same vectors give the same page
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw(plot: Callable[[Axes], None], description: str) -> str:
    """What `plot` puts on the axes, as an <svg> element. `description` is for those who cannot see it."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=SIZE, layout="constrained")
        plot(canvas.add_subplot())
        text = StringIO()
        canvas.savefig(text, format="svg", dpi=DOTS, metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), description)


def _inline(document: str, description: str) -> str:
    """Without the prolog, the fixed size and the ids that several figures of one page would share."""
    body = document[document.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r' id="[a-zA-Z]+(\d*\.?)*_\d+"', "", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    start = f'<svg role="img" aria-label="{html.escape(description)}"'
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', rf"{start} \1", body, count=1)
