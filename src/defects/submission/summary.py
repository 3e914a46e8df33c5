"""A submission of whatever kind the data set asks for, and the score expected of it, in words."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from defects.data.fold_files import DataTables
from defects.evaluation.adversarial import stored_comparison, summarise_comparison
from defects.evaluation.thresholds import Decision
from defects.runs import Run
from defects.submission.answers import build_submission
from defects.submission.masks import build_mask_submission

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
