"""From the probability map of a class to its mask, by a rule; without pandas, for prediction too."""

from typing import NamedTuple

import cv2
import numpy as np

from defects.data.images import resize


class Rule(NamedTuple):
    """How a map of one class becomes a mask; the defaults are those of somebody who tunes nothing."""

    label: float = 0.5  # probability of the class from which on anything is marked
    pixel: float = 0.5  # probability from which on a pixel is marked
    component: float = 0.0  # share of the image: connected parts below it are removed
    area: float = 0.0  # share of the image: a mask below it in all is emptied


def threshold_map(
    probabilities: np.ndarray, size: tuple[int, int], pixel: float, component: float
) -> np.ndarray:
    """bool [H, W]: pixels of a map, brought bilinearly to `size`, in parts that are large enough."""
    if probabilities.max() < pixel:
        return np.zeros(size, bool)
    mask = resize(probabilities.astype(np.float32), size) >= pixel
    return remove_small(mask, component * mask.size) if component else mask


def remove_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Without its 8-connected parts of fewer than `pixels` pixels."""
    _, part, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = facts[:, cv2.CC_STAT_AREA] >= pixels
    large[0] = False  # the background
    return large[part]


def make_mask(
    probabilities: np.ndarray, class_probability: float, size: tuple[int, int], rule: Rule
) -> np.ndarray:
    """bool [H, W] by a rule; `class_probability` says whether the class is present in the image at all."""
    if class_probability < rule.label:
        return np.zeros(size, bool)
    return mask_if_present(probabilities, size, rule)


def mask_if_present(probabilities: np.ndarray, size: tuple[int, int], rule: Rule) -> np.ndarray:
    """bool [H, W] by a rule, of an image whose class is taken to be there."""
    mask = threshold_map(probabilities, size, rule.pixel, rule.component)
    return mask if mask.mean() >= rule.area else np.zeros(size, bool)
