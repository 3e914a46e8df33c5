"""Which masks belong to which image: by their names, and where masks lie among images by their pixels too."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from defects.data.bounded_memory import in_threads
from defects.data.images import are_pixels_of_mask, decode_colours, read_content
from defects.files import same_text
from defects.messages import UserError

MASK_WORDS = (
    *("mask", "masks", "gt", "label", "labels", "seg", "segmentation", "annotation"),
    *("groundtruth", "ground_truth", "ground-truth"),
)
# One of the words in the name of a folder of masks: defect_masks, SegmentationClass, label_png.
FOLDER_WORDS = {
    *MASK_WORDS,
    *("annotations", "ann", "anns", "anno", "bitmask", "bitmasks", "segmentations", "truth"),
    *("마스크", "라벨"),
}
IMAGE_WORDS = {"image", "images", "img", "imgs", "이미지"}  # of a folder of images
# The words in `JPEGImages`, `label_png`, `Masks2`.
NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
# name_mask, name-GT, name.label; of several regions also name_mask1, name_mask_1, name_mask (1).
MASK_END = re.compile(rf"[ ._-](?:{'|'.join(MASK_WORDS)})(?:[ ._-]?\(?\d+\)?)?$", re.IGNORECASE)
MASK_START = re.compile(rf"(^|/)(?:{'|'.join(MASK_WORDS)})[ ._-]+(?=[^/]+$)", re.IGNORECASE)
NUMBER_END = re.compile(r"(?:[ ._-]\d+| ?\(\d+\))$")  # name_0, name-1, name (2): one file for each region
CERTAIN_WORDS = ("mask", "masks", "gt")  # at the end of a name they mean nothing else


@dataclass
class MaskMatches:
    """Numbers of masks. `of_image` [N]: those of each image, in their order; `orphans` belong to no image."""

    of_image: list[list[int]]
    orphans: list[int] = field(default_factory=list)
    ambiguous: dict[int, list[int]] = field(default_factory=dict)  # mask -> the images that it fits

    def add(self, mask: int, images: list[int]) -> None:
        """`images`: numbers of those that the mask fits."""
        if len(images) == 1:
            self.of_image[images[0]].append(mask)
        elif images:
            self.ambiguous[mask] = images
        else:
            self.orphans.append(mask)


@dataclass
class MasksBeside:
    """Files of one folder by kind: `images` in their order, masks of some of them, masks of none."""

    images: list[Path]
    masks: dict[Path, list[Path]] = field(default_factory=dict)
    orphans: list[Path] = field(default_factory=list)


# --- masks in a folder of their own ------------------------------------------------------------------------


def match_masks(images: Sequence[str], masks: Sequence[str]) -> MaskMatches:
    """Assign each mask to one image. All are paths with `/`, below the images' and below the masks' folder.

    A mask has the name of its image, with or without the image's suffix, with or without one of MASK_WORDS,
    with or without a number; or it lies in a folder of that name. A number is part of an image's name where
    other images are numbered likewise. If all images or all masks lie directly in their folder, sub-folders
    need not agree for images that have no mask otherwise.
    """
    index = _NameIndex(images)
    matches = MaskMatches([[] for _ in images])
    for number, mask in enumerate(masks):
        matches.add(number, index.find_images(mask))
    if matches.orphans and (_is_flat(images) or _is_flat(masks)):
        orphans = matches.orphans
        matches.orphans = []
        has_mask = [bool(of_image) for of_image in matches.of_image]
        index = _NameIndex([posixpath.basename(image) for image in images])
        for number in orphans:
            fitting = index.find_images(posixpath.basename(masks[number]))
            matches.add(number, [image for image in fitting if not has_mask[image]])
    return matches


def _is_flat(paths: Sequence[str]) -> bool:
    return not any("/" in path for path in paths)


class _NameIndex:
    """Numbers of images by their names, with and without suffix."""

    def __init__(self, images: Sequence[str]):
        self.exact: dict[str, list[int]] = {}
        self.folded: dict[str, list[int]] = {}
        self.numbered: set[str] = set()  # names that end in a number, without it
        for number, image in enumerate(images):
            image = same_text(image)
            stem = posixpath.splitext(image)[0]
            for key in {image, stem}:
                self.exact.setdefault(key, []).append(number)
                self.folded.setdefault(key.casefold(), []).append(number)
            unnumbered = NUMBER_END.sub("", stem)
            if unnumbered != stem:
                self.numbered.add(unnumbered)

    def find_images(self, mask: str) -> list[int]:
        """The image that a mask belongs to, or several where that is not clear."""
        for key in _image_names(mask):
            if key.is_numbered and key.text in self.numbered:
                continue  # name_3 may belong to an image name_3 that is missing
            images = self.exact.get(key.text) or self.folded.get(key.text.casefold())
            if images:
                return images
        return []


class ImageName(NamedTuple):
    """A name, without suffix, that the image of a mask may have."""

    text: str
    is_numbered: bool = False  # the mask's name has a number more


def _image_names(mask: str) -> Iterator[ImageName]:
    """Names that the image of this mask may have, the likeliest first."""
    stem = posixpath.splitext(same_text(mask))[0]
    yield ImageName(stem)
    base = _strip_mask_word(stem)
    yield ImageName(base)
    unnumbered = NUMBER_END.sub("", base)
    if unnumbered != base:
        yield ImageName(unnumbered, is_numbered=True)
    folder = posixpath.dirname(stem)
    if folder:
        yield ImageName(folder)
        yield ImageName(_strip_mask_word(folder))


def _strip_mask_word(path: str) -> str:
    """`name` of `name_mask`, `mask_name` and their like; the same text where there is no such word."""
    stripped = MASK_END.sub("", path)
    return MASK_START.sub(r"\1", path) if stripped == path else stripped


def _has_mask_word(path: Path) -> bool:
    return _strip_mask_word(path.stem) != path.stem


def _is_mask_word(name: str) -> bool:
    """Whether a file is named `mask`, `GT` and the like."""
    return name.casefold() in MASK_WORDS


def _is_mask_folder(name: str) -> bool:
    """Whether the name of a folder says that masks lie in it."""
    return not FOLDER_WORDS.isdisjoint(_split_words(name))


def _is_image_folder(name: str) -> bool:
    """Whether the name of a folder says that images lie in it."""
    return not IMAGE_WORDS.isdisjoint(_split_words(name)) and not _is_mask_folder(name)


def _split_words(name: str) -> set[str]:
    name = same_text(name)
    return {name.casefold()} | {word.casefold() for word in NAME_WORD.findall(name)}


# --- masks among images: exp1.png beside exp1.jpg, a_mask.png beside a.png ---------------------------------


class Appearance(NamedTuple):
    is_mask: bool  # by its pixels
    size: tuple[int, int]  # height, width


class FileName(NamedTuple):
    """What the name of a file says: where its image is, or would be, and whether it is a mask of that."""

    image_folder: Path
    image_stem: str
    is_mask: bool

    @property
    def group(self) -> tuple[Path, str]:
        """The same for an image and its masks."""
        return self.image_folder, self.image_stem.casefold()


def split_off_masks(files: Sequence[Path], setting: str, are_masks_here: bool = False) -> MasksBeside:
    """Tell images and masks apart, by name first, then by the pixels of those files that may be either.

    Two pictures may have one stem (a.jpg, a.png) if neither looks like a mask. `setting` names the folder in
    messages; `are_masks_here`: the user said that masks lie in it. Raises UserError where this is unclear.
    """
    if not _may_hold_masks(files):
        return MasksBeside(list(files))
    names = _interpret_names(files)
    groups = defaultdict(list)
    for path in files:
        groups[names[path].group].append(path)
    shared_groups = [group for group in groups.values() if len(group) > 1]
    unclear_files = [path for group in shared_groups for path in group]
    mask_folders = set()
    mixed_folders = set()
    for path in unclear_files:
        if names[path].is_mask:
            is_mixed = path.parent == names[path].image_folder
            (mixed_folders if is_mixed else mask_folders).add(path.parent)
    lone_files = []  # that may be masks whose image is missing
    for path in files:
        may_be_mask = path.parent in mask_folders or (path.parent in mixed_folders and _has_mask_word(path))
        if may_be_mask and len(groups[names[path].group]) == 1:
            lone_files.append(path)
    decoded_files = unclear_files + lone_files
    appearances = dict(
        zip(
            decoded_files,
            in_threads(_examine_if_readable, decoded_files, text="telling masks from images"),
            strict=True,
        )
    )
    orphans = [path for path in lone_files if appearances[path] is not None and appearances[path].is_mask]
    masks_of = {}
    for group in shared_groups:
        image, masks = _divide_group(group, names, appearances, setting, are_masks_here)
        if masks:
            masks_of[image] = masks
    all_masks = {*orphans, *(path for masks in masks_of.values() for path in masks)}
    return MasksBeside([path for path in files if path not in all_masks], masks_of, orphans)


def _may_hold_masks(files: Sequence[Path]) -> bool:
    """Whether two files of a folder share a stem, or a name is like that of a mask: without decoding."""
    if any(_mask_folders(folder) for folder in {path.parent for path in files}):
        return True
    stems = set()
    for path in files:
        stem = same_text(path.stem).casefold()
        if (path.parent, stem) in stems or "." in stem:
            return True
        if _is_mask_word(stem) or _strip_mask_word(stem) != stem:
            return True
        stems.add((path.parent, stem))
    return False


class _FolderNames:
    """Names of the files of one folder, in lower case."""

    def __init__(self):
        self.stems: set[str] = set()
        self.names: set[str] = set()
        self.image_stems: set[str] = set()  # less `mask`, `GT` and the like
        self.unnumbered: set[str] = set()  # stems that end in a number, without it

    def add(self, path: Path) -> None:
        stem = same_text(path.stem).casefold()
        self.stems.add(stem)
        self.names.add(same_text(path.name).casefold())
        if not _is_mask_word(stem):
            self.image_stems.add(stem)
        unnumbered = NUMBER_END.sub("", stem)
        if unnumbered != stem:
            self.unnumbered.add(unnumbered)


def _interpret_names(files: Sequence[Path]) -> dict[Path, FileName]:
    """What the names say: a file is named like a mask only where its image exists."""
    names_in = defaultdict(_FolderNames)
    for path in files:
        names_in[path.parent].add(path)
    folder_pairs = _pair_folders(names_in)
    return {path: _interpret_name(path, names_in, folder_pairs[path.parent]) for path in files}


def _interpret_name(
    path: Path, names_in: dict[Path, _FolderNames], folder_pairs: list[tuple[Path, Path]]
) -> FileName:
    """`folder_pairs`: as _pair_folders gives them for the folder of this file."""
    folder = path.parent
    stem = same_text(path.stem)
    siblings = names_in[folder]
    if _is_mask_word(stem) and len(siblings.image_stems) == 1:
        # img.png and label.png in a folder of their own
        return FileName(folder, next(iter(siblings.image_stems)), is_mask=True)
    base = _strip_mask_word(stem)
    if base.casefold() in siblings.names:  # a.jpg.png or a.jpg_mask.png of a.jpg
        return FileName(folder, Path(base).stem, is_mask=True)
    if base != stem and base.casefold() in siblings.stems:
        return FileName(folder, base, is_mask=True)
    for mask_folder, image_folder in folder_pairs:
        for key in _image_names(path.relative_to(mask_folder).as_posix()):
            image = image_folder / key.text
            candidates = names_in.get(image.parent)
            name = image.name.casefold()
            if candidates is None or (key.is_numbered and name in candidates.unnumbered):
                continue  # name_3 may belong to an image name_3 that is missing
            if name in candidates.stems:
                return FileName(image.parent, image.name, is_mask=True)
            if name in candidates.names:
                return FileName(image.parent, image.stem, is_mask=True)
    return FileName(folder, stem, is_mask=False)


def _pair_folders(folders: Iterable[Path]) -> dict[Path, list[tuple[Path, Path]]]:
    """For each of `folders`: pairs of a folder of masks that it is or lies in, and one where their images may
    lie.

    Images lie above `masks`, or in a folder `images` beside it, in the same sub-folders.
    """
    image_folders = defaultdict(list)  # by the folder they lie in
    for path in sorted({path for folder in folders for path in (folder, *folder.parents)}):
        if _is_image_folder(path.name):
            image_folders[path.parent].append(path)
    pairs = {}
    for folder in folders:
        pairs[folder] = []
        for mask_folder in _mask_folders(folder):
            above = mask_folder.parent
            pairs[folder] += [(mask_folder, path) for path in (above, *image_folders.get(above, []))]
    return pairs


def _mask_folders(folder: Path) -> list[Path]:
    """`folder` and those above it whose names are those of folders of masks."""
    return [path for path in (folder, *folder.parents) if _is_mask_folder(path.name)]


def _divide_group(
    group: list[Path],
    names: dict[Path, FileName],
    appearances: dict[Path, Appearance | None],
    setting: str,
    are_masks_here: bool,
) -> tuple[Path, list[Path]]:
    """The image of a group of files and its masks; no masks if all of them are pictures."""
    if any(appearances[path] is None for path in group):
        return group[0], []  # a broken file, which is named when all files are examined
    named_masks = [path for path in group if names[path].is_mask]
    unnamed = [path for path in group if not names[path].is_mask]
    pictures = [path for path in unnamed if not appearances[path].is_mask]
    masks = [path for path in unnamed if appearances[path].is_mask]
    if not unnamed or (len(unnamed) > 1 and not pictures):
        raise _cannot_tell(group, "all of them look like masks", setting)
    if len(unnamed) == 1:  # a blank picture looks like a mask
        pictures = unnamed
        masks = []
    for path in named_masks:
        if appearances[path].is_mask or are_masks_here:
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
        if appearances[path].size != appearances[pictures[0]].size and not names[path].is_mask:
            raise _cannot_tell([pictures[0], path], "the second looks like a mask of another size", setting)
    return pictures[0], sorted(masks)


def _has_certain_word(path: Path) -> bool:
    base = _strip_mask_word(path.stem)
    word = path.stem.removesuffix(base) if path.stem.endswith(base) else path.stem.removeprefix(base)
    return word.strip(" ._-0123456789()").casefold() in CERTAIN_WORDS


def _cannot_tell(paths: list[Path], reason: str, setting: str) -> UserError:
    names = " and ".join(str(path) for path in paths[:2])
    return UserError(
        f"{setting}: {names} have one name, and which is an image is unclear ({reason}): move masks into "
        "a folder of their own (data.folders.masks of data.source=folders), or rename one of two pictures"
    )


def looks_like_mask(path: Path) -> bool:
    """Whether a file, by its pixels, is a mask and no picture; an empty mask may be a black picture too."""
    return _examine_appearance(path).is_mask


def _examine_if_readable(path: Path) -> Appearance | None:
    """None for a file that cannot be read."""
    try:
        return _examine_appearance(path)
    except UserError:
        return None


def _examine_appearance(path: Path) -> Appearance:
    content, header = read_content(path)
    pixels = decode_colours(path, content, header)
    return Appearance(are_pixels_of_mask(pixels), pixels.shape[:2])
