"""Decode every image and mask of a data set once: what is in them, and which cannot be used."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from defects.config import resolve
from defects.config_data import DataConfig
from defects.data.folder_scan import broken_link_text
from defects.data.images import ImageFacts, examine_image
from defects.data.labels import join_masks, split_masks
from defects.data.many import in_threads
from defects.data.mask_files import MaskFacts, are_inverted, examine_mask
from defects.data.masks_beside import looks_like_mask
from defects.errors import UserError
from defects.writing import sha256


class ExaminedMasks(NamedTuple):
    """The masks of one image: facts of each file, the share of the image that they mark together."""

    facts: tuple[MaskFacts, ...]
    share: float
    problem: str = ""  # why they cannot be used together


class Examined(NamedTuple):
    """One image with its masks; `problem`: why it cannot be used at all."""

    facts: ImageFacts | None
    sha256: str
    masks: ExaminedMasks | None
    problem: str = ""


class Examination(NamedTuple):
    """`images`: rows of a listing with width, height (pixels) and sha256, masks that are dropped taken out.

    `examined` [N] belongs to the same rows; `problems` and `contradictions` are texts with paths, `dropped`
    the images whose masks were dropped. `inverted`: masks mark what is no defect.
    """

    images: pd.DataFrame
    examined: list[Examined]
    problems: list[str]
    contradictions: list[str]
    dropped: list[str]
    inverted: bool


def examine_files(data: DataConfig, images: pd.DataFrame) -> Examination:
    """Examine all rows of a listing; normal images may have masks, if these mark nothing."""
    root = resolve(data.root)
    paths, mask_paths = images["path"], images["mask_path"]
    normal = images["label"].eq(0).fillna(False).to_numpy(dtype=bool)
    examine = partial(_examine_one, root)
    examined = list(in_threads(examine, paths, mask_paths, text="reading images"))
    inverted = are_inverted(_facts_of_defects(examined, normal), data.inverted_masks)
    if inverted:
        again = list(
            in_threads(partial(_examine_masks, root, inverted=True), paths, mask_paths, text="masks")
        )
        examined = [each._replace(masks=masks) for each, masks in zip(examined, again, strict=True)]
    kept, problems, contradictions, dropped = [], [], [], []
    for each, path, mask_path, is_normal in zip(examined, paths, mask_paths, normal, strict=True):
        problem = each.problem or _mask_problem(each, root, mask_path, is_normal)
        is_usable = not problem
        if problem and not each.problem and data.bad_masks == "drop":
            dropped.append(path)
        elif problem:
            problems.append(problem)
        if is_normal and each.masks and each.masks.share > 0:
            share = f"{each.masks.share:.1%}"
            contradictions.append(f"{path} is among the normal images, and its mask marks {share} of it")
        has_masks = is_usable and not is_normal and mask_path != ""
        kept.append(join_masks(split_masks(mask_path)[0], inverted) if has_masks else "")
    facts = [each.facts or ImageFacts(0, 0, 0, "", 0) for each in examined]
    table = images.assign(
        width=[fact.width for fact in facts],
        height=[fact.height for fact in facts],
        sha256=[each.sha256 for each in examined],
        mask_path=kept,
    )
    return Examination(table, examined, problems, contradictions, dropped, inverted)


def _facts_of_defects(examined: Sequence[Examined], normal: np.ndarray) -> list[MaskFacts]:
    """Of all mask files but those of normal images."""
    found = []
    for each, is_normal in zip(examined, normal, strict=True):
        if each.masks and not is_normal:
            found += each.masks.facts
    return found


def _examine_one(root: Path, path: str, mask_path: str) -> Examined:
    try:
        if (root / path).is_symlink() and not (root / path).exists():
            raise UserError(broken_link_text(root / path))
        facts = examine_image(root / path)
        return Examined(facts, sha256(root / path), _examine_masks(root, path, mask_path))
    except UserError as error:
        return Examined(None, "", None, str(error))


def _examine_masks(root: Path, path: str, mask_path: str, inverted: bool = False) -> ExaminedMasks | None:
    """Raises UserError for a file that cannot be read."""
    names, _ = split_masks(mask_path)
    if not names:
        return None
    united, found = None, []
    for name in names:
        mask, facts = examine_mask(root / name, inverted)
        found.append(facts)
        if united is not None and united.shape != mask.shape:
            problem = f"{root / names[0]} and {root / name}, masks of {path}, differ in size"
            return ExaminedMasks(tuple(found), 0.0, problem)
        united = mask if united is None else united | mask
    problem = _odd_one(root, path, names) if len(names) > 1 else ""
    return ExaminedMasks(tuple(found), float(np.mean(united)), problem)


def _odd_one(root: Path, path: str, names: Sequence[str]) -> str:
    """Of several files that are called like masks of one image, one that is none."""
    for name in names:
        if not looks_like_mask(root / name):
            other = next(each for each in names if each != name)
            both = f"{root / name} and {root / other}"
            return f"{both} are called like masks of {path}, but the first looks like a picture: remove it"
    return ""


def _mask_problem(each: Examined, root: Path, mask_path: str, is_normal: bool) -> str:
    """Why masks that can be read cannot be used; "" if they can."""
    if each.masks is None:
        return ""
    way_out = "correct it, or set data.bad_masks=drop"
    if each.masks.problem:
        return f"{each.masks.problem}, or set data.bad_masks=drop"
    first = root / split_masks(mask_path)[0][0]
    mask, image = each.masks.facts[0], each.facts
    if (mask.width, mask.height) != (image.width, image.height):
        sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
        return f"{first} is {sizes}: {way_out}"
    if each.masks.share == 0 and not is_normal:
        return f"{first} marks no pixel: {way_out}"
    return ""
