"""How the expected score grows with the number of defects: a cheap classifier that knows only some of them.

All images are scored out of fold and count in every score; what varies is how many defects training and the
choice of thresholds know. Whole groups of siblings are drawn, several times, and other folds each time.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defects.config_schema import Config, ThresholdConfig
from defects.data.folds import assign_folds
from defects.evaluation.metrics import macro_f1, rank_metrics
from defects.evaluation.scales import align_oof
from defects.evaluation.thresholds import choose_threshold
from defects.files import read_json
from defects.messages import UserError
from defects.numerics import derive_seed
from defects.stamps import Stamp, content_of, differences

FILE = "learning_curve.json"  # in the data set's folder
FEWEST_DEFECTS = 5
STEPS = (2, 2, 2.5)  # 5, 10, 20, 50, 100, ...
FEWEST_GROUPS = 4  # of defects: folds need two of those that are drawn
ATTEMPTS = 50  # at drawing defects of two groups
METRICS = {"macro_f1": "macro-F1", "auroc": "AUROC"}
REACH = 2  # times the defects that there are: no score is extrapolated further
EXTRAPOLATED_SIZES = 8
RESAMPLES = 400  # of the draws, for the band of the extrapolation
SMALLEST_ERROR = 1e-4  # in place of none, which has no logarithm

# Features [N, D] and labels [N] -> a classifier with predict_proba.
Fit = Callable[[np.ndarray, np.ndarray], Any]


class LabelledFeatures(NamedTuple):
    """float32 [N, D], labels 0/1 [N], groups [N] of siblings."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def list_defect_counts(defects: int) -> list[int]:
    """5, 10, 20, 50, 100, ... below `defects`, and then `defects`; of up to five half of them."""
    counts = []
    count = FEWEST_DEFECTS
    while count < defects:
        counts.append(count)
        count = int(count * STEPS[(len(counts) - 1) % len(STEPS)])
    return [*(counts or [defects // 2]), defects]


def check_defects(labels: np.ndarray, groups: np.ndarray) -> None:
    """Raises UserError where a class is missing, or the defects are too few to leave some out."""
    is_defect = labels == 1
    if is_defect.all() or not is_defect.any():
        missing = "normal images" if is_defect.all() else "defects"
        raise UserError(f"a learning curve needs defects and normal images: there are no {missing}, add some")
    defect_groups = len(np.unique(groups[is_defect]))
    if defect_groups < FEWEST_GROUPS:
        raise UserError(
            f"a learning curve needs defects of {FEWEST_GROUPS} groups or more: there are {is_defect.sum()} "
            f"of {defect_groups}; add defects of other objects"
        )


def score_draws(
    images: LabelledFeatures, fit: Fit, settings: ThresholdConfig, folds: int, draws: int, seed: int
) -> Iterator[dict[str, float]]:
    """Rows of wanted (of list_defect_counts), defects (drawn), macro_f1 (nested) and auroc.

    `draws` for each number of defects; fewer where whole groups do not make it up.
    """
    for wanted in list_defect_counts(int(images.labels.sum())):
        for draw in range(draws):
            draw_seed = derive_seed(seed, wanted, draw)
            is_known = draw_defects(images, wanted, np.random.default_rng(draw_seed))
            if is_known is None:
                continue
            yield {
                "wanted": wanted,
                "defects": int((is_known & (images.labels == 1)).sum()),
                **score_with_known(images, is_known, fit, settings, folds, draw_seed),
            }


def draw_defects(images: LabelledFeatures, wanted: int, random: np.random.Generator) -> np.ndarray | None:
    """bool [N]: all normal images, and defects of whole groups, as long as they fit into `wanted` ones.

    None if they are always of a single group.
    """
    is_defect = images.labels == 1
    names, defects = np.unique(images.groups[is_defect], return_counts=True)
    for _ in range(ATTEMPTS):
        chosen = []
        remaining = wanted
        for place in random.permutation(len(names)):
            if defects[place] <= remaining:
                remaining -= defects[place]
                chosen.append(names[place])
        if len(chosen) > 1:
            return ~is_defect | np.isin(images.groups, chosen)
    return None


def score_with_known(
    images: LabelledFeatures, is_known: np.ndarray, fit: Fit, settings: ThresholdConfig, folds: int, seed: int
) -> dict[str, float]:
    """macro_f1 and auroc of all images [N], each by a classifier and a threshold of the other folds.

    These learn from images that are known, bool [N], alone. Thresholds are those for the share of defects
    among all images, so that scores with fewer defects compare.
    """
    labels = images.labels
    targets = np.column_stack([labels * is_known, labels * ~is_known, 1 - labels])
    known_groups = len(np.unique(images.groups[is_known & (labels == 1)]))
    fold = assign_folds(images.groups, targets, min(folds, known_groups), seed)
    probability = np.zeros(len(labels))
    for number in np.unique(fold):
        is_learnt = (fold != number) & is_known
        model = fit(images.features[is_learnt], labels[is_learnt])
        is_val = fold == number
        probability[is_val] = model.predict_proba(images.features[is_val])[:, 1]
    scores = align_oof(pd.DataFrame({"fold": fold.astype(str), "probability": probability}))[0].to_numpy()
    predicted = np.zeros(len(labels), dtype=int)
    for number in np.unique(fold):
        is_learnt = (fold != number) & is_known
        threshold = choose_threshold(labels[is_learnt], scores[is_learnt], settings, float(labels.mean()))
        is_val = fold == number
        predicted[is_val] = scores[is_val] >= threshold
    return {"macro_f1": macro_f1(labels, predicted), "auroc": rank_metrics(labels, scores)["auroc"]}


# --- from draws to a curve ---------------------------------------------------------------------------------


def summarise_draws(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of defects: defects (mean), draws, and mean and std of METRICS."""
    by_count = table.groupby("wanted")
    summary = pd.DataFrame({"defects": by_count["defects"].mean(), "draws": by_count.size()})
    for metric in METRICS:
        summary[f"{metric}_mean"] = by_count[metric].mean()
        summary[f"{metric}_std"] = by_count[metric].std(ddof=1).fillna(0.0)
    return summary.reset_index(drop=True)


def extrapolate(table: pd.DataFrame, metric: str, seed: int = 0) -> dict[str, list[float]] | None:
    """A power law of 1 - score, fitted to the means of all numbers of defects, up to REACH times the most.

    At `defects` the `score`, and `low` and `high`, the quantiles at 5 % and 95 % of RESAMPLES fits to draws
    that are drawn anew; `gain`, `gain_low`, `gain_high` of the last over the first of these. Of four numbers
    of defects or more every such fit leaves one out at random, since the law is not known to hold. None for
    fewer than three.
    """
    draws = [rows for _, rows in table.groupby("wanted")]
    if len(draws) < 3:
        return None
    random = np.random.default_rng(seed)
    counts = np.array([rows["defects"].mean() for rows in draws])
    sizes = np.geomspace(counts[-1], REACH * counts[-1], EXTRAPOLATED_SIZES)
    means = np.array([rows[metric].mean() for rows in draws])
    score = predict_by_power_law(counts, means, sizes)
    resampled = []
    for _ in range(RESAMPLES):
        means = np.array([random.choice(rows[metric].to_numpy(), len(rows)).mean() for rows in draws])
        used = np.arange(len(draws))
        if len(draws) > 3:
            used = np.delete(used, random.integers(len(draws)))
        resampled.append(predict_by_power_law(counts[used], means[used], sizes))
    low, high = np.quantile(resampled, [0.05, 0.95], axis=0)
    gains = np.array(resampled)[:, -1] - np.array(resampled)[:, 0]
    gain_low, gain_high = np.quantile(gains, [0.05, 0.95])
    return {
        "defects": sizes.tolist(),
        "score": score.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "gain": float(score[-1] - score[0]),
        "gain_low": float(gain_low),
        "gain_high": float(gain_high),
    }


def predict_by_power_law(counts: np.ndarray, scores: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Scores at `sizes`, by a straight line through the logarithms of 1 - scores [K] over those of counts."""
    errors = np.log(np.maximum(1 - scores, SMALLEST_ERROR))
    slope, intercept = np.polyfit(np.log(counts), errors, 1)
    return 1 - np.exp(intercept + slope * np.log(sizes))


# --- the file ----------------------------------------------------------------------------------------------


def build_learning_curve(config: Config, table: pd.DataFrame) -> dict[str, Any]:
    """Plain values of the rows of score_draws: `draws` of them, `summary`, and `extrapolation` by metric."""
    return {
        "classifier": f"logistic regression on pooled features of {config.model.backbone.name}",
        "summary": summarise_draws(table).to_dict("records"),
        "extrapolation": {metric: extrapolate(table, metric) for metric in METRICS},
        "draws": table.to_dict("records"),
        "stamp": make_curve_stamp(config),
    }


def make_curve_stamp(config: Config) -> Stamp:
    """What a learning curve is made from."""
    files = {name: content_of(config.dataset_dir / name) for name in ("images.csv", "folds.csv")}
    return {"settings": {}, "files": files}


def load_learning_curve(config: Config) -> dict[str, Any] | None:
    """The content of FILE; None where there is none, or one of other images or groups."""
    curve = read_json(config.dataset_dir / FILE)
    if curve is None or differences(curve.get("stamp"), make_curve_stamp(config)):
        return None
    return curve


def describe_learning_curve(curve: dict[str, Any]) -> list[str]:
    """Lines of text: a table, and what twice as many defects would bring."""
    lines = [curve["classifier"], f"{'defects':>9}{'draws':>7}{'macro-F1 (nested)':>20}{'AUROC':>16}"]
    for row in curve["summary"]:
        f1 = f"{row['macro_f1_mean']:.3f} ± {row['macro_f1_std']:.3f}"
        auroc = f"{row['auroc_mean']:.3f} ± {row['auroc_std']:.3f}"
        lines.append(f"{row['defects']:9.4g}{row['draws']:7}{f1:>20}{auroc:>16}")
    return [*lines, *describe_gains(curve)]


def describe_gains(curve: dict[str, Any]) -> list[str]:
    """What twice as many defects would bring, a line for each metric."""
    lines = []
    for metric, title in METRICS.items():
        reached = curve["extrapolation"][metric]
        if reached is None:
            lines.append(f"{title} with more defects cannot be said: it needs three numbers of defects")
            continue
        lines.append(
            f"{reached['defects'][-1]:.0f} defects in place of {reached['defects'][0]:.0f}: {title} "
            f"{reached['gain']:+.3f} (90 % band {reached['gain_low']:+.3f} to {reached['gain_high']:+.3f}, "
            "by a power law)"
        )
    return lines
