"""Pages of one file: their texts are escaped, their pictures fit and can be enlarged."""

import shutil

import numpy as np
import pandas as pd
import pytest

from defects.reports.html import (
    Card,
    Cards,
    Fact,
    KeyFigure,
    PageSection,
    Picture,
    Table,
    Text,
    build_page,
    embed_jpeg,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def test_page_escapes_all_texts():
    tag = "<em>&\"'"
    picture = Picture("data:,", 2, 1, tag, tag)
    card = Card(tag, (picture,), (Fact(tag),), tag)
    blocks = [Text(tag), Table(pd.DataFrame({tag: [tag]}, index=[tag])), Cards(tag, [card])]
    html = build_page(tag, tag, [PageSection(tag, blocks)], [KeyFigure(tag, tag, tag)])
    body = html[html.index("<body>") : html.index("<dialog")]
    assert "<em>&" not in body
    assert body.count("&lt;em&gt;&amp;") == 17


@pytest.mark.skipif(BROWSER is None, reason="no browser is on the path")
def test_page_enlarges_images_and_fetches_nothing(tmp_path):
    from playwright.sync_api import expect, sync_playwright

    picture = embed_jpeg(np.full((40, 60, 3), 90, np.uint8), "grey")
    cards = [Card(f"{number}.png", (picture,), hint=f"folder/{number}.png") for number in range(3)]
    path = tmp_path / "page.html"
    path.write_text(build_page("page", "", [PageSection("images", [Cards("", cards)])]), encoding="utf-8")
    requests, complaints = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.on("request", lambda request: requests.append(request.url.partition(":")[0]))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        name, dialog = page.locator(".stage b"), page.locator("dialog")
        page.click("main .card >> nth=1 >> img")
        expect(name).to_have_text("1.png")
        page.keyboard.press("ArrowRight")
        page.click("dialog [data-step='1']")
        expect(name).to_have_text("0.png")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        browser.close()
    assert set(requests) <= {"file", "data"}
    assert complaints == []


@pytest.mark.parametrize(
    ("height", "width", "display_width"), [(256, 1600, 420), (200, 200, 168), (300, 100, 106)]
)
def test_pictures_of_all_shapes_take_up_about_the_same_area(height, width, display_width):
    card = Card("a", (Picture("data:,", width, height, ""),))
    assert Cards("", [card]).picture_width == pytest.approx(display_width, abs=10)


@pytest.mark.parametrize(("count", "across"), [(1, 1), (4, 4), (6, 6), (7, 4), (13, 5)])
def test_pictures_of_a_card_fill_its_rows(count, across):
    card = Card("a", count * (Picture("data:,", 10, 10, ""),))
    assert Cards("", [card]).across == across
