"""The parity gate: one set of images through training-time scoring and through every exported file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from defects.deploy.model import ExportedModel, Output
from defects.evaluation.metrics import macro_f1

SCORE_LIMIT = 1e-4  # relative
MAP_LIMIT = 1e-3

Probability = Callable[[np.ndarray], np.ndarray]


@dataclass
class Parity:
    """Scores, labels and maps of a file beside those of training; added batch by batch.

    `probability` makes raw scores [N, C] into probabilities, in double precision as training does.
    """

    thresholds: np.ndarray  # [C] probabilities
    probability: Probability
    expected_scores: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    expected_labels: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    map_differences: list[float] = field(default_factory=list)

    def add(self, expected: Output, output: Output) -> None:
        self.expected_scores.append(expected.score)
        self.scores.append(output.score)
        self.expected_labels.append(expected.probability >= self.thresholds)
        self.labels.append(output.probability >= self.thresholds)
        if expected.map is not None:
            scale = max(1.0, _largest(expected.map))
            self.map_differences.append(_largest(output.map - expected.map) / scale)

    @property
    def score_difference(self) -> float:
        """Largest difference, relative to the score or, where that is small, to the scores' deviation."""
        expected = np.concatenate(self.expected_scores)
        scores = np.concatenate(self.scores)
        return _largest((scores - expected) / _scale(expected))

    @property
    def map_difference(self) -> float:
        """Largest difference, relative to the batch's largest value where that is above 1."""
        return max(self.map_differences, default=0.0)

    @property
    def is_changed(self) -> np.ndarray:
        """bool [N, C]: whether the label is not that of training."""
        return np.concatenate(self.expected_labels) != np.concatenate(self.labels)

    @property
    def wrong_labels(self) -> int:
        """Changed ones whose scores are not within SCORE_LIMIT of the threshold, where rounding decides."""
        expected = np.concatenate(self.expected_scores).astype(float)
        allowed = SCORE_LIMIT * _scale(expected)
        is_defect_at_least = self.probability(expected - allowed) >= self.thresholds
        is_defect_at_most = self.probability(expected + allowed) >= self.thresholds
        return int((self.is_changed & (is_defect_at_least == is_defect_at_most)).sum())

    @property
    def passes(self) -> bool:
        is_close = self.score_difference <= SCORE_LIMIT and self.map_difference <= MAP_LIMIT
        return is_close and not self.wrong_labels


def compare_runtimes(
    batches: Iterator[tuple[np.ndarray, Output]],
    models: dict[str, ExportedModel],
    thresholds: dict[str, float],
    probability: Probability,
) -> dict[str, Parity]:
    """Every model on every batch (images, and their outputs by training-time scoring)."""
    limits = np.array(list(thresholds.values()))
    parities = {name: Parity(limits, probability) for name in ("training", *models)}
    for images, expected in batches:
        parities["training"].add(expected, expected)
        for name, model in models.items():
            parities[name].add(expected, model(images))
    return parities


def build_parity_table(parities: dict[str, Parity], truth: np.ndarray | None) -> pd.DataFrame:
    """A row of texts for each file; `truth` [N] 0/1, where labels exist, gives macro-F1 at the threshold."""
    rows = {}
    for name, parity in parities.items():
        predicted = np.concatenate(parity.labels)[:, -1].astype(int)
        rows[name] = {
            "score difference (relative)": f"{parity.score_difference:.1e}",
            "map difference (relative)": f"{parity.map_difference:.1e}",
            "labels changed": int(parity.is_changed.sum()),
            "macro-F1": "" if truth is None else f"{macro_f1(truth, predicted):.4f}",
        }
    return pd.DataFrame(rows).T


def _largest(values: np.ndarray) -> float:
    """Largest absolute value; infinite if any is no number."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max())


def _scale(scores: np.ndarray) -> np.ndarray:
    """What differences of scores [N, C] are relative to."""
    return np.maximum(np.abs(scores), scores.std(0) + np.finfo(np.float32).tiny)
