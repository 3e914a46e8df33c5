"""Experiments on one data set blended into one score for each image, with all that is known of its worth."""

from contextlib import suppress

import numpy as np
import pandas as pd

from defects.config import Config, ThresholdConfig
from defects.errors import UserError
from defects.scoring.blending import check_scores, experiment_scores, join, join_images
from defects.scoring.decision import Decision, decide, submitted_prior
from defects.scoring.ensemble import Blend, Ensemble, Sample, methods_table
from defects.scoring.estimate import estimate
from defects.scoring.prior_shift import prior_shift
from defects.scoring.scales import fit_calibration
from defects.training.experiments import aligned_oof, check_data, seeds_of
from defects.training.inference import load_test
from defects.training.run import load_oof


def blend_experiments(config: Config, members: dict[str, Config]) -> tuple[dict, pd.Series]:
    """What is found out about the blend, and its test scores as log-odds, by image_id.

    `ensemble`: scale, method, a row for each method; `estimate`: scoring.estimate's, at the training share of
    defects; `prior`: scoring.prior_shift's; `decisions`: the Decision for the training share (`train`) and,
    where there is one, for the estimated share (`estimated`); `decision`: the one that is submitted; `seeds`:
    see seed_spread. All but decisions are plain values. Raises UserError for members that do not match, and
    for scores that nothing can be made of.
    """
    images, held, new = load_members(config, members)
    labels = images["label"].to_numpy(dtype=int)
    sample = Sample(labels, held.to_numpy(), images["fold"].to_numpy(), images["group"].to_numpy())
    ensemble = Ensemble(list(members), sample, config.ensemble, config.threshold)
    method = ensemble.choose()
    held_scores, new_scores = blended(ensemble.fit(method), sample, new.to_numpy())
    rule = config.threshold.rule, config.threshold.fpr
    prior = prior_shift(labels, held_scores, new_scores, *rule)
    decisions = decide_for_shares(config.threshold, ensemble, held_scores, new_scores, prior)
    found = {
        "ensemble": {
            "scale": ensemble.scale,
            "method": method,
            "chosen": ensemble.is_chosen,
            "methods": methods_table(ensemble, list(members)),
        },
        "estimate": estimate(images.assign(score=held_scores), *rule, ensemble.predict_nested()),
        "prior": prior,
        "decision": decisions[submitted_prior(config.threshold, prior)],
        "decisions": decisions,
        "seeds": seed_spread(config, list(members)),
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


def load_members(
    config: Config, members: dict[str, Config]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Held-out images (label, fold, group), scores on them and on the test images, by image_id.

    Both score tables have a column for each experiment. Raises UserError as blend_experiments.
    """
    oofs, held, new = {}, {}, {}
    for name, member in members.items():
        check_data(config, name)
        oofs[name], scored = load_oof(member), load_test(member)
        check_scores(name, oofs[name], scored)
        held[name], new[name] = experiment_scores(oofs[name], scored)
    joined, images = join(held), join_images(oofs)
    return images, joined.reindex(images.index), join(new)


def blended(blend: Blend, sample: Sample, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the held-out and of the test images; a blend of several is calibrated once more.

    The mean of log-odds is less sure than it could be. A single experiment keeps its own.
    """
    scores = blend(sample.scores), blend(new)
    if len(blend.weights) == 1 or not 0 < sample.labels.mean() < 1:
        return scores
    calibration = fit_calibration(sample.labels, scores[0])
    return calibration(scores[0]), calibration(scores[1])


def seed_spread(config: Config, experiments: list[str]) -> list[dict]:
    """Nested macro-F1 of runs that differ in their seeds alone: members, and those trained beside them.

    A dict for each such set of two or more: nested_macro_f1 of each alone, spread (standard deviation).
    """
    found, seen = [], set()
    for name in experiments:
        runs = [] if name in seen else seeds_of(config, name)
        seen |= {run.experiment for run in runs}
        nested = {run.experiment: _nested_macro_f1(run) for run in runs}
        known = {name: value for name, value in nested.items() if value is not None}
        if len(known) > 1:
            found.append({"nested_macro_f1": known, "spread": float(np.std(list(known.values()), ddof=1))})
    return found


def _nested_macro_f1(run: Config) -> float | None:
    """None also for what stands beside the members and is of other images than they are."""
    with suppress(UserError):
        return estimate(aligned_oof(run), run.threshold.rule, run.threshold.fpr)["nested_macro_f1"]
    return None
