"""The parity gate: one set of images through training-time scoring and through every exported file."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from defects.deploy.model import Arrays, Model, Output
from defects.scoring.thresholds import macro_f1

SCORE_LIMIT = 1e-4  # relative
MAP_LIMIT = 1e-3


@dataclass
class Parity:
    """What a file makes of the images, beside what training made of them; fed batch by batch."""

    thresholds: np.ndarray  # [C] probabilities
    expected: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    flips: int = 0  # labels that differ
    map_differences: list[float] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)

    def add(self, expected: Output, found: Output) -> None:
        self.expected.append(expected.score)
        self.scores.append(found.score)
        labels = [each.probability >= self.thresholds for each in (expected, found)]
        self.flips += int((labels[0] != labels[1]).sum())
        self.labels.append(labels[1][:, -1])
        if expected.map is not None:
            scale = max(1.0, _largest(expected.map))
            self.map_differences.append(_largest(found.map - expected.map) / scale)

    @property
    def score_difference(self) -> float:
        """Largest difference, relative to the score or, where that is small, to the scores' deviation."""
        expected, scores = np.concatenate(self.expected), np.concatenate(self.scores)
        scale = np.maximum(np.abs(expected), expected.std(0) + np.finfo(np.float32).tiny)
        return _largest((scores - expected) / scale)

    @property
    def map_difference(self) -> float:
        """Largest difference, relative to the batch's largest value where that is above 1."""
        return max(self.map_differences, default=0.0)

    @property
    def passes(self) -> bool:
        return self.score_difference <= SCORE_LIMIT and self.map_difference <= MAP_LIMIT and not self.flips

    def row(self, truth: np.ndarray | None) -> dict:
        """For the table; `truth` [N] 0/1, if known, for the macro-F1 at the threshold."""
        found = np.concatenate(self.labels).astype(int)
        return {
            "score difference": f"{self.score_difference:.1e}",
            "map difference": f"{self.map_difference:.1e}",
            "labels changed": self.flips,
            "macro-F1": "" if truth is None else f"{macro_f1(truth, found):.4f}",
        }


def compare(
    batches: Iterator[tuple[Arrays, Output]], models: dict[str, Model], thresholds: dict[str, float]
) -> dict[str, Parity]:
    """Every model on every batch (inputs, what training-time scoring makes of them)."""
    cuts = np.array(list(thresholds.values()))
    found = {name: Parity(cuts) for name in ("training", *models)}
    for inputs, expected in batches:
        found["training"].add(expected, expected)
        for name, model in models.items():
            found[name].add(expected, model(inputs["image"], inputs.get("box")))
    return found


def table(found: dict[str, Parity], truth: np.ndarray | None) -> pd.DataFrame:
    return pd.DataFrame({name: each.row(truth) for name, each in found.items()}).T


def _largest(values: np.ndarray) -> float:
    """Largest absolute value; infinite if any is no number."""
    return float(np.nan_to_num(np.abs(values), nan=np.inf).max())
