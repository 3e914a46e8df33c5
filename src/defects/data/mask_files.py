"""Mask files of any kind: which pixels of an image they mark.

Annotation tools write masks in many ways. Read from the pixels alone, the same in every stage:

- no alpha, black background: everything that is not black (1, 128, 255; labels 1, 2, 3; colours);
- lossy files and soft edges: what is at least half as bright as the brightest value;
- alpha: what is visible and not black; if all that is visible has one colour, what is visible;
- palettes: what is not black; a first entry of another colour is background where the border says so;
- no black at all: what differs from the colour of the border that is also the most frequent.

Whether the masks of a data set are inverted is decided once, from all of them (`are_inverted`).
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from defects.data.decoding import check_content, decode_colours, decode_unchanged, read_content
from defects.data.headers import Header

RAMP_SHARE = 0.3  # of the grey pixels of soft edges, at least, lie between a darker and a brighter one
BACKGROUND_SHARE = 0.5  # of an image and of its border, at least, is background
FAINT_PIXELS = 10  # of a part that is left out for its faintness and mentioned
LABELS_BELOW_IGNORE = 64  # labels that stand beside an ignore value of 255
NEARLY_ALL = 0.95  # of an image
INVERTED_MASKS, INVERTED_SHARE = 3, 0.9  # so many masks, this share of them, or no set counts as inverted


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
    content = read_content(path)
    mask = _read(path, content, check_content(path, content)).mask
    return ~mask if inverted else mask


def examine_mask(path: Path, inverted: bool = False) -> tuple[np.ndarray, MaskFacts]:
    """As read_mask, and what the inventory tells of the file; raises UserError for a damaged one too."""
    content = read_content(path)
    mask, kind, doubt = _read(path, content, check_content(path, content, is_strict=True), is_examined=True)
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
    if len(facts) < INVERTED_MASKS or any(each.share == 0 for each in facts):
        return False
    inverted = [each.share > 0.5 and each.border > 0.5 for each in facts]
    return (
        np.mean(inverted) >= INVERTED_SHARE
        and np.median([each.border for each in facts]) > INVERTED_SHARE
        and any(each.share < 1 for each in facts)
    )


def _read(path: Path, content: bytes, header: Header, is_examined: bool = False) -> Reading:
    if header.channels == "palette":
        palette = _read_palette(content)
        if palette is not None:
            return _mark_palette(*palette)
    colours = decode_colours(path, content, header)
    alpha = _read_alpha(path, content, header)
    if alpha is not None and np.ptp(alpha):
        return _mark_visible(colours, alpha)
    return _mark_colours(colours, _is_lossy(content, header), is_examined)


def _is_lossy(content: bytes, header: Header) -> bool:
    return header.format in ("JPEG", "AVIF") or (header.format == "WebP" and content[12:16] == b"VP8 ")


def _read_alpha(path: Path, content: bytes, header: Header) -> np.ndarray | None:
    """[H, W], or None where the file has none."""
    may_have = header.channels in ("RGBA", "grey+alpha") or header.format in ("WebP", "AVIF", "PNG")
    if not may_have or (header.format, header.channels) == ("JPEG 2000", "grey+alpha"):
        return None
    pixels = decode_unchanged(path, content, header)
    return pixels[..., 3] if pixels.ndim == 3 and pixels.shape[2] == 4 else None


def _read_palette(content: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Indices uint8 [H, W], colours uint8 [256, 3] and alpha uint8 [256]; None if Pillow sees no palette."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except Exception:  # of a dozen kinds, for broken files
        return None
    if picture.mode != "P":
        return None
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
    is_black = (colours == 0).all(axis=1)
    are_greys = np.ptp(colours[used].astype(int), axis=1).max() == 0
    if is_black[0] or used[0] != 0 or (are_greys and len(used) > 3):
        if are_greys or not is_black[used].any():
            return _mark_colours(colours[indices])._replace(kind="palette")
        return Reading(~is_black[indices], "palette", _doubt_about_ignored(used))
    # The first entry is background for tools that write labels, black for those that write colours.
    is_first = indices == 0
    first, black = (float(_border(each).mean()) for each in (is_first, is_black[indices]))
    if not is_black[used].any() and len(used) > 1 and first >= BACKGROUND_SHARE:
        return Reading(~is_first, "palette", _doubt_about_ignored(used))
    if is_black[used].any():
        doubt = "may have black or its first palette entry as background: what is most of its border counts"
        mask = ~is_first if first > black else ~is_black[indices]
        return Reading(mask, "palette", "" if max(first, black) > INVERTED_SHARE else doubt)
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
    value = colours.max(axis=2)
    shown = colours[is_visible]
    if (shown == shown[0]).all():
        return Reading(is_visible, "alpha")
    return Reading(is_visible & _mark_grey(value).mask, "alpha")


def _mark_colours(colours: np.ndarray, is_lossy: bool = False, is_examined: bool = False) -> Reading:
    """Of [H, W, 3], uint8 or uint16."""
    red, green, blue = cv2.split(colours)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    value = red if is_grey else cv2.max(cv2.max(red, green), blue)
    if not is_grey and not is_lossy and value.min() > 0:
        return _mark_without_black(colours)
    reading = _mark_grey(value, is_lossy, is_examined)
    return reading if is_grey or is_lossy else reading._replace(kind="colours")


def _mark_grey(value: np.ndarray, is_lossy: bool = False, is_examined: bool = False) -> Reading:
    """Of [H, W]: the grey level, or the largest of the three channels."""
    levels = np.flatnonzero(np.bincount(value.ravel()))
    top = int(levels[-1])
    is_soft = not is_lossy and len(levels) > 3 and _is_soft(value, top)
    if top > 0 and (is_lossy or is_soft):
        mask = value >= top / 2
        doubt = _doubt_about_grey(value, mask, top) if is_examined else ""
        return Reading(mask, "jpeg" if is_lossy else "many levels", doubt)
    if levels[0] > 0 and len(levels) > 1:
        return _mark_without_black(np.dstack([value] * 3))
    kind = "two levels" if len(levels) <= 2 else "labels"
    return Reading(value > 0, kind, _doubt_about_ignored(levels))


def _is_soft(value: np.ndarray, top: int) -> bool:
    """Whether what is neither black nor brightest lies on slopes, as at soft edges, not in areas."""
    between = (value > 0) & (value < top)
    near = np.ones((3, 3), np.uint8)
    on_slope = (cv2.erode(value, near) < value) & (cv2.dilate(value, near) > value)
    return bool(on_slope[between].mean() >= RAMP_SHARE)


def _mark_without_black(colours: np.ndarray) -> Reading:
    """Of [H, W, 3] without black: what differs from the most frequent colour, if that fills the border."""
    packed = colours.astype(np.uint64) @ np.array([1, 1 << 16, 1 << 32], np.uint64)
    codes, counts = np.unique(packed, return_counts=True)
    kind = "two levels" if len(codes) == 2 else "labels"
    is_background = packed == codes[counts.argmax()]
    if min(is_background.mean(), _border(is_background).mean()) >= BACKGROUND_SHARE:
        return Reading(~is_background, kind)
    return Reading(np.ones(packed.shape, bool), kind, "has neither black nor another background")


def _doubt_about_grey(value: np.ndarray, mask: np.ndarray, top: int) -> str:
    """What speaks against reading a mask of many levels at half of its largest value."""
    between = (value > 0.1 * top) & (value < 0.9 * top)
    if between.mean() > 0.5:
        return "has many levels and few extremes: a picture or a heat map rather than a mask"
    seen = (value > 0.1 * top).astype(np.uint8)
    count, parts, sizes, _ = cv2.connectedComponentsWithStats(seen)
    is_kept = np.zeros(count, bool)
    is_kept[parts[mask]] = True
    is_kept[0] = True
    if (sizes[~is_kept, cv2.CC_STAT_AREA] >= FAINT_PIXELS).any():
        return "has parts less than half as bright as its brightest, which do not count"
    return ""


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of [H, W, ...]."""
    sides = pixels[[0, -1]], pixels[1:-1, [0, -1]].swapaxes(0, 1)
    return np.concatenate([side.reshape(-1, *pixels.shape[2:]) for side in sides])
