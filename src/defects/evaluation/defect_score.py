"""The scale on which people see scores and thresholds: 0 to 100, the threshold of the decision at 50.

Probabilities do not serve: those of many detectors crowd at 0 or 1, and the threshold with them ("probability
1.000, threshold 1.000"). Their log-odds have no such ends, but no fixed range either. The defect score takes
how many powers of ten the odds of a defect lie above the odds at the threshold (d, negative below it) and
brings it into a fixed range: 50 + 50 d / (1 + |d|). At 75 the odds are ten times those at the threshold, at
83 a hundred times, at 25 a tenth. It is the same increasing function for all detectors, it never reaches its
ends, and 50 means the decision itself: a score is at least 50 exactly where the image counts as defective. It
is no probability, and says nothing of the share of defects.

NumPy alone, for prediction where little else is installed.
"""

import numpy as np

AT_THRESHOLD = 50.0  # defect score
LIMIT = 40.0  # log-odds: beyond those of any float64 probability below 1
SMALLEST_DISTANCE = 1e-8  # of a written probability from 0 and from 1


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
    """Of probabilities from 0 to 1, at most LIMIT from 0."""
    values = np.asarray(probability, float)
    with np.errstate(divide="ignore"):
        return (np.log(values) - np.log1p(-values)).clip(-LIMIT, LIMIT)


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
