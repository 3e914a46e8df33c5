"""Which mask files belong to which rows of a listing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from defects.config import DataConfig
from defects.data.labels import join_masks
from defects.data.listing import RoleFolder, below, check_names
from defects.data.mask_matching import match_masks
from defects.messages import UserError, shorten_names


@dataclass
class MaskNotes:
    """What becomes of the masks of all folders, for the inventory; texts are paths as in the tables."""

    root: Path
    unmatched: list[Path] = field(default_factory=list)  # masks of which no image is known yet
    united: list[str] = field(default_factory=list)  # images with several masks
    among_images: list[str] = field(default_factory=list)  # masks that lie among images
    of_test_images: list[str] = field(default_factory=list)  # masks among test images, left out

    def lines(self) -> list[str]:
        texts = {
            "masks belong to no image": [below(path, self.root) for path in self.unmatched],
            "images have several masks each, which are united": self.united,
            "masks lie among the images, and are not taken as images": self.among_images,
            "masks lie among test images, and are left out": self.of_test_images,
        }
        return [f"{len(names)} {text}: {shorten_names(names)}" for text, names in texts.items() if names]


def attach_masks(
    data: DataConfig, table: pd.DataFrame, images: RoleFolder, masks: RoleFolder | None, notes: MaskNotes
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`, abnormal ones: masks in the folder `masks`, and beside them.

    Raises UserError naming the images without a mask, and masks of which it is not clear whose they are.
    """
    masks_of = _masks_among_images(images, notes)
    unmatched = []
    if masks is not None:
        masks_of, unmatched = _match_folder(masks_of, images, masks, masks.scan.images)
        notes.unmatched += unmatched
    counts = [len(of_image) for of_image in masks_of]
    notes.united += [path for path, count in zip(table["path"], counts, strict=True) if count > 1]
    missing = [path for path, count in zip(table["path"], counts, strict=True) if count == 0]
    has_masks = masks is not None or any(counts)
    if has_masks and missing and data.bad_masks == "error":
        _refuse_missing(images, masks, missing, images.beside.orphans + unmatched)
    return table.assign(mask_path=_mask_paths(masks_of, notes.root))


def attach_empty_masks(
    table: pd.DataFrame, images: RoleFolder, masks: RoleFolder | None, notes: MaskNotes
) -> pd.DataFrame:
    """Fill mask_path of the rows of `images`, normal ones: those masks that no abnormal image has.

    Some data sets have masks for all of their images. That these mark nothing is checked later.
    """
    masks_of = _masks_among_images(images, notes)
    if masks is not None and notes.unmatched:
        masks_of, notes.unmatched = _match_folder(masks_of, images, masks, notes.unmatched)
    return table.assign(mask_path=_mask_paths(masks_of, notes.root))


def attach_by_role(
    data: DataConfig, tables: dict[str, pd.DataFrame], folders: dict[str, RoleFolder], notes: MaskNotes
) -> dict[str, pd.DataFrame]:
    """The tables of a data set with one folder for each role, their mask_path filled."""
    masks = folders.get("masks")
    filled = dict(tables)
    if "abnormal" in tables:
        filled["abnormal"] = attach_masks(data, tables["abnormal"], folders["abnormal"], masks, notes)
    filled["normal"] = attach_empty_masks(tables["normal"], folders["normal"], masks, notes)
    if "test" in tables:
        leave_out_masks(folders["test"], notes)
    return filled


def leave_out_masks(images: RoleFolder, notes: MaskNotes) -> None:
    """Note the masks that lie among images which may have none: test images, and those of a table."""
    _masks_among_images(images, notes)


def _masks_among_images(images: RoleFolder, notes: MaskNotes) -> list[list[Path]]:
    """The masks of each image that lie in its own folder; they and those of no image go to `notes`."""
    masks_of = [list(images.beside.masks.get(path, [])) for path in images.images]
    names = [below(path, notes.root) for of_image in masks_of for path in of_image]
    if images.role == "test":
        notes.of_test_images += names
    else:
        notes.among_images += names
    notes.unmatched += images.beside.orphans
    return masks_of


def _match_folder(
    masks_of: list[list[Path]], images: RoleFolder, masks: RoleFolder, files: Sequence[Path]
) -> tuple[list[list[Path]], list[Path]]:
    """`masks_of`, the masks of each image, with `files` of the folder `masks`; and files of no image."""
    inside = [path for path in files if path.is_relative_to(masks.path)]
    matches = match_masks(
        [path.relative_to(images.path).as_posix() for path in images.images],
        [path.relative_to(masks.path).as_posix() for path in inside],
    )
    if images.role == "abnormal":
        _refuse_ambiguous(matches.ambiguous, images.images, inside)
    all_masks_of = []
    for of_image, numbers in zip(masks_of, matches.of_image, strict=True):
        all_masks_of.append([*of_image, *(inside[number] for number in numbers)])
    matched = {path for of_image in all_masks_of for path in of_image}
    return all_masks_of, [path for path in files if path not in matched]


def _mask_paths(masks_of: list[list[Path]], root: Path) -> list[str]:
    check_names([path for of_image in masks_of for path in of_image])
    return [join_masks([below(path, root) for path in of_image]) for of_image in masks_of]


def _refuse_ambiguous(ambiguous: dict[int, list[int]], images: Sequence[Path], masks: Sequence[Path]) -> None:
    if not ambiguous:
        return
    number, fitting = next(iter(ambiguous.items()))
    names = shorten_names((images[place] for place in fitting), " and ")
    more = f" ({len(ambiguous) - 1} more such masks)" if len(ambiguous) > 1 else ""
    raise UserError(
        f"{masks[number]} may be the mask of {names}{more}: name it with the suffix of its image, such as "
        f"{images[fitting[0]].name}.png"
    )


def _refuse_missing(
    images: RoleFolder, masks: RoleFolder | None, missing: list[str], orphans: list[Path]
) -> None:
    place = masks.path if masks is not None else images.path
    unused = f" (masks that fit no image: {shorten_names(path.name for path in orphans)})" if orphans else ""
    raise UserError(
        f"{place} has no mask for {shorten_names(missing)}{unused}: add it, called like its image with or "
        "without _mask, or set data.bad_masks=drop to do without"
    )
