"""Mask rules fitted out of fold: thresholds of labels and pixels, and smallest areas."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from defects.data.images import resize
from defects.evaluation.mask_rules import Rule
from defects.evaluation.thresholds import between

PIXELS = (0.3, 0.4, 0.5, 0.6, 0.7)  # thresholds tried
COMPONENTS = (0.0, 0.0004, 0.0015)  # shares of the image tried
CHOICES = list(product(PIXELS, COMPONENTS))


class Candidate(NamedTuple):
    """One map [h, w] of probabilities of one class, and the mask [H, W] that it should become."""

    image_id: str
    target: str
    fold: str
    label: float
    probabilities: np.ndarray
    truth: np.ndarray


def measure_candidates(candidates: Iterable[Candidate]) -> pd.DataFrame:
    """What every choice of (pixel, component) would make of each candidate.

    Columns image_id, target, fold, label, pixel, component, area (share of the image), dice, empty (1.0 where
    nothing should be marked: the Dice of an empty mask). The candidates are looked at one by one.
    """
    rows = [(*each[:4], float(not each.truth.any()), *_outcomes(each)) for each in candidates]
    *about, areas, dice = zip(*rows, strict=True)
    about = dict(zip(["image_id", "target", "fold", "label", "empty"], map(list, about), strict=True))
    table = pd.DataFrame(about).loc[np.repeat(np.arange(len(rows)), len(CHOICES))].reset_index(drop=True)
    pixel, component = np.tile(np.array(CHOICES).T, len(rows))
    return table.assign(
        pixel=pixel, component=component, area=np.concatenate(areas), dice=np.concatenate(dice)
    )


def _outcomes(candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Area and Dice of the masks of all CHOICES, as `marked` makes them; most maps hold nothing to mark."""
    probabilities, truth = candidate.probabilities, candidate.truth
    wanted, found = np.count_nonzero(truth), np.zeros((2, len(PIXELS), len(COMPONENTS)))
    if probabilities.max() >= min(PIXELS):
        probabilities = resize(probabilities.astype(np.float32), truth.shape)
        for index, pixel in enumerate(PIXELS):
            parts = _parts(probabilities >= pixel, truth)
            large = [parts[0] >= share * truth.size for share in COMPONENTS]
            found[:, index] = np.transpose([parts[:, kept].sum(axis=1) for kept in large])
    marked_pixels, overlap = found.reshape(2, -1)
    total = marked_pixels + wanted
    return marked_pixels / truth.size, np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)


def _parts(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels of each 8-connected part of a mask, and how many of them are true [2, P]."""
    count, part = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.stack([np.bincount(part[where], minlength=count)[1:] for where in (mask, truth)])


def fit_rules(outcomes: pd.DataFrame) -> dict[str, Rule]:
    """For each target the rule with the highest mean Dice on these outcomes; `label` and `area` exactly."""
    return {target: _fit(rows) for target, rows in outcomes.groupby("target")}


def _fit(outcomes: pd.DataFrame) -> Rule:
    if (outcomes["empty"] == 1).all():
        return Rule()  # fitted to images without the class alone, it would never mark anything
    found = []
    for (pixel, component), rows in outcomes.groupby(["pixel", "component"]):
        kept, empty = rows["dice"].to_numpy(), rows["empty"].to_numpy()
        label = best_cut(rows["label"].to_numpy(), kept, empty, Rule().label)
        kept = np.where(rows["label"] >= label, kept, empty)
        rule = Rule(label, pixel, component, best_cut(rows["area"].to_numpy(), kept, empty))
        found.append((apply_rule(rows, rule).mean(), pixel == Rule().pixel, -component, rule))
    return max(found)[-1]  # of equally good ones the plainest


def best_cut(values: np.ndarray, reached: np.ndarray, below: np.ndarray, default: float = 0.0) -> float:
    """The threshold t with the largest sum of `reached` where values >= t, and of `below` elsewhere.

    `default` where no other is better; else in the middle between two values.
    """
    distinct, position = np.unique(values, return_inverse=True)
    gain = np.zeros(len(distinct) + 1)
    np.add.at(gain, position + 1, below - reached)
    gain = gain.cumsum()  # of emptying all that lie below the i-th value
    best = int(gain.argmax())
    if gain[best] <= gain[np.searchsorted(distinct, default)] + 1e-9:
        return default
    cuts = np.concatenate([[0.0], between(distinct), [np.nextafter(distinct[-1], np.inf)]])
    return float(cuts[best])


def apply_rule(outcomes: pd.DataFrame, rule: Rule) -> pd.Series:
    """Dice of each image under a rule whose pixel and component are among those measured."""
    rows = outcomes[(outcomes["pixel"] == rule.pixel) & (outcomes["component"] == rule.component)]
    kept = (rows["label"] >= rule.label) & (rows["area"] >= rule.area)
    return rows["dice"].where(kept, rows["empty"]).set_axis(rows["image_id"])


def dice_under(outcomes: pd.DataFrame, rules: dict[str, Rule]) -> pd.DataFrame:
    """image_id, target, dice, empty: every pair under the rule of its target."""
    parts = []
    for target, rows in outcomes.groupby("target"):
        truth = rows.drop_duplicates("image_id").set_index("image_id")["empty"] == 1
        table = pd.DataFrame({"dice": apply_rule(rows, rules[target]), "empty": truth}).reset_index()
        parts.append(table.assign(target=target))
    return pd.concat(parts, ignore_index=True)


def nested_dice(outcomes: pd.DataFrame) -> pd.DataFrame | None:
    """As dice_under, each fold under the rules fitted on all others; None for a single fold."""
    folds = outcomes["fold"].unique()
    if len(folds) < 2:
        return None
    return pd.concat(
        [
            dice_under(rows, fit_rules(outcomes[outcomes["fold"] != fold]))
            for fold, rows in outcomes.groupby("fold")
        ],
        ignore_index=True,
    )
