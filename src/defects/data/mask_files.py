"""Mask files of any kind: which pixels of an image they mark.

Annotation tools write masks in many ways. What counts is in the pixels alone, the same in every stage:

- no alpha, black background: everything that is not black (1, 128, 255; labels 1, 2, 3; colours);
- no black at all: what differs from the most frequent colour, if that fills the border;
- lossy files and soft edges: what is at least half as bright, or as different, as the brightest value;
- alpha: what is visible and not black; if nothing visible is black, or it is a photograph, what is visible;
- palettes: what is not black; a first entry of another colour is background where the border says so.

Whether the masks of a data set are inverted is decided once, from all of them (`are_inverted`).
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from defects.data.headers import Header
from defects.data.images import decode_colours, read_content

RAMP_SHARE = 0.3  # of the grey pixels of soft edges, at least, lie between a darker and a brighter one
SOFT_LEVELS = 32  # above black, at least, are the brightest value of soft edges: labels are lower
NOISE_LEVELS = 16  # that compression adds to black, and takes from the brightest value
NOISE_SHARE = 0.05  # of what is not black, at most, lies between these two
PICTURE_SHARE = 0.3  # of a photograph's pixels, at most, have the same brightness
BACKGROUND_SHARE = 0.5  # of an image and of its border, at least, is background
FAINT_PIXELS = 5  # height and width of a part that is left out for its faintness, and mentioned
LABELS_BELOW_IGNORE = 64  # labels that stand beside an ignore value of 255
NEARLY_ALL = 0.95  # of an image
INVERTED_MASKS = 3  # of a data set that counts as inverted, at least
INVERTED_SHARE = 0.9  # of its masks, at least, mark most of their image


class MaskFacts(NamedTuple):
    """What prepare's inventory tells of one mask file."""

    width: int  # pixels
    height: int
    share: float  # of the image that is marked
    kind: str  # "two levels", "labels", "many levels", "alpha", "palette", "colours", "jpeg"
    doubt: str  # "", or why it may not be meant so
    border: float = 0.0  # share of the image's outermost pixels that is marked


class Reading(NamedTuple):
    """What a file marks, bool [H, W], and as MaskFacts."""

    mask: np.ndarray
    kind: str
    doubt: str = ""


def read_mask(path: Path, inverted: bool = False) -> np.ndarray:
    """bool [H, W]: True where a defect is marked; `inverted`: where nothing is, as `are_inverted` decides.

    Raises UserError naming a file that cannot be read.
    """
    content, header = read_content(path)
    mask = _mark(path, content, header).mask
    return ~mask if inverted else mask


def examine_mask(path: Path, inverted: bool = False) -> tuple[np.ndarray, MaskFacts]:
    """As read_mask, and what the inventory tells of the file; raises UserError for a damaged one too."""
    content, header = read_content(path, is_strict=True)
    mask, kind, doubt = _mark(path, content, header, is_examined=True)
    if inverted:
        mask = ~mask
    height, width = mask.shape
    share = float(mask.mean())
    border = float(_border(mask).mean())
    if not doubt and not inverted and share > 0.5 and border > INVERTED_SHARE and share < 1:
        doubt = "marks most of its image and its border: if it is inverted, set data.inverted_masks=true"
    if not doubt and share > NEARLY_ALL:
        doubt = "marks nearly all of its image"
    return mask, MaskFacts(width, height, share, kind, doubt, border)


def are_inverted(facts: Sequence[MaskFacts], setting: bool | None = None) -> bool:
    """Whether the masks of a data set mark what is no defect: `setting`, data.inverted_masks, if it is given.

    Otherwise if nearly all of three or more mark most of their image and its border, and none marks nothing.
    """
    if setting is not None:
        return setting
    if len(facts) < INVERTED_MASKS or any(mask.share == 0 for mask in facts):
        return False
    inverted = [mask.share > 0.5 and mask.border > 0.5 for mask in facts]
    return (
        np.mean(inverted) >= INVERTED_SHARE
        and np.median([mask.border for mask in facts]) > INVERTED_SHARE
        and any(mask.share < 1 for mask in facts)
    )


def _mark(path: Path, content: bytes, header: Header, is_examined: bool = False) -> Reading:
    """`is_examined`: also say what speaks against the reading, which takes time."""
    has_palette = header.channels == "palette"
    may_have_alpha = header.channels in ("RGBA", "grey+alpha") or header.format in ("WebP", "AVIF")
    picture = _open_with_pillow(content) if has_palette or may_have_alpha else None
    if has_palette and picture is not None and picture.mode == "P":
        return _mark_palette(*_read_palette(picture))
    colours = decode_colours(path, content, header)
    if may_have_alpha and picture is not None and "A" in picture.getbands():
        alpha = np.asarray(picture.getchannel("A"))
        if np.ptp(alpha):
            return _mark_visible(colours, alpha)
    is_lossy_webp = header.format == "WebP" and content[12:16] == b"VP8 "
    return _mark_colours(colours, header.format in ("JPEG", "AVIF") or is_lossy_webp, is_examined)


def _open_with_pillow(content: bytes) -> Image.Image | None:
    """For palettes and alpha, which OpenCV resolves, or does not turn as EXIF says."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Exception:  # of a dozen kinds, for files that it does not know
        return None


def _read_palette(picture: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices uint8 [H, W], colours uint8 [256, 3] and alpha uint8 [256] of its entries."""
    entries = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(entries)] = entries
    alpha = np.full(256, 255, np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, bytes):
        alpha[: len(transparent)] = np.frombuffer(transparent, np.uint8)
    elif transparent is not None:
        alpha[transparent] = 0
    return np.asarray(picture), colours, alpha


def _mark_palette(indices: np.ndarray, colours: np.ndarray, alpha: np.ndarray) -> Reading:
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if np.ptp(alpha[used]):
        return _mark_visible(colours[indices], alpha[indices])
    are_greys = np.ptp(colours[used].astype(int), axis=1).max() == 0
    is_black = (colours == 0).all(axis=1)
    has_black = bool(is_black[used].any())
    has_coloured_first = used[0] == 0 and not is_black[0]
    if (are_greys and len(used) > 3) or not (has_black or has_coloured_first):
        return _mark_colours(colours[indices])._replace(kind="palette")
    is_first = indices == 0
    is_dark = is_black[indices]
    if not has_coloured_first:
        return Reading(~is_dark, "palette", _doubt_about_ignored(used))
    # The first entry is background for tools that write labels, black for those that write colours.
    first_border = float(_border(is_first).mean())
    dark_border = float(_border(is_dark).mean())
    if has_black:
        doubt = "may have black or its first palette entry as background: what is most of its border counts"
        is_sure = max(first_border, dark_border) > INVERTED_SHARE
        mask = ~is_first if first_border > dark_border else ~is_dark
        return Reading(mask, "palette", "" if is_sure else doubt)
    if len(used) > 1 and first_border >= BACKGROUND_SHARE:
        return Reading(~is_first, "palette", _doubt_about_ignored(used))
    return _mark_colours(colours[indices])._replace(kind="palette")


def _doubt_about_ignored(levels: np.ndarray) -> str:
    """`levels`: the distinct values of a label mask, ascending."""
    labels = levels[(levels > 0) & (levels < 255)]
    if levels[-1] == 255 and len(labels) and labels[-1] < LABELS_BELOW_IGNORE:
        return "has 255 beside smaller labels: it counts as defect, even if it stands for `ignore`"
    return ""


def _mark_visible(colours: np.ndarray, alpha: np.ndarray) -> Reading:
    """Of colours [H, W, 3] and alpha that is not the same everywhere."""
    is_visible = alpha >= alpha.max() / 2
    if is_visible.all():
        return _mark_colours(colours)
    visible_colours = colours[is_visible]
    if (visible_colours == visible_colours[0]).all():
        return Reading(is_visible, "alpha")
    value = _brightest(colours)
    counts = np.bincount(value[is_visible])
    if counts[0] == 0 or counts.max() < PICTURE_SHARE * len(visible_colours):
        return Reading(is_visible, "alpha")  # paint alone, or a piece of a photograph
    return Reading(is_visible & _mark_levels(value).mask, "alpha")


def _mark_colours(colours: np.ndarray, is_lossy: bool = False, is_examined: bool = False) -> Reading:
    """Of [H, W, 3], uint8 or uint16."""
    noise = NOISE_LEVELS if is_lossy else 0
    value = _brightest(colours)
    if value.min() > noise:  # no black
        everything = np.ones(colours.shape[:2], bool)
        value = _distance_from_background(colours, noise)
        if value is None:
            return Reading(everything, "labels", "has neither black nor another background")
        if value.max() == 0:
            return Reading(everything, "two levels")
    reading = _mark_levels(value, is_lossy, is_examined)
    is_grey = all(np.array_equal(colours[..., 0], colours[..., channel]) for channel in (1, 2))
    return reading if is_grey or is_lossy else reading._replace(kind="colours")


def _distance_from_background(colours: np.ndarray, noise: int) -> np.ndarray | None:
    """[H, W]: how far each pixel is from the most frequent one of [H, W, 3]; None if that is no background.

    A background fills most of the image and of its border. Distances up to `noise` are 0.
    """
    packed = colours.astype(np.uint64) @ np.array([1, 1 << 16, 1 << 32], np.uint64)
    _, first, counts = np.unique(packed, return_index=True, return_counts=True)
    background = colours.reshape(-1, 3)[first[counts.argmax()]]
    distance = _brightest(cv2.absdiff(colours, np.full_like(colours, background)))
    distance[distance <= noise] = 0
    is_background = distance == 0
    is_sure = min(is_background.mean(), _border(is_background).mean()) >= BACKGROUND_SHARE
    return distance if is_sure else None


def _brightest(colours: np.ndarray) -> np.ndarray:
    """[H, W]: the largest of the three channels."""
    red, green, blue = cv2.split(colours)  # many times faster than the maximum of an axis
    return cv2.max(cv2.max(red, green), blue)


def _mark_levels(value: np.ndarray, is_lossy: bool = False, is_examined: bool = False) -> Reading:
    """Of [H, W]: the grey level, the largest of the three channels, or the distance from the background."""
    counts = np.bincount(value.ravel())
    levels = np.flatnonzero(counts)
    top = int(levels[-1])
    is_soft = len(levels) > 3 and (_are_two_levels_with_noise(counts) or _has_soft_edges(value, top))
    if top > 0 and (is_lossy or is_soft):
        mask = value >= top / 2
        doubt = _doubt_about_grey(value, mask, top) if is_examined else ""
        return Reading(mask, "jpeg" if is_lossy else "many levels", doubt)
    kind = "two levels" if len(levels) <= 2 else "labels"
    return Reading(value > 0, kind, _doubt_about_ignored(levels))


def _are_two_levels_with_noise(counts: np.ndarray) -> bool:
    """Whether values lie near black and near the brightest alone, as in a lossy mask saved anew.

    `counts`: pixels of each value up to the brightest.
    """
    top = len(counts) - 1
    few = NOISE_LEVELS + 1
    if top > 4 * NOISE_LEVELS and not counts[few:-few].any():
        return bool(np.count_nonzero(counts[:few]) > 1 and np.count_nonzero(counts[-few:]) > 1)
    between = counts[top // 4 : 3 * top // 4].sum()
    return bool(np.count_nonzero(counts) > NOISE_LEVELS and between < NOISE_SHARE * counts[1:].sum())


def _has_soft_edges(value: np.ndarray, top: int) -> bool:
    """Whether what is neither black nor brightest lies on slopes, as at soft edges, not in areas."""
    if top < SOFT_LEVELS:
        return False
    between = (value > 0) & (value < top)
    near = np.ones((3, 3), np.uint8)
    on_slope = (cv2.erode(value, near) < value) & (cv2.dilate(value, near) > value)
    return bool(on_slope[between].mean() >= RAMP_SHARE)


def _doubt_about_grey(value: np.ndarray, mask: np.ndarray, top: int) -> str:
    """What speaks against reading a mask of many levels at half of its largest value."""
    between = (value > 0.1 * top) & (value < 0.9 * top)
    if between.mean() > 0.5:
        return "has many levels and few extremes: a picture or a heat map rather than a mask"
    faint = ((value > 0.1 * top) & ~mask).astype(np.uint8)
    if cv2.erode(faint, np.ones((FAINT_PIXELS, FAINT_PIXELS), np.uint8)).any():
        return "has parts less than half as bright as its brightest, which do not count"
    return ""


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of [H, W, ...]."""
    rows = pixels[[0, -1]].reshape(-1, *pixels.shape[2:])
    columns = pixels[1:-1, [0, -1]].reshape(-1, *pixels.shape[2:])
    return np.concatenate([rows, columns])
