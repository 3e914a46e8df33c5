"""Figures of several experiments on one data set, or on its categories, side by side.

Everything measured is kept in one long table, a row for each fold, seed and metric, from which means and
spreads are taken. Experiments that differ in their seeds alone count as one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from defects.config import Config, known_detectors, resolve, validate, with_detector
from defects.data.prepare import load_images
from defects.errors import UserError
from defects.files import read_json
from defects.reports.mask_report import measure_dice
from defects.reports.run_tables import measure_fold
from defects.scoring.answers import load_answers
from defects.scoring.blending import experiment_scores
from defects.scoring.decision import submitted_prior
from defects.scoring.estimate import estimate
from defects.scoring.outcome import outcome
from defects.scoring.pixels import Maps
from defects.scoring.prior_shift import prior_shift
from defects.scoring.thresholds import choose_threshold
from defects.training.experiments import aligned_oof, oof_rows, run_config, without_seeds
from defects.training.inference import load_test
from defects.training.run import OOF_MAPS, TEST_MAPS, run_folder, trained_folds

ACCURACY = ["auroc", "average_precision", "pixel_auroc", "aupro"]  # of one model
COSTS = ["fit_seconds", "score_images_per_second", "peak_memory_mb", "model_mb"]
OUTCOME = ["auroc", "average_precision", "macro_f1", "macro_f1_at_training_share"]  # of all models together
POOLED = "all"  # in place of a fold
COLUMNS = ["experiment", "category", "detector", "setting", "device", "source", "fold", "metric", "value"]

Value = tuple[str, str, float | None]  # fold, metric, value


@dataclass
class Study:
    """Experiments on one data set, or on one category of it: then its name and theirs end with `ending`."""

    config: Config
    experiments: list[str]
    category: str = ""

    @property
    def ending(self) -> str:
        return f"_{self.category}" if self.category else ""

    @property
    def data_name(self) -> str:
        """Of the data set as a whole."""
        return self.config.data.name.removesuffix(self.ending)


def measure(studies: list[Study], test: bool = False) -> pd.DataFrame:
    """The long table, COLUMNS; `source` is the run folder.

    With `test` the answer key of the test images is read. Raises UserError for experiments that are not
    trained or belong to other data.
    """
    rows = []
    for study in studies:
        names: dict[str, str] = {}  # of the first experiment of each configuration
        for name in dict.fromkeys(study.experiments):
            loaded = run_config(study.config, name)
            shown = names.setdefault(without_seeds(loaded), name.removesuffix(study.ending))
            run = study.config.model_copy(update={"experiment": name, "split": loaded.split})
            about = (shown, study.category, loaded.model.name, setting(loaded), device(run), name)
            rows += [(*about, *value) for value in measure_one(run, test)]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def measure_one(run: Config, test: bool) -> Iterator[Value]:
    """All figures of an experiment: of each fold, and of the folds together."""
    oof = aligned_oof(run)
    yield from _measure_folds(run, oof, OOF_MAPS, ACCURACY + COSTS)
    yield from _measure_masks(run)
    expected = estimate(oof, run.threshold.rule, run.threshold.fpr)
    if expected["defects"] < expected["images"]:  # or there is no macro-F1
        yield POOLED, "macro_f1", expected["nested_macro_f1"]
        if expected["interval_90"] is not None:
            low, high = expected["interval_90"]
            yield POOLED, "macro_f1_low", low
            yield POOLED, "macro_f1_high", high
    if test:
        yield from _measure_test(run, oof, expected)


def _measure_folds(
    run: Config, rows: pd.DataFrame, maps_file: str, metrics: list[str], prefix: str = ""
) -> Iterator[Value]:
    """Of each fold's model on its `rows` (label, raw, fold, and those of images.csv)."""
    root = resolve(run.data.root)
    for fold, of_fold in rows.groupby("fold"):
        folder = run_folder(run, fold)
        costs = read_json(folder / "costs.json") or {}
        figures = measure_fold(of_fold, Maps(folder / maps_file), costs, root)
        for name in metrics:
            yield fold, prefix + name, figures[name]


def _measure_masks(run: Config) -> Iterator[Value]:
    """Dice of each fold by the untuned rule, over all pairs of image and class and over those not empty."""
    rows = oof_rows(run)
    rows = rows[rows["target"].isin(run.data.classes)]
    if rows.empty:
        return
    rows = rows.merge(load_images(run).drop(columns="label"), on="image_id")
    maps = {fold: Maps(run_folder(run, fold) / OOF_MAPS) for fold in rows["fold"].unique()}
    dice = measure_dice(run.data, rows, maps)
    if dice is None:
        return
    for fold, part in dice.groupby("fold"):
        yield fold, "dice", part["dice"].mean()
        yield fold, "dice_non_empty", part.loc[~part["empty"], "dice"].mean()


def _measure_test(run: Config, oof: pd.DataFrame, expected: dict) -> Iterator[Value]:
    """`test_…`: of all models averaged, as submitted; `test_model_…`: of each model alone.

    At the training share of defects, macro-F1 is that of the threshold for this share, whatever is submitted.
    """
    images = load_images(run)
    scored = load_test(run)
    share = float(images.loc[images["split"] == "train", "label"].astype(float).mean())
    known = scored.rename(columns={"score": "raw"}).merge(load_answers(run), on="image_id", how="left")
    if known["label"].isna().any():
        lacking = known.loc[known["label"].isna(), "image_id"].nunique()
        raise UserError(f"{run.experiment}: the answer key lacks {lacking} of its test images")
    sized = known.merge(images[["image_id", "width", "height"]], on="image_id")
    yield from _measure_folds(run, sized, TEST_MAPS, ACCURACY, "test_model_")
    scores = experiment_scores(oof, scored)[1]
    table = known.drop_duplicates("image_id").set_index("image_id")[["label"]].assign(score=scores)
    table["answer"] = (table["score"] >= submitted_threshold(run, oof, scores)).astype(int)
    plain = table.assign(answer=(table["score"] >= expected["score_threshold"]).astype(int))
    at_share = outcome(plain, share)["macro_f1_at_training_share"]
    figures = outcome(table, share) | {"macro_f1_at_training_share": at_share}
    for name in OUTCOME:
        yield POOLED, f"test_{name}", figures[name]


def submitted_threshold(run: Config, oof: pd.DataFrame, new_scores: pd.Series) -> float:
    """The threshold of a submission, as log-odds, for the share of defects by `threshold.prior`."""
    labels, scores = oof["label"].to_numpy(dtype=int), oof["score"].to_numpy()
    rule = run.threshold.rule, run.threshold.fpr
    share = None
    if run.threshold.prior == "estimated":
        prior = prior_shift(labels, scores, new_scores.to_numpy(), *rule)
        if submitted_prior(run.threshold, prior) == "estimated":
            share = prior["estimated_share"]
    return choose_threshold(labels, scores, *rule, share)


def setting(run: Config) -> str:
    """`published` or `reduced` if `run` is set as a file of configs/detectors says, `own` otherwise."""
    values = run.model_dump(mode="json")
    for name in known_detectors():
        if _method(validate(Config, with_detector(values, name), name)) == _method(run):
            return "reduced" if name.endswith("_reduced") else "published"
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


def device(run: Config) -> str:
    """What the first fold was fitted on, where that is known."""
    costs = read_json(run_folder(run, trained_folds(run)[0]) / "costs.json")
    return (costs or {}).get("device", "")
