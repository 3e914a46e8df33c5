"""The parity gate: one set of images through training-time scoring and through every exported file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from defects.deploy.model import Model, Output
from defects.evaluation.metrics import macro_f1

SCORE_LIMIT = 1e-4  # relative
MAP_LIMIT = 1e-3

Probability = Callable[[np.ndarray], np.ndarray]


@dataclass
class Parity:
    """What a file makes of the images, beside what training made of them; fed batch by batch.

    `probability` makes raw scores [N, C] into probabilities, in double precision as training does.
    """

    thresholds: np.ndarray  # [C] probabilities
    probability: Probability
    expected_scores: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    expected_labels: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    map_differences: list[float] = field(default_factory=list)

    def add(self, expected: Output, found: Output) -> None:
        self.expected_scores.append(expected.score)
        self.scores.append(found.score)
        self.expected_labels.append(expected.probability >= self.thresholds)
        self.labels.append(found.probability >= self.thresholds)
        if expected.map is not None:
            scale = max(1.0, _largest(expected.map))
            self.map_differences.append(_largest(found.map - expected.map) / scale)

    @property
    def score_difference(self) -> float:
        """Largest difference, relative to the score or, where that is small, to the scores' deviation."""
        expected, scores = np.concatenate(self.expected_scores), np.concatenate(self.scores)
        return _largest((scores - expected) / _scale(expected))

    @property
    def map_difference(self) -> float:
        """Largest difference, relative to the batch's largest value where that is above 1."""
        return max(self.map_differences, default=0.0)

    @property
    def changed_labels(self) -> int:
        return int(self._is_changed().sum())

    @property
    def wrong_labels(self) -> int:
        """Changed ones whose scores are not within SCORE_LIMIT of the threshold, where rounding decides."""
        expected = np.concatenate(self.expected_scores).astype(float)
        allowed = SCORE_LIMIT * _scale(expected)
        is_defect_at_least = self.probability(expected - allowed) >= self.thresholds
        is_defect_at_most = self.probability(expected + allowed) >= self.thresholds
        return int((self._is_changed() & (is_defect_at_least == is_defect_at_most)).sum())

    @property
    def passes(self) -> bool:
        is_close = self.score_difference <= SCORE_LIMIT and self.map_difference <= MAP_LIMIT
        return is_close and not self.wrong_labels

    def row(self, truth: np.ndarray | None) -> dict:
        """For the table; `truth` [N] 0/1, if known, for the macro-F1 at the threshold."""
        found = np.concatenate(self.labels)[:, -1].astype(int)
        return {
            "score difference": f"{self.score_difference:.1e}",
            "map difference": f"{self.map_difference:.1e}",
            "labels changed": self.changed_labels,
            "macro-F1": "" if truth is None else f"{macro_f1(truth, found):.4f}",
        }

    def _is_changed(self) -> np.ndarray:
        return np.concatenate(self.expected_labels) != np.concatenate(self.labels)


def compare_runtimes(
    batches: Iterator[tuple[np.ndarray, Output]],
    models: dict[str, Model],
    thresholds: dict[str, float],
    probability: Probability,
) -> dict[str, Parity]:
    """Every model on every batch (images, what training-time scoring makes of them)."""
    cuts = np.array(list(thresholds.values()))
    found = {name: Parity(cuts, probability) for name in ("training", *models)}
    for images, expected in batches:
        found["training"].add(expected, expected)
        for name, model in models.items():
            found[name].add(expected, model(images))
    return found


def table(found: dict[str, Parity], truth: np.ndarray | None) -> pd.DataFrame:
    return pd.DataFrame({name: each.row(truth) for name, each in found.items()}).T


def _largest(values: np.ndarray) -> float:
    """Largest absolute value; infinite if any is no number."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max())


def _scale(scores: np.ndarray) -> np.ndarray:
    """What differences of scores [N, C] are relative to."""
    return np.maximum(np.abs(scores), scores.std(0) + np.finfo(np.float32).tiny)
