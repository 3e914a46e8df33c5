"""The acceptance statement of a decision, from nested out-of-fold predictions (records: claim_records.py).

A claim that would be false is refused: predictions by a threshold that was chosen on the same images, or
images taken to be independent although their names say that several show one part.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defects.config_schema import ClaimsConfig, ThresholdConfig
from defects.data.fold_files import DataTables, read_grouping
from defects.evaluation.adversarial import is_distinguished, stored_comparison, summarise_comparison
from defects.evaluation.bounds import bound_rate, count_needed, tabulate_needed
from defects.evaluation.claim_records import (
    AT_THRESHOLD,
    Claims,
    ErrorBounds,
    RateBound,
    SampleSizes,
    write_sentence,
)
from defects.evaluation.metrics import effective_number
from defects.evaluation.repeated_names import find_repeated_names
from defects.evaluation.scales import align_oof
from defects.evaluation.threshold_uncertainty import NO_INFLATION, Inflation, measure_inflation
from defects.evaluation.thresholds import nested_predictions
from defects.messages import shorten_names
from defects.runs import FULL, Run

MOST_ERRORS = 3  # in the table of needed images
ONE_FOLD = (
    "only one fold is trained, and its threshold was chosen on the same images; src/train.py --fold all "
    "trains the others"
)
FULL_FIT = (
    "the full fit has no folds, and its threshold was chosen on the same images; src/train.py --fold all "
    "trains folds"
)
ALL_REJECTED = "no normal image is out of fold, so that every image is taken for defective: add normal images"
NOT_COMPARED = "for images like the training ones; no test images were compared (src/explore.py does it)"
TOO_FEW_COMPARED = "for images like the training ones; they are too few to be compared with the test images"
DISTINGUISHED = "for images like the training ones only, since the test images differ from them"
NOT_SEARCHED = (
    "if all images show different parts: siblings were not searched for (split.duplicates.enabled=false)"
)


class Predictions(NamedTuple):
    """Labels 0/1 [N] of some images, and what is predicted for them by thresholds of the other folds.

    `inflation` is what choosing the threshold adds to the variance of their rates of error.
    """

    labels: np.ndarray
    predicted: np.ndarray
    inflation: Inflation = NO_INFLATION


def state_claims(
    settings: ClaimsConfig,
    images: pd.DataFrame,
    nested: np.ndarray | None,
    grouping: str,
    comparison: dict[str, Any] | None,
    by_class: Mapping[str, Predictions] | None = None,
    condition: str = AT_THRESHOLD,
    inflation: Inflation = NO_INFLATION,
) -> Claims:
    """What may be claimed of a threshold.

    `images` (image_id, label, fold, group, and kind where known) are out of fold; `nested` 0/1 [N] is
    predicted for them by thresholds fitted on the other folds, None for a single fold; `grouping` is that of
    fold_files.read_grouping, `comparison` that of adversarial.stored_comparison. `by_class` has predictions
    of the classes for the same images; without them kinds count. `condition` says of what the claim is,
    `inflation` is that of threshold_uncertainty.measure_inflation.
    """
    rejects_all = nested is not None and nested.all() and not (images["label"] == 0).any()
    refusal = find_refusal(images, nested, grouping)
    if refusal is None and rejects_all and not by_class:
        refusal = ALL_REJECTED
    escape = None
    false_alarm = None
    bounds_by_class = {}
    by_kind = {}
    if refusal is None:
        groups = images["group"].to_numpy()
        confidence = settings.confidence
        if not rejects_all:
            labels = images["label"].to_numpy(dtype=int)
            overall = bound_errors(Predictions(labels, nested, inflation), groups, confidence)
            escape = overall.escape
            false_alarm = overall.false_alarm
        for name, predictions in (by_class or {}).items():
            bounds_by_class[name] = bound_errors(predictions, groups, confidence)
        if not by_class and "kind" in images:
            by_kind = bound_escapes_by_kind(images, nested, confidence, inflation.escape)
        sentence = write_sentence(condition, confidence, escape, false_alarm)
    else:
        sentence = f"nothing is claimed: {refusal}"
    return Claims(
        confidence=settings.confidence,
        escape=escape,
        false_alarm=false_alarm,
        by_class=bounds_by_class,
        by_kind=by_kind,
        refusal=refusal,
        limits=() if refusal else list_limits(grouping, comparison),
        comparison=None if comparison is None else summarise_comparison(comparison),
        sentence=sentence,
        sample_sizes=plan_sample_sizes(settings, escape, false_alarm, refusal is not None or rejects_all),
    )


def state_run_claims(
    run: Run, tables: DataTables, by_class: Mapping[str, Predictions] | None = None
) -> Claims:
    """What may be claimed of a run by itself, by the thresholds for the training share of defects.

    Where the run tells classes apart, each has its threshold, as in an export, or is decided by its mask:
    then `by_class` holds the predictions, in the order of the out-of-fold images (run.load_oof). An image is
    rejected where any class, or `defect`, reaches its threshold.
    """
    config = run.config
    oof = run.load_oof(tables.folds)
    nested = predict_run(oof, config.threshold)
    if nested is not None:
        if by_class is None:
            by_class = predict_classes(run, tables, oof["image_id"])
        nested = np.max([nested, *(predictions.predicted for predictions in by_class.values())], axis=0)
    kinds = tables.images.set_index("image_id")["kind"]
    images = oof.assign(kind=oof["image_id"].map(kinds))
    grouping = read_grouping(config)
    comparison = stored_comparison(config)
    inflation = measure_run_inflation(oof, config.threshold)
    return state_claims(config.claims, images, nested, grouping, comparison, by_class, inflation=inflation)


def predict_classes(run: Run, tables: DataTables, image_ids: pd.Series) -> dict[str, Predictions]:
    """Labels and predictions of each class for these out-of-fold images; empty where there are no classes."""
    oof = run.load_oof(tables.folds, tuple(run.config.data.classes))
    by_class = {}
    for name, rows in oof.groupby("target"):
        ordered = rows.set_index("image_id").loc[image_ids].reset_index()
        predicted = predict_run(ordered, run.config.threshold)
        inflation = measure_run_inflation(ordered, run.config.threshold)
        by_class[name] = Predictions(ordered["label"].to_numpy(dtype=int), predicted, inflation)
    return by_class


def predict_run(oof: pd.DataFrame, settings: ThresholdConfig) -> np.ndarray | None:
    """0/1 [N] for the out-of-fold rows of one target, by thresholds of the other folds; None for a single."""
    labels = oof["label"].to_numpy(dtype=int)
    scores = align_oof(oof)[0].to_numpy()
    return nested_predictions(labels, scores, oof["fold"].to_numpy(), settings)


def measure_run_inflation(oof: pd.DataFrame, settings: ThresholdConfig) -> Inflation:
    """As measure_inflation, from the out-of-fold rows of one target."""
    labels = oof["label"].to_numpy(dtype=int)
    scores = align_oof(oof)[0].to_numpy()
    return measure_inflation(labels, scores, oof["fold"].to_numpy(), oof["group"].to_numpy(), settings)


def find_refusal(images: pd.DataFrame, nested: np.ndarray | None, grouping: str) -> str | None:
    """Why a claim from these predictions would be false; None if nothing speaks against it."""
    if nested is None:
        return FULL_FIT if (images["fold"] == FULL).all() else ONE_FOLD
    if grouping == "stated":
        return None
    repeated = find_repeated_names(images["image_id"].tolist(), images["group"].to_numpy())
    if not repeated:
        return None
    return (
        f"the groups are unknown: names such as {shorten_names(repeated)} repeat, but every such image is a "
        "group of its own; name the part with split.group_pattern, or split.group_pattern='(.*)' if all "
        "images show different parts"
    )


def bound_errors(predictions: Predictions, groups: np.ndarray, confidence: float) -> ErrorBounds:
    """Escapes among the defects, false alarms among the other images; `groups` [N] of siblings."""
    is_defect = predictions.labels == 1
    is_rejected = predictions.predicted == 1
    return ErrorBounds(
        escape=bound_share(
            ~is_rejected[is_defect], groups[is_defect], confidence, predictions.inflation.escape
        ),
        false_alarm=bound_share(
            is_rejected[~is_defect], groups[~is_defect], confidence, predictions.inflation.false_alarm
        ),
    )


def bound_share(
    is_error: np.ndarray, groups: np.ndarray, confidence: float, inflation: float = 1.0
) -> RateBound | None:
    """The share of errors bool [N] among images of `groups` [N], and its bound; None without images.

    Siblings err alike, so that N images are worth fewer independent ones (metrics.effective_number), and
    fewer still by the `inflation` of the variance: the bound is that of the observed share of so many.
    """
    if not len(is_error):
        return None
    errors = int(is_error.sum())
    rate = errors / len(is_error)
    independent = effective_number(groups) / inflation
    upper = bound_rate(rate * independent, independent, confidence)
    return RateBound(errors, len(is_error), independent, rate, upper, inflation)


def bound_escapes_by_kind(
    images: pd.DataFrame, nested: np.ndarray, confidence: float, inflation: float = 1.0
) -> dict[str, RateBound]:
    """Escapes by `kind` of images.csv; empty where none is known."""
    is_defect = images["label"].to_numpy(dtype=int) == 1
    kinds = images["kind"].to_numpy()
    groups = images["group"].to_numpy()
    bounds = {}
    for kind in sorted(set(kinds[is_defect]) - {""}):
        is_of_kind = is_defect & (kinds == kind)
        bounds[kind] = bound_share(nested[is_of_kind] == 0, groups[is_of_kind], confidence, inflation)
    return bounds


def list_limits(grouping: str, comparison: dict[str, Any] | None) -> tuple[str, ...]:
    """What a claim does not cover, in sentences."""
    limits = []
    if comparison is None:
        limits.append(NOT_COMPARED)
    elif comparison["auroc"] is None:
        limits.append(TOO_FEW_COMPARED)
    elif is_distinguished(comparison):
        limits.append(f"{DISTINGUISHED} (AUROC {comparison['auroc']:.3f})")
    if grouping == "copies":
        limits.append(NOT_SEARCHED)
    return tuple(limits)


def plan_sample_sizes(
    settings: ClaimsConfig, escape: RateBound | None, false_alarm: RateBound | None, is_refused: bool
) -> SampleSizes:
    """Images that support the rates to be claimed, and how many are to be added to the present ones."""
    needed = tabulate_needed(MOST_ERRORS, settings.escape, settings.false_alarm, settings.confidence)
    more_defects = None
    more_normal = None
    if not is_refused:
        more_defects = count_more(escape, settings.escape, settings.confidence)
        more_normal = count_more(false_alarm, settings.false_alarm, settings.confidence)
    return SampleSizes(settings.escape, settings.false_alarm, tuple(needed), more_defects, more_normal)


def count_more(bound: RateBound | None, rate: float, confidence: float) -> int:
    """Independent images to add, none of them decided wrongly, until at most `rate` may be claimed."""
    if bound is None:
        return count_needed(0, rate, confidence)
    if bound.upper <= rate:
        return 0
    needed = count_needed(bound.rate * bound.independent_images, rate, confidence)
    return math.ceil((needed - bound.independent_images) * bound.inflation)
