"""The section "What may be claimed" of a page: bounds of errors, detectable sizes, costs, more defects."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from defects.config_schema import Config, resolve
from defects.data.roi import load_roi
from defects.evaluation.claim_records import (
    Claims,
    RateBound,
    describe_sample_sizes,
    format_bound,
    format_confidence,
)
from defects.evaluation.detection_by_size import (
    ADVISED_IMAGES,
    DetectionCurve,
    convert_sizes,
    fit_detection_curves,
    format_size,
    measure_defect_sizes,
)
from defects.evaluation.fewer_defects import METRICS, describe_gains, load_learning_curve
from defects.evaluation.thresholds import choose_threshold
from defects.reports import html
from defects.reports.charts import draw_panel
from defects.reports.claims_charts import (
    MEASURE_NAMES,
    draw_detection_curve,
    draw_expected_cost,
    draw_learning_curve,
)

TITLE = "What may be claimed"
METHOD = (
    "Out of fold, by thresholds of the other folds. Bounds are exact binomial ones (Clopper and Pearson) for "
    "as many independent images as the images are worth: siblings err alike, and the threshold was chosen "
    "from the same images."
)
SIZES = (
    "Size is that of the largest defect of an image, measured on its mask in the original image; an image "
    "counts once. a50 and a90 are detected with a probability of 50 % and 90 %; a90/95 is the size from "
    "which it is at least 90 % with 95 % confidence (logistic regression over the logarithm of the size, as "
    "in MIL-HDBK-1823A, by Firth's penalised likelihood and its profile)."
)
FEWER = (
    "The detector above was not trained again for this: a cheap one shows how much the number of defects "
    "matters ({classifier}). All images count, whichever defects were learnt from."
)
NO_LEARNING_CURVE = (
    "How much would more defects help? python src/learning_curve.py --data {name} measures it in minutes, "
    "and this page then shows it."
)
SINGLE_FOLD = "With a single fold nothing can be said of sizes: its threshold was chosen on the same images."


@dataclass(frozen=True)
class ClaimTables:
    """What the section is drawn from. Arrays [N] are of out-of-fold images.

    `sizes` are those of measure_defect_sizes, in pixels, NaN for normal images; `nested` 0/1 is None for a
    single fold; `learning_curve` is None where there is none.
    """

    claims: Claims
    labels: np.ndarray
    scores: np.ndarray  # log-odds
    nested: np.ndarray | None
    groups: np.ndarray
    sizes: pd.DataFrame
    learning_curve: dict[str, Any] | None


def load_claim_tables(
    config: Config, images: pd.DataFrame, scores: np.ndarray, nested: np.ndarray | None, claims: Claims
) -> ClaimTables:
    """`images`: rows of images.csv with label and group, out of fold; reads the masks of defects."""
    labels = images["label"].to_numpy(dtype=int)
    root = resolve(config.data.root)
    sizes = measure_defect_sizes(images[labels == 1], root, load_roi(config.data)).reindex(images.index)
    return ClaimTables(
        claims=claims,
        labels=labels,
        scores=np.asarray(scores, dtype=float),
        nested=nested,
        groups=images["group"].to_numpy(),
        sizes=sizes,
        learning_curve=load_learning_curve(config),
    )


def build_claims_section(config: Config, tables: ClaimTables) -> html.PageSection:
    """The sentence, tables of bounds and of needed images, sizes, costs and the learning curve."""
    claims = tables.claims
    blocks: list[html.Block] = [html.Text(start_with_capital(f"{claims.sentence}."))]
    statements = [f"It holds {limit}." for limit in claims.limits]
    if claims.comparison is not None:
        statements.append(start_with_capital(claims.comparison))
    if statements:
        blocks.append(html.Lines(statements))
    bounds = build_bound_table(claims)
    if len(bounds):
        blocks += [html.Text(METHOD), html.Table(bounds)]
    blocks += [
        html.Text(start_with_capital(f"{describe_sample_sizes(claims.sample_sizes)}. In all:")),
        html.Table(build_needed_table(claims)),
    ]
    blocks += draw_defect_sizes(config, tables)
    blocks += draw_costs(config, tables)
    blocks += draw_fewer_defects(config, tables)
    return html.PageSection(TITLE, blocks)


def start_with_capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def build_bound_table(claims: Claims) -> pd.DataFrame:
    """Texts, a row for each kind of error; empty where nothing is claimed."""
    bounds: dict[str, RateBound | None] = {"escapes": claims.escape}
    bounds |= {f"escapes: {kind}": bound for kind, bound in claims.by_kind.items()}
    for name, of_class in claims.by_class.items():
        bounds[f"escapes: {name}"] = of_class.escape
    bounds["false alarms"] = claims.false_alarm
    for name, of_class in claims.by_class.items():
        bounds[f"false alarms: {name}"] = of_class.false_alarm
    rows = {}
    for name, bound in bounds.items():
        if bound is not None:
            rows[name] = {
                "decided wrongly": f"{bound.errors:,} of {bound.images:,}",
                "share": html.format_number(bound.rate, ".1%"),
                "independent images": f"{bound.independent_images:,.1f}",
                f"at most, {format_confidence(claims.confidence)} confidence": format_bound(bound.upper),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def build_needed_table(claims: Claims) -> pd.DataFrame:
    """Texts: independent images that support the rates to be claimed, by how many are decided wrongly."""
    sizes = claims.sample_sizes
    rows = {}
    for needed in sizes.needed:
        rows[f"{needed.errors} decided wrongly"] = {
            f"defects for at most {100 * sizes.escape:g} % escapes": f"{needed.defects:,}",
            f"normal images for at most {100 * sizes.false_alarm:g} % false alarms": f"{needed.normal:,}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


# --- detection by size -------------------------------------------------------------------------------------


def draw_defect_sizes(config: Config, tables: ClaimTables) -> list[html.Block]:
    """A table of detectable sizes with what cannot be said, and the curves; nothing without defects."""
    is_defect = tables.labels == 1
    if not is_defect.any():
        return []
    if tables.nested is None:
        return [html.Text(SINGLE_FOLD)]
    detected = tables.nested[is_defect] == 1
    pixel_size = config.data.pixel_size_mm
    sizes = tables.sizes[is_defect]
    curves = fit_detection_curves(sizes, detected, tables.groups[is_defect], pixel_size)
    if all(curve.images == 0 for curve in curves):
        return [html.Text(f"Detection by size cannot be said: {curves[0].reasons['curve']}.")]
    blocks: list[html.Block] = [html.Text(SIZES), html.Table(build_size_table(curves))]
    notes = list_size_notes(curves)
    if notes:
        blocks.append(html.Lines(notes))
    charts = []
    in_units = convert_sizes(sizes, pixel_size)
    for curve in curves:
        if curve.log_odds is not None:
            values = in_units[curve.measure].to_numpy()
            panel = partial(draw_detection_curve, curve=curve, sizes=values, detected=detected)
            charts.append(draw_panel(panel))
    return [*blocks, html.Charts(charts)] if charts else blocks


def build_size_table(curves: list[DetectionCurve]) -> pd.DataFrame:
    """Texts, a row for each measure of size."""
    rows = {}
    for curve in curves:
        row = {
            "defects with masks": f"{curve.images:,}",
            "detected": f"{curve.detected:,}",
            "sizes": f"{format_size(curve.smallest, curve.unit)} to {format_size(curve.largest, curve.unit)}",
        }
        for name, size in (("a50", curve.a50), ("a90", curve.a90), ("a90_95", curve.a90_95)):
            text = "cannot be said" if size is None else format_size(size, curve.unit)
            is_bound = size is not None and name in curve.reasons  # that of the smallest defect
            row[name.replace("_", "/")] = f"at most {text}" if is_bound else text
        rows[MEASURE_NAMES[curve.measure]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def list_size_notes(curves: list[DetectionCurve]) -> list[str]:
    """Why a size cannot be said, which defects are left out, and whether there are few."""
    notes = []
    for curve in curves:
        names_by_reason: dict[str, list[str]] = {}
        for name, reason in curve.reasons.items():
            names_by_reason.setdefault(reason, []).append(name.replace("_", "/"))
        for reason, names in names_by_reason.items():
            title = MEASURE_NAMES[curve.measure]
            if names != ["curve"]:
                title = f"{', '.join(names)} by {title}"
            notes.append(f"{title}: {reason}.")
    first = curves[0]
    if first.unmarked:
        notes.append(f"{first.unmarked:,} defects without a mask are left out.")
    if first.independent_images < ADVISED_IMAGES:
        notes.append(
            f"The defects with masks are worth {first.independent_images:.1f} independent images; "
            f"MIL-HDBK-1823A advises {ADVISED_IMAGES}."
        )
    return notes


# --- costs and more defects --------------------------------------------------------------------------------


def draw_costs(config: Config, tables: ClaimTables) -> list[html.Block]:
    """The curve of costs, where the threshold is chosen by it."""
    labels = tables.labels
    if config.threshold.rule != "expected_cost" or labels.all() or not labels.any():
        return []
    threshold = choose_threshold(labels, tables.scores, config.threshold)
    panel = partial(
        draw_expected_cost,
        labels=labels,
        scores=tables.scores,
        costs=config.threshold.costs,
        threshold=threshold,
    )
    return [html.Charts([draw_panel(panel)])]


def draw_fewer_defects(config: Config, tables: ClaimTables) -> list[html.Block]:
    """The learning curve; without one, how to get it."""
    labels = tables.labels
    if labels.all() or not labels.any():
        return []
    curve = tables.learning_curve
    if curve is None:
        return [html.Text(NO_LEARNING_CURVE.format(name=config.data.whole_name))]
    charts = [draw_panel(partial(draw_learning_curve, curve=curve, metric=metric)) for metric in METRICS]
    return [
        html.Text(FEWER.format(classifier=curve["classifier"])),
        html.Lines([f"{line}." for line in describe_gains(curve)]),
        html.Charts(charts),
    ]
