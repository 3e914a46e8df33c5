"""From which probability, and from which value of its map, an exported model calls something a defect."""

from collections.abc import Iterator

import numpy as np
from scipy.special import expit

from defects.config import Config
from defects.models import Detector
from defects.scoring.blending import align_held, move
from defects.scoring.pixels import Maps
from defects.scoring.thresholds import choose_threshold, fpr_threshold
from defects.training.run import OOF_MAPS, load_oof, run_folder, trained_folds

SURE = 0.5  # probability from which a segmenter's pixel is marked


def thresholds(config: Config, detector: Detector, fold: str) -> dict[str, float]:
    """The probability from which each target counts as present, by `threshold.rule` on all held-out images.

    The folds' scores are brought to one scale first (scoring.blending), and the threshold to that of `fold`.
    The full fit, which holds nothing out, gets the threshold of the common scale.
    """
    found = {}
    for target in detector.targets:
        oof = load_oof(config, (target,))
        held, scales, common = align_held(oof)
        labels = oof["label"].to_numpy(dtype=int)
        cut = choose_threshold(labels, held.to_numpy(), config.threshold.rule, config.threshold.fpr)
        cut = between_scores(cut, held.to_numpy())
        found[target] = float(expit(move(cut, common, scales.get(fold, common))))
    return found


def between_scores(cut: float, scores: np.ndarray) -> float:
    """The same cut of the log-odds [N], as far from its neighbours as can be; 1 beyond the outermost.

    On a score itself, another runtime's rounding would decide.
    """
    below, above = scores[scores < cut], scores[scores >= cut]
    low = below.max() if len(below) else above.min() - 2
    high = above.min() if len(above) else below.max() + 2
    return float((low + high) / 2)


def map_limits(config: Config, detector: Detector, fold: str) -> tuple[list[float], list[float]]:
    """Of each class of the maps: the median over held-out normal images, and from where on a cell is marked.

    The latter is reached anywhere in a share `threshold.fpr` of these images; a probability of a pixel is cut
    at 0.5.
    """
    maps = np.stack(list(_normal_maps(config, fold)))  # [N, K, h, w]
    medians = [float(np.median(plane)) for plane in np.moveaxis(maps, 1, 0)]
    if detector.segments:
        return medians, len(medians) * [SURE]
    highest = maps.max((2, 3)).T
    return medians, [fpr_threshold(values, config.threshold.fpr) for values in highest]


def _normal_maps(config: Config, fold: str) -> Iterator[np.ndarray]:
    """float32 [K, h, w] of each normal image that the fold held out; for the full fit, that any fold did."""
    oof = load_oof(config)
    for name in [fold] if fold in trained_folds(config) else trained_folds(config):
        maps = Maps(run_folder(config, name) / OOF_MAPS)
        normal = oof[(oof["fold"] == name) & (oof["label"] == 0)]
        for image_id in normal["image_id"]:
            yield maps.of_classes(image_id).astype(np.float32)
