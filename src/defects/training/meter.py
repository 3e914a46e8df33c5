"""What an epoch tells: mean losses, and how well the scores separate the classes."""

from collections import Counter

import numpy as np
from accelerate.utils import gather_object
from sklearn.metrics import accuracy_score

from defects.models import Batch, Detector
from defects.scoring.estimate import rank_metrics
from defects.scoring.thresholds import best_threshold, macro_f1


class Meter:
    """Mean of named losses over images, of all processes, and metrics of the scores where there are any:
    of the last target, whether there is any defect.

    accuracy and macro_f1 are those at probability 0.5, for detectors whose probability does not wait for
    a calibration; macro_f1, auroc and macro_f1_best need both classes.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector, self.sums, self.labels, self.scores = detector, Counter(), [], []
        self.predicted: list[bool] = []

    def add(self, losses: Batch, batch: Batch) -> None:
        images = len(batch["label"])
        self.sums["images"] += images
        for name, value in losses.items():
            if name != "score":
                self.sums[name] += value.item() * images
        if "score" in losses:
            score = losses["score"][:, -1]
            self.labels += batch["label"][:, -1].tolist()
            self.scores += score.tolist()
            self.predicted += (self.detector.probability(score) >= 0.5).tolist()

    def result(self, prefix: str) -> dict[str, float]:
        parts = gather_object([(self.sums, self.labels, self.scores, self.predicted)])
        names = dict.fromkeys(name for part in parts for name in part[0])
        totals = {name: sum(part[0][name] for part in parts) for name in names}
        labels, scores, predicted = (
            np.array([value for part in parts for value in part[index]]) for index in (1, 2, 3)
        )
        images = totals.pop("images")
        values = {name: total / images for name, total in totals.items()}
        both = len(np.unique(labels)) == 2
        if len(labels) and not self.detector.needs_holdout:
            values["accuracy"] = float(accuracy_score(labels, predicted))
            if both:
                values["macro_f1"] = macro_f1(labels, predicted)
        if both:
            values["auroc"] = rank_metrics(labels, scores)["auroc"]
            values["macro_f1_best"] = best_threshold(labels, scores)[1]
        return {f"{prefix}_{name}": value for name, value in values.items()}
