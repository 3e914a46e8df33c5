"""Masks that lie among the images themselves: exp1.png beside exp1.jpg, a_mask.png beside a.png."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from defects.data.decoding import check_content, decode_colours, read_content
from defects.data.many import in_threads
from defects.data.mask_names import is_mask_word, strip_mask_word
from defects.errors import UserError
from defects.files import same_text

MAIN_SHARE = 0.3  # of the pixels of a mask, at least, have one level: photographs are noisy
MASK_LEVELS = 32  # grey levels of a mask that was not compressed with loss, at most
NEAR_LEVELS = 12  # of 255: lossy files and soft edges spread a level by so much
NEAR_SHARE = 0.95  # of the pixels of a lossy mask lie near its two most frequent levels
IMAGE_WORDS = {"image", "images", "img", "imgs"}
CERTAIN_WORDS = ("mask", "masks", "gt")  # at the end of a name they mean nothing else


@dataclass
class MasksBeside:
    """Files of one role, told apart: `images` in their order, masks of some of them, masks of none."""

    images: list[Path]
    masks: dict[Path, list[Path]] = field(default_factory=dict)
    orphans: list[Path] = field(default_factory=list)


class Look(NamedTuple):
    is_mask: bool  # by its pixels
    size: tuple[int, int]  # height, width


class Name(NamedTuple):
    """A file by its name: the folder and the stem that its image would have, and whether it has more."""

    image_folder: Path
    image_stem: str
    is_mask: bool


def split_off_masks(files: Sequence[Path], setting: str, are_masks_here: bool = False) -> MasksBeside:
    """Tell images and masks apart, by name first, then by what is in those files that may be either.

    Two pictures may have one stem (a.jpg, a.png) if neither looks like a mask. `setting` names the folder in
    messages; `are_masks_here`: the user said that masks lie in it. Raises UserError where it cannot be told.
    """
    if not _may_hold_masks(files):
        return MasksBeside(list(files))
    names = _names(files)
    groups = defaultdict(list)
    for path in files:
        groups[names[path].image_folder, names[path].image_stem.casefold()].append(path)
    unclear = [path for group in groups.values() if len(group) > 1 for path in group]
    ends = {path.parent for path in unclear if names[path].is_mask}
    lone = [path for path in files if path.parent in ends and _is_lone_mask(path, groups, names)]
    files_to_see = unclear + lone
    seen = in_threads(_look_if_whole, files_to_see, text="telling masks from images")
    looks = dict(zip(files_to_see, seen, strict=True))
    result = MasksBeside([])
    result.orphans = [path for path in lone if looks[path] is not None and looks[path].is_mask]
    masks = set(result.orphans)
    for group in groups.values():
        if len(group) > 1:
            image, of_image = _decide(group, names, looks, setting, are_masks_here)
            if of_image:
                result.masks[image] = of_image
                masks.update(of_image)
    result.images = [path for path in files if path not in masks]
    return result


def _may_hold_masks(files: Sequence[Path]) -> bool:
    """Whether two files of a folder share a stem, or a file or folder is named like a mask: a quick look."""
    seen = set()
    for path in files:
        folder, stem = path.parent, same_text(path.stem).casefold()
        if (folder, stem) in seen or is_mask_word(stem) or strip_mask_word(stem) != stem:
            return True
        if "." in stem or is_mask_word(folder.name):
            return True
        seen.add((folder, stem))
    return False


class _Contents:
    """What the files of one folder are called, in lower case."""

    def __init__(self):
        self.stems: set[str] = set()
        self.names: set[str] = set()
        self.plain_stems: set[str] = set()  # less `mask`, `GT` and the like


def _names(files: Sequence[Path]) -> dict[Path, Name]:
    """What the names say: a file is named like a mask only where its image exists."""
    contents = defaultdict(_Contents)
    for path in files:
        stem = same_text(path.stem).casefold()
        names_here = contents[path.parent]
        names_here.stems.add(stem)
        names_here.names.add(same_text(path.name).casefold())
        if not is_mask_word(stem):
            names_here.plain_stems.add(stem)
    return {path: _name_of(path, contents) for path in files}


def _name_of(path: Path, contents: dict[Path, _Contents]) -> Name:
    folder, stem = path.parent, same_text(path.stem)
    names_here = contents[folder]
    if (
        is_mask_word(stem) and len(names_here.plain_stems) == 1
    ):  # img.png and label.png in a folder of their own
        return Name(folder, next(iter(names_here.plain_stems)), is_mask=True)
    base = strip_mask_word(stem)
    if base.casefold() in names_here.names:  # a.jpg.png or a.jpg_mask.png of a.jpg
        return Name(folder, Path(base).stem, is_mask=True)
    if base != stem and base.casefold() in names_here.stems:
        return Name(folder, base, is_mask=True)
    if is_mask_word(folder.name):
        for beside in _folders_beside(folder, contents):
            for candidate in (stem, base):
                if candidate.casefold() in contents[beside].stems:
                    return Name(beside, candidate, is_mask=True)
    return Name(folder, stem, is_mask=False)


def _folders_beside(folder: Path, contents: dict[Path, _Contents]) -> list[Path]:
    """Where the images of a folder called `masks` would lie: above it, or in a folder `images` beside it."""
    above = folder.parent
    beside = [path for path in contents if path.parent == above and path.name.casefold() in IMAGE_WORDS]
    return [path for path in (above, *sorted(beside)) if path in contents]


def _is_lone_mask(path: Path, groups: dict, names: dict[Path, Name]) -> bool:
    """Whether a file is named like a mask whose image is missing."""
    name = names[path]
    is_alone = len(groups[name.image_folder, name.image_stem.casefold()]) == 1
    return is_alone and strip_mask_word(path.stem) != path.stem


def _decide(
    group: list[Path],
    names: dict[Path, Name],
    looks: dict[Path, Look | None],
    setting: str,
    are_masks_here: bool,
) -> tuple[Path, list[Path]]:
    """The image of a group of files and its masks; no masks if all of them are pictures."""
    if any(looks[path] is None for path in group):
        return group[0], []  # a broken file, which is named when all files are examined
    plain = [path for path in group if not names[path].is_mask]
    named = [path for path in group if names[path].is_mask]
    pictures = [path for path in plain if not looks[path].is_mask]
    masks = [path for path in plain if looks[path].is_mask]
    if not plain or (len(plain) > 1 and not pictures):
        raise _cannot_tell(group, "all of them look like masks", setting)
    if len(plain) == 1:
        pictures, masks = plain, []
    for path in named:
        if looks[path].is_mask or are_masks_here:
            masks.append(path)
        elif _has_certain_word(path):
            raise _cannot_tell(
                [pictures[0], path], "the second is named like a mask, but is a picture", setting
            )
    if not masks:
        return pictures[0], []
    if len(pictures) > 1:
        raise _cannot_tell(group, "a mask may belong to one of several images", setting)
    for path in masks:
        if looks[path].size != looks[pictures[0]].size and not names[path].is_mask:
            raise _cannot_tell([pictures[0], path], "the second looks like a mask of another size", setting)
    return pictures[0], sorted(masks)


def _has_certain_word(path: Path) -> bool:
    base = strip_mask_word(path.stem)
    word = path.stem.removesuffix(base) if path.stem.endswith(base) else path.stem.removeprefix(base)
    return word.strip(" ._-0123456789()").casefold() in CERTAIN_WORDS


def _cannot_tell(paths: list[Path], reason: str, setting: str) -> UserError:
    names = " and ".join(str(path) for path in paths[:2])
    return UserError(
        f"{setting}: {names} have one name, and which is an image cannot be told ({reason}): move masks into "
        "a folder of their own (data.folders.masks of data.source=folders), or rename one of two pictures"
    )


def looks_like_mask(path: Path) -> bool:
    """Whether a file, by its pixels, is a mask and no picture; an empty mask may be a black picture too."""
    return _look(path).is_mask


def _look_if_whole(path: Path) -> Look | None:
    """None for a file that cannot be read."""
    try:
        return _look(path)
    except UserError:
        return None


def _look(path: Path) -> Look:
    content = read_content(path)
    pixels = decode_colours(path, content, check_content(path, content))
    size = pixels.shape[:2]
    planes = [np.ascontiguousarray(plane) for plane in cv2.split(pixels)]
    return Look(all(_is_mask_plane(plane) for plane in planes), size)


def _is_mask_plane(plane: np.ndarray) -> bool:
    """Whether much of a plane [H, W] has one level exactly, and the rest few levels, or nearly one more."""
    if plane.dtype != np.uint8:
        _, counts = np.unique(plane, return_counts=True)
        return len(counts) <= MASK_LEVELS and counts.max() >= MAIN_SHARE * plane.size
    counts = np.bincount(plane.ravel(), minlength=256)
    if counts.max() < MAIN_SHARE * plane.size:
        return False
    if np.count_nonzero(counts) <= MASK_LEVELS:
        return True
    near = 0
    for _ in range(2):
        level = int(counts.argmax())
        start = max(0, level - NEAR_LEVELS)
        near += counts[start : level + NEAR_LEVELS + 1].sum()
        counts[start : level + NEAR_LEVELS + 1] = 0
    return near >= NEAR_SHARE * plane.size
