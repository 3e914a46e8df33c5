"""The report of an experiment: charts, galleries and figures of its out-of-fold scores.

Answers of test images are not read: everything is about images that the models did not learn from.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from defects.config import Config
from defects.report import page
from defects.report.curves import score_charts, training_charts
from defects.report.drawing import png
from defects.report.gallery import draw_gallery, map_scales
from defects.report.mask_gallery import draw_mask_galleries
from defects.report.masks import dice_text, held_dice
from defects.report.results import all_fold_figures, class_rows, out_of_fold, read_history
from defects.scoring.estimate import estimate
from defects.scoring.pixels import Maps
from defects.training.run import OOF_MAPS, run_folder
from defects.writing import write_bytes

ONE_LABEL = (
    "All images have a defect: AUROC, average precision, macro-F1 and thresholds need normal images too and "
    "are left out."
)
SECTIONS = {  # title -> text, how the names of its pictures begin
    "Scores and errors": ("", "scores"),
    "Masks of each class": (
        "By the untuned rule, of images that the model did not learn from; Dice is given above each.",
        "masks",
    ),
    "Gallery": (
        "Sorted by score; below each name its score from 0 to 1, in red where the threshold decides wrongly. "
        "Masks are outlined in yellow. Where there are maps, they lie over a second copy of the image, on "
        "one scale for all images, with a line in cyan around what exceeds it.",
        "gallery",
    ),
    "Training samples": (
        "What the first fold learnt from: a normal image, where it was changed, and how.",
        "samples",
    ),
    "Training": ("Means over the images of an epoch; from unseen images nothing was learnt.", "training"),
}
DICE = (
    "Of the masks by the rule of somebody who tunes nothing: a class is marked from a probability of 0.5 on, "
    "a pixel too, and parts of any size stay. Empty against empty counts 1, so marking nothing has a "
    "high Dice over all pairs. Mean ± standard deviation over the folds. Missed: nothing of the defect is "
    "marked. False alarm: anything is marked where there is nothing."
)
FOLD_COLUMNS = {
    "images": ("images", ",.0f"),
    "defects": ("defects", ",.0f"),
    "auroc": ("AUROC", ".3f"),
    "average_precision": ("average precision", ".3f"),
    "pixel_auroc": ("pixel AUROC", ".3f"),
    "aupro": ("AUPRO", ".3f"),
    "fit_seconds": ("fit, s", ",.1f"),
    "score_images_per_second": ("images/s", ",.1f"),
    "peak_memory_mb": ("peak memory, MiB", ",.0f"),
    "model_mb": ("model, MiB", ",.1f"),
}


def write_report(config: Config) -> list[Path]:
    """Write report.html and its pictures into output/<experiment>/report; returns their paths.

    Raises UserError if no fold is trained, or on other data than the present.
    """
    oof = out_of_fold(config)
    expected = estimate(oof, config.threshold.rule, config.threshold.fpr)
    pictures = draw_pictures(config, oof, expected)
    rows = class_rows(config)
    masks = held_dice(config, rows)
    if masks is not None:
        for number, sheet in enumerate(draw_mask_galleries(config, rows, masks), 1):
            pictures[f"masks_{number}"] = sheet.png()
    if not has_normal(expected):
        print(f"{config.experiment}: {ONE_LABEL}")
    folder = config.experiment_dir / "report"
    for left_over in folder.glob("*.png"):
        left_over.unlink()
    for name, content in pictures.items():
        write_bytes(folder / f"{name}.png", content)
    html = build_page(config, expected, all_fold_figures(config, oof), pictures, masks)
    write_bytes(folder / "report.html", html.encode())
    return [folder / "report.html", *(folder / f"{name}.png" for name in pictures)]


def draw_pictures(config: Config, oof: pd.DataFrame, expected: dict) -> dict[str, bytes]:
    """PNGs by their names in SECTIONS; those that there is nothing for are left out."""
    folders = {fold: run_folder(config, fold) for fold in expected["folds"]}
    maps = {fold: Maps(folder / OOF_MAPS) for fold, folder in folders.items()}
    scales = map_scales(oof, maps)
    found = {"scores": png(partial(score_charts, oof, expected))} if has_normal(expected) else {}
    threshold = expected["score_threshold"]
    for label, name in ((1, "gallery_defect"), (0, "gallery_normal")):
        rows = oof[oof["label"] == label]
        if len(rows):
            found[name] = draw_gallery(config.data, rows, maps, scales, threshold).png()
    samples = next(iter(folders.values())) / "samples.png"
    if samples.exists():
        found["samples"] = samples.read_bytes()
    histories = {fold: read_history(folder / "metrics.jsonl") for fold, folder in folders.items()}
    if any(len(history) for history in histories.values()):
        found["training"] = png(partial(training_charts, histories))
    return found


def build_page(
    config: Config,
    expected: dict,
    folds: pd.DataFrame,
    pictures: dict[str, bytes],
    masks: pd.DataFrame | None = None,
) -> str:
    """report.html: key figures, the decision, tables of `masks` (held_dice) and folds, the pictures."""
    subtitle = (
        f"{config.model.name} on {config.data.name}: {expected['images']:,} out-of-fold images, "
        f"{expected['defects']:,} defective; folds {', '.join(expected['folds'])}"
    )
    boxes = page.key_figures(_key_figures(expected, folds, masks))
    parts = [boxes, page.section("Decision", decision(expected) + _share_note(config))]
    if masks is not None:
        parts.append(page.section("Dice of the masks, out of fold", DICE, page.table(dice_text(masks))))
    parts.append(page.section("Folds", "", page.table(_fold_table(folds))))
    for title, (text, start) in SECTIONS.items():
        names = [name for name in pictures if name.startswith(start)]
        drawn = [page.picture(pictures[name], name.replace("_", " ")) for name in names]
        if drawn:
            parts.append(page.section(title, text, *drawn))
    if "training" not in pictures:
        parts.append(page.section("Training", "This detector has no epochs: it was fitted in one pass."))
    return page.page(config.experiment, subtitle, parts)


def _share_note(config: Config) -> str:
    """What another share of defects in a submission means for the threshold; nothing where it is the same."""
    if config.threshold.prior == "train" or config.threshold.rule != "macro_f1":
        return ""
    return (
        " All of this is at the training share of defects; a submission takes the threshold for the share "
        "that is estimated from the test scores (threshold.prior), and src/infer.py prints both."
    )


def has_normal(expected: dict) -> bool:
    return expected["defects"] < expected["images"]


def decision(expected: dict) -> str:
    """What the threshold does to the out-of-fold images, in sentences."""
    if not has_normal(expected):
        return ONE_LABEL
    (passed, rejected), (missed, found) = expected["confusion_matrix"]
    text = (
        f"Threshold {expected['threshold']:.4g} by {expected['rule']}: {rejected:,} of "
        f"{passed + rejected:,} normal images are rejected ({expected['false_rejection'] or 0:.1%})"
    )
    if expected["nested_false_rejection"] is not None:
        text += f"; {expected['nested_false_rejection']:.1%} with thresholds of the other folds"
    if not expected["defects"]:
        return f"{text}. There are no defects among the images: no macro-F1 can be promised."
    text += f". {found:,} of {found + missed:,} defects are found, {missed:,} pass"
    text += (
        f" ({expected['false_acceptance']:.1%}). Macro-F1 at this threshold is {expected['macro_f1']:.3f}, "
    )
    return text + (
        "which flatters, since the threshold was chosen on the same scores; the nested one uses for each "
        "fold the threshold of the others."
    )


def _key_figures(
    expected: dict, folds: pd.DataFrame, masks: pd.DataFrame | None
) -> list[tuple[str, str, str]]:
    boxes = _rank_boxes(expected) if has_normal(expected) else []
    if masks is not None:
        marked = masks[~masks["empty"]]
        boxes.append(("Dice, all pairs", page.shown(masks["dice"].mean()), "out of fold, untuned rule"))
        boxes.append(("Dice, not empty", page.shown(marked["dice"].mean()), "out of fold, untuned rule"))
    for name in ("pixel_auroc", "aupro"):
        if folds[name].notna().any():
            spread = f"mean of {folds[name].count()} folds"
            boxes.append((FOLD_COLUMNS[name][0], page.shown(folds[name].astype(float).mean()), spread))
    return boxes


def _rank_boxes(expected: dict) -> list[tuple[str, str, str]]:
    interval = expected["interval_90"]
    if not expected["defects"]:
        promise = "no defects: none can be promised"
    elif interval is None:
        promise = "needs two trained folds or more"
    else:
        promise = f"90 % interval {interval[0]:.3f} to {interval[1]:.3f}"
    return [
        ("macro-F1, nested", page.shown(expected["nested_macro_f1"]), promise),
        ("AUROC", page.shown(expected["auroc"]), "all folds on one scale"),
        ("average precision", page.shown(expected["average_precision"]), "all folds on one scale"),
        ("equal error rate", page.shown(expected["equal_error_rate"], ".1%"), "missed = wrongly rejected"),
    ]


def _fold_table(folds: pd.DataFrame) -> pd.DataFrame:
    columns = {
        title: [page.shown(value, form) for value in folds[name]]
        for name, (title, form) in FOLD_COLUMNS.items()
        if folds[name].notna().any()
    }
    return pd.DataFrame(columns, index=folds.index)
