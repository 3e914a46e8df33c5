"""Figures of several experiments on one data set, or on its categories, side by side.

Everything measured is kept in one long table, a row for each fold, seed and metric, from which means and
spreads are taken. Experiments that differ in their seeds alone count as one.
"""

from collections.abc import Callable, Iterator

import pandas as pd

from defects.config import Config, known_config_files, resolve, with_model
from defects.data.fold_files import DataTables
from defects.evaluation.estimate import aligned_oof, estimate, without_seeds
from defects.evaluation.outcome import load_answers, outcome
from defects.evaluation.pixels import Maps
from defects.evaluation.scales import experiment_scores
from defects.evaluation.thresholds import choose_submitted_threshold
from defects.messages import UserError, shorten_names
from defects.reports.mask_report import measure_dice
from defects.reports.run_tables import measure_fold
from defects.runs import OOF_MAPS, TEST_MAPS, Run

ACCURACY = ["auroc", "average_precision", "pixel_auroc", "aupro"]  # of one model
COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb"]
OUTCOME = ["auroc", "average_precision", "macro_f1", "macro_f1_at_training_share"]  # of all models together
POOLED = "all"  # in place of a fold
COLUMNS = ["experiment", "category", "detector", "setting", "device", "source", "fold", "metric", "value"]

Value = tuple[str, str, float | None]  # fold, metric, value


def group_by_category(runs: list[Run]) -> list[list[Run]]:
    """The runs of one data set, or of each of its categories. UserError for runs on several data sets."""
    names = list(dict.fromkeys(run.config.data.whole_name for run in runs))
    if len(names) > 1:
        raise UserError(f"the runs are trained on {shorten_names(names)}: compare those on one data set")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.config.data.name, []).append(run)
    return list(groups.values())


def measure_runs(
    groups: list[list[Run]], load_tables: Callable[[Config], DataTables], test: bool = False
) -> pd.DataFrame:
    """The long table, COLUMNS; `source` is the run's name. Runs of a group are trained on the same images.

    With `test` the answer key of the test images is read. Raises UserError for runs that belong to other
    data.
    """
    rows = []
    for runs in groups:
        tables = load_tables(runs[0].config)
        names: dict[str, str] = {}  # of the first run of each configuration
        for run in runs:
            config = run.config
            category = config.data.category or ""
            name = run.name.removesuffix(f"_{category}") if category else run.name
            shown = names.setdefault(without_seeds(config), name)
            device = run.read_costs(run.trained_folds()[0]).get("device", "")
            about = (shown, category, config.model.name, describe_setting(config), device, run.name)
            rows += [(*about, *value) for value in measure_one(run, tables, test)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def measure_one(run: Run, tables: DataTables, test: bool) -> Iterator[Value]:
    """All figures of a run: of each fold, and of the folds together."""
    oof = aligned_oof(run, tables)
    yield from _measure_folds(run, oof, OOF_MAPS, ACCURACY + COSTS)
    yield from _measure_masks(run, tables.images)
    settings = run.config.threshold
    expected = estimate(oof, settings.rule, settings.fpr)
    if expected["defects"] < expected["images"]:  # or there is no macro-F1
        yield POOLED, "macro_f1", expected["nested_macro_f1"]
        if expected["interval_90"] is not None:
            low, high = expected["interval_90"]
            yield POOLED, "macro_f1_low", low
            yield POOLED, "macro_f1_high", high
    if test:
        yield from _measure_test(run, tables.images, oof, expected)


def _measure_folds(
    run: Run, rows: pd.DataFrame, maps_file: str, metrics: list[str], prefix: str = ""
) -> Iterator[Value]:
    """Of each fold's model on its `rows` (label, raw, fold, and those of images.csv)."""
    root = resolve(run.config.data.root)
    for fold, of_fold in rows.groupby("fold"):
        maps = Maps(run.fold_folder(fold) / maps_file)
        figures = measure_fold(of_fold, maps, run.read_costs(fold), root)
        for name in metrics:
            yield fold, prefix + name, figures[name]


def _measure_masks(run: Run, images: pd.DataFrame) -> Iterator[Value]:
    """Dice of each fold by the untuned rule, over all pairs of image and class and over those not empty."""
    data = run.config.data
    rows = run.read_oof()
    rows = rows[rows["target"].isin(data.classes)]
    if rows.empty:
        return
    rows = rows.merge(images.drop(columns="label"), on="image_id")
    maps = {fold: Maps(run.fold_folder(fold) / OOF_MAPS) for fold in rows["fold"].unique()}
    dice = measure_dice(data, rows, maps)
    if dice is None:
        return
    for fold, part in dice.groupby("fold"):
        yield fold, "dice", part["dice"].mean()
        yield fold, "dice_non_empty", part.loc[~part["empty"], "dice"].mean()


def _measure_test(run: Run, images: pd.DataFrame, oof: pd.DataFrame, expected: dict) -> Iterator[Value]:
    """`test_…`: of all models averaged, as submitted; `test_model_…`: of each model alone.

    At the training share of defects, macro-F1 is that of the threshold for this share, whatever is submitted.
    """
    scored = run.load_test_scores()
    share = float(images.loc[images["split"] == "train", "label"].astype(float).mean())
    answers = load_answers(run.config, images)
    known = scored.rename(columns={"score": "raw"}).merge(answers, on="image_id", how="left")
    if known["label"].isna().any():
        lacking = known.loc[known["label"].isna(), "image_id"].nunique()
        raise UserError(f"{run.name}: the answer key lacks {lacking} of its test images")
    sized = known.merge(images[["image_id", "width", "height"]], on="image_id")
    yield from _measure_folds(run, sized, TEST_MAPS, ACCURACY, "test_model_")
    scores = experiment_scores(oof, scored)[1]
    table = known.drop_duplicates("image_id").set_index("image_id")[["label"]].assign(score=scores)
    labels = oof["label"].to_numpy(dtype=int)
    threshold = choose_submitted_threshold(
        labels, oof["score"].to_numpy(), scores.to_numpy(), run.config.threshold
    )
    table["answer"] = (table["score"] >= threshold).astype(int)
    plain = table.assign(answer=(table["score"] >= expected["score_threshold"]).astype(int))
    at_share = outcome(plain, share)["macro_f1_at_training_share"]
    figures = outcome(table, share) | {"macro_f1_at_training_share": at_share}
    for name in OUTCOME:
        yield POOLED, f"test_{name}", figures[name]


def describe_setting(config: Config) -> str:
    """`published` or `reduced` if the run is set as a file of configs/models says, `own` otherwise."""
    for name in known_config_files("models"):
        try:
            shipped = with_model(config, name)
        except UserError:  # not every model suits every data set
            continue
        if _method(shipped) == _method(config):
            return "reduced" if name.endswith(("_reduced", "_tiny")) else "published"
    return "own"


def _method(config: Config) -> dict:
    """What makes a detector what it is: not its seed, nor where its weights lie, nor the machine."""
    values = config.model_dump(mode="json", include={"model", "train", "augment"})
    for key in ("seed", "workers", "precision", "channels_last", "save_every"):
        del values["train"][key]
    values["model"]["options"].pop("teacher", None)
    if values["model"]["backbone"]:
        del values["model"]["backbone"]["weights"]
    return values | {"image_size": list(config.data.image_size)}
