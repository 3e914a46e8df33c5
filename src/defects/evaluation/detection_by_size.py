"""Probability of detection by the size of a defect: hit or miss over the logarithm of the size.

As MIL-HDBK-1823A (2009, "Nondestructive Evaluation System Reliability Assessment", appendix G) does for hit
or miss data, the log-odds of detection are linear in the logarithm of the size. a50 and a90 are the sizes
that are detected with a probability of 50 % and 90 %; a90/95 is the size from which the probability is at
least 90 % with a confidence of 95 %.

The likelihood is penalised by the square root of the determinant of the information (Firth 1993, "Bias
reduction of maximum likelihood estimates"), so few points and perfect separation leave the slope finite. The
band comes from the profile of that likelihood (Heinze & Schemper 2002, "A solution to the problem of
separation in logistic regression"): a value of the log-odds at a size lies in it if some line through that
value has a likelihood ratio of at most 2.71. Either edge is a one-sided bound with a confidence of 95 %.
Groups of siblings count as the independent images that they are worth.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from defects.data.labels import is_marked, read_masks
from defects.data.roi import Roi
from defects.evaluation.metrics import effective_number

MEASURES = {"longest_side": 1, "area": 2}  # with the power of a length that they are
LIKELIHOOD_RATIO = 2.7055  # quantile of chi-squared with one degree of freedom: 95 % one-sided
FEWEST_INDEPENDENT = 8.0  # images, from which a curve is fitted
ADVISED_IMAGES = 60  # by MIL-HDBK-1823A, for hit or miss data
DIRECTIONS = 120  # in which the border of the likelihood's region is searched for
GRID_SIZES = 80  # at which the curve is given


@dataclass(frozen=True)
class DetectionCurve:
    """Detection over one measure of size, in `unit`; sizes that cannot be said are None, `reasons` say why.

    `log_odds` are intercept and slope over the natural logarithm of the size; `border` [K, 2] the same of
    lines on the border of the likelihood's region.
    """

    measure: str  # of MEASURES
    unit: str  # px or mm; of the area px² or mm²
    images: int  # with a defect of known size
    unmarked: int  # defects without a mask, left out
    detected: int
    independent_images: float
    smallest: float | None
    largest: float | None
    log_odds: tuple[float, float] | None
    border: np.ndarray | None
    a50: float | None
    a90: float | None
    a90_95: float | None
    reasons: dict[str, str]  # of curve, a50, a90, a90_95

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the border."""
        values = asdict(self)
        del values["border"]
        return values

    def list_sizes(self) -> np.ndarray:
        """GRID_SIZES sizes from the smallest to the largest."""
        return np.geomspace(self.smallest, self.largest, GRID_SIZES)

    def predict(self, sizes: np.ndarray) -> np.ndarray:
        """Probability of detection [K] at these sizes."""
        intercept, slope = self.log_odds
        return expit(intercept + slope * np.log(sizes))

    def bound(self, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound [K] of the probability, each with a confidence of 95 %."""
        log_odds = self.border[:, 0, None] + self.border[:, 1, None] * np.log(sizes)
        return expit(log_odds.min(axis=0)), expit(log_odds.max(axis=0))


# --- sizes -------------------------------------------------------------------------------------------------


def measure_defect_sizes(rows: pd.DataFrame, root: Path, roi: Roi | None = None) -> pd.DataFrame:
    """`longest_side` and `area` in pixels of the largest defect of each of `rows` of images.csv, as indexed.

    A defect is an 8-connected part of the mask, its longest side that of the smallest rectangle around it, at
    any angle. Either measure is that of the part in which it is largest. NaN where nothing is marked.
    """
    sizes = []
    for row in rows.to_dict("records"):
        masks = read_masks(row, root, []) if is_marked(row) else None
        if masks is not None and roi is not None:
            masks = masks * roi.read(row["path"], masks.shape[:2])[..., None]
        sizes.append((np.nan, np.nan) if masks is None or not masks.any() else measure_largest(masks[..., 0]))
    return pd.DataFrame(sizes, index=rows.index, columns=["longest_side", "area"], dtype=float)


def measure_largest(mask: np.ndarray) -> tuple[float, float]:
    """Longest side and area in pixels of the largest part of a mask [H, W] that is not empty."""
    mask = (mask != 0).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    # Outlines run through the middles of pixels: one pixel is added to have its borders.
    sides = [max(cv2.minAreaRect(outline)[1]) + 1 for outline in outlines]
    return float(max(sides)), float(areas.max())


# --- the curve ---------------------------------------------------------------------------------------------


def fit_detection_curves(
    sizes: pd.DataFrame, detected: np.ndarray, groups: np.ndarray, pixel_size_mm: float | None = None
) -> list[DetectionCurve]:
    """A curve for each of MEASURES, of defects with `sizes` as measure_defect_sizes has them.

    `detected` bool [N] are out-of-fold predictions by thresholds of the other folds. With `pixel_size_mm`
    sizes are in millimetres.
    """
    in_units = convert_sizes(sizes, pixel_size_mm)
    length = "px" if pixel_size_mm is None else "mm"
    curves = []
    for measure, power in MEASURES.items():
        values = in_units[measure].to_numpy(dtype=float)
        unit = f"{length}²" if power == 2 else length
        curves.append(fit_detection_curve(values, detected, groups, measure, unit))
    return curves


def convert_sizes(sizes: pd.DataFrame, pixel_size_mm: float | None) -> pd.DataFrame:
    """Sizes in pixels, as measure_defect_sizes has them, in millimetres if `pixel_size_mm` is known."""
    if pixel_size_mm is None:
        return sizes
    factors = {measure: pixel_size_mm**power for measure, power in MEASURES.items()}
    return sizes * pd.Series(factors)


def fit_detection_curve(
    sizes: np.ndarray,
    detected: np.ndarray,
    groups: np.ndarray,
    measure: str = "longest_side",
    unit: str = "px",
) -> DetectionCurve:
    """The curve of defects of `sizes` [N], NaN where unknown; detected bool [N], groups [N] of siblings."""
    is_known = np.isfinite(sizes)
    known_sizes = sizes[is_known]
    hits = detected[is_known].astype(bool)
    independent = effective_number(groups[is_known])
    values = {
        "measure": measure,
        "unit": unit,
        "images": len(known_sizes),
        "unmarked": int((~is_known).sum()),
        "detected": int(hits.sum()),
        "independent_images": independent,
        "smallest": float(known_sizes.min()) if len(known_sizes) else None,
        "largest": float(known_sizes.max()) if len(known_sizes) else None,
        "log_odds": None,
        "border": None,
        "a50": None,
        "a90": None,
        "a90_95": None,
        "reasons": {},
    }
    reason = find_obstacle(known_sizes, hits, independent, len(sizes))
    if reason is not None:
        return DetectionCurve(**values | {"reasons": {"curve": reason}})
    log_sizes = np.log(known_sizes)
    centre = log_sizes.mean()
    spread = log_sizes.std()
    likelihood = PenalisedLikelihood((log_sizes - centre) / spread, hits, independent / len(hits))
    best = likelihood.maximise()
    to_log_sizes = np.array([[1.0, 0.0], [-centre / spread, 1 / spread]])
    values["log_odds"] = tuple((best @ to_log_sizes).tolist())
    values["border"] = likelihood.trace_border(best, LIKELIHOOD_RATIO) @ to_log_sizes
    limits = values["smallest"], values["largest"]
    values |= read_sizes(values["log_odds"], values["border"], limits, unit)
    return DetectionCurve(**values)


def find_obstacle(sizes: np.ndarray, hits: np.ndarray, independent: float, defects: int) -> str | None:
    """Why no curve can be fitted to known sizes [N] of `defects`, in words; None if one can."""
    if defects == 0:
        return "there are no defects out of fold"
    if len(sizes) == 0:
        return "no defect has a mask that tells its size"
    if independent < FEWEST_INDEPENDENT:
        return (
            f"{len(sizes)} defects with masks are worth {independent:.1f} independent images; "
            f"{FEWEST_INDEPENDENT:g} are needed"
        )
    if hits.all():
        return f"all {len(hits)} defects with masks are detected, so nothing shows at which size it ends"
    if not hits.any():
        return f"none of {len(hits)} defects with masks is detected"
    if np.ptp(sizes) == 0:
        return "all defects have the same size"
    return None


def read_sizes(
    log_odds: tuple[float, float], border: np.ndarray, limits: tuple[float, float], unit: str
) -> dict[str, Any]:
    """a50, a90, a90_95 and reasons of a DetectionCurve; no size beyond the largest of `limits` is said."""
    values: dict[str, Any] = {"a50": None, "a90": None, "a90_95": None}
    reasons = {}
    smallest, largest = limits
    slope_reason = "larger defects are not detected more often than smaller ones"
    lines = {"a50": np.array([log_odds]), "a90": np.array([log_odds]), "a90_95": border}
    for name, of_lines in lines.items():
        target = 0.0 if name == "a50" else float(logit(0.9))
        if log_odds[1] <= 0:
            reasons[name] = slope_reason
        elif (of_lines[:, 1] <= 0).any():
            reasons[name] = "the data do not exclude that size makes no difference"
        else:
            log_size = ((target - of_lines[:, 0]) / of_lines[:, 1]).max()
            if log_size > np.log(largest):
                reasons[name] = f"it lies beyond the largest defect, {format_size(largest, unit)}"
            else:
                values[name] = float(np.exp(max(log_size, np.log(smallest))))
                if log_size < np.log(smallest):
                    reasons[name] = "it is that of the smallest defect: the curve does not reach further down"
    return values | {"reasons": reasons}


def format_size(size: float, unit: str) -> str:
    """A size with three digits and its unit."""
    text = f"{size:,.0f}" if size >= 100 else f"{size:.3g}"
    return f"{text} {unit}"


class PenalisedLikelihood:
    """Firth's likelihood of lines in log-odds over x: lines are [..., 2], intercept and slope.

    `hits` bool [N] at x [N]; every point counts `weight` times.
    """

    def __init__(self, x: np.ndarray, hits: np.ndarray, weight: float):
        self.x = x
        self.signs = np.where(hits, 1.0, -1.0)
        self.weight = weight

    def __call__(self, lines: np.ndarray) -> np.ndarray:
        """Logarithm [...], up to a constant."""
        log_odds = lines[..., :1] + lines[..., 1:] * self.x
        log_likelihood = -np.logaddexp(0, -self.signs * log_odds).sum(axis=-1)
        return self.weight * log_likelihood + 0.5 * self._log_information(log_odds)

    def _log_information(self, log_odds: np.ndarray) -> np.ndarray:
        """Logarithm of the determinant of the information matrix, up to a constant."""
        information = expit(log_odds) * expit(-log_odds)
        total = information.sum(axis=-1)
        mean = (information * self.x).sum(axis=-1) / total
        squares = (information * (self.x - mean[..., None]) ** 2).sum(axis=-1)
        with np.errstate(divide="ignore"):  # lines as steep as a step
            return np.log(total) + np.log(squares)

    def maximise(self) -> np.ndarray:
        """The line [2] of the highest likelihood."""
        options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}
        return minimize(lambda line: -self(line), np.zeros(2), method="Nelder-Mead", options=options).x

    def trace_border(self, best: np.ndarray, ratio: float) -> np.ndarray:
        """Lines [DIRECTIONS, 2] around the `best` one at which twice the log-likelihood is `ratio` lower.

        Every linear function of intercept and slope has its extremes within the region, and so the bounds of
        its profile likelihood, on this border.
        """
        information = expit(best[0] + best[1] * self.x) * expit(-best[0] - best[1] * self.x)
        design = np.column_stack([np.ones_like(self.x), self.x])
        root = np.linalg.cholesky(np.linalg.inv(self.weight * (design.T * information) @ design))
        angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
        directions = np.column_stack([np.cos(angles), np.sin(angles)]) @ root.T
        lowest = self(best) - ratio / 2
        inside = np.zeros(DIRECTIONS)
        outside = np.ones(DIRECTIONS)
        for _ in range(30):
            is_inside = self(best + outside[:, None] * directions) > lowest
            if not is_inside.any():
                break
            outside[is_inside] *= 2
        for _ in range(25):
            middle = (inside + outside) / 2
            is_inside = self(best + middle[:, None] * directions) > lowest
            inside = np.where(is_inside, middle, inside)
            outside = np.where(is_inside, outside, middle)
        return best + outside[:, None] * directions
