"""From which probability, and from which value of its map, an exported model calls something a defect."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from defects.data.fold_files import DataTables
from defects.evaluation.mask_rules import Rule
from defects.evaluation.pixels import Maps
from defects.evaluation.scales import align_oof, move
from defects.evaluation.thresholds import choose_threshold, fit_map_limits
from defects.models import Detector
from defects.runs import OOF_MAPS, Run
from defects.submission.masks import choose_rules


def thresholds(run: Run, tables: DataTables, detector: Detector, fold: str) -> dict[str, float]:
    """The probability from which each target counts as present, by `threshold.rule` on all held-out images.

    The folds' scores are brought to one scale first (evaluation.scales), and the threshold to that of `fold`.
    The full fit, which holds nothing out, gets the threshold of the common scale.
    """
    settings = run.config.threshold
    found = {}
    for target in detector.targets:
        oof = run.load_oof(tables.folds, (target,))
        held, scales, common = align_oof(oof)
        labels = oof["label"].to_numpy(dtype=int)
        cut = choose_threshold(labels, held.to_numpy(), settings.rule, settings.fpr)
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


def map_limits(
    run: Run, tables: DataTables, detector: Detector, fold: str
) -> tuple[list[float], list[float]]:
    """Of each class of the maps: the median over held-out normal images, and from where on a cell is marked.

    The latter is reached anywhere in a share `threshold.fpr` of these images; a probability of a pixel is cut
    at 0.5. Where no fold held out a normal image, both are quantiles of all cells of all held-out images.
    """
    fpr = run.config.threshold.fpr
    images = _map_images(run.load_oof(tables.folds), fold)
    has_normal = (images["label"] == 0).all()
    return fit_map_limits(_kept_maps(run, images), fpr, detector.segments, has_normal)


def _map_images(oof: pd.DataFrame, fold: str) -> pd.DataFrame:
    """Those out-of-fold rows of the images whose maps say what is normal: those that the fold held out.

    Of other folds where it held out no normal one, as the full fit; images with defects where none did.
    """
    normal = oof[oof["label"] == 0]
    if normal.empty:
        print("note: no normal image was held out: the scale of the maps comes from images with defects")
    for images in (normal[normal["fold"] == fold], normal, oof[oof["fold"] == fold]):
        if len(images):
            return images
    return oof


def _kept_maps(run: Run, images: pd.DataFrame) -> Iterator[np.ndarray]:
    """float16 [K, h, w] of each of these out-of-fold rows."""
    for fold, rows in images.groupby("fold"):
        maps = Maps(run.fold_folder(fold) / OOF_MAPS)
        for image_id in tqdm(rows["image_id"], "scale of the maps", leave=False, disable=None):
            yield maps.of_classes(image_id)


def mask_rules(run: Run, tables: DataTables, detector: Detector) -> dict[str, Rule] | None:
    """By class, fitted out of fold or the default ones, as src/ensemble.py chooses for this run alone.

    None for a detector that makes no masks of classes.
    """
    if not (detector.segments and run.config.data.classes):
        return None
    oof = {run.name: run.load_oof(tables.folds, tuple(run.config.data.classes))}
    choice = choose_rules([run], oof, tables.images)
    untuned, tuned = choice.estimates["untuned"], choice.estimates["tuned_nested"]
    nested = "not estimated: a single fold" if tuned is None else f"{tuned['dice']:.4f} (nested)"
    print(f"mask rules: {choice.chosen}; out-of-fold Dice tuned {nested}, untuned {untuned['dice']:.4f}")
    rules = choice.rules[choice.chosen]
    return {name: rules[name] for name in run.config.data.classes}
