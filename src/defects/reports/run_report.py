"""The report of a run: figures, charts and images of its out-of-fold scores.

Answers of test images are not read: everything is about images that the models did not learn from.
"""

from base64 import b64encode
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from defects.config import ThresholdConfig
from defects.evaluation.display_scales import compute_defect_scores, format_defect_score, format_probability
from defects.evaluation.estimate import estimate
from defects.reports.curves import draw_score_charts, draw_training_charts
from defects.reports.figures import (
    MapLimits,
    Row,
    draw_heat_tile,
    draw_legend,
    fit_limits,
    mark_defects,
    read_tile,
)
from defects.reports.html import (
    Block,
    Card,
    Cards,
    Charts,
    Fact,
    KeyFigure,
    PageSection,
    Picture,
    Table,
    Text,
    build_page,
    embed_jpeg,
    format_number,
)
from defects.reports.mask_report import build_dice_table, draw_mask_cards, measure_dice
from defects.reports.run_tables import RunTables, measure_folds
from defects.writing import write_bytes

WORST, CLEAREST = 12, 4  # images of a class that are shown
GALLERY_TITLES = {
    0: ("Normal images: the highest scores", "Normal images: the lowest scores"),
    1: ("Defects: the lowest scores", "Defects: the highest scores"),
}
ONE_LABEL = (
    "All images have a defect: AUROC, average precision, macro-F1 and thresholds need normal images too and "
    "are left out."
)
DEFECT_SCORE = (
    "Scores are defect scores: 50 is the threshold. At 75 the odds of a defect are ten times those at the "
    "threshold, at 83 a hundred times, at 25 a tenth."
)
GALLERY = (
    f"Sorted by score; the line is red where the threshold decides wrongly. {DEFECT_SCORE} Masks are "
    "outlined in yellow. Click an image to enlarge it."
)
MASKS = (
    "By the untuned rule, of images that the model did not learn from. Yellow runs around the true mask, "
    "cyan around the one made, a little closer."
)
SAMPLES = "What the first fold learnt from: a normal image, where it was changed, and how."
TRAINING = "Means over the images of an epoch; from unseen images nothing was learnt."
NO_EPOCHS = "This detector has no epochs: it was fitted in one pass."
DICE = (
    "Of masks by the untuned rule: a class is marked from a probability of 0.5 on, a pixel too, and parts of "
    "any size stay. Empty against empty counts 1, so marking nothing has a high Dice over all pairs. Mean ± "
    "standard deviation over the folds. Missed: nothing of the defect is marked. False alarm: anything is "
    "marked where there is nothing."
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


def write_run_report(path: Path, tables: RunTables) -> None:
    """Write the page to `path`."""
    write_bytes(path, build_run_report(tables).encode())


def build_run_report(tables: RunTables) -> str:
    """The page as HTML."""
    config = tables.config
    expected = estimate(tables.oof, config.threshold.rule, config.threshold.fpr)
    folds = measure_folds(tables)
    dice = measure_dice(config.data, tables.class_oof, tables.maps)
    has_both = has_normal(expected)
    mask_cards = [] if dice is None else draw_mask_cards(config.data, tables.class_oof, tables.maps, dice)
    charts = draw_training_charts(tables.histories)
    sections = [
        PageSection("Decision", [Text(describe_decision(expected) + describe_share(config.threshold))]),
        PageSection("Dice", [] if dice is None else [Text(DICE), Table(build_dice_table(dice))]),
        PageSection("Folds", [Table(build_fold_table(folds))]),
        PageSection(
            "Scores and errors",
            [Text(DEFECT_SCORE), Charts(draw_score_charts(tables.oof, expected))] if has_both else [],
        ),
        PageSection("Masks of each class", [Text(MASKS), *mask_cards] if mask_cards else []),
        PageSection("Gallery", draw_gallery(tables, expected["score_threshold"])),
        PageSection("Training samples", draw_training_samples(tables.samples)),
        PageSection("Training", [Text(TRAINING), Charts(charts)] if charts else [Text(NO_EPOCHS)]),
    ]
    subtitle = (
        f"{config.model.name} on {config.data.name}: {expected['images']:,} out-of-fold images, "
        f"{expected['defects']:,} defective; folds {', '.join(expected['folds'])}"
    )
    return build_page(config.experiment, subtitle, sections, list_key_figures(expected, folds, dice))


def has_normal(expected: dict) -> bool:
    """Whether there are normal images in evaluation.estimate's result."""
    return expected["defects"] < expected["images"]


def describe_decision(expected: dict) -> str:
    """What the threshold does to the out-of-fold images, in sentences."""
    if not has_normal(expected):
        return ONE_LABEL
    (passed, rejected), (missed, detected) = expected["confusion_matrix"]
    text = (
        f"The threshold by {expected['rule']} is a probability of "
        f"{format_probability(expected['threshold'])}: "
        f"{rejected:,} of {passed + rejected:,} normal images are rejected "
        f"({expected['false_rejection'] or 0:.1%})"
    )
    if expected["nested_false_rejection"] is not None:
        text += f"; {expected['nested_false_rejection']:.1%} with thresholds of the other folds"
    if not expected["defects"]:
        return f"{text}. There are no defects among the images, so macro-F1 cannot be estimated."
    return (
        f"{text}. {detected:,} of {detected + missed:,} defects are detected, {missed:,} pass "
        f"({expected['false_acceptance']:.1%}). Macro-F1 at this threshold is {expected['macro_f1']:.3f}, "
        "which is optimistic, since the threshold was chosen on the same scores; nested cross-validation "
        "decides each fold by the threshold of the others."
    )


def describe_share(threshold: ThresholdConfig) -> str:
    """What another share of defects in a submission means for the threshold; nothing where it is the same."""
    if threshold.prior == "train" or threshold.rule != "macro_f1":
        return ""
    return (
        " All of this is at the training share of defects; a submission takes the threshold for the share "
        "that is estimated from the test scores (threshold.prior), and src/infer.py prints both."
    )


def list_key_figures(expected: dict, folds: pd.DataFrame, dice: pd.DataFrame | None) -> list[KeyFigure]:
    """The boxes on top; `dice` is mask_report.measure_dice's."""
    figures = []
    if has_normal(expected):
        interval = expected["interval_90"]
        if not expected["defects"]:
            note = "no defects: cannot be estimated"
        elif interval is None:
            note = "needs two trained folds or more"
        else:
            note = f"90 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        common = "all folds on one scale"
        error_rate = format_number(expected["equal_error_rate"], ".1%")
        figures += [
            KeyFigure("expected macro-F1 (nested CV)", format_number(expected["nested_macro_f1"]), note),
            KeyFigure("AUROC", format_number(expected["auroc"]), common),
            KeyFigure("average precision", format_number(expected["average_precision"]), common),
            KeyFigure("equal error rate", error_rate, "missed = wrongly rejected"),
        ]
    if dice is not None:
        note = "out of fold, untuned rule"
        not_empty = dice.loc[~dice["empty"], "dice"]
        figures.append(KeyFigure("Dice, all pairs", format_number(dice["dice"].mean()), note))
        figures.append(KeyFigure("Dice, not empty", format_number(not_empty.mean()), note))
    for name in ("pixel_auroc", "aupro"):
        values = folds[name].dropna().astype(float)
        if len(values):
            title, form = FOLD_COLUMNS[name]
            figures.append(
                KeyFigure(title, format_number(values.mean(), form), f"mean of {len(values)} folds")
            )
    return figures


def build_fold_table(folds: pd.DataFrame) -> pd.DataFrame:
    """Figures of each fold as texts; columns without any left out."""
    columns = {}
    for name, (title, form) in FOLD_COLUMNS.items():
        if folds[name].notna().any():
            columns[title] = [format_number(value, form) for value in folds[name]]
    return pd.DataFrame(columns, index=folds.index)


def draw_gallery(tables: RunTables, threshold: float) -> list[Block]:
    """The worst images of each class and its clearest, by the `threshold` in log-odds."""
    limits = fit_limits(tables.oof, tables.maps, tables.config.threshold.fpr)
    blocks: list[Block] = [Text(GALLERY)]
    if limits:
        blocks.append(draw_legend())
    for label in (1, 0):
        of_class = tables.oof[tables.oof["label"] == label].sort_values("score", ascending=label == 1)
        others = of_class[WORST:]
        parts = (of_class[:WORST], others[-CLEAREST:][::-1])
        for title, rows in zip(GALLERY_TITLES[label], parts, strict=True):
            if len(rows):
                cards = [draw_image_card(tables, row, limits, threshold) for row in rows.to_dict("records")]
                blocks.append(Cards(f"{title} ({len(rows)} of {len(of_class):,})", cards))
    return blocks


def draw_image_card(tables: RunTables, row: Row, limits: MapLimits, threshold: float) -> Card:
    """An out-of-fold image with its score by the `threshold` (log-odds), and its heat map if there is one."""
    name = Path(row["image_id"]).name
    tile = read_tile(tables.config.data, row)
    pictures = [embed_jpeg(mark_defects(tile, tables.config.data, row), name)]
    fold_maps = tables.maps[row["fold"]]
    if row["image_id"] in fold_maps:
        heat = draw_heat_tile(tile, fold_maps[row["image_id"]], limits[row["fold"]])
        pictures.append(embed_jpeg(heat, f"heat map of {name}"))
    is_wrong = (row["score"] >= threshold) != (row["label"] == 1)
    score = compute_defect_scores(row["score"], threshold).item()
    text = f"score {format_defect_score(score)}, fold {row['fold']}"
    facts = [Fact(text, is_wrong)]
    if row["kind"]:
        facts.insert(0, Fact(row["kind"]))
    return Card(name, tuple(pictures), tuple(facts), row["image_id"])


def draw_training_samples(samples: bytes | None) -> list[Block]:
    """What training made of some images, if it kept it."""
    if samples is None:
        return []
    image = cv2.imdecode(np.frombuffer(samples, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    source = f"data:image/png;base64,{b64encode(samples).decode()}"
    picture = Picture(source, width, height, "training samples")
    return [Text(SAMPLES), Cards("", [Card("samples.png", (picture,))])]
