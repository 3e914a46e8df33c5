"""Submissions: runs blended, the threshold chosen, answers or masks written and printed."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from defects.config import Config, ThresholdConfig
from defects.data.fold_files import DataTables
from defects.data.index import sample_ids
from defects.evaluation.adversarial import stored_comparison, summarise_comparison
from defects.evaluation.blend import Blend, Ensemble, OutOfFoldScores, methods_table
from defects.evaluation.estimate import aligned_oof, estimate, without_seeds
from defects.evaluation.scales import check_scores, experiment_scores, fit_calibration, join, join_images
from defects.evaluation.thresholds import Decision, decide, prior_shift, submitted_prior
from defects.files import write_csv, write_json
from defects.messages import UserError, shorten_names
from defects.runs import Run, check_same_data, runs_on
from defects.submission.masks import build_mask_submission
from defects.submission.summary import input_hashes, run_places, submission_settings
from defects.writing import sha256

METHOD_COLUMNS = {"naive": 8, "nested": 8, "optimism": 10}  # their widths


def build_and_print(runs: list[Run], tables: DataTables, path: Path) -> None:
    """Blend the runs into answers, or into masks where there are classes of defects."""
    config = runs[0].config
    if config.data.classes:
        lines = mask_lines(build_mask_submission(runs, tables, path))
    else:
        lines = answer_lines(build_submission(runs, tables, path))
    compared = stored_comparison(config)
    print("\n".join([*lines, *([summarise_comparison(compared)] if compared else [])]))
    beside = ", ".join(sorted(each.name for each in path.parent.glob(f"{path.stem}.*") if each != path))
    print(f"wrote {path}, {beside}")


def build_submission(runs: list[Run], tables: DataTables, path: Path) -> dict:
    """Blend the runs, choose the threshold on out-of-fold scores, write `path`.

    Beside it: <name>.json (weights, decision, estimate, sha256 of the file and of every input; see
    blended_runs; adversarial: whether training and test images differ, None if nobody looked) and
    <name>.scores.csv (image_id, score as log-odds, probability). Returns the JSON's content. Raises
    UserError for members that do not match.
    """
    config = runs[0].config
    ids = submission_ids(config, tables.images)
    found, scores = blend_runs(runs, tables)
    decision: Decision = found["decision"]
    scores = scores.reindex(ids.index)
    answers = (scores >= decision.score_threshold).where(scores.notna())
    table = pd.DataFrame({"ImageId": ids.to_numpy(), "answer": answers.to_numpy()})
    check_answers(table, ids.tolist(), path)
    summary = {
        "data": config.data.name,
        "weights": found["ensemble"]["methods"][found["ensemble"]["method"]]["weights"],
        "images": len(table),
        **found,
        "decision": decision.to_json(),
        "decisions": {prior: each.to_json() for prior, each in found["decisions"].items()},
        "adversarial": stored_comparison(config),
        "runs": run_places(runs),
        "settings": submission_settings(config),
        "inputs": input_hashes(runs),
    }
    shown = pd.DataFrame({"score": scores, "probability": expit(scores)}).rename_axis("image_id")
    scores_file = path.with_suffix(".scores.csv")
    write_csv(scores_file, shown.reset_index())
    write_csv(path, table.astype({"answer": int}))
    summary["sha256"], summary["scores_sha256"] = sha256(path), sha256(scores_file)
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
        found = set(table["ImageId"])
        missing, extra = sorted(set(ids) - found)[:3], sorted(found - set(ids))[:3]
        raise UserError(
            f"{path}: its ids differ from the sample's (missing {missing}, unknown {extra}, or order)"
        )
    wrong = table.loc[~table["answer"].isin([0, 1]), "ImageId"].tolist()
    if wrong:
        raise UserError(f"{path}: {len(wrong)} answers are not 0 or 1, that of {wrong[0]} first: score again")


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


def mask_lines(summary: dict) -> list[str]:
    """The decision, the estimates of Dice, and the rule of each class."""
    lines = [
        f"submitted                 {Decision.from_json(summary['decision']).text()}",
        f"{'out-of-fold Dice':26}{'all pairs':>11}{'not empty':>11}",
    ]
    for name, found in summary["estimate"].items():
        if found is not None:
            figures = "".join(f"{found[name] or 0:11.4f}" for name in ("dice", "dice_non_empty"))
            lines.append(f"  {name.replace('_', ', '):24}{figures}")
    for name, rule in summary["rules"].items():
        lines.append(f"class {name:20}" + ", ".join(f"{key} {value:.4g}" for key, value in rule.items()))
    return lines


def answer_lines(summary: dict) -> list[str]:
    """The methods, the decision and the one for the other share of defects, and what is known out of fold."""
    found = summary["estimate"]
    (tn, fp), (fn, tp) = found["confusion_matrix"]
    folds = f"({found['defects']} defective), folds {', '.join(found['folds'])}"
    lines = [
        *_method_lines(summary["ensemble"]),
        *_decision_lines(summary),
        *_share_lines(summary["prior"]),
        f"out-of-fold images        {found['images']} {folds}",
        *_training_share_lines(found),
        *_seed_lines(summary["seeds"]),
        f"  confusion               {tp} defects found, {fn} missed; {tn} normal passed, {fp} rejected",
    ]
    if found["auroc"] is not None:
        ranked = f"{found['auroc']:.4f}, {found['average_precision']:.4f}"
        lines.append(f"AUROC, average precision  {ranked}")
    return lines


def _decision_lines(summary: dict) -> list[str]:
    """What is submitted, then the decision for the other share of defects."""
    submitted = Decision.from_json(summary["decision"])
    lines = [
        f"submitted                 {submitted.text()}",
        f"  called defective        {submitted.called_defective} of {summary['images']} test images",
    ]
    for prior, values in summary["decisions"].items():
        if prior != submitted.prior:
            other = Decision.from_json(values)
            lines.append(f"not submitted             {other.text()}")
            called = f"{other.called_defective} of {summary['images']} test images"
            lines.append(f"  called defective        {called}")
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
        figures = "".join(_figure(row[key], width) for key, width in METHOD_COLUMNS.items())
        gain = "-" if row["gain"] is None else f"{row['gain']:+.4f} ± {row['gain_error']:.4f}"
        weights = ", ".join(f"{weight:.2f}" for weight in row["weights"].values())
        lines.append(f"  {method:8}{figures}{gain:>18}   {weights}")
    return lines


def _training_share_lines(found: dict) -> list[str]:
    """Macro-F1 of the out-of-fold images, at their own share of defects, in several ways."""
    if not found["defects"]:
        lines = ["  macro-F1                unknown: no defects among the out-of-fold images"]
        if found["nested_false_rejection"] is not None:
            lines.append(f"  normal images rejected  {found['nested_false_rejection']:.2%} (nested)")
        return lines
    naive = f"  macro-F1, optimistic    {found['macro_f1']:.4f}"
    at_half = f"  macro-F1 at 0.5         {found['macro_f1_at_half']:.4f}"
    if found["nested_macro_f1"] is None:
        return ["  macro-F1, nested        needs two trained folds (src/train.py --fold all)", naive, at_half]
    return [
        f"  macro-F1, nested        {found['nested_macro_f1']:.4f}",
        _listed("of each fold", found["fold_macro_f1"].values()),
        f"{naive}, by {found['optimism']:.4f}",
        at_half,
    ]


def _seed_lines(seeds: list[dict]) -> list[str]:
    return [
        _listed("of each seed", each["nested_macro_f1"].values()) + f" ({', '.join(each['nested_macro_f1'])})"
        for each in seeds
    ]


def _listed(title: str, values: Iterable[float]) -> str:
    values = list(values)
    return f"  {title:24}{', '.join(f'{value:.4f}' for value in values)}: ± {np.std(values, ddof=1):.4f}"


def _share_lines(prior: dict) -> list[str]:
    """Both shares of defects, and whether the estimated one is to be believed."""
    lines = [f"share of defects          {prior['training_share']:.1%} of the out-of-fold images"]
    if prior["estimated_share"] is None:
        return [*lines, f"  of the test images      not estimated: {prior['doubt']}"]
    believed = "by EM" if prior["doubt"] is None else f"by EM, not to be trusted: {prior['doubt']}"
    return [*lines, f"  of the test images      {prior['estimated_share']:.1%} {believed}"]


def _figure(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.4f}':>{width}}"
