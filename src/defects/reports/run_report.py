"""The report of a run: tables of its folds, figures, charts and images of its out-of-fold scores.

Answers of test images are not read: everything is about images that the models did not learn from.
"""

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from defects.config_schema import Config, DataConfig, ThresholdConfig, resolve
from defects.data.fold_files import DataTables
from defects.data.roi import load_roi
from defects.evaluation.acceptance import state_run_claims
from defects.evaluation.decision import describe_rule
from defects.evaluation.display_scales import compute_defect_scores, format_defect_score, format_probability
from defects.evaluation.estimate import estimate
from defects.evaluation.metrics import rank_metrics
from defects.evaluation.pixels import Maps, masked_maps, pixel_metrics
from defects.evaluation.scales import align_oof
from defects.evaluation.thresholds import nested_predictions
from defects.reports import html
from defects.reports.charts import draw_score_charts, draw_training_charts
from defects.reports.claims_section import ClaimTables, build_claims_section, load_claim_tables
from defects.reports.figures import (
    MapLimits,
    Row,
    draw_heat_tile,
    draw_legend,
    fit_limits,
    mark_defects,
    read_inside,
    read_tile,
)
from defects.reports.mask_report import build_dice_table, draw_mask_cards, measure_dice
from defects.runs import OOF_MAPS, Run

WORST = 12  # images of a class in the gallery
CLEAREST = 6  # WORST and CLEAREST fill rows of two, three or six cards
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
    "By the untuned rule, of images that the model did not learn from. The true mask is outlined in yellow, "
    "the predicted one in cyan, a little closer."
)
SAMPLES_TEXT = "What the first fold learnt from: a normal image, where it was changed, and how."
TRAINING = "Means over the images of an epoch. Validation images are not learnt from."
NO_EPOCHS = "This detector has no epochs: it was fitted in one pass."
DICE = (
    "Of masks by the untuned rule: a class is marked from a probability of 0.5 on, a pixel too, and parts of "
    "any size stay. Empty against empty counts 1, so marking nothing has a high Dice over all pairs. Mean ± "
    "standard deviation over the folds. Missed: nothing of the defect is marked. False alarm: anything is "
    "marked where there is nothing."
)
FOLD_COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb", "parameters", "device"]
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


@dataclass(frozen=True)
class RunTables:
    """What the report of a run is drawn from; `maps`, `costs` and `histories` are by fold.

    `oof` is that of load_aligned_oof; `class_oof` are rows of oof.csv for data.classes, joined with
    images.csv, none if the detector does not tell classes apart; `samples` is a PNG of images that training
    changed, if it changes any; `claims` are about the run by itself.
    """

    config: Config
    oof: pd.DataFrame
    class_oof: pd.DataFrame
    maps: dict[str, Maps]
    costs: dict[str, dict[str, Any]]
    histories: dict[str, pd.DataFrame]
    samples: bytes | None
    claims: ClaimTables


def load_run_tables(run: Run, tables: DataTables) -> RunTables:
    """Raises UserError if no fold is trained, or on other data than the present."""
    oof = load_aligned_oof(run, tables)
    class_oof = run.load_oof(tables.folds, tuple(run.config.data.classes))
    folds = sorted(oof["fold"].unique())
    samples = run.fold_folder(folds[0]) / "samples.png"
    return RunTables(
        config=run.config,
        oof=oof,
        class_oof=class_oof.merge(tables.images.drop(columns="label"), on="image_id"),
        maps={fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in folds},
        costs={fold: run.read_costs(fold) for fold in folds},
        histories={fold: run.read_history(fold) for fold in folds},
        samples=samples.read_bytes() if samples.exists() else None,
        claims=load_run_claims(run, tables, oof),
    )


def load_run_claims(run: Run, tables: DataTables, oof: pd.DataFrame) -> ClaimTables:
    """What may be claimed of the run by itself; `oof` is that of load_aligned_oof."""
    labels = oof["label"].to_numpy(dtype=int)
    scores = oof["score"].to_numpy()
    nested = nested_predictions(labels, scores, oof["fold"].to_numpy(), run.config.threshold)
    return load_claim_tables(run.config, oof, scores, nested, state_run_claims(run, tables))


def load_aligned_oof(run: Run, tables: DataTables) -> pd.DataFrame:
    """images.csv's rows of all finished folds with fold, group, probability and two scores.

    `raw` is the score of the model that did not learn from the image, `score` its log-odds on the scale
    common to all folds. Raises UserError if nothing is trained, or on other data.
    """
    images = tables.images.drop(columns="label")
    oof = run.load_oof(tables.folds).rename(columns={"score": "raw"}).merge(images, on="image_id")
    return oof.assign(score=align_oof(oof)[0])


def measure_fold(
    rows: pd.DataFrame, maps: Maps, costs: dict[str, Any], data: DataConfig
) -> dict[str, float | str | None]:
    """Figures of one model on `rows` (label, raw, and those of images.csv of `data`), and what it cost."""
    labels = rows["label"].to_numpy(dtype=int)
    return {
        "images": len(rows),
        "defects": int(labels.sum()),
        **rank_metrics(labels, rows["raw"].to_numpy()),
        **pixel_metrics(masked_maps(rows, maps, resolve(data.root), load_roi(data))),
        **{name: costs.get(name) for name in FOLD_COSTS},
    }


def measure_folds(tables: RunTables) -> pd.DataFrame:
    """measure_fold of every fold out of fold, a row each, indexed by fold."""
    figures = {
        fold: measure_fold(rows, tables.maps[fold], tables.costs[fold], tables.config.data)
        for fold, rows in tables.oof.groupby("fold")
    }
    return pd.DataFrame.from_dict(figures, orient="index").rename_axis("fold")


# --- the page ----------------------------------------------------------------------------------------------


def build_run_report(tables: RunTables) -> str:
    """The page as HTML."""
    config = tables.config
    expected = estimate(tables.oof, config.threshold)
    folds = measure_folds(tables)
    dice = measure_dice(config.data, tables.class_oof, tables.maps)
    decision = describe_decision(expected) + describe_share(config.threshold)
    sections = [
        html.PageSection("Decision", [html.Text(decision)]),
        build_claims_section(config, tables.claims),
    ]
    if dice is not None:
        dice_blocks = [html.Text(DICE), html.Table(build_dice_table(dice))]
        sections.append(html.PageSection("Dice", dice_blocks))
    sections.append(html.PageSection("Folds", [html.Table(build_fold_table(folds))]))
    if has_normal(expected):
        score_charts = html.Charts(draw_score_charts(tables.oof, expected))
        sections.append(html.PageSection("Scores and errors", [html.Text(DEFECT_SCORE), score_charts]))
    if dice is not None:
        mask_cards = draw_mask_cards(config.data, tables.class_oof, tables.maps, dice)
        if mask_cards:
            sections.append(html.PageSection("Masks of each class", [html.Text(MASKS), *mask_cards]))
    epoch_charts = draw_training_charts(tables.histories)
    epochs = [html.Text(TRAINING), html.Charts(epoch_charts)] if epoch_charts else [html.Text(NO_EPOCHS)]
    sections += [
        html.PageSection("Gallery", draw_gallery(tables, expected["score_threshold"])),
        html.PageSection("Training samples", draw_training_samples(tables.samples)),
        html.PageSection("Training", epochs),
    ]
    subtitle = (
        f"{config.model.name} on {config.data.name}: {expected['images']:,} out-of-fold images, "
        f"{expected['defects']:,} defective; folds {', '.join(expected['folds'])}"
    )
    return html.build_page(config.experiment, subtitle, sections, list_key_figures(expected, folds, dice))


def has_normal(expected: dict) -> bool:
    """Whether there are normal images in evaluation.estimate's result."""
    return expected["defects"] < expected["images"]


def describe_decision(expected: dict) -> str:
    """What the threshold does to the out-of-fold images, in sentences."""
    if not has_normal(expected):
        return ONE_LABEL
    (passed, rejected), (missed, detected) = expected["confusion_matrix"]
    rule = describe_rule(expected["rule"], expected["fpr"], expected["costs"])
    text = (
        f"The threshold ({rule}) is a probability of "
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
    has_own_share = threshold.rule == "expected_cost" and threshold.costs.defect_share is not None
    if threshold.prior == "train" or threshold.rule == "expected_fpr" or has_own_share:
        return ""
    return (
        " All of this is at the training share of defects; a submission takes the threshold for the share "
        "that is estimated from the test scores (threshold.prior), and src/infer.py prints both."
    )


def list_key_figures(expected: dict, folds: pd.DataFrame, dice: pd.DataFrame | None) -> list[html.KeyFigure]:
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
        error_rate = html.format_number(expected["equal_error_rate"], ".1%")
        figures += [
            html.KeyFigure(
                "expected macro-F1 (nested CV)", html.format_number(expected["nested_macro_f1"]), note
            ),
            html.KeyFigure("AUROC", html.format_number(expected["auroc"]), common),
            html.KeyFigure("average precision", html.format_number(expected["average_precision"]), common),
            html.KeyFigure("equal error rate", error_rate, "missed = wrongly rejected"),
        ]
    if dice is not None:
        note = "out of fold, untuned rule"
        not_empty = dice.loc[~dice["empty"], "dice"]
        figures.append(html.KeyFigure("Dice, all pairs", html.format_number(dice["dice"].mean()), note))
        figures.append(html.KeyFigure("Dice, not empty", html.format_number(not_empty.mean()), note))
    for name in ("pixel_auroc", "aupro"):
        values = folds[name].dropna().astype(float)
        if len(values):
            title, form = FOLD_COLUMNS[name]
            figures.append(
                html.KeyFigure(title, html.format_number(values.mean(), form), f"mean of {len(values)} folds")
            )
    return figures


def build_fold_table(folds: pd.DataFrame) -> pd.DataFrame:
    """Figures of each fold as texts; columns without any left out."""
    columns = {}
    for name, (title, form) in FOLD_COLUMNS.items():
        if folds[name].notna().any():
            columns[title] = [html.format_number(value, form) for value in folds[name]]
    return pd.DataFrame(columns, index=folds.index)


def draw_gallery(tables: RunTables, threshold: float) -> list[html.Block]:
    """The worst images of each class and its clearest, by the `threshold` in log-odds."""
    config = tables.config
    limits = fit_limits(tables.oof, tables.maps, config.threshold.fpr, load_roi(config.data))
    blocks: list[html.Block] = [html.Text(GALLERY)]
    if limits:
        blocks.append(draw_legend())
    for label in (1, 0):
        of_class = tables.oof[tables.oof["label"] == label].sort_values("score", ascending=label == 1)
        parts = (of_class[:WORST], of_class[WORST:][-CLEAREST:][::-1])
        for title, rows in zip(GALLERY_TITLES[label], parts, strict=True):
            if len(rows):
                cards = [draw_image_card(tables, row, limits, threshold) for row in rows.to_dict("records")]
                blocks.append(html.Cards(f"{title} ({len(rows)} of {len(of_class):,})", cards))
    return blocks


def draw_image_card(tables: RunTables, row: Row, limits: MapLimits, threshold: float) -> html.Card:
    """An out-of-fold image with its score by the `threshold` (log-odds), and its heat map if there is one."""
    name = Path(row["image_id"]).name
    tile = read_tile(tables.config.data, row)
    pictures = [html.embed_jpeg(mark_defects(tile, tables.config.data, row), name)]
    fold_maps = tables.maps[row["fold"]]
    if row["image_id"] in fold_maps:
        inside = read_inside(tables.config.data, row, tile.shape[:2])
        heat = draw_heat_tile(tile, fold_maps[row["image_id"]], limits[row["fold"]], inside)
        pictures.append(html.embed_jpeg(heat, f"heat map of {name}"))
    is_wrong = (row["score"] >= threshold) != (row["label"] == 1)
    score = compute_defect_scores(row["score"], threshold).item()
    text = f"score {format_defect_score(score)}, fold {row['fold']}"
    facts = [html.Fact(text, is_wrong)]
    if row["kind"]:
        facts.insert(0, html.Fact(row["kind"]))
    return html.Card(name, tuple(pictures), tuple(facts), row["image_id"])


def draw_training_samples(samples: bytes | None) -> list[html.Block]:
    """Images as training changed them, if it stored any."""
    if samples is None:
        return []
    image = cv2.imdecode(np.frombuffer(samples, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    source = f"data:image/png;base64,{b64encode(samples).decode()}"
    picture = html.Picture(source, width, height, "training samples")
    return [html.Text(SAMPLES_TEXT), html.Cards("", [html.Card("samples.png", (picture,))])]
