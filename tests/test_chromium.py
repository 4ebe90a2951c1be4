"""Our pixels beside Chromium's, side by side, of files of every kind (`viewer_files.py`): `make test-chromium`.

Needs Debian's chromium and playwright. Browsers decide what a file's colours are; where ours differ, it says so.
"""

import base64
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from embedder.prepare import images
from tests import viewer_files

pytestmark = pytest.mark.chromium
CHROMIUM = "/usr/bin/chromium"
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
def show() -> Iterator[Show]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), "--force-color-profile=srgb"])
        page = browser.new_page()

        def shown(data: bytes) -> np.ndarray | None:
            """(H, W, 3) on white; None: the browser shows nothing."""
            answer = page.evaluate(SHOW, base64.b64encode(data).decode())
            return None if answer is None else np.array(answer[2], np.uint8).reshape(answer[1], answer[0], 4)[..., :3]

        yield shown
        browser.close()


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_that_chromium_shows(show, name):
    ours = images.decode(FILES[name], 2**24, 10**6)
    theirs = show(FILES[name])
    assert theirs is not None, "Chromium does not show it"
    assert ours.shape == theirs.shape
    differences = np.abs(ours.astype(int) - theirs)
    mean, most = LOOSE.get(name, (1.0, 3))
    if name in OTHERWISE:
        assert differences.mean() > 1, "no longer otherwise"
    else:
        assert (differences.mean() <= mean, differences.max() <= most) == (True, True), differences.max(axis=(0, 1))
