"""Mask submissions: members blended, maps made into masks by rules fitted out of fold, written as runs."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from defects.config import Config, resolve
from defects.data.fold_files import DataTables
from defects.data.images import resize
from defects.data.index import image_sizes, sample_ids
from defects.data.labels import read_masks
from defects.data.rle import encode
from defects.data.rle_table import Form, check_runs, read_rle_table, table_form, write_rle_table
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.dice import PAIR, dice_interval, mean_dice
from defects.evaluation.mask_fitting import Candidate, dice_under, fit_rules, measure_candidates, nested_dice
from defects.evaluation.mask_rules import Rule, to_mask
from defects.evaluation.pixels import Maps
from defects.evaluation.thresholds import Decision
from defects.files import sha256, write_json
from defects.messages import UserError
from defects.runs import OOF_MAPS, TEST_MAPS, Run, check_same_data
from defects.submission.answers import input_hashes, run_places, submission_settings


def build_mask_submission(runs: list[Run], tables: DataTables, path: Path) -> dict:
    """Blend the runs, fit the rules out of fold, write `path` in the form of the sample.

    Members that do not segment have their say in whether a class is there, those that do also in
    where. The rules are those fitted, if their nested Dice is above that of the default rule, else the
    latter: tuned thresholds overfit. Beside it both (<name>.tuned.csv, <name>.untuned.csv), and <name>.json:
    weights, rules, estimates, the decision of each file, sha256 of every file and input; its content is
    returned. Raises UserError if no member has maps.
    """
    config = runs[0].config
    order, form = expected_rows(config, tables.images)
    choice = choose_rules(runs, tables)
    images = order["image_id"].nunique()
    decisions = {rule: decide_masks(choice, rule, images) for rule in choice.rules}
    summary = {
        "data": config.data.name,
        "weights": {run.name: 1 / len(runs) for run in runs},
        "images": images,
        "rules": {name: rule._asdict() for name, rule in choice.rules["tuned"].items()},
        "chosen": choice.chosen,
        "decision": decisions[choice.chosen].to_json(),
        "decisions": {rule: decision.to_json() for rule, decision in decisions.items()},
        "estimate": choice.estimates,
        "adversarial": stored_comparison(config),
        "runs": run_places(runs),
        "settings": submission_settings(config),
        "inputs": input_hashes(runs, ("fold*/oof.csv", f"fold*/{OOF_MAPS}", "test.csv", f"*/{TEST_MAPS}")),
    }
    masks = _test_masks(runs, tables.images, order, list(choice.rules.values()))
    written = dict(zip(choice.rules, masks, strict=True))
    for name, table in written.items():
        write_rle_table(path.with_suffix(f".{name}.csv"), table, form)
    write_rle_table(path, written[summary["chosen"]], form)
    summary["sha256"] = sha256(path)
    summary["files"] = {name: sha256(path.with_suffix(f".{name}.csv")) for name in written}
    write_json(path.with_suffix(".json"), summary)
    return summary


class RuleChoice(NamedTuple):
    """What the out-of-fold maps say of the mask rules `tuned` and `untuned`, and which of them is `chosen`.

    `rules` by class. `scored`: the Dice of every image and class, of the tuned rules with those fitted on the
    other folds, None for a single fold. `estimates` are means of it. `groups` of siblings and `has_defect`
    are by image_id.
    """

    rules: dict[str, dict[str, Rule]]
    chosen: str
    scored: dict[str, pd.DataFrame | None]
    estimates: dict[str, dict | None]
    groups: pd.Series
    has_defect: pd.Series


def choose_rules(runs: list[Run], tables: DataTables) -> RuleChoice:
    """Fit the mask rules of a blend on its out-of-fold maps; chosen if their nested Dice beats the untuned.

    Raises UserError if no member has maps.
    """
    check_same_data(runs)
    classes = runs[0].config.data.classes
    oof = {run.name: run.load_oof(tables.folds, tuple(classes)) for run in runs}
    outcomes = measure_candidates(candidates(runs, oof, tables.images))
    rules = {"tuned": fit_rules(outcomes), "untuned": dict.fromkeys(classes, Rule())}
    scored = {"tuned": nested_dice(outcomes), "untuned": dice_under(outcomes, rules["untuned"])}
    estimates = {
        "untuned": mean_dice(scored["untuned"]),
        "tuned_nested": None if scored["tuned"] is None else mean_dice(scored["tuned"]),
        "tuned_optimistic": mean_dice(dice_under(outcomes, rules["tuned"])),
    }
    is_better = scored["tuned"] is not None and (
        estimates["tuned_nested"]["dice"] > estimates["untuned"]["dice"]
    )
    groups = next(iter(oof.values())).drop_duplicates("image_id").set_index("image_id")["group"]
    has_defect = outcomes.groupby("image_id")["empty"].min() == 0
    return RuleChoice(rules, "tuned" if is_better else "untuned", scored, estimates, groups, has_defect)


def decide_masks(choice: RuleChoice, rule: str, new_images: int) -> Decision:
    """The decision to submit the masks of a rule (tuned, untuned), for the training share of defects."""
    scored = choice.scored[rule]
    expected_score = None
    interval_90 = None
    if scored is not None:
        expected_score = float(scored["dice"].mean())
        interval_90 = dice_interval(scored, choice.groups, new_images)
    return Decision(
        metric="Dice",
        rule=rule,
        prior="train",
        share=float(choice.has_defect.mean()),
        threshold=None,
        score_threshold=None,
        called_defective=None,
        expected_score=expected_score,
        interval_90=interval_90,
    )


def expected_rows(config: Config, images: pd.DataFrame) -> tuple[pd.DataFrame, Form]:
    """image_id, target, written_id of every row to be submitted, as the sample lists them, and its form.

    `written_id` is the image's id in the sample, which may lack the suffix.

    Without a sample every test image with every class, by id. Raises UserError if the sample is of other
    images than the test images.
    """
    classes = config.data.classes
    if config.data.sample_submission is None:
        ids = images.loc[images["split"] == "test", "image_id"]
        pairs = pd.DataFrame(product(ids, classes), columns=PAIR)
        return pairs.assign(written_id=pairs["image_id"]), "joined"
    image_of = {written: image for image, written in sample_ids(config.data, images).items()}
    sample = resolve(config.data.root) / config.data.sample_submission
    pairs = read_rle_table(sample, classes)[PAIR]
    image_ids = pairs["image_id"].map(image_of).astype("str")
    return pairs.assign(image_id=image_ids, written_id=pairs["image_id"]), table_form(sample)


def check_masks(config: Config, images: pd.DataFrame, path: Path) -> None:
    """UserError unless `path` has the rows to be submitted, in order, each with a mask of its image."""
    rows, form = expected_rows(config, images)
    table = read_rle_table(path, config.data.classes)
    expected = rows[PAIR].assign(image_id=rows["written_id"])
    if table_form(path) != form or not table[PAIR].reset_index(drop=True).equals(expected):
        found, wanted = (set(each.itertuples(index=False, name=None)) for each in (table[PAIR], expected))
        missing, extra = (sorted(map("_".join, rows))[:3] for rows in (wanted - found, found - wanted))
        raise UserError(
            f"{path}: its rows differ from the sample's (missing {missing}, unknown {extra}, or order, or "
            "columns): run src/ensemble.py again"
        )
    check_runs(table.assign(image_id=rows["image_id"]), image_sizes(images), path)


def candidates(runs: list[Run], oof: dict[str, pd.DataFrame], images: pd.DataFrame) -> Iterator[Candidate]:
    """Every image and class of the out-of-fold rows: its blended label and map, and the truth.

    `oof` holds the rows of each run by its name, `images` is images.csv.
    """
    config = runs[0].config
    classes, root = config.data.classes, resolve(config.data.root)
    blend = MapBlend(runs, oof, OOF_MAPS)
    folds = next(iter(oof.values())).drop_duplicates("image_id").set_index("image_id")["fold"]
    rows = images.set_index("image_id", drop=False).loc[folds.index].to_dict("records")
    for row in tqdm(rows, "masks of the folds", leave=False, disable=None):
        image_id, maps = row["image_id"], blend.maps(row["image_id"])
        masks = read_masks(row, root, classes)
        nothing = np.zeros((row["height"], row["width"]), bool)
        for index, name in enumerate(classes):
            truth = nothing if masks is None else masks[..., index] > 0
            yield Candidate(image_id, name, folds[image_id], blend.labels[image_id, name], maps[index], truth)


def _test_masks(
    runs: list[Run], images: pd.DataFrame, order: pd.DataFrame, choices: list[dict[str, Rule]]
) -> list[pd.DataFrame]:
    """For each choice of rules: image_id, target, run-length masks of the test images, in the given order."""
    classes = runs[0].config.data.classes
    scored = {run.name: run.load_test_scores(tuple(classes)) for run in runs}
    blend = MapBlend(runs, scored, TEST_MAPS)
    test = images[images["split"] == "test"].to_dict("records")
    found = [{} for _ in choices]
    for row in tqdm(test, "masks of the test images", leave=False, disable=None):
        image_id, size, maps = row["image_id"], (row["height"], row["width"]), blend.maps(row["image_id"])
        for index, name in enumerate(classes):
            label = blend.labels[image_id, name]
            for masks, rules in zip(found, choices, strict=True):
                masks[image_id, name] = encode(to_mask(maps[index], label, size, rules[name]))
    keys = list(order[PAIR].itertuples(index=False, name=None))
    return [order.assign(runs=[masks[key] for key in keys]) for masks in found]


class MapBlend:
    """What several runs say of the same images, averaged over their models and then over the runs.

    `labels`: probability by (image_id, target). Raises UserError if the runs answer for other images, or
    if none has maps.
    """

    def __init__(self, runs: list[Run], tables: dict[str, pd.DataFrame], file: str):
        parts = tables.items()
        blind = [name for name, part in parts if part.empty]
        if blind:
            raise UserError(f"{', '.join(blind)} tells no classes apart: leave it out")
        means = pd.concat({name: part.groupby(PAIR)["probability"].mean() for name, part in parts}, axis=1)
        lacking = means.index[means.isna().any(axis=1)]
        if len(lacking):
            raise UserError(
                f"{', '.join(tables)} scored different images or classes ({len(lacking)}, such "
                f"as {lacking[0]}): train and infer all of them on the same data and folds"
            )
        self.labels = means.mean(axis=1)
        archives = [
            [Maps(run.fold_folder(fold) / file) for fold in sorted(set(tables[run.name]["fold"]))]
            for run in runs
        ]
        self.archives = [maps for maps in archives if any(each.segment for each in maps)]
        if not self.archives:
            raise UserError(f"{', '.join(tables)}: no maps to make masks of; name a segmenter's run too")

    def maps(self, image_id: str) -> np.ndarray:
        """float32 [K, h, w], at the resolution of the finest."""
        held = [[maps for maps in each if image_id in maps] for each in self.archives]
        return _mean(_mean(maps.of_classes(image_id) for maps in each) for each in held)


def _mean(maps: Iterator[np.ndarray]) -> np.ndarray:
    """Of maps [K, h, w] of several resolutions."""
    maps = [each.astype(np.float32) for each in maps]
    size = max((each.shape[1:] for each in maps), key=np.prod)
    return np.mean([[resize(plane, size) for plane in each] for each in maps], axis=0)
