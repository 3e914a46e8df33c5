r"""Predictions as CSV or JSON lines, one written out as soon as it is known.

Both are UTF-8; of a file name that is none, `\xNN` stands for a byte (`paths.path_text`).
"""

import csv
import json
from collections.abc import Callable
from typing import TextIO

from defects.deploy.image_paths import escape_bytes, path_text
from defects.deploy.model import Meta
from defects.deploy.prediction import Prediction

Write = Callable[[Prediction], None]


def csv_writer(stream: TextIO, meta: Meta) -> Write:
    """path, label, score, probability, defect_score (of each target, where there are several), boxes, error.

    label: what was found, joined by `+`, or `normal`; defect_score: 0 to 100, the threshold at 50; boxes: a
    JSON list of [x, y, width, height] in pixels.
    """
    ends = [f"_{target}" for target in meta.targets] if len(meta.targets) > 1 else [""]
    columns = [f"{name}{end}" for name in ("score", "probability", "defect_score") for end in ends]
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["path", "label", *columns, "boxes", "error"])

    def write(found: Prediction) -> None:
        values = [*found.score.values(), *found.probability.values(), *found.defect_score.values()]
        values = values or [""] * len(columns)
        boxes = "" if found.error else json.dumps([region[1:5] for region in found.regions])
        table.writerow([path_text(found.path), label(found), *values, boxes, escape_bytes(found.error)])
        stream.flush()

    return write


def json_writer(stream: TextIO, _: Meta) -> Write:
    """One object a line, as the CSV; boxes with their kind and the map's largest value in them."""

    def write(found: Prediction) -> None:
        values = {"path": path_text(found.path)}
        if found.error:
            values["error"] = escape_bytes(found.error)
        else:
            boxes = [region._asdict() for region in found.regions]
            values |= {
                "label": label(found),
                "score": found.score,
                "probability": found.probability,
                "defect_score": found.defect_score,
                "boxes": boxes,
            }
        stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        stream.flush()

    return write


def label(found: Prediction) -> str:
    if found.error:
        return ""
    # Which kinds says more than that there is one.
    kinds = [each for each in found.labels if each != "defect"]
    return "+".join(kinds or found.labels) or "normal"
