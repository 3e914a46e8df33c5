"""Make the pictures of README.md in docs/images/ from trained runs of the demo.

    make demo
    python docs/make_images.py

heat_maps.jpg   out-of-fold images of a run above their heat maps
report.jpg      the top of the run's report in a browser; needs Chromium, Chrome or Edge on the path
compare.png     the figure of src/compare.py, of all runs on the data set; the one committed also has
                convae_reduced, dfr_reduced and, at data.image_size=[128,128], patchcore_reduced, on all folds

Each stays below MOST_BYTES. What the pictures show was not learnt from by the model that scored it.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from defects import cli, stages  # noqa: E402
from defects.evaluation.display_scales import compute_defect_scores, format_defect_score  # noqa: E402
from defects.evaluation.estimate import estimate  # noqa: E402
from defects.files import write_bytes  # noqa: E402
from defects.messages import UserError  # noqa: E402
from defects.reports.charts import draw_png  # noqa: E402
from defects.reports.comparison import group_by_category, measure_runs, write_comparison  # noqa: E402
from defects.reports.figures import draw_heat_tile, fit_limits, mark_defects, read_tile  # noqa: E402
from defects.reports.run_report import RunTables, build_run_report, load_run_tables  # noqa: E402
from defects.runs import Run, runs_on  # noqa: E402

FOLDER = ROOT / "docs" / "images"
DEFAULT = "demo_patch_head"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "msedge", "chrome")
REPORT_PIXELS = (1280, 1292)  # width, height of the browser's window
REPORT_SCALE = 0.72  # of the picture
DEFECTS, NORMALS = 5, 2  # columns of heat_maps.jpg
MOST_BYTES = 150_000


def main() -> None:
    parser = cli.run_parser(__doc__, takes_several=False, default=DEFAULT)
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or DEFAULT
    run = cli.run_from(arguments)
    tables = load_run_tables(run, stages.ensure_tables(run.config))
    save("heat_maps.jpg", draw_heat_maps(tables))
    save("report.jpg", take_screenshot(build_run_report(tables)))
    save("compare.png", draw_comparison(run))


def save(name: str, content: bytes) -> None:
    """Write a picture. Raises UserError where it is too large to be committed."""
    if len(content) > MOST_BYTES:
        raise UserError(f"{name}: {len(content):,} bytes, {MOST_BYTES:,} at most: make it smaller")
    write_bytes(FOLDER / name, content)
    print(f"wrote {FOLDER / name}, {len(content):,} bytes")


def draw_heat_maps(tables: RunTables) -> bytes:
    """A JPEG: images with their masks outlined, and their heat maps below."""
    data = tables.config.data
    limits = fit_limits(tables.oof, tables.maps, tables.config.threshold.fpr)
    if not limits:
        raise UserError(f"{tables.config.experiment} keeps no maps: name a run of another detector")
    rule = tables.config.threshold
    threshold = estimate(tables.oof, rule)["score_threshold"]
    rows = choose_rows(tables.oof).to_dict("records")
    figure = Figure(figsize=(1.7 * len(rows), 3.7), layout="constrained")
    panels = figure.subplots(2, len(rows))
    for column, row in enumerate(rows):
        tile = read_tile(data, row)
        score = compute_defect_scores(np.array([row["score"]]), threshold)[0]
        panels[0, column].imshow(mark_defects(tile, data, row))
        anomaly_map = tables.maps[row["fold"]][row["image_id"]]
        panels[1, column].imshow(draw_heat_tile(tile, anomaly_map, limits[row["fold"]]))
        panels[0, column].set_title("defect" if row["label"] else "normal")
        panels[1, column].set_title(f"score {format_defect_score(score)}")
    for axes in panels.flat:
        axes.set_axis_off()
    return to_jpeg(draw_png(lambda: figure))


def choose_rows(oof: pd.DataFrame) -> pd.DataFrame:
    """Defects from the highest score to the lowest in even steps, the highest and the median normal image."""
    ranked = oof.sort_values(["score", "image_id"], ascending=False)
    defects = ranked[ranked["label"] == 1]
    normals = ranked[ranked["label"] == 0]
    defects = defects.iloc[np.linspace(0, len(defects) - 1, min(DEFECTS, len(defects))).round().astype(int)]
    normals = normals.iloc[np.linspace(0, len(normals) // 2, min(NORMALS, len(normals))).round().astype(int)]
    return pd.concat([defects, normals])


def to_jpeg(png: bytes, scale: float = 1.0) -> bytes:
    """The same picture, smaller where it shows photographs."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def take_screenshot(html: str) -> bytes:
    """A JPEG of the top of a page as a browser shows it."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise UserError(f"report.jpg needs one of {', '.join(BROWSERS)} on the path: install one")
    from playwright.sync_api import sync_playwright

    width, height = REPORT_PIXELS
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "report.html"
        path.write_text(html, encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(path.as_uri())
        picture = page.screenshot()
        browser.close()
    return to_jpeg(picture, REPORT_SCALE)


def draw_comparison(run: Run) -> bytes:
    """The PNG of src/compare.py over all runs on the run's data set."""
    runs = runs_on(run.config.data.name, run.config.output_dir)
    values = measure_runs(group_by_category(runs), stages.ensure_tables, False)
    with tempfile.TemporaryDirectory() as folder:
        write_comparison(values, run.config.data.name, Path(folder))
        return (Path(folder) / "compare.png").read_bytes()


if __name__ == "__main__":
    cli.run(main)
