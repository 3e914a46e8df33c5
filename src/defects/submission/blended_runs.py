"""Experiments on one data set blended into one score for each image, with all that is known of its worth."""

from contextlib import suppress

import numpy as np
import pandas as pd

from defects.config import ThresholdConfig
from defects.data.fold_files import DataTables
from defects.evaluation.align import check_scores, experiment_scores, join, join_images
from defects.evaluation.blend import Blend, Ensemble, OutOfFoldScores, methods_table
from defects.evaluation.estimate import estimate
from defects.evaluation.prior_shift import prior_shift
from defects.evaluation.scales import fit_calibration
from defects.evaluation.seed_runs import aligned_oof, without_seeds
from defects.evaluation.thresholds import Decision, decide, submitted_prior
from defects.messages import UserError
from defects.runs import Run, check_same_data, runs_on


def blend_runs(runs: list[Run], tables: DataTables) -> tuple[dict, pd.Series]:
    """What is found out about the blend, and its test scores as log-odds, by image_id.

    The settings of the blend and of the threshold are those of the first run.

    `ensemble`: scale, method, a row for each method; `estimate`: evaluation.estimate's, at the training share
    of defects; `prior`: evaluation.prior_shift's; `decisions`: the Decision for the training share (`train`)
    and, where there is one, for the estimated share (`estimated`); `decision`: the submitted one; `seeds`:
    see seed_spread. All but decisions are plain values. Raises UserError for members that do not match, and
    for scores that nothing can be made of.
    """
    config = runs[0].config
    names = [run.name for run in runs]
    images, held, new = load_members(runs, tables)
    labels = images["label"].to_numpy(dtype=int)
    sample = OutOfFoldScores(labels, held.to_numpy(), images["fold"].to_numpy(), images["group"].to_numpy())
    ensemble = Ensemble(names, sample, config.ensemble, config.threshold)
    method = ensemble.choose()
    held_scores, new_scores = calibrate_blend(ensemble.fit(method), sample, new.to_numpy())
    rule = config.threshold.rule, config.threshold.fpr
    prior = prior_shift(labels, held_scores, new_scores, *rule)
    decisions = decide_for_shares(config.threshold, ensemble, held_scores, new_scores, prior)
    found = {
        "ensemble": {
            "scale": ensemble.scale,
            "method": method,
            "chosen": ensemble.is_chosen,
            "methods": methods_table(ensemble, names),
        },
        "estimate": estimate(images.assign(score=held_scores), *rule, ensemble.predict_nested()),
        "prior": prior,
        "decision": decisions[submitted_prior(config.threshold, prior)],
        "decisions": decisions,
        "seeds": seed_spread(runs, tables),
    }
    return found, pd.Series(new_scores, new.index)


def decide_for_shares(
    settings: ThresholdConfig,
    ensemble: Ensemble,
    held_scores: np.ndarray,
    new_scores: np.ndarray,
    prior: dict,
) -> dict[str, Decision]:
    """The decision for the training share of defects, and for the estimated one if `prior` has it."""
    sample = ensemble.sample
    decisions = {
        "train": decide(
            sample.labels, held_scores, ensemble.predict_nested(), sample.groups, new_scores, settings
        )
    }
    share = prior["estimated_share"]
    if share is not None:
        decisions["estimated"] = decide(
            sample.labels,
            held_scores,
            ensemble.predict_nested(share),
            sample.groups,
            new_scores,
            settings,
            estimated_share=share,
            share_error=prior["counted_error"] or 0.0,
        )
    return decisions


def load_members(runs: list[Run], tables: DataTables) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Held-out images (label, fold, group), scores on them and on the test images, by image_id.

    Both score tables have a column for each run. Raises UserError as blend_runs.
    """
    check_same_data(runs)
    oofs, held, new = {}, {}, {}
    for run in runs:
        oof = run.load_oof(tables.folds)
        scored = run.load_test_scores()
        check_scores(run.name, oof, scored)
        oofs[run.name] = oof
        held[run.name], new[run.name] = experiment_scores(oof, scored)
    joined, images = join(held), join_images(oofs)
    return images, joined.reindex(images.index), join(new)


def calibrate_blend(blend: Blend, sample: OutOfFoldScores, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the held-out and of the test images; a blend of several is calibrated once more.

    The mean of log-odds is less sure than it could be. A single experiment keeps its own.
    """
    scores = blend(sample.scores), blend(new)
    if len(blend.weights) == 1 or not 0 < sample.labels.mean() < 1:
        return scores
    calibration = fit_calibration(sample.labels, scores[0])
    return calibration(scores[0]), calibration(scores[1])


def seed_spread(runs: list[Run], tables: DataTables) -> list[dict]:
    """Nested macro-F1 of runs that differ in their seeds alone: members, and those trained beside them.

    A dict for each such set of two or more: nested_macro_f1 of each alone, spread (standard deviation).
    """
    first = runs[0].config
    beside = runs_on(first.data.name, first.output_dir)
    found, seen = [], set()
    for member in runs:
        if member.name in seen:
            continue
        kind = without_seeds(member.config)
        same_kind = [run for run in beside if without_seeds(run.config) == kind]
        if len(same_kind) < 2:
            continue
        nested = {}
        for run in same_kind:
            seen.add(run.name)
            with suppress(UserError):  # what stands beside the members may be of other images than they are
                settings = first.threshold
                oof = aligned_oof(run, tables)
                nested[run.name] = estimate(oof, settings.rule, settings.fpr)["nested_macro_f1"]
        known = {name: value for name, value in nested.items() if value is not None}
        if len(known) > 1:
            found.append({"nested_macro_f1": known, "spread": float(np.std(list(known.values()), ddof=1))})
    return found
