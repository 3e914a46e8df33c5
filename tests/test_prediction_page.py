"""The page for people: what its components show, and all of it once in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
import pytest
from conftest import raising, texture, write_png
from exports import SIZE, make_claims, write_export

from defects.config_schema import ROOT
from defects.deploy.model import load_model
from defects.deploy.prediction_page import (
    EMPTY,
    MOST_IMAGES,
    PageActions,
    build_heading,
    build_prediction_page,
    decode_picture,
    draw_heat_map,
    serve,
)
from defects.deploy.similar import load_normals
from defects.messages import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


def test_page_heading_states_what_may_be_claimed(tmp_path):
    claims = make_claims()
    model = load_model(write_export(tmp_path / "export", claims=claims))
    assert f"By the model's own threshold: {claims.sentence}" in unescape(build_heading(model))


def spotted(seed: int, level: int) -> np.ndarray:
    """A texture with two cells of this brightness."""
    image = texture(seed).clip(0, 180)
    image[8:16, 8:12] = level
    return image


@pytest.fixture
def drop(tmp_path) -> Path:
    """Pictures for the page: a clear defect, a doubtful one, a normal one."""
    write_png(tmp_path / "normal.png", spotted(0, 150))
    write_png(tmp_path / "clear.png", spotted(1, 240))
    write_png(tmp_path / "doubtful.png", spotted(2, 202))
    return tmp_path


@pytest.fixture
def make_actions(tmp_path) -> Callable[..., PageActions]:
    def make(*targets: str, maps: bool = True) -> PageActions:
        export = write_export(tmp_path / "made", targets or ("defect",), maps)
        return PageActions(load_model(export), load_normals(export))

    return make


def score(actions: PageActions, *files: Path, values: tuple[float, ...] = (50,)) -> SimpleNamespace:
    names = ("results", "chosen", "files", "problems", "listing", "detail", "similar")
    found = actions.score([str(file) for file in files], lambda *_, **__: None, *values)
    return SimpleNamespace(**dict(zip(names, found, strict=True)))


def verdicts(listing: str) -> list[tuple[str, str]]:
    """(file, verdict) of each image in the list."""
    return re.findall(r"<span>([^<]*)</span><b>([^<]*)</b>", listing)


def pictures(detail: str) -> list[str]:
    return re.findall(r'<img alt="([^"]*)"', detail)


def test_page_the_worst_image_comes_first_and_is_shown(make_actions, drop):
    page = score(make_actions(), *(drop / f"{name}.png" for name in ("normal", "doubtful", "clear")))
    assert verdicts(page.listing) == [
        ("clear.png", "DEFECT"),
        ("doubtful.png", "DEFECT"),
        ("normal.png", "normal"),
    ]
    assert "3 images: 2 defects, 1 normal" in page.listing
    assert page.listing.index('aria-pressed="true"') < page.listing.index('aria-pressed="false"')
    assert '<div class="verdict defect" role="status"><b>DEFECT</b><span>clear.png' in page.detail
    assert "score <b>81.7</b>" in page.detail
    assert "probability 0.982<" in page.detail
    assert pictures(page.detail) == ["Image", "Heat map, 1 box"]
    assert page.files is None  # ready for the next drop
    assert page.problems == ""


def test_page_broken_files_are_named_and_the_rest_goes_on(make_actions, drop):
    (drop / "broken.png").write_bytes(b"\x89PNG")
    (drop / "notes.txt").write_text("no image")
    page = score(make_actions(), *(drop / name for name in ("broken.png", "normal.png", "notes.txt")))
    assert verdicts(page.listing) == [("normal.png", "normal")]
    assert re.findall("<li>([^ ]*) is empty, truncated or no image", page.problems) == [
        "broken.png",
        "notes.txt",
    ]


def test_page_nothing_is_left_of_the_last_drop_when_none_can_be_read(make_actions, drop):
    (drop / "broken.png").write_bytes(b"")
    page = score(make_actions(), drop / "broken.png")
    assert (page.results, page.listing, page.detail, page.similar) == ([], "", EMPTY, "")
    assert "broken.png" in page.problems


def test_page_a_file_dropped_twice_counts_once(make_actions, drop):
    page = score(make_actions(), *2 * [drop / "clear.png"])
    assert verdicts(page.listing) == [("clear.png", "DEFECT")]


def test_more_than_the_page_is_made_for_is_said(make_actions, drop):
    files = [write_png(drop / f"{place}.png", texture(place % 3)) for place in range(MOST_IMAGES + 3)]
    page = score(make_actions(), *files)
    assert len(verdicts(page.listing)) == MOST_IMAGES
    assert "3 more images left out: src/predict.py scores folders" in page.problems


def test_page_names_of_files_are_text(make_actions, drop):
    page = score(make_actions(), write_png(drop / "a&lt;b.png", texture(0)))
    assert "a&amp;lt;b.png" in page.listing
    assert "a&amp;lt;b.png" in page.detail


def test_page_another_threshold_relabels_without_the_model(make_actions, drop):
    actions = make_actions()
    page = score(actions, drop / "clear.png", drop / "doubtful.png")
    actions.model = raising(AssertionError("the model runs again"))
    listing, detail = actions.relabel(page.results, 1, 70)
    assert verdicts(listing) == [("clear.png", "DEFECT"), ("doubtful.png", "normal")]
    assert '<div class="verdict normal" role="status"><b>normal</b><span>doubtful.png' in detail
    assert "threshold 70.0" in detail
    assert pictures(detail) == ["Image", "Heat map, 0 boxes"]
    assert verdicts(actions.relabel(page.results, 0, 100)[0])[0] == ("clear.png", "normal")
    assert (
        "threshold 50.0" in actions.relabel(page.results, 1, None)[1]
    )  # the field beside the slider is empty
    assert actions.relabel([], 0, 90) == ("", EMPTY)


def test_page_a_slider_that_was_not_moved_is_the_models_own_threshold(make_actions, drop):
    actions = make_actions()
    probability = score(actions, drop / "doubtful.png").results[0].prediction.probability["defect"]
    for threshold, verdict in ((probability, "DEFECT"), (np.nextafter(probability, 1), "normal")):
        actions.meta.threshold["defect"] = float(threshold)  # closer than the slider's steps
        page = score(actions, drop / "doubtful.png", values=(actions.build_sliders()[0].value,))
        assert verdicts(page.listing) == [("doubtful.png", verdict)]


def test_page_slider_of_a_model_whose_probabilities_crowd_at_1_has_room(make_actions, drop):
    actions = make_actions()
    actions.meta.threshold["defect"] = 1 - 1e-4
    slider = actions.build_sliders()[0]
    assert (slider.minimum, slider.value, slider.maximum) == (0, 50, 100)
    assert "a probability of 0.9999" in slider.info
    page = score(actions, drop / "clear.png", drop / "doubtful.png")
    shown = [float(text) for text in re.findall(r"<em>([^<]*)</em>", page.listing)]
    assert 10 < shown[1] < shown[0] < 50
    assert verdicts(actions.relabel(page.results, 0, shown[0] - 1)[0]) == [
        ("clear.png", "DEFECT"), ("doubtful.png", "normal"),
    ]  # fmt: skip


def test_page_another_image_can_be_chosen(make_actions, drop):
    actions = make_actions()
    page = score(actions, drop / "clear.png", drop / "normal.png")
    chosen, listing, detail, similar = actions.choose(page.results, SimpleNamespace(place=1), 50)
    assert chosen == 1
    assert re.findall('data-place="(.)" aria-pressed="true"', listing) == ["1"]
    assert "<span>normal.png</span>" in detail
    # Its texture is that of the first of the export's images.
    assert "Most similar of 8 normal images" in similar
    assert re.findall("<figcaption>([^<]*)<", similar)[0] == "normal_0.png"
    assert len(re.findall("<figcaption>", similar)) == 5


def test_page_classes_have_a_probability_and_a_threshold_each(make_actions, drop):
    actions = make_actions("pit", "scratch", "defect")
    with gr.Blocks():
        assert [slider.label for slider in actions.build_sliders()] == [
            "pit",
            "scratch",
            "Threshold of any defect",
        ]
    page = score(actions, drop / "clear.png", values=(50, 50, 50))
    assert verdicts(page.listing) == [("clear.png", "DEFECT: pit+scratch")]
    assert re.findall("score <b>([^<]*)", page.detail) == ["81.7", "73.2", "50.0"]
    listing, detail = actions.relabel(page.results, 0, 90, 50, 60)
    assert verdicts(listing) == [("clear.png", "DEFECT: scratch")]
    assert re.findall('"bar ([a-z]*)"', detail) == ["normal", "defect", "normal"]
    assert verdicts(actions.relabel(page.results, 0, 100, 100, 50)[0]) == [("clear.png", "DEFECT")]


def test_page_a_model_without_maps_shows_no_heat_map(make_actions, drop):
    page = score(make_actions(maps=False), drop / "clear.png")
    assert pictures(page.detail) == ["Image"]
    assert verdicts(page.listing) == [("clear.png", "DEFECT")]


def test_page_without_normal_images_their_part_is_left_out(make_actions, drop):
    actions = PageActions(make_actions().model, None)
    assert score(actions, drop / "clear.png").similar == ""


def test_page_a_small_image_is_enlarged_before_it_is_drawn_on(make_actions, drop):
    actions = make_actions()
    one = score(actions, drop / "clear.png").results[0]
    assert decode_picture(one.picture).shape == (SIZE, SIZE, 3)
    assert [region[1:5] for region in one.prediction.regions] == [(8, 8, 4, 8)]
    picture = decode_picture(draw_heat_map(one.picture, one.prediction, actions.meta.map)).astype(int)
    assert picture.shape == (20 * SIZE, 20 * SIZE, 3)
    # The frame of the region, 20 times as large, is cyan.
    assert (picture[160:320, 160] - [0, 255, 255] < 60).all() and picture[100, 100, 0] > 60


def test_page_a_large_image_is_kept_small(make_actions, drop):
    page = score(make_actions(), write_png(drop / "large.png", np.zeros((1000, 3000), np.uint8)))
    assert decode_picture(page.results[0].picture).shape == (400, 1200, 3)
    assert decode_picture(page.results[0].icon).shape[1] == 112


def test_page_bad_input_ends_in_one_line(fails_with_one_line, tmp_path):
    assert "which src/export.py writes" in fails_with_one_line("page.py", tmp_path / "missing")
    export = write_export(tmp_path / "export")
    message = fails_with_one_line("page.py", export, "--normals", tmp_path / "none")
    assert message.endswith("none is not a folder: name one of normal images")


def test_page_a_port_in_use_is_named(make_actions, monkeypatch):
    monkeypatch.setattr("os.environ", os.environ.copy())
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use"):
            serve(build_prediction_page(make_actions().model, None), port, browser=False)


@contextmanager
def serving(export: Path, uploads: Path) -> Iterator[str]:
    """src/page.py in a process of its own: its address. Temporary files lie in `uploads`."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "src/page.py", export, "--port", str(port), "--no-browser"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(uploads))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is on the path")
def test_page_in_a_browser(drop, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    (drop / "broken.png").write_bytes(b"\x89PNG")
    files = [drop / f"{name}.png" for name in ("normal", "clear", "broken")]
    hosts, complaints, uploads = set(), [], tmp_path / "uploads"
    uploads.mkdir()
    with serving(write_export(tmp_path / "export"), uploads) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.goto(address)
        page.set_input_files("#drop input[type=file]", files)

        verdict, heat = page.locator(".verdict"), page.locator("img[alt^='Heat map']")
        expect(verdict).to_have_text("DEFECTclear.png")
        expect(verdict).to_have_css("background-color", "rgb(198, 40, 40)")
        expect(heat).to_have_attribute("alt", "Heat map, 1 box")
        expect(page.locator(".problems")).to_contain_text("broken.png is empty, truncated or no image")
        expect(page.locator("#listing button")).to_have_count(2)
        expect(page.locator(".normals img")).to_have_count(5)
        boxed = heat.get_attribute("src")

        page.fill("input[type=range]", "90")
        expect(verdict).to_have_text("normalclear.png")
        expect(verdict).to_have_css("background-color", "rgb(46, 125, 50)")
        expect(heat).to_have_attribute("alt", "Heat map, 0 boxes")
        assert heat.get_attribute("src") != boxed

        page.fill("input[type=range]", "2")
        page.click("#listing button >> nth=1")
        expect(verdict).to_have_text("DEFECTnormal.png")
        # The next drop takes the place of this one.
        page.set_input_files("#drop input[type=file]", drop / "doubtful.png")
        expect(verdict).to_have_text("DEFECTdoubtful.png")
        expect(page.locator("#listing button")).to_have_count(1)
        expect(page.locator(".problems")).to_have_count(0)
        browser.close()
    assert hosts <= {"127.0.0.1", None}  # None: data in the page itself
    assert complaints == []
