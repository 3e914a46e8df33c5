"""Masks of a run's out-of-fold images by the untuned rule: their Dice, and cards of them."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from defects.config_schema import DataConfig, resolve
from defects.data.labels import read_masks
from defects.data.roi import clear_plane, load_roi
from defects.evaluation.display_scales import LIMIT_COLOUR
from defects.evaluation.mask_rules import Rule, make_mask
from defects.evaluation.metrics import pair_dice
from defects.evaluation.pixels import Maps
from defects.reports import html
from defects.reports.figures import MASK_COLOUR, Row, outline_around, read_tile
from defects.submission.masks import Candidate

IMAGES_OF_A_KIND = 6


def make_masks(
    data: DataConfig, rows: pd.DataFrame, maps: Mapping[str, Maps]
) -> Iterator[tuple[Candidate, np.ndarray]]:
    """Image and class of `rows` (of oof.csv, joined with images.csv), with their mask bool [H, W].

    By the untuned rule, from the maps of each fold.
    """
    root = resolve(data.root)
    roi = load_roi(data)
    images = rows.groupby("image_id", sort=False)
    for image_id, of_image in tqdm(images, "masks of the folds", leave=False, disable=None):
        image = of_image.iloc[0].to_dict()
        size = (image["height"], image["width"])
        planes = maps[image["fold"]].of_classes(image_id)
        truths = read_masks(image, root, data.classes)
        inside = None if roi is None else roi.read(image["path"], size)
        labels = of_image.set_index("target")["probability"]
        for index, name in enumerate(data.classes):
            truth = np.zeros(size, bool) if truths is None else truths[..., index] > 0
            if inside is not None:
                truth &= inside
            plane = clear_plane(planes[index], inside)
            candidate = Candidate(image_id, name, image["fold"], labels[name], plane, truth)
            yield candidate, make_mask(plane, labels[name], size, Rule())


def measure_dice(data: DataConfig, rows: pd.DataFrame, maps: Mapping[str, Maps]) -> pd.DataFrame | None:
    """image_id, target, fold, dice, empty (whether the truth is) and pixels (marked, or missing if nothing
    is) of each pair of image and class.

    `rows` are those of oof.csv, joined with images.csv; None for a run that tells no classes apart, or
    without maps.
    """
    rows = rows[rows["target"].isin(data.classes)]
    if rows.empty or not all(len(maps[fold]) for fold in rows["fold"].unique()):
        return None
    outcomes = []
    for candidate, mask in make_masks(data, rows, maps):
        truth = candidate.truth
        pixels = np.count_nonzero(mask) or np.count_nonzero(truth)
        about = (candidate.image_id, candidate.target, candidate.fold)
        outcomes.append((*about, pair_dice(mask, truth), not truth.any(), pixels))
    return pd.DataFrame(outcomes, columns=["image_id", "target", "fold", "dice", "empty", "pixels"])


def build_dice_table(dice: pd.DataFrame) -> pd.DataFrame:
    """A row for each class of `measure_dice`, and for all together, as texts."""
    parts = {f"class {name}": rows for name, rows in dice.groupby("target", sort=False)} | {"all": dice}
    texts = {}
    for name, rows in parts.items():
        empty = rows[rows["empty"]]
        marked = rows[~rows["empty"]]
        texts[name] = {
            "pairs": f"{len(rows):,}",
            "not empty": f"{len(marked):,}",
            "Dice, all pairs": _format_dice(rows),
            "Dice, not empty": _format_dice(marked),
            "missed": f"{(marked['dice'] == 0).sum():,} of {len(marked):,}",
            "false alarms": f"{(empty['dice'] == 0).sum():,} of {len(empty):,}",
        }
    return pd.DataFrame.from_dict(texts, orient="index")


def _format_dice(rows: pd.DataFrame) -> str:
    """`0.912 ± 0.013`: mean Dice, and the standard deviation of the folds' means."""
    folds = rows.groupby("fold")["dice"].mean()
    spread = f" ± {folds.std():.3f}" if len(folds) > 1 else ""
    return html.format_number(rows["dice"].mean()) + spread


def draw_mask_cards(
    data: DataConfig, rows: pd.DataFrame, maps: Mapping[str, Maps], dice: pd.DataFrame
) -> list[html.Cards]:
    """False alarms, the worst, usual and best masks of each class; without classes that have none of these.

    `rows` as for measure_dice, `dice` is what it returns.
    """
    grids = {}
    for name, of_class in dice.groupby("target", sort=False):
        for title, of_kind in choose_masks(of_class, IMAGES_OF_A_KIND).items():
            grids[name, title] = of_kind
    if not grids:
        return []
    chosen = pd.concat(grids.values())
    chosen_pairs = set(zip(chosen["image_id"], chosen["target"], strict=True))
    of_chosen = rows[rows["image_id"].isin(chosen["image_id"])]
    images = of_chosen.drop_duplicates("image_id").set_index("image_id").to_dict("index")
    tiles = {}
    for candidate, mask in make_masks(data, of_chosen, maps):
        key = (candidate.image_id, candidate.target)
        if key in chosen_pairs:
            tiles[key] = draw_masks(data, images[candidate.image_id], candidate.truth, mask)
    blocks = []
    for (name, title), of_kind in grids.items():
        cards = []
        for row in of_kind.to_dict("records"):
            image_name = Path(row["image_id"]).name
            tile = tiles[row["image_id"], name]
            picture = html.embed_jpeg(tile, f"{image_name} with the true mask and the predicted one")
            fact = html.Fact(f"Dice {row['dice']:.3f}, fold {row['fold']}", is_wrong=row["dice"] == 0)
            cards.append(html.Card(image_name, (picture,), (fact,), row["image_id"]))
        blocks.append(html.Cards(f"Class {name}: {title}", cards))
    return blocks


def choose_masks(rows: pd.DataFrame, count: int) -> dict[str, pd.DataFrame]:
    """Title -> up to `count` rows of measure_dice of one class, none of them twice."""
    alarms = rows[rows["empty"] & (rows["dice"] == 0)].sort_values("pixels", ascending=False)
    marked = rows[~rows["empty"]].sort_values(["dice", "pixels"], ascending=[True, False])
    worst = marked[:count]
    best = marked[count:][-count:][::-1]
    between = marked[count:-count]
    median = marked["dice"].median()
    usual = between.loc[(between["dice"] - median).abs().sort_values(kind="stable").index[:count]]
    without = f"{rows['empty'].sum():,} images without it"
    total = f"of {len(marked):,} with it"
    parts = {
        f"false alarms, the largest of {len(alarms):,} on {without}": alarms[:count],
        f"the lowest Dice {total}": worst,
        f"about the median Dice {total}, {median:.3f}": usual,
        f"the highest Dice {total}": best,
    }
    return {title: part for title, part in parts.items() if len(part)}


def draw_masks(data: DataConfig, row: Row, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] of a row of images.csv with both masks [H, W] outlined."""
    tile = outline_around(read_tile(data, row), truth, MASK_COLOUR, gap=4)
    return outline_around(tile, mask, LIMIT_COLOUR, gap=2)  # where both agree, both lines are seen
