"""Submissions: runs blended, the threshold chosen, answers or masks written and printed."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.config_schema import Config
from defects.data.fold_files import DataTables, read_grouping
from defects.data.index import sample_ids
from defects.data.labels import DEFECT
from defects.evaluation.acceptance import state_claims
from defects.evaluation.adversarial import stored_comparison, summarise_comparison
from defects.evaluation.blend import Blend, Ensemble, OutOfFoldScores, compare_methods
from defects.evaluation.claim_records import Claims, summarise_claims
from defects.evaluation.decision import Decision
from defects.evaluation.estimate import aligned_oof, estimate, without_seeds
from defects.evaluation.scales import (
    check_scores,
    compute_run_scores,
    fit_calibration,
    join_images,
    join_scores,
)
from defects.evaluation.threshold_uncertainty import measure_inflation
from defects.evaluation.thresholds import decide_for_shares, estimate_prior_shift, submitted_prior
from defects.files import sha256, write_csv, write_json
from defects.messages import UserError, shorten_names
from defects.runs import Run, check_same_data, runs_on
from defects.submission.masks import build_mask_submission
from defects.submission.summary import input_hashes, run_places, submission_settings

NEEDS_FOLDS = "needs two trained folds, src/train.py --fold all trains them"
METHOD_COLUMNS = {"naive": 8, "nested": 8, "optimism": 10}  # their widths


class RunScores(NamedTuple):
    """Out-of-fold rows and rows of test.csv, by the name of the run."""

    oof: dict[str, pd.DataFrame]
    test: dict[str, pd.DataFrame]


def load_scores(runs: list[Run], tables: DataTables) -> RunScores:
    """The scores that a submission is made from. UserError for runs that do not match the tables."""
    check_same_data(runs)
    targets = tuple(runs[0].config.data.classes) or (DEFECT,)
    oof = {}
    test = {}
    for run in runs:
        oof[run.name] = run.load_oof(tables.folds, targets)
        test[run.name] = run.load_test_scores(targets)
    return RunScores(oof, test)


def build_and_print(runs: list[Run], tables: DataTables, scores: RunScores, path: Path) -> None:
    """Blend the runs into answers, or into masks where there are classes of defects; `scores` are theirs."""
    config = runs[0].config
    if config.data.classes:
        lines = mask_lines(build_mask_submission(runs, tables.images, scores.oof, scores.test, path))
    else:
        lines = answer_lines(build_submission(runs, tables, scores, path))
    comparison = stored_comparison(config)
    if comparison:
        lines.append(summarise_comparison(comparison))
    print("\n".join(lines))
    written = sorted(file.name for file in path.parent.glob(f"{path.stem}.*") if file != path)
    print(f"wrote {path}, {', '.join(written)}")


# --- answers -----------------------------------------------------------------------------------------------


def build_submission(runs: list[Run], tables: DataTables, scores: RunScores, path: Path) -> dict:
    """Blend the runs, choose the threshold on out-of-fold scores, write `path`.

    Also written are <name>.json (weights, decision, estimate, sha256 of the file and of every input; see
    blend_runs; adversarial: whether training and test images differ, None if they were not compared) and
    <name>.scores.csv (image_id, score as log-odds, probability). Returns the JSON's content. Raises
    UserError for members that do not match.
    """
    config = runs[0].config
    ids = submission_ids(config, tables.images)
    blended, test_scores = blend_runs(runs, tables, scores)
    decision: Decision = blended["decision"]
    test_scores = test_scores.reindex(ids.index)
    answers = (test_scores >= decision.score_threshold).where(test_scores.notna())
    table = pd.DataFrame({"ImageId": ids.to_numpy(), "answer": answers.to_numpy()})
    check_answers(table, ids.tolist(), path)
    summary = {
        "data": config.data.name,
        "weights": blended["ensemble"]["methods"][blended["ensemble"]["method"]]["weights"],
        "images": len(table),
        **blended,
        "decision": decision.to_json(),
        "decisions": {prior: decided.to_json() for prior, decided in blended["decisions"].items()},
        "claims": {prior: claims.to_json() for prior, claims in blended["claims"].items()},
        "adversarial": stored_comparison(config),
        "runs": run_places(runs),
        "settings": submission_settings(config),
        "inputs": input_hashes(runs),
    }
    score_table = pd.DataFrame({"score": test_scores, "probability": expit(test_scores)})
    scores_file = path.with_suffix(".scores.csv")
    write_csv(scores_file, score_table.rename_axis("image_id").reset_index())
    write_csv(path, table.astype({"answer": int}))
    summary["sha256"] = sha256(path)
    summary["scores_sha256"] = sha256(scores_file)
    write_json(path.with_suffix(".json"), summary)
    return summary


def submission_ids(config: Config, images: pd.DataFrame) -> pd.Series:
    """Ids as to be submitted, by image_id, in the order of the sample; without one, by id.

    `images` is images.csv.
    """
    if config.data.sample_submission:
        return sample_ids(config.data, images)
    ids = images.loc[images["split"] == "test", "image_id"]
    return ids.set_axis(ids)


def check_answers(table: pd.DataFrame, ids: list[str], path: Path) -> None:
    """UserError unless `table` is ImageId, answer with exactly `ids` in order and answers 0 or 1."""
    if list(table.columns) != ["ImageId", "answer"]:
        raise UserError(f"{path}: its columns are {shorten_names(table.columns)}; expected ImageId, answer")
    if table["ImageId"].tolist() != list(ids):
        written_ids = set(table["ImageId"])
        missing = sorted(set(ids) - written_ids)[:3]
        extra = sorted(written_ids - set(ids))[:3]
        raise UserError(
            f"{path}: its ids differ from the sample's (missing {missing}, unknown {extra}, or order)"
        )
    wrong = table.loc[~table["answer"].isin([0, 1]), "ImageId"].tolist()
    if wrong:
        raise UserError(f"{path}: {len(wrong)} answers are not 0 or 1, that of {wrong[0]} first: score again")


# --- the blend ---------------------------------------------------------------------------------------------


def blend_runs(runs: list[Run], tables: DataTables, scores: RunScores) -> tuple[dict, pd.Series]:
    """Everything that is reported of the blend, and its test scores as log-odds, by image_id.

    The settings of the blend and of the threshold are those of the first run.

    `ensemble`: scale, method, a row for each method; `estimate`: evaluation.estimate's, at the training share
    of defects, without its threshold; `prior`: that of thresholds.estimate_prior_shift; `decisions`: the
    Decision for the training share (`train`) and, where there is one, for the estimated share (`estimated`);
    `decision`: the submitted one; `claims`: what may be claimed of each decision, by the same names; `seeds`:
    see measure_seed_spread. All but decisions and claims are plain values.
    Raises UserError for members that do not match, and for scores that cannot be used.
    """
    config = runs[0].config
    names = [run.name for run in runs]
    images, oof_members, test_members = join_members(scores)
    labels = images["label"].to_numpy(dtype=int)
    groups = images["group"].to_numpy()
    sample = OutOfFoldScores(labels, oof_members.to_numpy(), images["fold"].to_numpy(), groups)
    ensemble = Ensemble(names, sample, config.ensemble, config.threshold)
    method = ensemble.choose()
    oof_scores, test_scores = calibrate_blend(ensemble.fit(method), sample, test_members.to_numpy())
    prior = estimate_prior_shift(labels, oof_scores, test_scores, config.threshold)
    decisions = decide_for_shares(
        labels, oof_scores, groups, test_scores, ensemble.predict_nested, config.threshold, prior
    )
    claims = state_claims_of(decisions, config, tables, images.assign(score=oof_scores), ensemble)
    figures = estimate(images.assign(score=oof_scores), config.threshold, ensemble.predict_nested())
    for name in ("threshold", "score_threshold"):
        del figures[name]  # it is that of the Decision for the training share
    blended = {
        "ensemble": {
            "scale": ensemble.scale,
            "method": method,
            "chosen": ensemble.is_chosen,
            "methods": compare_methods(ensemble, names),
        },
        "estimate": figures,
        "prior": prior,
        "decision": decisions[submitted_prior(config.threshold, prior)],
        "decisions": decisions,
        "claims": claims,
        "seeds": measure_seed_spread(runs, tables),
    }
    return blended, pd.Series(test_scores, test_members.index)


def state_claims_of(
    decisions: dict[str, Decision],
    config: Config,
    tables: DataTables,
    images: pd.DataFrame,
    ensemble: Ensemble,
) -> dict[str, Claims]:
    """What may be claimed of each decision.

    `images` (label, fold, group, score of the blend) are out of fold, by image_id.
    """
    kinds = tables.images.set_index("image_id")["kind"]
    rows = images.join(kinds).rename_axis("image_id").reset_index()
    grouping = read_grouping(config)
    comparison = stored_comparison(config)
    claims = {}
    for prior, decision in decisions.items():
        share = None if prior == "train" else decision.share
        nested = ensemble.predict_nested(share)
        inflation = measure_inflation(
            ensemble.sample.labels,
            images["score"].to_numpy(),
            ensemble.sample.folds,
            ensemble.sample.groups,
            config.threshold,
            share,
        )
        claims[prior] = state_claims(config.claims, rows, nested, grouping, comparison, inflation=inflation)
    return claims


def join_members(scores: RunScores) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Out-of-fold images (label, fold, group), scores on them and on the test images, by image_id.

    Both score tables have a column of log-odds for each run. Raises UserError as blend_runs.
    """
    oof_members = {}
    test_members = {}
    for name, oof in scores.oof.items():
        check_scores(name, oof, scores.test[name])
        oof_members[name], test_members[name] = compute_run_scores(oof, scores.test[name])
    joined = join_scores(oof_members)
    images = join_images(scores.oof)
    return images, joined.reindex(images.index), join_scores(test_members)


def calibrate_blend(
    blend: Blend, sample: OutOfFoldScores, test_members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of the out-of-fold and of the test images; a blend of several is calibrated once more.

    The mean of log-odds is less sure than it could be. A single experiment keeps its own.
    """
    oof_scores = blend(sample.scores)
    test_scores = blend(test_members)
    if len(blend.weights) == 1 or not 0 < sample.labels.mean() < 1:
        return oof_scores, test_scores
    calibration = fit_calibration(sample.labels, oof_scores)
    return calibration(oof_scores), calibration(test_scores)


def measure_seed_spread(runs: list[Run], tables: DataTables) -> list[dict]:
    """Nested macro-F1 of runs that differ in their seeds alone: members, and runs in the same folder.

    A dict for each such set of two or more: nested_macro_f1 of each alone, spread (standard deviation).
    """
    first = runs[0].config
    neighbours = runs_on(first.data.name, first.output_dir)
    spreads = []
    compared_names = set()
    for member in runs:
        if member.name in compared_names:
            continue
        kind = without_seeds(member.config)
        same_kind = [run for run in neighbours if without_seeds(run.config) == kind]
        if len(same_kind) < 2:
            continue
        scores = {}
        for run in same_kind:
            compared_names.add(run.name)
            with suppress(UserError):  # a neighbour may be of other images than the members are
                oof = aligned_oof(run, tables)
                score = estimate(oof, first.threshold)["nested_macro_f1"]
                if score is not None:
                    scores[run.name] = score
        if len(scores) > 1:
            spreads.append(
                {"nested_macro_f1": scores, "spread": float(np.std(list(scores.values()), ddof=1))}
            )
    return spreads


# --- printed lines -----------------------------------------------------------------------------------------


def mask_lines(summary: dict) -> list[str]:
    """The decision, the estimates of Dice, and the rule of each class."""
    lines = [
        f"submitted                 {Decision.from_json(summary['decision']).text()}",
        f"{'out-of-fold Dice':26}{'all pairs':>11}{'not empty':>11}",
    ]
    for name, figures in summary["estimate"].items():
        if figures is not None:
            title = name.replace("_", ", ")
            lines.append(f"  {title:24}{figures['dice'] or 0:11.4f}{figures['dice_non_empty'] or 0:11.4f}")
    for name, rule in summary["rules"].items():
        lines.append(f"class {name:20}" + ", ".join(f"{key} {value:.4g}" for key, value in rule.items()))
    return lines + summarise_claims(Claims.from_json(summary["claims"][summary["chosen"]]))


def answer_lines(summary: dict) -> list[str]:
    """The methods, the decision and the one for the other share of defects, and the out-of-fold figures."""
    figures = summary["estimate"]
    (tn, fp), (fn, tp) = figures["confusion_matrix"]
    folds = f"({figures['defects']} defective), folds {', '.join(figures['folds'])}"
    lines = [
        *_method_lines(summary["ensemble"]),
        *_decision_lines(summary),
        *_share_lines(summary["prior"]),
        f"out-of-fold images        {figures['images']} {folds}",
        *_training_share_lines(figures),
    ]
    for spread in summary["seeds"]:
        scores = spread["nested_macro_f1"]
        lines.append(f"{_format_spread('of each seed', scores.values())} ({', '.join(scores)})")
    lines.append(
        f"  confusion, optimistic   {tp} defects detected, {fn} missed; {tn} normal passed, {fp} rejected"
    )
    if figures["auroc"] is not None:
        ranked = f"{figures['auroc']:.4f}, {figures['average_precision']:.4f}"
        lines.append(f"AUROC, average precision  {ranked}")
    return lines + summarise_claims(Claims.from_json(summary["claims"][summary["decision"]["prior"]]))


def _decision_lines(summary: dict) -> list[str]:
    """The submitted decision, then the one for the other share of defects."""
    submitted = Decision.from_json(summary["decision"])
    decisions = {"submitted": submitted}
    for prior, values in summary["decisions"].items():
        if prior != submitted.prior:
            decisions["alternative"] = Decision.from_json(values)
    lines = []
    for title, decision in decisions.items():
        lines.append(f"{title:26}{decision.text()}")
        if decision.expected_score is None and len(summary["estimate"]["folds"]) == 1:
            lines.append(f"  expected score          {NEEDS_FOLDS}")
        lines.append(
            f"  predicted defective     {decision.predicted_defective} of {summary['images']} test images"
        )
    return lines


def _method_lines(ensemble: dict) -> list[str]:
    """A table of the methods; none for a single run."""
    rows = ensemble["methods"]
    names = list(rows["mean"]["weights"])
    if len(names) == 1:
        return []
    how = "the mean unless another is surely better" if ensemble["chosen"] else "as configured"
    lines = [
        f"blended                   {', '.join(names)}, by {ensemble['scale']}",
        f"method                    {ensemble['method']}, {how}",
        f"  {'':8}{'naive':>8}{'nested':>8}{'optimism':>10}{'over mean':>18}   weights",
    ]
    for method, row in rows.items():
        figures = ""
        for key, width in METHOD_COLUMNS.items():
            figure = "-" if row[key] is None else f"{row[key]:.4f}"
            figures += f"{figure:>{width}}"
        gain = "-" if row["gain"] is None else f"{row['gain']:+.4f} ± {row['gain_error']:.4f}"
        weights = ", ".join(f"{weight:.2f}" for weight in row["weights"].values())
        lines.append(f"  {method:8}{figures}{gain:>18}   {weights}")
    return lines


def _training_share_lines(figures: dict) -> list[str]:
    """Macro-F1 of the out-of-fold images, at their own share of defects, in several ways."""
    if not figures["defects"]:
        lines = ["  macro-F1                unknown: no defects among the out-of-fold images"]
        if figures["nested_false_rejection"] is not None:
            lines.append(f"  normal images rejected  {figures['nested_false_rejection']:.2%} (nested)")
        return lines
    optimistic = f"  macro-F1, optimistic    {figures['macro_f1']:.4f} (threshold chosen on the same scores)"
    at_half = f"  macro-F1 at 0.5         {figures['macro_f1_at_half']:.4f}"
    if figures["nested_macro_f1"] is None:
        return [f"  macro-F1, nested        unknown: {NEEDS_FOLDS}", optimistic, at_half]
    return [
        f"  macro-F1, nested        {figures['nested_macro_f1']:.4f}",
        _format_spread("of each fold", figures["fold_macro_f1"].values()),
        f"{optimistic}: {figures['optimism']:+.4f}",
        at_half,
    ]


def _format_spread(title: str, scores: Iterable[float]) -> str:
    values = list(scores)
    return f"  {title:24}{', '.join(f'{value:.4f}' for value in values)}: ± {np.std(values, ddof=1):.4f}"


def _share_lines(prior: dict) -> list[str]:
    """Both shares of defects, and whether the estimated one is to be trusted."""
    lines = [f"share of defects          {prior['training_share']:.1%} of the out-of-fold images"]
    if prior["estimated_share"] is None:
        return [*lines, f"  of the test images      not estimated: {prior['doubt']}"]
    trust = "" if prior["doubt"] is None else f", not to be trusted: {prior['doubt']}"
    return [*lines, f"  of the test images      {prior['estimated_share']:.1%}, estimated (EM){trust}"]
