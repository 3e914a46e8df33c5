"""Reports, comparison and selection on data sets with classes: by the Dice of their masks."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import data_in, run_at, runs_at, texture, write_png

from defects.config import load_config
from defects.config_schema import as_yaml
from defects.data import rle
from defects.data.labels import read_masks
from defects.evaluation.display_scales import LIMIT_COLOUR
from defects.evaluation.pixels import Maps
from defects.files import array_archive, write_bytes, write_csv, write_json
from defects.models.segmenter import Segmenter
from defects.reports.figures import MASK_COLOUR
from defects.reports.mask_report import choose_masks, draw_mask_cards, draw_masks, measure_dice
from defects.runs import OOF_COLUMNS, Run
from defects.stages import ensure_images, ensure_tables

CLASSES, SIZE = ["1", "2"], (32, 64)
MISSED, ALARM = 0, 4  # of class 1; class 2 is marked rightly everywhere


def write_steel(root, clean):
    """Twelve strips; class 1 on every second of them, class 2 on those that are left unless `clean`."""
    rows = []
    for number in range(12):
        write_png(root / "train_images" / f"{number}.png", texture(number, 64)[: SIZE[0]])
        name = "1" if number % 2 == 0 else "2"
        if number % 2 == 0 or number % 4 == 1 or not clean:
            rows.append(f"{number}.png,{name},{rle.encode(square(8, 4 + 3 * number))}\n")
    (root / "train.csv").write_text("".join(["ImageId,ClassId,EncodedPixels\n", *rows]))


def square(top, left):
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + 12, left : left + 12] = 1
    return mask


@pytest.fixture
def steel(tmp_path, config_file):
    """steel(clean=True) -> path of its YAML, Config."""

    def make(clean=True):
        write_steel(tmp_path / "steel", clean)
        data = {"source": "severstal", "classes": CLASSES, "sample_submission": None}
        model = {"name": "segmenter", "options": {"decoder": "fpn"}}
        split = {"duplicates": {"enabled": False}}
        sections = {"data": data | {"image_size": list(SIZE)}, "model": model, "split": split}
        path = config_file(tmp_path / "steel", **sections)
        return path, load_config(path)

    return make


def write_run(config, maps=True):
    """Masks as they should be, but that of one image of class 1 (the first) is missed and one too many."""
    table = ensure_tables(config).folds
    for fold, rows in table.groupby("fold"):
        folder, scores = Run(config).fold_folder(fold), []
        with array_archive(folder / "oof_maps.npz") as add:
            for row in rows.to_dict("records"):
                masks = read_masks(row, config.data.root, CLASSES)
                masks = np.zeros((*SIZE, 2), np.uint8) if masks is None else masks
                found = _with_mistakes(int(row["path"].split("/")[-1][:-4]), masks.copy())
                add(row["image_id"], np.moveaxis(255 * found, 2, 0))
                truth, guess = ([*part.max((0, 1)), part.max()] for part in (masks, found))
                targets = zip([*CLASSES, "defect"], truth, guess, strict=True)
                scores += [(row["image_id"], *each) for each in targets]
        if not maps:
            (folder / "oof_maps.npz").unlink()
        oof = pd.DataFrame(scores, columns=["image_id", "target", "label", "probability"])
        oof["probability"] = oof["probability"].map({0: 0.1, 1: 0.9})
        write_csv(folder / "oof.csv", oof.assign(fold=fold, score=oof["probability"])[OOF_COLUMNS])
        write_bytes(folder / "best.pt", b"weights")
        write_bytes(folder / "config.yaml", as_yaml(config).encode())
        write_json(folder / "costs.json", {"fit_seconds": 1.0, "score_images_per_second": 9.5})


def _with_mistakes(number, masks):
    if number == MISSED:
        masks[..., 0] = 0
    if number == ALARM + 1:
        masks[..., 0] = square(1, 1)
    return masks


def report(run_script, config, path):
    outcome = run_script("report.py", run_at(path))
    assert outcome.code == 0, outcome.stderr
    html = (config.experiment_dir / "report" / "report.html").read_text(encoding="utf-8")
    return outcome.stdout, html


def cells(html, row):
    """The texts of a row of a table."""
    start = html.index(f"<th>{row}</th>")
    return [part.split("</td>")[0] for part in html[start : html.index("</tr>", start)].split("<td>")[1:]]


def test_report_tells_the_dice_of_each_class(steel, run_script):
    path, config = steel()
    write_run(config)
    _, html = report(run_script, config, path)
    pairs, marked, dice, not_empty, missed, alarms = cells(html, "class 1")
    assert (pairs, marked, missed, alarms) == ("12", "6", "1 of 6", "1 of 6")
    assert dice.startswith(f"{10 / 12:.3f} ± ") and not_empty.startswith(f"{5 / 6:.3f} ± ")
    assert cells(html, "class 2")[2:] == ["1.000 ± 0.000", "1.000 ± 0.000", "0 of 3", "0 of 9"]
    assert cells(html, "all")[0] == "24" and cells(html, "all")[2].startswith(f"{22 / 24:.3f}")
    assert f"<b>{22 / 24:.3f}</b>" in html and "AUROC" in html
    titles = re.findall("<h3>Class (.): ([a-z]+)", html)
    assert titles == [("1", "false"), ("1", "the"), ("2", "the")]
    assert 'class="wrong">Dice 0.000, fold' in html


def test_report_without_maps_has_no_dice(steel, run_script):
    path, config = steel()
    write_run(config, maps=False)
    _, html = report(run_script, config, path)
    assert "Dice" not in html
    assert "AUROC" in html
    assert "Class 1" not in html


def test_data_of_one_label_are_reported_without_what_needs_two(steel, run_script):
    path, config = steel(clean=False)
    write_run(config)
    printed, html = report(run_script, config, path)
    line = "All images have a defect: AUROC, average precision, macro-F1 and thresholds need normal images"
    assert line in printed and line in html
    assert "equal error rate" not in html and "Macro-F1 at this threshold" not in html
    assert "Errors over the threshold" not in html
    assert "Class 1: false alarms" in html
    assert cells(html, "class 1")[4] == "1 of 6"
    outcome = run_script("compare.py", run_at(path))
    assert outcome.code == 0, outcome.stderr
    assert "No fold holds both normal images and defects: there is no out-of-fold AUROC." in outcome.stdout
    assert "macro-F1" not in outcome.stdout and "Dice, not empty" in outcome.stdout


def test_comparison_has_the_dice_of_those_with_maps(steel, run_script):
    path, config = steel()
    write_run(config)
    train = config.train.model_copy(update={"lr": 0.5})
    write_run(config.model_copy(update={"experiment": "blind", "train": train}), maps=False)
    outcome = run_script("compare.py", *runs_at(path, "tiny", "blind"))
    assert outcome.code == 0, outcome.stderr
    table = pd.read_csv(config.dataset_dir / "compare.csv", index_col="experiment")
    rows = pd.concat(pd.read_csv(Run(config).fold_folder(fold) / "oof.csv", dtype=str) for fold in "01")
    rows = rows[rows["target"].isin(CLASSES)].astype({"probability": float})
    rows = rows.merge(ensure_images(config).drop(columns="label"), on="image_id")
    maps = {fold: Maps(Run(config).fold_folder(fold) / "oof_maps.npz") for fold in "01"}
    dice = measure_dice(config.data, rows, maps)
    folds = [part for _, part in dice.groupby("fold")]
    assert table.loc["tiny", "dice"] == pytest.approx(np.mean([part["dice"].mean() for part in folds]))
    marked = [part.loc[~part["empty"], "dice"].mean() for part in folds]
    assert table.loc["tiny", "dice_non_empty"] == pytest.approx(np.mean(marked)) and min(marked) < 1
    assert table.loc["blind", ["dice", "dice_non_empty"]].isna().all()
    assert table["auroc"].notna().all() and "| Dice | Dice, not empty |" in outcome.stdout


# --- the gallery of a class --------------------------------------------------------------------------------


def outcomes(marked, empty):
    """Rows of measure_dice of one class: Dice of images that have it, pixels marked on those that do not."""
    rows = [(f"m{row}", dice, False, 100) for row, dice in enumerate(marked)]
    rows += [(f"e{row}", float(not pixels), True, pixels) for row, pixels in enumerate(empty)]
    table = pd.DataFrame(rows, columns=["image_id", "dice", "empty", "pixels"])
    return table.sample(frac=1, random_state=0)


def test_the_worst_the_usual_and_the_best_are_shown_once_each():
    table = outcomes([0.0, 0.1, 0.3, 0.5, 0.55, 0.8, 0.9], [0, 40, 0, 70, 5])
    found = {title: rows["image_id"].tolist() for title, rows in choose_masks(table, 2).items()}
    assert list(found.values()) == [["e3", "e1"], ["m0", "m1"], ["m3", "m4"], ["m6", "m5"]]
    assert [title.split()[:3] for title in found][0] == ["false", "alarms,", "the"]
    assert "largest of 3 on 5 images" in next(iter(found)) and "median Dice of 7 with it, 0.500" in str(found)


@pytest.mark.parametrize(
    ("marked", "empty", "kinds"),
    [([], [0, 0], []), ([], [9], [["e0"]]), ([0.4], [0], [["m0"]]), ([0.4, 0.2, 0.3], [], None)],
)
def test_classes_with_little_to_show(marked, empty, kinds):
    found = [rows["image_id"].tolist() for rows in choose_masks(outcomes(marked, empty), 2).values()]
    assert found == ([["m1", "m2"], ["m0"]] if kinds is None else kinds)


def test_nothing_to_show_is_no_gallery(steel):
    _, config = steel()
    nothing = outcomes([], [0, 0]).assign(target="1", width=64, height=32)
    assert draw_mask_cards(config.data, nothing, {}, nothing) == []


def test_both_outlines_are_seen_even_where_the_masks_agree(tmp_path):
    write_png(tmp_path / "grey.png", np.full(SIZE, 90, np.uint8))
    row, truth, nothing = {"path": "grey.png"}, square(10, 20) > 0, np.zeros(SIZE, bool)

    def list_seen(truth, mask):
        tile = draw_masks(data_in(tmp_path), row, truth, mask)
        return [bool((tile == colour).all(axis=2).any()) for colour in (MASK_COLOUR, LIMIT_COLOUR)]

    assert list_seen(truth, truth) == [True, True]
    assert list_seen(truth, nothing) == [True, False]
    assert list_seen(nothing, truth) == [False, True]


# --- the epoch that is kept --------------------------------------------------------------------------------


def test_trainer_selects_the_epoch_by_dice(steel, run_script, monkeypatch):
    """Dice falls from the first epoch on, while labels and loss get better and better."""
    calls = []

    def validation(self, batch):
        calls.append(len(batch["label"]))
        sign = 1 if len(calls) > 1 else -1
        dice = torch.tensor(1 - 0.1 * len(calls))
        return {
            "score": sign * (2 * batch["label"] - 1),
            "loss": 1 / dice.new_tensor(len(calls)),
            "dice": dice,
        }

    monkeypatch.setattr(Segmenter, "validation", validation)
    path, config = steel()
    settings = {"epochs": 3, "inner_holdout": 0.34, "select": "inner"}
    sets = [part for name, value in settings.items() for part in ("--set", f"train.{name}={value}")]
    outcome = run_script("train.py", "--config", path, *sets)
    assert outcome.code == 0, outcome.stderr
    folder = Run(config).fold_folder("0")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val_dice"] for line in lines] == pytest.approx([0.9, 0.8, 0.7])
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == 1
    assert outcome.stdout.count("(best)") == 1 and "Dice 0.900 (best)" in outcome.stdout
