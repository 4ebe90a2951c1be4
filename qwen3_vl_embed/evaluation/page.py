"""A report as one HTML page that needs nothing else: no network, no files, no script to be read.

A name or a caption is somebody's words. They are escaped, and should that ever fail, the page's own policy lets it run
nothing but the few lines of `data/page.js`, and load nothing.

`plots.py` draws, `chips.py` shows colours, `data/page.html` is the page.
"""

import base64
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from qwen3_vl_embed.evaluation import FloatArray, chips, plots
from qwen3_vl_embed.evaluation.labels import DIRECTIONS, GROUPS, Label
from qwen3_vl_embed.evaluation.report import Report
from qwen3_vl_embed.evaluation.resampling import RESAMPLES
from qwen3_vl_embed.evaluation.svg import draw

TEMPLATE = Path(__file__).parent / "data" / "page.html"
SCRIPT = TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
HASH = base64.b64encode(sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{HASH}'; "
    "base-uri 'none'; form-action 'none'"
)
HEADS = (
    ("text_to_image_recall_1", ".1%", "of texts find their own image first (R@1)"),
    ("text_to_image_mixed_recall_1", ".1%", "find it first among all texts and images"),
    ("text_to_image_first_near", ".1%", "of first answers look alike (ΔE ≤ 10)"),
    ("matched_mean", ".3f", "mean distance of matched pairs"),
    ("unmatched_mean", ".3f", "mean distance of all other pairs"),
    ("auc", ".3f", "AUC, matched against unmatched; chance is 0.5"),
)
PLAIN = {
    "sound": "Texts and images find each other.",
    "narrow": "The mean distance flatters.",
    "collapsed": "Texts and images do not find each other.",
}
PAIRINGS = {"text_to_image": "text, image", "image_to_image": "image, image", "text_to_text": "text, text"}
QUALITIES = ("hue", "lightness", "saturation")
COLOUR_METHOD = "ΔE is CIEDE2000; for the first answer it is the mean over all that tie."


def page(report: Report) -> str:
    """The whole document. A second or three: matplotlib draws a dozen plots."""
    rgb, differences, raw = report.pairs.rgb, report.differences, report.figures["raw"]
    coloured = rgb is not None
    heads = (f"<div><b>{raw[key].value:{form}}</b>{words}</div>" for key, form, words in HEADS if key in raw)
    distances = draw(
        partial(plots.distances, spaces=report.spaces),
        "Share of matched and of unmatched pairs that are nearer than each cosine distance",
    )
    vector_map = draw(
        partial(plots.vector_map, space=report.spaces["raw"], rgb=rgb),
        "Map of text and image vectors, a line from each text to its image",
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        policy=POLICY,
        script=SCRIPT,
        name=escape(report.name),
        about=" · ".join(f"<bdi>{escape(part)}</bdi>" for part in about(report)),
        kind=report.verdict.kind,
        plain=PLAIN[report.verdict.kind],
        words=escape(report.verdict.words),
        heads="".join(heads),
        chips=chips.chip_styles(report.pairs),
        thing="swatch" if coloured else "image",
        things="swatches" if coloured else "images",
        first="After the basic colours the" if coloured else "The",
        ranked=chips.ranked_rows(report),
        mistakes_text=chips.mistakes(report, "text_to_image"),
        mistakes_image=chips.mistakes(report, "image_to_text"),
        hubs=chips.hubs(report, "text_to_image"),
        distances=_plot(
            distances, "Far apart from each other, and steep, is good. Dashed: each modality's mean removed"
        ),
        colour=NO_COLOUR if rgb is None or differences is None else _colour_section(report, rgb, differences),
        own_colours=", in their own colours" if coloured else "",
        map=_plot(vector_map, "Short lines are good"),
        mapped=min(len(report.pairs), plots.MAPPED),
        pool="".join(_pool(report)),
        table="".join(_table(report)),
        colour_link="" if rgb is None else '<a href="#colour">Colour</a>',
        n=len(report.pairs),
        resamples=f"{RESAMPLES:,}",
        colour_method=COLOUR_METHOD if coloured else "",
    )


NO_COLOUR = (
    "<h2 id=colour>Colour</h2><p>Left out: images with captions have no one colour to compare or to read off.</p>"
)


def about(report: Report) -> Iterator[str]:
    """What was evaluated, in short phrases."""
    told = report.pairs.about
    model = told.get("model", {})
    yield f"{len(report.pairs)} pairs: {told.get('source', 'vectors')}"
    yield f"dimension {report.pairs.text.shape[1]}"
    if checkpoint := model.get("checkpoint"):
        yield "checkpoint " + (Path(checkpoint).name if Path(checkpoint).is_absolute() else checkpoint)
    for key in ("dtype", "device"):
        if model.get(key):
            yield f"{key} {model[key]}"
    if told.get("options"):
        yield "options " + ", ".join(f"{key}={value}" for key, value in told["options"].items())
    if told.get("server"):
        yield told["server"]
    yield report.date.strftime("%Y-%m-%d %H:%M")


def _plot(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>\n"


def _colour_section(report: Report, rgb: NDArray[np.uint8], differences: FloatArray) -> str:
    space, by_difference, by_quality = report.spaces["raw"], [], []
    for kind, words in PAIRINGS.items():
        plot = partial(plots.against_difference, cosines=getattr(space, kind), differences=differences)
        spearman = report.figures["raw"][f"spearman_{kind}"].value
        drawn = draw(plot, f"Cosine distance against CIEDE2000, {words}")
        by_difference.append(_plot(drawn, f"{words}: Spearman {spearman:.2f}"))
    for quality in QUALITIES:
        plot = partial(plots.found_by, space=space, rgb=rgb, lab=report.pairs.lab, quality=quality)
        drawn = draw(plot, f"Share of names that find their own swatch by {quality}")
        by_quality.append(_plot(drawn, f"By {quality}"))
    return (
        "<h2 id=colour>Distance against colour difference</h2>"
        "<p>Where a space sees colour as people do, the median rises with ΔE.</p>"
        f'<div class="plots">{"".join(by_difference)}</div>'
        "<h2>Found by hue, lightness and saturation</h2>"
        "<p>Which colours' names find their own swatch: first (bars), and among the first ten (line).</p>"
        f'<div class="plots">{"".join(by_quality)}</div>'
    )


def _pool(report: Report) -> Iterator[str]:
    """Rows of both directions and of their difference: alone, in one pool, and how often the modality is wrong."""
    raw = report.figures["raw"]
    for direction, words in (*DIRECTIONS.items(), ("asymmetry", "difference")):
        keys = (f"{direction}_{name}" for name in ("recall_1", "mixed_recall_1", "wrong_modality"))
        shown = [Label(key, "", ".1%") for key in keys if key in raw]
        cells = (f"<td>{each.value(raw[each.key])}<small>{each.interval(raw[each.key])}</small></td>" for each in shown)
        yield f"<tr><th scope=row>{words}</th>{''.join(cells)}{'<td></td>' * (3 - len(shown))}</tr>\n"


def _table(report: Report) -> Iterator[str]:
    for title, labels in GROUPS.items():
        rows = ""
        for label in labels:
            if label.key in report.figures["raw"]:
                raw, centred = (report.figures[kind][label.key] for kind in ("raw", "centred"))
                rows += f"<tr><td>{label.words}</td>"
                rows += "".join(f"<td>{label.value(x)}<small>{label.interval(x)}</small></td>" for x in (raw, centred))
                rows += f"<td>{label.chance(raw)}</td></tr>\n"
        if rows:
            yield f'<tbody><tr><th colspan="4">{title}</th></tr>{rows}</tbody>\n'
