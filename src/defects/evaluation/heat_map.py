"""Anomaly maps as colours over an image: in reports, predicted overlays and the page for people alike.

All are on one scale, heat from 0 to 100: 0 is the median of normal pixels, 50 the threshold of the map, 100
twice as far from the median. A scale of each image's own would paint a red spot on every good part.

NumPy and OpenCV alone: overlays are drawn where little else is installed.
"""

import cv2
import numpy as np

AT_THRESHOLD_HEAT, MAX_HEAT = 50.0, 100.0
OPACITY = 0.75  # of the colours over the image, from the threshold on; below it they fade out
COLOURS = cv2.COLORMAP_INFERNO
LIMIT_COLOUR = (
    0,
    255,
    255,
)  # cyan, which the colour map lacks: frames and outlines of what reaches the threshold


def compute_heat(anomaly_map: np.ndarray, normal: float, threshold: float) -> np.ndarray:
    """float32 [h, w], 0 to 100, of a map [h, w] with the median of normal pixels and the threshold."""
    distance = max(threshold - normal, 1e-6 * abs(threshold), 1e-12)  # all maps may be constant
    heat = AT_THRESHOLD_HEAT * (anomaly_map.astype(np.float64) - normal) / distance
    return heat.clip(0, MAX_HEAT).astype(np.float32)


def paint_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the colours of `heat` [H, W] over `image`, which shows where the heat is low."""
    levels = np.round(heat * (255 / MAX_HEAT)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLOURS), cv2.COLOR_BGR2RGB)
    opacity = OPACITY * np.minimum(heat / AT_THRESHOLD_HEAT, 1)[..., None]
    return (opacity * colours + (1 - opacity) * image).round().astype(np.uint8)


def paint_scale(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: all colours over grey, from heat 0 at the left to 100."""
    heat = np.tile(np.linspace(0, MAX_HEAT, width, dtype=np.float32), (height, 1))
    return paint_heat(np.full((height, width, 3), 128, np.uint8), heat)
