"""What a submission turned out to be worth, once the answers are known."""

import pandas as pd

from defects.evaluation.metrics import macro_f1, rank_metrics, share_weights
from defects.evaluation.thresholds import best_threshold


def outcome(table: pd.DataFrame, training_share: float) -> dict[str, float | None]:
    """Figures of `table` (label, answer, score), one row per test image.

    macro-F1 depends on the share of defects, so it is also given with the test images weighted to
    `training_share`: only that one compares with the out-of-fold estimate. None without training defects.
    """
    labels, answers = table["label"].to_numpy(dtype=int), table["answer"].to_numpy(dtype=int)
    scores = table["score"].to_numpy()
    weights = share_weights(labels, training_share)
    return {
        "macro_f1": macro_f1(labels, answers),
        "macro_f1_at_training_share": macro_f1(labels, answers, weights) if training_share else None,
        "macro_f1_best_threshold": best_threshold(labels, scores)[1],
        **rank_metrics(labels, scores),
        "defect_share": float(labels.mean()),
        "training_share": training_share,
    }
