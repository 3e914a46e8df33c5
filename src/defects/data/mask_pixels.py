"""Whether pixels are those of a mask or of a photograph. Neither torch nor pandas is imported."""

import cv2
import numpy as np

MAIN_SHARE = 0.3  # of the pixels of a mask, at least, have one level: photographs are noisy
MASK_LEVELS = 32  # grey levels of a mask that was not compressed with loss, at most
NEAR_LEVELS = 12  # of 255: lossy files and soft edges spread a level by so much
NEAR_SHARE = 0.95  # of the pixels of a lossy mask lie near its two most frequent levels


def are_pixels_of_mask(pixels: np.ndarray) -> bool:
    """Whether [H, W, C], uint8 or uint16, has the few levels of a mask; a blank picture has them too."""
    return all(_is_mask_plane(np.ascontiguousarray(plane)) for plane in cv2.split(pixels))


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
