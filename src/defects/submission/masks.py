"""Mask submissions: members blended, maps made into masks by rules fitted out of fold, written as runs."""

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from defects.config_schema import Config, resolve
from defects.data.images import resize
from defects.data.index import image_sizes, sample_ids
from defects.data.labels import read_masks
from defects.data.rle import Form, check_runs, encode, read_rle_table, table_form, write_rle_table
from defects.data.roi import clear_plane, load_roi
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.decision import Decision
from defects.evaluation.mask_rules import Rule, make_mask
from defects.evaluation.metrics import PAIR, dice_interval, mean_dice
from defects.evaluation.pixels import Maps
from defects.evaluation.thresholds import fit_acceptance_threshold
from defects.files import sha256, write_json
from defects.messages import UserError
from defects.runs import OOF_MAPS, TEST_MAPS, Run
from defects.submission.mask_claims import state_mask_claims
from defects.submission.summary import input_hashes, run_places, submission_settings

PIXELS = (0.3, 0.4, 0.5, 0.6, 0.7)  # thresholds tried
COMPONENTS = (0.0, 0.0004, 0.0015)  # shares of the image tried
CHOICES = list(product(PIXELS, COMPONENTS))


def build_mask_submission(
    runs: list[Run],
    images: pd.DataFrame,
    oof: dict[str, pd.DataFrame],
    test: dict[str, pd.DataFrame],
    path: Path,
) -> dict:
    """Blend the runs, fit the rules out of fold, write `path` in the form of the sample.

    `images` is images.csv; `oof` and `test` have the scores of the classes by the name of the run. Members
    that do not segment count for whether a class is present, those that do also for where. The rules are
    those fitted, if their nested Dice is above that of the default rule, else the latter: tuned thresholds
    overfit. Also written are the masks by both (<name>.tuned.csv, <name>.untuned.csv), and <name>.json:
    weights, rules, estimates, the decision of each file, sha256 of every file and input; its content is
    returned. Raises UserError if no member has maps.
    """
    config = runs[0].config
    order, form = expected_rows(config, images)
    choice = choose_rules(runs, oof, images)
    image_count = order["image_id"].nunique()
    decisions = {rule: decide_masks(choice, rule, image_count) for rule in choice.rules}
    claims = {
        rule: state_mask_claims(config, choice.scored[rule], choice.of_images, choice.is_nested)
        for rule in choice.rules
    }
    summary = {
        "data": config.data.name,
        "weights": {run.name: 1 / len(runs) for run in runs},
        "images": image_count,
        "rules": {name: rule._asdict() for name, rule in choice.rules["tuned"].items()},
        "chosen": choice.chosen,
        "decision": decisions[choice.chosen].to_json(),
        "decisions": {rule: decision.to_json() for rule, decision in decisions.items()},
        "claims": {rule: claims.to_json() for rule, claims in claims.items()},
        "estimate": choice.estimates,
        "adversarial": stored_comparison(config),
        "runs": run_places(runs),
        "settings": submission_settings(config),
        "inputs": input_hashes(runs, ("*/oof.csv", f"*/{OOF_MAPS}", "test.csv", f"*/{TEST_MAPS}")),
    }
    masks = make_test_masks(runs, test, images, order, choice.rules)
    summary["files"] = {}
    for name, table in masks.items():
        file = path.with_suffix(f".{name}.csv")
        write_rle_table(file, table, form)
        summary["files"][name] = sha256(file)
    write_rle_table(path, masks[choice.chosen], form)
    summary["sha256"] = sha256(path)
    write_json(path.with_suffix(".json"), summary)
    return summary


class RuleChoice(NamedTuple):
    """What the out-of-fold maps say of the mask rules `tuned` and `untuned`, and which of them is `chosen`.

    `rules` by class. `scored`: the Dice of every image and class, of the tuned rules with those fitted on the
    other folds, None for a single fold. `estimates` are means of it. `of_images`: label (whether there is any
    defect), fold and group, by image_id.
    """

    rules: dict[str, dict[str, Rule]]
    chosen: str
    scored: dict[str, pd.DataFrame | None]
    estimates: dict[str, dict | None]
    of_images: pd.DataFrame

    @property
    def is_nested(self) -> bool:
        """Whether rules could be fitted on other folds."""
        return self.scored["tuned"] is not None


def choose_rules(runs: list[Run], oof: dict[str, pd.DataFrame], images: pd.DataFrame) -> RuleChoice:
    """Fit the mask rules of a blend on its out-of-fold maps; chosen if their nested Dice beats the untuned.

    `oof` has the out-of-fold rows of the classes by the name of the run, `images` is images.csv. Raises
    UserError if no member has maps.
    """
    outcomes = measure_candidates(read_candidates(runs, oof, images))
    rules = {"tuned": fit_rules(outcomes), "untuned": dict.fromkeys(runs[0].config.data.classes, Rule())}
    scored = {"tuned": nested_dice(outcomes), "untuned": dice_under(outcomes, rules["untuned"])}
    estimates = {
        "untuned": mean_dice(scored["untuned"]),
        "tuned_nested": None if scored["tuned"] is None else mean_dice(scored["tuned"]),
        "tuned_optimistic": mean_dice(dice_under(outcomes, rules["tuned"])),
    }
    is_better = scored["tuned"] is not None and (
        estimates["tuned_nested"]["dice"] > estimates["untuned"]["dice"]
    )
    of_images = next(iter(oof.values())).drop_duplicates("image_id").set_index("image_id")
    of_images = of_images[["fold", "group"]]
    of_images = of_images.assign(label=1 - outcomes.groupby("image_id")["empty"].min().astype(int))
    chosen = "tuned" if is_better else "untuned"
    return RuleChoice(rules, chosen, scored, estimates, of_images)


def decide_masks(choice: RuleChoice, rule: str, new_images: int) -> Decision:
    """The decision to submit the masks of a rule (tuned, untuned), for the training share of defects."""
    scored = choice.scored[rule]
    expected_score = None
    interval_90 = None
    if scored is not None:
        expected_score = float(scored["dice"].mean())
        interval_90 = dice_interval(scored, choice.of_images["group"], new_images)
    return Decision(
        metric="Dice",
        rule=rule,
        fpr=None,
        prior="train",
        share=float(choice.of_images["label"].mean()),
        threshold=None,
        score_threshold=None,
        predicted_defective=None,
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
        written_pairs = set(table[PAIR].itertuples(index=False, name=None))
        expected_pairs = set(expected.itertuples(index=False, name=None))
        missing = sorted("_".join(pair) for pair in expected_pairs - written_pairs)[:3]
        extra = sorted("_".join(pair) for pair in written_pairs - expected_pairs)[:3]
        raise UserError(
            f"{path}: its rows differ from the sample's (missing {missing}, unknown {extra}, or order, or "
            "columns): run src/ensemble.py again"
        )
    check_runs(table.assign(image_id=rows["image_id"]), image_sizes(images), path)


# --- rules fitted out of fold ------------------------------------------------------------------------------


class Candidate(NamedTuple):
    """One map [h, w] of probabilities of one class, and the mask [H, W] that it should become."""

    image_id: str
    target: str
    fold: str
    label: float
    probabilities: np.ndarray
    truth: np.ndarray


def measure_candidates(candidates: Iterable[Candidate]) -> pd.DataFrame:
    """What every choice of (pixel, component) would make of each candidate.

    Columns image_id, target, fold, label, empty (1.0 where nothing should be marked: the Dice of an empty
    mask), pixel, component, area (share of the image), dice. One candidate is in memory at a time.
    """
    rows = []
    areas = []
    dice = []
    for candidate in candidates:
        is_empty = float(not candidate.truth.any())
        rows.append((candidate.image_id, candidate.target, candidate.fold, candidate.label, is_empty))
        candidate_areas, candidate_dice = measure_choices(candidate)
        areas.append(candidate_areas)
        dice.append(candidate_dice)
    table = pd.DataFrame(rows, columns=["image_id", "target", "fold", "label", "empty"])
    table = table.loc[np.repeat(np.arange(len(rows)), len(CHOICES))].reset_index(drop=True)
    pixel, component = np.tile(np.array(CHOICES).T, len(rows))
    return table.assign(
        pixel=pixel, component=component, area=np.concatenate(areas), dice=np.concatenate(dice)
    )


def measure_choices(candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """Area and Dice of the masks of all CHOICES, made by mask_rules.threshold_map; most maps mark nothing."""
    truth = candidate.truth
    true_pixels = np.count_nonzero(truth)
    sums = np.zeros((2, len(PIXELS), len(COMPONENTS)))  # marked pixels, and those of them that are true
    if candidate.probabilities.max() >= min(PIXELS):
        probabilities = resize(candidate.probabilities.astype(np.float32), truth.shape)
        for index, pixel in enumerate(PIXELS):
            part_sizes = count_parts(probabilities >= pixel, truth)
            for column, share in enumerate(COMPONENTS):
                is_large = part_sizes[0] >= share * truth.size
                sums[:, index, column] = part_sizes[:, is_large].sum(axis=1)
    marked_pixels, overlap = sums.reshape(2, -1)
    total = marked_pixels + true_pixels
    return marked_pixels / truth.size, np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0)


def count_parts(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels of each 8-connected part of a mask, and how many of them are true [2, P]."""
    count, part = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.stack([np.bincount(part[where], minlength=count)[1:] for where in (mask, truth)])


def fit_rules(outcomes: pd.DataFrame) -> dict[str, Rule]:
    """For each target the rule with the highest mean Dice on these outcomes; `label` and `area` exactly."""
    return {target: fit_rule(rows) for target, rows in outcomes.groupby("target")}


def fit_rule(outcomes: pd.DataFrame) -> Rule:
    """As fit_rules, of one target."""
    if (outcomes["empty"] == 1).all():
        return Rule()  # fitted to images without the class alone, it would never mark anything
    ranked = []
    for (pixel, component), rows in outcomes.groupby(["pixel", "component"]):
        empty = rows["empty"].to_numpy()
        dice = rows["dice"].to_numpy()
        label = fit_acceptance_threshold(rows["label"].to_numpy(), dice, empty, Rule().label)
        dice = np.where(rows["label"] >= label, dice, empty)
        area = fit_acceptance_threshold(rows["area"].to_numpy(), dice, empty)
        rule = Rule(label, pixel, component, area)
        ranked.append((apply_rule(rows, rule).mean(), pixel == Rule().pixel, -component, rule))
    return max(ranked)[-1]  # of equally good ones the plainest


def apply_rule(outcomes: pd.DataFrame, rule: Rule) -> pd.Series:
    """Dice of each image under a rule whose pixel and component are among those measured."""
    rows = outcomes[(outcomes["pixel"] == rule.pixel) & (outcomes["component"] == rule.component)]
    is_marked = (rows["label"] >= rule.label) & (rows["area"] >= rule.area)
    return rows["dice"].where(is_marked, rows["empty"]).set_axis(rows["image_id"])


def dice_under(outcomes: pd.DataFrame, rules: dict[str, Rule]) -> pd.DataFrame:
    """image_id, target, dice, empty: every pair under the rule of its target."""
    parts = []
    for target, rows in outcomes.groupby("target"):
        truth = rows.drop_duplicates("image_id").set_index("image_id")["empty"] == 1
        table = pd.DataFrame({"dice": apply_rule(rows, rules[target]), "empty": truth}).reset_index()
        parts.append(table.assign(target=target))
    return pd.concat(parts, ignore_index=True)


def nested_dice(outcomes: pd.DataFrame) -> pd.DataFrame | None:
    """As dice_under, each fold under the rules fitted on all others; None for a single fold."""
    folds = outcomes["fold"].unique()
    if len(folds) < 2:
        return None
    return pd.concat(
        [
            dice_under(rows, fit_rules(outcomes[outcomes["fold"] != fold]))
            for fold, rows in outcomes.groupby("fold")
        ],
        ignore_index=True,
    )


# --- members blended ---------------------------------------------------------------------------------------


def read_candidates(
    runs: list[Run], oof: dict[str, pd.DataFrame], images: pd.DataFrame
) -> Iterator[Candidate]:
    """Every image and class of the out-of-fold rows: its blended label and map, and the truth.

    `oof` holds the rows of each run by its name, `images` is images.csv.
    """
    config = runs[0].config
    classes = config.data.classes
    root = resolve(config.data.root)
    roi = load_roi(config.data)
    blend = MapBlend(runs, oof, OOF_MAPS)
    folds = next(iter(oof.values())).drop_duplicates("image_id").set_index("image_id")["fold"]
    rows = images.set_index("image_id", drop=False).loc[folds.index].to_dict("records")
    for row in tqdm(rows, "masks of the folds", leave=False, disable=None):
        image_id = row["image_id"]
        maps = blend.maps(image_id)
        masks = read_masks(row, root, classes)
        size = (row["height"], row["width"])
        inside = None if roi is None else roi.read(row["path"], size)
        for index, name in enumerate(classes):
            truth = np.zeros(size, bool) if masks is None else masks[..., index] > 0
            if inside is not None:
                truth &= inside
            plane = clear_plane(maps[index], inside)
            yield Candidate(image_id, name, folds[image_id], blend.labels[image_id, name], plane, truth)


def make_test_masks(
    runs: list[Run],
    test: dict[str, pd.DataFrame],
    images: pd.DataFrame,
    order: pd.DataFrame,
    choices: dict[str, dict[str, Rule]],
) -> dict[str, pd.DataFrame]:
    """For each choice of rules: image_id, target, run-length masks of the test images, in the given order.

    All choices in one pass, since reading a map takes longer than applying a rule.
    """
    classes = runs[0].config.data.classes
    roi = load_roi(runs[0].config.data)
    blend = MapBlend(runs, test, TEST_MAPS)
    rows = images[images["split"] == "test"].to_dict("records")
    masks = {choice: {} for choice in choices}
    for row in tqdm(rows, "masks of the test images", leave=False, disable=None):
        image_id = row["image_id"]
        size = (row["height"], row["width"])
        maps = blend.maps(image_id)
        inside = None if roi is None else roi.read(row["path"], size)
        for index, name in enumerate(classes):
            plane = clear_plane(maps[index], inside)
            label = blend.labels[image_id, name]
            for choice, rules in choices.items():
                masks[choice][image_id, name] = encode(make_mask(plane, label, size, rules[name]))
    pairs = list(order[PAIR].itertuples(index=False, name=None))
    tables = {}
    for choice, masks_of_choice in masks.items():
        tables[choice] = order.assign(runs=[masks_of_choice[pair] for pair in pairs])
    return tables


class MapBlend:
    """What several runs predict for the same images, averaged over their models and then over the runs.

    `labels`: probability by (image_id, target). Raises UserError if the runs scored other images, or
    if none has maps.
    """

    def __init__(self, runs: list[Run], tables: dict[str, pd.DataFrame], file: str):
        without_classes = [name for name, table in tables.items() if table.empty]
        if without_classes:
            raise UserError(f"{', '.join(without_classes)} tells no classes apart: leave it out")
        means = pd.concat(
            {name: table.groupby(PAIR)["probability"].mean() for name, table in tables.items()}, axis=1
        )
        lacking = means.index[means.isna().any(axis=1)]
        if len(lacking):
            raise UserError(
                f"{', '.join(tables)} scored different images or classes ({len(lacking)}, such "
                f"as {lacking[0]}): train and infer all of them on the same data and folds"
            )
        self.labels = means.mean(axis=1)
        self.archives: list[list[Maps]] = []  # of each run that segments, those of its folds
        for run in runs:
            folds = sorted(set(tables[run.name]["fold"]))
            archives = [Maps(run.fold_folder(fold) / file) for fold in folds]
            if any(archive.segment for archive in archives):
                self.archives.append(archives)
        if not self.archives:
            raise UserError(f"{', '.join(tables)}: no maps to make masks of; name a segmenter's run too")

    def maps(self, image_id: str) -> np.ndarray:
        """float32 [K, h, w], at the resolution of the finest."""
        means = []
        for archives in self.archives:
            maps = [archive.of_classes(image_id) for archive in archives if image_id in archive]
            means.append(average_maps(maps))
        return average_maps(means)


def average_maps(maps: list[np.ndarray]) -> np.ndarray:
    """Of maps [K, h, w] of several resolutions: float32 at the largest of them."""
    size = max((planes.shape[1:] for planes in maps), key=np.prod)
    resized = [[resize(plane.astype(np.float32), size) for plane in planes] for planes in maps]
    return np.mean(resized, axis=0)
