"""In Chromium: our pixels beside its own, of files of every kind (`viewer_files.py`), and the report's page.

`make test-chromium`; needs Debian's chromium and playwright. Browsers decide what a file's colours are; where ours
differ, it says so.
"""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.prepare import images
from qwen3_vl_embed.evaluation.page import page
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import report
from tests import viewer_files
from tests.test_evaluation_report import PALETTE, seen

pytestmark = pytest.mark.chromium
CHROMIUM = "/usr/bin/chromium"
SINCE = 156  # 150 showed seven BMP files otherwise: gaps, calibrated colours, wholly transparent ones
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
)
SHOW = """async (data) => {
    const image = new Image();
    image.src = "data:image/png;base64," + data;  // the type is found by content
    try { await image.decode(); } catch { return null; }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    return [canvas.width, canvas.height, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
}"""
KINDS = {
    "png, colours": viewer_files.PNG_COLOURS,
    "png": viewer_files.PNG_PICTURES,
    "gif": viewer_files.GIFS,
    "webp": viewer_files.WEBPS,
    "bmp": viewer_files.BMPS,
    "jpeg": viewer_files.JPEGS,
    "avif": viewer_files.AVIFS,
}
FILES = {f"{kind}: {name}": data for kind, files in KINDS.items() for name, data in files.items()}
# Chromium leaves the last rows grey where the end is missing; here the picture is whole.
OTHERWISE = {"jpeg: no end", "jpeg: half an end"}
# (mean, most) levels apart, where one of the two is less exact: 8-bit curves of grey; libyuv's short ways in AVIF.
LOOSE = {"jpeg: profile of grey": (0.5, 8), "png, colours: iCCP of grey": (0.5, 8)}
LOOSE |= dict.fromkeys(("avif: alpha", "avif: premultiplied alpha", "avif: animation"), (10, 24))
Show = Callable[[bytes], np.ndarray | None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), "--force-color-profile=srgb"])
        if int(browser.version.partition(".")[0]) < SINCE:
            pytest.skip(f"Chromium {browser.version} shows some BMP files otherwise: take {SINCE} or newer")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def show(browser) -> Show:
    page = browser.new_page()

    def shown(data: bytes) -> np.ndarray | None:
        """(H, W, 3) on white; None: the browser shows nothing."""
        answer = page.evaluate(SHOW, base64.b64encode(data).decode())
        return None if answer is None else np.array(answer[2], np.uint8).reshape(answer[1], answer[0], 4)[..., :3]

    return shown


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_that_chromium_shows(show, name):
    ours = np.asarray(images.decode(FILES[name], 2**24, 10**6))
    theirs = show(FILES[name])
    assert theirs is not None, "Chromium does not show it"
    assert ours.shape == theirs.shape
    differences = np.abs(ours.astype(int) - theirs)
    mean, most = LOOSE.get(name, (1.0, 3))
    if name in OTHERWISE:
        assert differences.mean() > 1, "no longer otherwise"
    else:
        assert (differences.mean() <= mean, differences.max() <= most) == (True, True), differences.max(axis=(0, 1))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The page of 237 colours, known so badly that mistakes fill it."""
    names, rgb = PALETTE.names[1::4], PALETTE.rgb[1::4]
    image = seen(rgb + 1.0).astype(np.float32)  # not zero for black
    text = image + np.random.default_rng(0).normal(scale=0.5, size=image.shape).astype(np.float32)
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(report(Pairs(names, text, image, rgb), "a model")))
    return path


MEASURE = """() => {
    const list = document.querySelector(".ranked"), row = list.querySelector("li");
    const table = document.querySelector(".wide");
    return {
        page: document.documentElement.scrollWidth, table: table.scrollWidth - table.clientWidth,
        first: row.getBoundingClientRect().bottom, cut: list.clientHeight % row.getBoundingClientRect().height,
        chips: row.getBoundingClientRect().right - row.querySelector("div i:last-child").getBoundingClientRect().right,
        height: document.documentElement.scrollHeight, mains: document.querySelectorAll("main").length,
        unreachable: [list, table].filter(each => each.tabIndex != 0).length,
    }
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height", "longest"), [(1400, 900, 7500), (390, 844, 12_000)])
def test_the_reports_page(browser, written, width, height, longest, scheme):
    """A desktop and a phone: nothing is cut, what is found stands on the first screen, and rows fill the width."""
    view, said = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme), []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.goto(written.as_uri())
    measured = view.evaluate(MEASURE)
    view.get_by_placeholder("part of a text").fill("teal")
    rows = view.locator(".ranked li:visible").all_inner_texts()
    view.close()
    assert said == []
    assert (measured["page"], measured["table"], measured["mains"], measured["unreachable"]) == (width, 0, 1, 0)
    assert measured["cut"] < 1
    assert measured["chips"] < 16  # pixels from the last swatch to the end of its row
    assert measured["height"] < longest
    assert measured["first"] < (height if width > 640 else 1.6 * height)
    assert rows
    assert all("teal" in row for row in rows)
