"""Which masks belong to which image, by their names alone."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from defects.files import same_text

WORDS = (
    "mask",
    "masks",
    "gt",
    "label",
    "labels",
    "groundtruth",
    "ground_truth",
    "ground-truth",
    "seg",
    "segmentation",
    "annotation",
)
FOLDER_WORDS = {
    *WORDS,
    "annotations",
    "ann",
    "anns",
    "anno",
    "bitmask",
    "bitmasks",
    "segmentations",
    "truth",
    "마스크",
    "라벨",
}  # one of the words in the name of a folder of masks: defect_masks, SegmentationClass, label_png
IMAGE_WORDS = {"image", "images", "img", "imgs", "이미지"}  # of a folder of images
# The words in `JPEGImages`, `label_png`, `Masks2`.
NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
# name_mask, name-GT, name.label; of several regions also name_mask1, name_mask_1, name_mask (1).
MASK_END = re.compile(rf"[ ._-](?:{'|'.join(WORDS)})(?:[ ._-]?\(?\d+\)?)?$", re.IGNORECASE)
MASK_START = re.compile(rf"(^|/)(?:{'|'.join(WORDS)})[ ._-]+(?=[^/]+$)", re.IGNORECASE)
NUMBER_END = re.compile(r"(?:[ ._-]\d+| ?\(\d+\))$")  # name_0, name-1, name (2): one file for each region


@dataclass
class MaskNames:
    """`of_image` [N]: numbers of the masks of each image, in their order. `orphans` belong to no image."""

    of_image: list[list[int]]
    orphans: list[int] = field(default_factory=list)
    ambiguous: dict[int, list[int]] = field(default_factory=dict)  # masks that fit several images


def match_masks(images: Sequence[str], masks: Sequence[str]) -> MaskNames:
    """Assign each mask to one image. All are paths with `/`, below the images' and below the masks' folder.

    A mask has the name of its image, with or without the image's suffix, with or without one of WORDS, with
    or without a number; or it lies in a folder of that name. A number is part of an image's name where other
    images are numbered likewise. If all images or all masks lie directly in their folder, sub-folders of the
    other side may differ for images that have no mask otherwise.
    """
    index = _NameIndex(images)
    names = MaskNames([[] for _ in images])
    for number, mask in enumerate(masks):
        _assign(names, number, index.find(mask))
    if names.orphans and (_is_flat(images) or _is_flat(masks)):
        waiting, names.orphans = names.orphans, []
        has_mask = [bool(of_image) for of_image in names.of_image]
        index = _NameIndex([posixpath.basename(image) for image in images])
        for number in waiting:
            matching = index.find(posixpath.basename(masks[number]))
            _assign(names, number, [image for image in matching if not has_mask[image]])
    return names


def _assign(names: MaskNames, mask: int, images: list[int]) -> None:
    if len(images) == 1:
        names.of_image[images[0]].append(mask)
    elif images:
        names.ambiguous[mask] = images
    else:
        names.orphans.append(mask)


def strip_mask_word(path: str) -> str:
    """`name` of `name_mask`, `mask_name` and their like; the same text where there is no such word."""
    stripped = MASK_END.sub("", path)
    return MASK_START.sub(r"\1", path) if stripped == path else stripped


def is_mask_word(name: str) -> bool:
    """Whether a file or folder is called `mask`, `GT` and the like."""
    return name.casefold() in WORDS


def is_mask_folder(name: str) -> bool:
    """Whether the name of a folder says that masks lie in it."""
    return not FOLDER_WORDS.isdisjoint(_name_words(name))


def is_image_folder(name: str) -> bool:
    """Whether the name of a folder says that images lie in it."""
    return not IMAGE_WORDS.isdisjoint(_name_words(name)) and not is_mask_folder(name)


def _name_words(name: str) -> set[str]:
    name = same_text(name)
    return {name.casefold()} | {word.casefold() for word in NAME_WORD.findall(name)}


def _is_flat(paths: Sequence[str]) -> bool:
    return not any("/" in path for path in paths)


class MaskKey(NamedTuple):
    """What the image of a mask may be called, without its suffix; `is_numbered`: a number was taken off."""

    text: str
    is_numbered: bool = False


def mask_keys(mask: str) -> Iterator[MaskKey]:
    """What the image of this mask may be called, the likeliest first."""
    stem = posixpath.splitext(same_text(mask))[0]
    yield MaskKey(stem)
    base = strip_mask_word(stem)
    yield MaskKey(base)
    unnumbered = NUMBER_END.sub("", base)
    if unnumbered != base:
        yield MaskKey(unnumbered, is_numbered=True)
    folder = posixpath.dirname(stem)
    if folder:
        yield MaskKey(folder)
        yield MaskKey(strip_mask_word(folder))


class _NameIndex:
    """Numbers of images by what they are called, with and without their suffix."""

    def __init__(self, images: Sequence[str]):
        self.exact: dict[str, list[int]] = {}
        self.folded: dict[str, list[int]] = {}
        self.numbered: set[str] = set()  # what remains of the names that end in a number
        for number, image in enumerate(images):
            image = same_text(image)
            stem = posixpath.splitext(image)[0]
            for key in {image, stem}:
                self.exact.setdefault(key, []).append(number)
                self.folded.setdefault(key.casefold(), []).append(number)
            unnumbered = NUMBER_END.sub("", stem)
            if unnumbered != stem:
                self.numbered.add(unnumbered)

    def find(self, mask: str) -> list[int]:
        """The image that a mask belongs to, or several where that is not clear."""
        for key in mask_keys(mask):
            if key.is_numbered and key.text in self.numbered:
                continue  # name_3 may belong to an image name_3 that is missing
            matching = self.exact.get(key.text) or self.folded.get(key.text.casefold())
            if matching:
                return matching
        return []
