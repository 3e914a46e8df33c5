"""A contact sheet of regions of interest, where they differ between images."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defects.config_schema import DataConfig
from defects.data.bounded_memory import in_threads
from defects.data.roi import Roi, load_roi
from defects.reports import html
from defects.reports.figures import mark_defects, read_tile

ROI_EXTREMES = 12  # images with the smallest, and with the largest regions of interest
ROI_TEXT = (
    "Only what is bright here is judged (data.roi). Look for images in which a part of the object is dark: "
    "there defects are missed. Where background is bright, it raises false alarms. Of defects outlined in "
    "yellow what is dark does not count."
)


def draw_roi_extremes(data: DataConfig, images: pd.DataFrame) -> list[html.Block]:
    """Of some rows of images.csv those of which the least and the most is judged; none if it is the same."""
    roi = load_roi(data)
    if roi is None or roi.settings.is_fixed:
        return []
    shares = list(in_threads(partial(_measure_share, roi), images["path"], text="regions of interest"))
    ordered = images.assign(share=shares).sort_values("share", kind="stable")
    ends = {"least": ordered[:ROI_EXTREMES], "most": ordered[ROI_EXTREMES:][-ROI_EXTREMES:][::-1]}
    blocks: list[html.Block] = [html.Text(ROI_TEXT)]
    for name, rows in ends.items():
        if len(rows):
            cards = [_draw_card(data, row) for row in rows.to_dict("records")]
            blocks.append(html.Cards(f"the {name}: {len(rows)} of {len(ordered):,} images", cards))
    return blocks


def _measure_share(roi: Roi, path: str) -> float:
    return float(np.mean(roi.read(path, roi.image_size)))


def _draw_card(data: DataConfig, row: dict[str, Any]) -> html.Card:
    name = Path(row["image_id"]).name
    picture = html.embed_jpeg(mark_defects(read_tile(data, row), data, row, are_whole=True), name)
    return html.Card(name, (picture,), (html.Fact(f"{row['share']:.0%} judged"),), row["image_id"])
