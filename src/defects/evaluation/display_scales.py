"""Scales on which people see scores and anomaly maps; the threshold lies in the middle of both.

NumPy and OpenCV alone, for prediction where little else is installed.
"""

import cv2
import numpy as np

AT_THRESHOLD = 50.0  # defect score
MAX_LOG_ODDS = 40.0  # log-odds: beyond those of any float64 probability below 1
SMALLEST_DISTANCE = 1e-8  # of a written probability from 0 and from 1
AT_THRESHOLD_HEAT = 50.0
MAX_HEAT = 100.0
OPACITY = 0.75  # of the colours over the image, from the threshold on; below it they fade out
DARKENING = 3  # what grey levels outside a region of interest are divided by
HEAT_COLOURMAP = cv2.COLORMAP_INFERNO
# RGB of frames and outlines of what reaches the threshold: cyan, which the colour map lacks.
LIMIT_COLOUR = (0, 255, 255)


def compute_defect_scores(log_odds: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """Defect scores, float64, of log-odds [...] by thresholds of the same kind, broadcast to their shape."""
    decades = (np.asarray(log_odds, float) - threshold) / np.log(10)
    return _keep_decision(_bring_into_range(decades), decades >= 0)


def score_probabilities(probability: np.ndarray | float, threshold: np.ndarray | float) -> np.ndarray:
    """Defect scores, float64, of probabilities from 0 to 1 by a threshold, which is a probability too."""
    values = np.asarray(probability, float)
    decades = (compute_log_odds(values) - compute_log_odds(threshold)) / np.log(10)
    return _keep_decision(_bring_into_range(decades), values >= threshold)


def compute_log_odds(probability: np.ndarray | float) -> np.ndarray:
    """Of probabilities from 0 to 1, at most MAX_LOG_ODDS from 0."""
    values = np.asarray(probability, float)
    with np.errstate(divide="ignore"):
        return (np.log(values) - np.log1p(-values)).clip(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def format_defect_score(score: float, threshold: float = AT_THRESHOLD) -> str:
    """One decimal, so that a score below the threshold (a defect score too) does not read as one above it."""
    if score < threshold:
        return f"{min(round(score, 1), round(threshold, 1) - 0.1):.1f}"
    return f"{score:.1f}"


def format_probability(probability: float) -> str:
    """Three decimals, or as many as tell it from 0 and 1."""
    distance = min(probability, 1 - probability)
    if distance == 0:
        return f"{probability:.0f}"
    if distance < SMALLEST_DISTANCE:
        return f"below {SMALLEST_DISTANCE:.8f}" if probability < 0.5 else f"above {1 - SMALLEST_DISTANCE:.8f}"
    return f"{probability:.{max(3, -int(np.floor(np.log10(distance))))}f}"


def _bring_into_range(decades: np.ndarray) -> np.ndarray:
    return AT_THRESHOLD + AT_THRESHOLD * decades / (1 + np.abs(decades))


def _keep_decision(scores: np.ndarray, is_defect: np.ndarray) -> np.ndarray:
    """The scores, moved to the right side of the threshold where rounding took them to the other."""
    below = np.minimum(scores, np.nextafter(AT_THRESHOLD, 0))
    return np.where(is_defect, np.maximum(scores, AT_THRESHOLD), below)


def compute_heat(anomaly_map: np.ndarray, normal: float, threshold: float) -> np.ndarray:
    """float32 [h, w], 0 to 100, of a map [h, w] with the median of normal pixels and the threshold."""
    distance = max(threshold - normal, 1e-6 * abs(threshold), 1e-12)  # all maps may be constant
    heat = AT_THRESHOLD_HEAT * (anomaly_map.astype(np.float64) - normal) / distance
    return heat.clip(0, MAX_HEAT).astype(np.float32)


def paint_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the colours of `heat` [H, W] over `image`, which shows where the heat is low."""
    levels = np.round(heat * (255 / MAX_HEAT)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, HEAT_COLOURMAP), cv2.COLOR_BGR2RGB)
    opacity = OPACITY * np.minimum(heat / AT_THRESHOLD_HEAT, 1)[..., None]
    return (opacity * colours + (1 - opacity) * image).round().astype(np.uint8)


def darken_outside(image: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """A copy of uint8 [H, W, 3], dark where bool [H, W] is False; the image itself without a region."""
    if inside is None:
        return image
    return np.where(inside[..., None], image, image // DARKENING)


def paint_scale(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: all colours over grey, from heat 0 at the left to 100."""
    heat = np.tile(np.linspace(0, MAX_HEAT, width, dtype=np.float32), (height, 1))
    return paint_heat(np.full((height, width, 3), 128, np.uint8), heat)
