"""The search page in Debian's Chromium, on a desktop and a phone: what people do with it, and what they see go wrong.

`make test-chromium`.
"""

import base64
import csv
import re
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import expect

from qwen3_vl_embed.cli.validation import swatch
from qwen3_vl_embed.evaluation.page import page as chart
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import report
from qwen3_vl_embed.search.index import Index, build
from tests.test_chromium import browser  # noqa: F401  (a fixture)
from tests.test_evaluation_report import PICTURE
from tests.test_search import colours, spread, write  # noqa: F401  (a fixture)
from tests.test_search_page import pictures, served  # noqa: F401  (a fixture)

pytestmark = pytest.mark.chromium
SIZES = {"desktop": {"width": 1400, "height": 900}, "phone": {"width": 390, "height": 844}}
DROP = """([data, type]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
    const kind = type === "drop" ? DragEvent : ClipboardEvent;
    const event = new kind(type, { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer });
    document.getElementById("drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def address(stack, colours) -> Iterator[str]:  # noqa: F811
    yield from served(Index(colours), stack.adapter_url)


@pytest.fixture(params=SIZES)
def page(browser, request):  # noqa: F811
    """A new page; at its end nothing was said on the console, and nothing is wider than the screen."""
    context = browser.new_context(viewport=SIZES[request.param], accept_downloads=True)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.expected = []
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[request.param]["width"]
    context.close()
    assert [line for line in said if not any(part in line for part in page.expected)] == []


def found(page) -> list[str]:
    """The names of the hits, once they are there: the first word of each."""
    expect(page.locator("#status")).to_have_text(re.compile("nearest|groups|No duplicates|nothing"))
    looks = page.locator("article .look").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    return [label.removeprefix("More like ").partition(" ")[0].removesuffix(".png") for label in looks]


def test_words_and_not(page, address):
    page.goto(address)
    expect(page.locator("#about")).to_contain_text("220 rows (110 pictures, 110 texts)")
    page.get_by_label("Words", exact=True).first.fill("red")
    page.get_by_role("button", name="Search").click()
    assert set(found(page)[:20]) == {"red"}
    page.get_by_label("but not").fill("orange")
    page.get_by_label("but not").press("Enter")
    page.wait_for_url("**without=orange**")
    assert found(page)[0] == "red"


def test_typing_searches_by_itself_and_the_keyboard_suffices(page, address):
    page.goto(address)
    page.keyboard.press("/")
    page.keyboard.type("green")
    page.wait_for_url("**text=green**")
    assert found(page)[0] == "green"
    page.locator("article").first.wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "look":
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**like=**")
    assert found(page)[0] == "green"


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_and_its_link(page, address, browser, how):  # noqa: F811
    page.goto(address)
    if how == "choose":
        page.locator("#file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": swatch("blue")})
    else:
        page.evaluate(DROP, [base64.b64encode(swatch("blue")).decode(), how])
    page.wait_for_url("**picture=**")
    assert set(found(page)[:20]) == {"blue"}
    expect(page.locator("#preview")).to_have_js_property("naturalWidth", 244)
    with browser.new_context() as other:
        again = other.new_page()
        again.goto(page.url)
        assert found(again) == found(page)


def test_a_colour_with_words_and_the_slider(page, address):
    page.goto(address)
    slider = page.locator("#words")
    assert slider.is_disabled()
    page.locator("#colour").evaluate("each => { each.value = '#0000ff'; each.dispatchEvent(new Event('change')); }")
    page.wait_for_url("**colour=**")
    assert set(found(page)[:20]) == {"blue"}
    page.locator("#text").fill("red")
    page.locator("#text").press("Enter")
    page.wait_for_url("**text=red**")
    for where, name in (("0", "red"), ("1", "blue")):
        slider.fill(where)
        page.wait_for_url(f"**words={1 - int(where)}**")
        expect(page.locator(".look").first).to_have_attribute("aria-label", re.compile(name))
        assert set(found(page)[:10]) == {name}
    page.get_by_role("button", name="Clear").click()
    expect(slider).to_be_disabled()


def test_a_link_is_the_view_and_back_goes_back(page, address):
    page.goto(f"{address}/?text=teal&without=blue&centred=1&kind=image")
    first = found(page)
    assert page.locator("#without").input_value() == "blue"
    assert page.locator("#centred").input_value() == "1"
    assert page.locator("article .look img").count() == len(first)
    page.locator("#kind").select_option("text")
    page.wait_for_url("**kind=text**")
    assert found(page)
    assert page.locator("article .look img").count() == 0
    page.go_back()
    page.wait_for_selector("article .look img")
    assert found(page) == first


def test_duplicates_and_what_is_selected(page, address):
    page.goto(address)
    page.get_by_role("button", name="Duplicates").click()
    page.wait_for_selector(".group")
    assert page.locator(".group").count() == 22
    for tick in page.locator(".pick input").all()[:2]:
        tick.check()
    assert page.locator("#chosen").inner_text().startswith("2 selected")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    with open(download.value.path(), newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as Parquet").click()
    assert download.value.suggested_filename == "selected.parquet"
    page.get_by_role("button", name="Select none").click()
    assert page.locator("#chosen").is_hidden()


def test_a_server_that_is_gone_and_a_picture_that_is_broken(page, pictures):  # noqa: F811
    page.expected = ["Failed to load resource"]
    for address in served(Index(pictures), "http://127.0.0.1:9"):
        page.goto(f"{address}/?text=red")
        page.get_by_role("alert").filter(has_text="Nothing answers at http://127.0.0.1:9").wait_for()
        page.goto(f"{address}/?like=0")
        assert len(found(page)) == 4
        page.get_by_text("This picture cannot be shown").wait_for()
        assert page.get_by_text("No picture here").count() == 2
        page.goto(f"{address}/?like=0&kind=text")
        assert found(page) == ["text"]
    page.locator("#text").fill("blue")
    page.locator("#text").press("Enter")
    page.get_by_role("alert").filter(has_text="The search command does not answer").wait_for()


HOSTILE = (
    "<script>document.title = 'ran'</script>",
    '"><img src=x onerror="document.title = \'ran\'">',
    "javascript:document.title='ran'",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "a\0b",
    "\u202egnp.txt\u202c \u2066 עברית",
    "</style></script></template><b>bold",
    "x" * 100_000,
    "\u0301" * 3000,
    "line\u2028break\n\t\x1b[31m",
    "data:text/html,<script>document.title='ran'</script>",
    "=HYPERLINK(1)",
)


def test_nobodys_words_run_or_break_the_page(page, tmp_path):
    """Ids, texts and pictures' names: shown as they are, 100,000 letters too, in the search and in a report."""
    page.on("request", lambda request: requests.append(request.url))
    requests = []
    files = [
        write(tmp_path / f"{kind}.parquet", spread(12, 8, n), kind, id=list(HOSTILE), item=list(HOSTILE))
        for n, kind in enumerate(("text", "image"))
    ]
    for address in served(build(files, tmp_path / "index"), "http://127.0.0.1:9"):
        page.goto(f"{address}/?like=0")
        expect(page.locator("article")).to_have_count(23)
        assert set(page.locator("article h2").evaluate_all("all => all.map(each => each.title)")) <= set(HOSTILE)
        heights = page.locator("article").evaluate_all("all => all.map(each => each.clientHeight)")
        assert max(heights) < 400
        page.locator("article .look").first.click()
        expect(page.locator("article")).to_have_count(23)
        page.goto(f"{address}/?duplicates=0.5")
        expect(page.locator("#status")).to_have_text(re.compile("groups|No duplicates"))
        assert all(url.startswith((address, "data:")) for url in requests)
        assert page.title() == "Search"
    image = spread(12, 8)
    unsure = Pairs(HOSTILE, np.roll(image, 1, axis=0), image, None, (PICTURE,) * 12, {"source": HOSTILE[0]})
    (tmp_path / "report.html").write_text(chart(report(unsure, HOSTILE[1])), "utf-8")
    requests.clear()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.title() == f"{HOSTILE[1]}: text and image embeddings"
    assert page.locator(".ranked li").count() == 12
    cards = page.locator(".cards li").evaluate_all("all => all.map(each => each.clientHeight)")
    assert max(cards) < 400
    page.get_by_placeholder("part of a text").fill("{{7")
    assert page.locator(".ranked li:visible").count() == 1
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_everybody_can_use_it(page, address):
    """Axe, with nothing serious, empty and with results, in both schemes."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for query in ("", "?text=red&colour=%23ff0000", "?duplicates=0.99"):
            page.goto(f"{address}/{query}")
            if query:
                found(page)
            violations = axe.run(page).response["violations"]
            told = [
                (each["id"], each["nodes"][0]["html"])
                for each in violations
                if each["impact"] in ("serious", "critical")
            ]
            assert told == []
