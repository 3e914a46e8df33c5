"""Which of several detectors is exported, and what that choice is expected to score."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from defects.data.fold_files import DataTables, read_grouping
from defects.evaluation.acceptance import measure_run_inflation, predict_run, state_claims, state_run_claims
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.claim_records import Claims
from defects.evaluation.metrics import interval, macro_f1, rank_metrics
from defects.evaluation.scales import align_oof
from defects.runs import Run


class Choice(NamedTuple):
    """The run with the highest AUROC out of fold. Without defects out of fold there is no macro-F1."""

    run: Run
    aurocs: dict[str, float | None]  # by the name of the run
    macro_f1: float | None
    interval_90: tuple[float, float] | None
    claims: Claims


def choose_detector(runs: list[Run], tables: DataTables) -> Choice:
    """The choice is part of the estimate: a fold is decided by the run that is best on the other folds.

    All `runs` have trained the folds of `tables`. Without both classes it is the first run.
    """
    scored = {run.name: run.load_oof(tables.folds).sort_values("image_id", ignore_index=True) for run in runs}
    images = scored[runs[0].name]
    labels = images["label"].to_numpy(dtype=int)
    folds = images["fold"].to_numpy()
    scores = {name: align_oof(oof)[0].to_numpy() for name, oof in scored.items()}
    nested = {run.name: predict_run(scored[run.name], run.config.threshold) for run in runs}
    best = choose_best(scores, labels)
    predicted = nested[best]
    best_of_fold = {}
    if predicted is not None:
        predicted = predicted.copy()
        for fold in np.unique(folds):
            is_val = folds == fold
            others = {name: values[~is_val] for name, values in scores.items()}
            best_of_fold[fold] = choose_best(others, labels[~is_val])
            predicted[is_val] = nested[best_of_fold[fold]][is_val]
    run = next(run for run in runs if run.name == best)
    has_estimate = predicted is not None and labels.mean() > 0
    groups = images["group"].to_numpy()
    return Choice(
        run=run,
        aurocs={name: rank_metrics(labels, values)["auroc"] for name, values in scores.items()},
        macro_f1=macro_f1(labels, predicted) if has_estimate else None,
        interval_90=interval(labels, predicted, groups) if has_estimate else None,
        claims=state_choice(run, tables, scored[best], predicted, set(best_of_fold.values()) <= {best}),
    )


def choose_best(scores: dict[str, np.ndarray], labels: np.ndarray) -> str:
    """The name with the highest AUROC; the first of equal ones, and where one class is missing."""
    if len(np.unique(labels)) < 2:
        return next(iter(scores))
    return max(scores, key=lambda name: rank_metrics(labels, scores[name])["auroc"])


def state_choice(
    run: Run, tables: DataTables, oof: pd.DataFrame, predicted: np.ndarray | None, is_unanimous: bool
) -> Claims:
    """What may be claimed of the chosen run; where other folds would choose otherwise, of the choice."""
    if is_unanimous or run.config.data.classes:
        return state_run_claims(run, tables)
    kinds = tables.images.set_index("image_id")["kind"]
    return state_claims(
        run.config.claims,
        oof.assign(kind=oof["image_id"].map(kinds)),
        predicted,
        read_grouping(run.config),
        stored_comparison(run.config),
        inflation=measure_run_inflation(oof, run.config.threshold),
    )
