"""Decode every image and mask of a data set once: what is in them, and which cannot be used."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.bounded_memory import in_threads
from defects.data.folder_scan import broken_link_text
from defects.data.images import ImageFacts, examine_image
from defects.data.labels import join_masks, split_masks
from defects.data.mask_files import MaskFacts, are_inverted, examine_mask
from defects.data.mask_matching import looks_like_mask
from defects.files import sha256
from defects.messages import UserError


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
    paths = images["path"]
    mask_paths = images["mask_path"]
    is_normal = images["label"].eq(0).fillna(False).to_numpy(dtype=bool)
    examined = list(in_threads(partial(_examine_image, root), paths, mask_paths, text="reading images"))
    mask_facts = []
    for row, normal in zip(examined, is_normal, strict=True):
        if row.masks and not normal:
            mask_facts += row.masks.facts
    inverted = are_inverted(mask_facts, data.inverted_masks)
    if inverted:
        for place, (row, path, mask_path) in enumerate(zip(examined, paths, mask_paths, strict=True)):
            if row.masks:
                masks = _examine_masks(root, path, mask_path, inverted=True)
                examined[place] = row._replace(masks=masks)
    usable_masks = []
    problems = []
    contradictions = []
    dropped = []
    for row, path, mask_path, normal in zip(examined, paths, mask_paths, is_normal, strict=True):
        mask_problem = "" if row.problem else _mask_problem(row, root, mask_path, normal)
        if mask_problem and data.bad_masks == "drop":
            dropped.append(path)
        elif row.problem or mask_problem:
            problems.append(row.problem or mask_problem)
        if normal and row.masks and row.masks.share > 0:
            share = f"{row.masks.share:.1%}"
            contradictions.append(f"{path} is among the normal images, and its mask marks {share} of it")
        is_usable = not (row.problem or mask_problem or normal)
        usable_masks.append(join_masks(split_masks(mask_path)[0], inverted) if is_usable else "")
    facts = [row.facts or ImageFacts(0, 0, 0, "", 0) for row in examined]
    table = images.assign(
        width=[fact.width for fact in facts],
        height=[fact.height for fact in facts],
        sha256=[row.sha256 for row in examined],
        mask_path=usable_masks,
    )
    return Examination(table, examined, problems, contradictions, dropped, inverted)


def _examine_image(root: Path, path: str, mask_path: str) -> Examined:
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
    united = None
    facts = []
    for name in names:
        mask, facts_of_file = examine_mask(root / name, inverted)
        facts.append(facts_of_file)
        if united is not None and united.shape != mask.shape:
            problem = f"{root / names[0]} and {root / name}, masks of {path}, differ in size"
            return ExaminedMasks(tuple(facts), 0.0, problem)
        united = mask if united is None else united | mask
    problem = ""
    if len(names) > 1:
        picture = next((name for name in names if not looks_like_mask(root / name)), None)
        if picture is not None:
            second = next(name for name in names if name != picture)
            problem = (
                f"{root / picture} and {root / second} are named like masks of {path}, but the first looks "
                "like a picture: remove it"
            )
    return ExaminedMasks(tuple(facts), float(np.mean(united)), problem)


def _mask_problem(row: Examined, root: Path, mask_path: str, is_normal: bool) -> str:
    """Why masks that can be read cannot be used; "" if they can."""
    if row.masks is None:
        return ""
    advice = "correct it, or set data.bad_masks=drop"
    if row.masks.problem:
        return f"{row.masks.problem}, or set data.bad_masks=drop"
    first = root / split_masks(mask_path)[0][0]
    mask = row.masks.facts[0]
    image = row.facts
    if (mask.width, mask.height) != (image.width, image.height):
        sizes = f"{mask.width}x{mask.height}, its image {image.width}x{image.height}"
        return f"{first} is {sizes}: {advice}"
    if row.masks.share == 0 and not is_normal:
        return f"{first} marks no pixel: {advice}"
    return ""
