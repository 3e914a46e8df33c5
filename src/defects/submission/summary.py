"""A submission of whatever kind the data set asks for, and what it promises, in words."""

from pathlib import Path

from defects.config import Config
from defects.submission.build import build_submission
from defects.submission.masks import build_mask_submission


def build_and_print(config: Config, experiments: list[str], path: Path) -> None:
    """Blend the experiments into answers, or into masks where there are classes of defects."""
    if config.data.classes:
        lines = mask_lines(build_mask_submission(config, experiments, path))
    else:
        lines = answer_lines(build_submission(config, experiments, path))
    print("\n".join(lines))
    beside = ", ".join(sorted(each.name for each in path.parent.glob(f"{path.stem}.*") if each != path))
    print(f"wrote {path}, {beside}")


def mask_lines(summary: dict) -> list[str]:
    """Estimates of Dice, and the rule of each class."""
    lines = [f"{'out-of-fold Dice':26}{'all pairs':>11}{'not empty':>11}"]
    for name, found in summary["estimate"].items():
        if found is not None:
            figures = "".join(f"{found[name] or 0:11.4f}" for name in ("dice", "dice_non_empty"))
            lines.append(f"  {name.replace('_', ', '):24}{figures}")
    lines.append(f"{'masks':26}{summary['chosen']:>11}")
    for name, rule in summary["rules"].items():
        lines.append(f"class {name:20}" + ", ".join(f"{key} {value:.4g}" for key, value in rule.items()))
    return lines


def answer_lines(summary: dict) -> list[str]:
    """The promised macro-F1, the threshold, and what it does to the images."""
    found = summary["estimate"]
    (tn, fp), (fn, tp) = found["confusion_matrix"]
    called = f"{summary['called_defective']} of {summary['images']} test images"
    folds = f"({found['defects']} defective), folds {', '.join(found['folds'])}"
    lines = [
        f"out-of-fold images        {found['images']} {folds}",
        *_promise(found),
        f"threshold                 {found['threshold']:.4f}, by {found['rule']}",
        f"confusion                 {tp} defects found, {fn} missed; {tn} normal passed, {fp} rejected",
        f"called defective          {called}",
    ]
    if found["auroc"] is not None:
        ranked = f"{found['auroc']:.4f}, {found['average_precision']:.4f}"
        lines.insert(-2, f"AUROC, average precision  {ranked}")
    return lines


def _promise(found: dict) -> list[str]:
    if not found["defects"]:
        lines = ["macro-F1                  cannot be promised: no defects among the out-of-fold images"]
        if found["nested_false_rejection"] is not None:
            lines.append(f"normal images rejected    {found['nested_false_rejection']:.2%} (nested)")
        return lines
    optimistic = [
        f"macro-F1, optimistic      {found['macro_f1']:.4f}",
        f"macro-F1 at 0.5           {found['macro_f1_at_half']:.4f}",
    ]
    if found["nested_macro_f1"] is None:
        return [
            "nested macro-F1           needs two trained folds or more (src/train.py --fold all)",
            *optimistic,
        ]
    low, high = found["interval_90"]
    nested = f"nested macro-F1           {found['nested_macro_f1']:.4f}"
    return [nested, f"90 % interval             {low:.4f} - {high:.4f}", *optimistic]
