"""The page in a real browser."""

import shutil
from pathlib import Path

import pytest

from gpt_parallel.report.render import write_report
from gpt_parallel.report.saved_run import load_run

GOLDEN = Path(__file__).parent / "golden" / "run.json"
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason='playwright is missing: pip install -e ".[browser]"')
    names = ("chromium", "chromium-browser", "google-chrome")
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, names)), driver.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("Chromium is missing: install it, or run `playwright install chromium`")
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    write_report([load_run(GOLDEN)], directory, ("html",))
    return (directory / "report.html").as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens the report; whatever the page complains of or asks the network for fails the test."""
    complaints, pages = [], []

    def open_at(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_at
    for page in pages:
        page.close()
    assert complaints == []


def column(page, index):
    return page.locator(f"table tbody tr td:nth-child({index})").all_inner_texts()


def test_table_sorts_by_number_and_by_text(open_page):
    page = open_page()

    page.get_by_role("button", name="tokens/s").click()
    rising = column(page, 4)
    assert [float(text) for text in rising[:-1]] == [47.3, 49.7, 55.4, 80.0, 96.2, 101.1]
    assert rising[-1] == "–"
    page.get_by_role("button", name="tokens/s").click()
    assert column(page, 4) == rising[::-1]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("tokens/s")

    page.get_by_role("button", name="case").click()
    assert column(page, 1) == sorted(column(page, 1))


def test_charts_are_drawn(open_page):
    images = open_page().locator("img")

    assert images.count() == 8
    for index in range(7):
        assert images.nth(index).is_visible()
        assert images.nth(index).evaluate("image => image.complete && image.naturalWidth > 500")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_the_page(open_page, width):
    page = open_page(width)

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert float(page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")) >= 13


@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1200, 1), (1400, 2)])
def test_charts_and_their_captions_are_large_enough(open_page, width, columns):
    """A chart's letters are 9 points of the width it was drawn at; the captions are text of the page."""
    page = open_page(width)
    boxes = [image.bounding_box() for image in page.locator("figure img").all()]
    inches = 3.8 if width == 400 else 7.5

    assert len({round(box["x"]) for box in boxes}) == columns
    assert min(9 / 72 * box["width"] / inches for box in boxes) >= 10.5
    assert page.evaluate("[...document.querySelectorAll('figure')].every(f => f.scrollWidth <= f.clientWidth)")
    assert (page.locator("tbody td").first.bounding_box()["height"] < 45) == (width > 400), (
        "names break where they must"
    )
    notes = page.locator("section:has(.charts) p.note")
    assert "8 requests" in notes.first.inner_text()
    assert float(notes.first.evaluate("note => parseFloat(getComputedStyle(note).fontSize)")) >= 12
    used = page.evaluate("[...document.querySelectorAll('figure img')].map(i => i.naturalWidth)")
    assert {round(size / 144, 1) for size in used} == {inches}


def test_a_telephone_shows_case_and_throughput_without_scrolling(open_page):
    page = open_page(400)
    page.evaluate("document.querySelectorAll('td:nth-child(3)').forEach(cell => cell.textContent = 'pp2·dp2·tp2')")

    for name in ("case", "devices", "tokens/s"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader(open_page, scheme):
    """Text and background are far apart in both schemes (WCAG 2: 7 to 1)."""
    page = open_page(scheme=scheme)

    def luminance(name):
        colour = page.evaluate(f"getComputedStyle(document.body).{name}")
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    text, back = luminance("color"), luminance("backgroundColor")
    assert (text > back) == (scheme == "dark")
    assert (max(text, back) + 0.05) / (min(text, back) + 0.05) > 7
