"""Whether a region of interest suits all images of a data set, for prepare.py."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.bounded_memory import in_threads
from defects.data.labels import is_marked, read_masks
from defects.data.mask_files import read_mask
from defects.data.roi import Roi, load_roi, refuse_shared_masks, summarise_shares
from defects.messages import UserError, shorten_names


class RoiFacts(NamedTuple):
    """Of one image: the share that is judged; `problem`: why it cannot be used with data.roi."""

    share: float
    problem: str = ""
    is_partly_outside: bool = False  # of its defects


def check_roi(data: DataConfig, images: pd.DataFrame) -> list[str]:
    """Lines for the inventory about `images`, rows of images.csv; none without data.roi.

    Raises UserError naming images of which nothing is left, masks of another size than their image, and
    images whose marked defects all lie outside.
    """
    roi = load_roi(data)
    if roi is None:
        return []
    _refuse_masks_among_images(data, images)
    if roi.masks is not None:
        refuse_shared_masks(roi.masks, images["path"], "data.roi.folder")
    rows = images.to_dict("records")
    examine = partial(_examine_roi, roi, resolve(data.root))
    facts = list(in_threads(examine, rows, text="region of interest"))
    problems = [fact.problem for fact in facts if fact.problem]
    if problems:
        raise UserError(
            f"data.roi does not suit {len(problems)} of {len(images)} images: {shorten_names(problems, '; ')}"
        )
    way = next(name for name, value in roi.settings if value is not None)
    notes = [f"region of interest ({way}): {summarise_shares(fact.share for fact in facts)} is judged"]
    partly = [row["path"] for row, fact in zip(rows, facts, strict=True) if fact.is_partly_outside]
    if partly:
        notes.append(
            f"{len(partly)} images have defects that reach out of the region of interest; what lies in it "
            f"counts: {shorten_names(partly)}"
        )
    return notes


def _examine_roi(roi: Roi, root: Path, row: dict[str, Any]) -> RoiFacts:
    path = row["path"]
    size = (row["height"], row["width"])
    try:
        mask_path = roi.settings.mask if roi.settings.folder is None else roi.find_mask(path)
        mask = roi.mask
        if roi.settings.folder is not None:
            mask = read_mask(mask_path)
        if mask is not None and mask.shape != size:
            sizes = f"{mask.shape[1]}x{mask.shape[0]}, {path} {row['width']}x{row['height']}"
            advice = "make them of one size" if roi.settings.folder else "use data.roi.rectangle or polygon"
            if mask.shape == size[::-1]:
                advice = "turn the mask by 90 degrees, as the image is shown"
            return RoiFacts(0.0, f"{mask_path} is {sizes}: {advice}")
        share = float(roi.read(path, roi.image_size).mean())
        inside = roi.read(path, size)
    except UserError as error:
        return RoiFacts(0.0, str(error))
    if not is_marked(row):
        return RoiFacts(share)
    marked = read_masks(row, root, []).max(axis=2) > 0
    if marked.any() and not (marked & inside).any():
        name = row["mask_path"] or path
        advice = "enlarge the region, or take the image out"
        return RoiFacts(share, f"the defects that {name} marks lie outside the region of interest: {advice}")
    return RoiFacts(share, is_partly_outside=bool((marked & ~inside).any()))


def _refuse_masks_among_images(data: DataConfig, images: pd.DataFrame) -> None:
    """Raises UserError if masks of the region lie where the images do, and would be learnt from."""
    root = resolve(data.root)
    source = data.roi.locate_masks(root)
    if source is None:
        return
    taken = [path for path in images["path"] if (root / path).is_relative_to(source)]
    if taken:
        raise UserError(
            f"{len(taken)} masks of data.roi are listed as images ({shorten_names(taken)}): put them into a "
            "folder beside those of the images"
        )
