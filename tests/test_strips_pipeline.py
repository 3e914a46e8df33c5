"""Several classes of defects from end to end: generated strips, a segmenter, a classifier, their masks."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import copy_runs, options_for, run_at, run_once, runs_at, submitted_at
from test_kernel import run_cells

from defects.config import load_config
from defects.data import rle
from defects.data.images import resize
from defects.data.labels import read_masks
from defects.data.layouts import strips
from defects.data.rle import all_pairs, read_rle_table, write_rle_table
from defects.deploy.model import load_model
from defects.deploy.prediction import find_files, predict
from defects.deploy.regions import mark_pixels
from defects.evaluation.decision import Decision
from defects.evaluation.mask_rules import Rule
from defects.evaluation.pixels import Maps
from defects.files import array_archive, sha256
from defects.stages import ensure_images
from defects.submission import masks, send

CLASSES, SIZE = ["1", "2", "3", "4"], (64, 160)
LABEL_SETS = {"": 16, "3": 10, "1": 4, "2": 4, "4": 4, "34": 2}  # every class often enough for two folds
NETWORK = {"name": "test_efficientnet", "weights": "none"}
SEGMENTER = {"name": "segmenter", "backbone": NETWORK, "options": {"decoder": "fpn"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The config of a segmenter that was trained, with a classifier `seer`, on 40 strips, and blended."""
    folder = tmp_path_factory.mktemp("steel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LABEL_SETS", LABEL_SETS)
        settings = strips.Settings(images=40, test=10, size=SIZE)
        strips.generate_strips(folder / "data", folder / "key.csv", settings)
    sample = folder / "data" / "sample_submission.csv"
    write_rle_table(sample, read_rle_table(sample, CLASSES)[::-1], "joined")  # in no sorted order
    seer = write_config(folder, "seer", {"name": "classifier", "backbone": NETWORK})
    marker = write_config(folder, "marker", SEGMENTER)
    run_once("prepare.py", "--config", marker)
    run_once("split.py", "--config", marker)
    for path in (marker, seer):
        run_once("train.py", "--config", path, "--fold", "all")
        run_once("infer.py", run_at(path))
    run_once("ensemble.py", *runs_at(marker, "marker", "seer"))
    return marker


@pytest.fixture
def own(trained, tmp_path) -> Path:
    """A copy of what was trained, for tests that change it."""
    copy_runs(trained.parent, tmp_path / "steel")
    return tmp_path / "steel" / "marker.yaml"


def write_config(folder, name, model, **sections):
    values = {
        "experiment": name,
        "output": str(folder / "output"),
        "submissions": str(folder / "submissions"),
        "data": {
            "name": "steel",
            "source": "severstal",
            "root": str(folder / "data"),
            "answers": str(folder / "key.csv"),
            "classes": CLASSES,
            "image_size": list(SIZE),
            "symmetries": "flips",
            "sample_submission": "sample_submission.csv",
        },
        "split": {"folds": 2, "duplicates": {"enabled": False}},
        "model": model,
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.01},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def submission(path, suffix=".csv"):
    return (path.parent / "submissions" / "sample_submission.csv").with_suffix(suffix)


@pytest.mark.parametrize("suffix", [".csv", ".tuned.csv", ".untuned.csv"])
def test_strips_the_submission_has_the_rows_of_the_sample_and_decodes(trained, suffix):
    sample = read_rle_table(trained.parent / "data" / "sample_submission.csv", CLASSES)
    table = read_rle_table(submission(trained, suffix), CLASSES)
    assert table[["image_id", "target"]].equals(sample[["image_id", "target"]])
    for runs in table["runs"]:
        assert rle.encode(rle.decode(runs, SIZE)) == runs


def test_strips_the_estimate_says_what_was_tuned(trained):
    summary = json.loads(submission(trained, ".json").read_text())
    estimate = summary["estimate"]
    assert list(estimate) == ["untuned", "tuned_nested", "tuned_optimistic"]
    assert all(found["pairs"] == 160 and found["non_empty"] == 26 for found in estimate.values())
    assert estimate["tuned_optimistic"]["dice"] >= estimate["untuned"]["dice"]
    better = estimate["tuned_nested"]["dice"] > estimate["untuned"]["dice"]
    assert summary["chosen"] == ("tuned" if better else "untuned")
    assert submission(trained).read_bytes() == submission(trained, f".{summary['chosen']}.csv").read_bytes()
    assert list(summary["rules"]) == CLASSES and summary["weights"] == {"marker": 0.5, "seer": 0.5}
    assert summary["sha256"] == sha256(submission(trained)) and summary["images"] == 10
    each = {name: sha256(submission(trained, f".{name}.csv")) for name in ("tuned", "untuned")}
    assert summary["files"] == each
    names = {name.rsplit("/", 2)[-2] + "/" + name.rsplit("/", 1)[-1] for name in summary["inputs"]}
    assert {"marker/test.csv", "seer/test.csv", "fold1/oof_maps.npz", "fold0/test_maps.npz"} <= names


def write_maps(path, images):
    """In place of a run's own maps: the masks of rows of images.csv, at half their size, as probabilities."""
    with array_archive(path) as add:
        for row in images.to_dict("records"):
            masks = read_masks(row, path, CLASSES)
            masks = np.zeros((*SIZE, 4), np.uint8) if masks is None else masks
            add(row["image_id"], np.moveaxis(255 * resize(masks, (SIZE[0] // 2, SIZE[1] // 2)), 2, 0))


def test_strips_maps_that_show_the_masks_become_these_masks(own, run_script):
    """The whole way from maps to runs and back, out of fold and on the test images."""
    images = ensure_images(load_config(own))
    key = all_pairs(read_rle_table(own.parent / "key.csv", CLASSES), images["image_id"], CLASSES)
    for name, runs in key.groupby("target"):
        known = images["image_id"].map(runs.set_index("image_id")["runs"])
        images[f"defect_{name}"] = images[f"defect_{name}"].mask(images["split"] == "test", known)
    marked = images.melt("image_id", [f"defect_{name}" for name in CLASSES], "target", "runs")
    marked = marked.assign(target=marked["target"].str[-1]).set_index(["image_id", "target"])["runs"] != ""
    run = own.parent / "output" / "marker"
    for fold in ("fold0", "fold1"):
        write_maps(run / fold / "oof_maps.npz", images)
        write_maps(run / fold / "test_maps.npz", images)
    for path in (run / "fold0" / "oof.csv", run / "fold1" / "oof.csv", run / "test.csv"):
        table = pd.read_csv(path, dtype={"target": str, "fold": str, "image_id": str})
        sure = pd.MultiIndex.from_frame(table[["image_id", "target"]]).map(marked.get)
        table.assign(probability=np.where(sure.fillna(False), 0.9, 0.1)).to_csv(path, index=False)
    outcome = run_script("ensemble.py", run_at(own))
    assert outcome.code == 0, outcome.stderr
    estimate = json.loads(submission(own, ".json").read_text())["estimate"]
    assert min(found["dice_non_empty"] for found in estimate.values()) > 0.8
    outcome = run_script("evaluate.py", *submitted_at(own))
    hidden = [line.split() for line in outcome.stdout.splitlines() if ", test" in line]
    assert len(hidden) == 2 and all(float(line[3]) > 0.8 and float(line[2]) > 0.9 for line in hidden)


def test_strips_labels_are_a_column_for_each_target(trained):
    oof = pd.read_csv(trained.parent / "output" / "seer" / "fold0" / "oof.csv", dtype={"target": str})
    assert list(oof["target"].head(5)) == [*CLASSES, "defect"]
    wide = oof.pivot(index="image_id", columns="target", values="label")
    assert (wide[CLASSES].max(axis=1) == wide["defect"]).all() and wide.sum().min() > 0


def test_strips_evaluation_reads_both_files(trained, run_script, fails_with_one_line):
    outcome = run_script("evaluate.py", *submitted_at(trained))
    assert outcome.code == 0, outcome.stderr
    for name in ("tuned", "untuned"):
        for where in ("out of fold", "test"):
            assert f"\n{name}, {where}" in outcome.stdout
    nothing = submission(trained, ".untuned.csv")
    before = nothing.read_text()
    nothing.write_text(before.replace("_4,", "_4,9 ", 1))
    message = fails_with_one_line("evaluate.py", *submitted_at(trained))
    assert f"{nothing}: row 2" in message and "odd number of values" in message
    nothing.write_text(before)


def test_strips_folds_are_shown_by_class(trained, run_script):
    printed = run_script("split.py", "--config", trained).stdout
    head, *folds = printed.splitlines()
    assert head.split()[:7] == ["held-out", "class", "1", "class", "2", "class", "3"]
    assert "training class 1 rows" in head and "normal rows" in head
    held = np.array([line.split()[1:6] for line in folds[1:3]], int)
    assert held.sum(axis=0).tolist() == [4, 4, 12, 6, 16]


def test_strips_reports_and_comparison(trained, run_script):
    runs = runs_at(trained, "marker", "seer")
    for command in (["report.py", *runs], ["compare.py", *runs, "--test"]):
        outcome = run_script(*command)
        assert outcome.code == 0, outcome.stderr
    assert "| marker" in outcome.stdout and "| seer" in outcome.stdout


def test_an_unsupervised_detector_learns_from_the_clean_strips(trained, run_script):
    model = {"name": "patchcore", "backbone": NETWORK | {"name": "test_resnet"}, "options": {"ratio": 0.05}}
    path = write_config(trained.parent, "bank", model, train={"inner_holdout": 0.3}, infer={"tta": False})
    for command in (["train.py", "--fold", "all"], ["infer.py"], ["report.py"]):
        outcome = run_script(command[0], *options_for(command[0], path), *command[1:])
        assert outcome.code == 0, outcome.stderr
        if command[0] == "infer.py":
            assert "patchcore tells no classes apart" in outcome.stdout
            assert not (trained.parent / "submissions" / "bank.csv").exists()
    oof = pd.read_csv(trained.parent / "output" / "bank" / "fold0" / "oof.csv")
    assert set(oof["target"]) == {"defect"} and set(oof["label"]) == {0, 1}
    refused = run_script("ensemble.py", *runs_at(trained, "marker", "bank"))
    assert refused.code == 2 and "bank tells no classes apart" in refused.stderr


def test_strips_members_without_maps_alone_are_refused(trained, fails_with_one_line):
    message = fails_with_one_line("ensemble.py", *runs_at(trained, "seer"))
    assert "seer: no maps to make masks of; name a segmenter's run too" in message


def rules_of_all_kinds(path):
    """Of maps that have hardly learnt anything: by their own quantiles each class marks something else."""
    maps = Maps(path)
    values = np.stack([maps.of_classes(name) for name in maps]).astype(float)
    low = np.quantile(values, 0.7, axis=(0, 2, 3)).tolist()
    return {
        "1": Rule(label=0.0, pixel=low[0], component=0.002, area=0.01),
        "2": Rule(label=0.999),
        "3": Rule(label=0.0, pixel=low[2], area=0.1),
        "4": Rule(label=0.0, pixel=low[3], component=0.001),
    }


def score_perfectly(outcomes):
    """Dice 1 of every image and class."""
    pairs = outcomes.drop_duplicates(["image_id", "target"])
    return pairs[["image_id", "target"]].assign(dice=1.0, empty=pairs["empty"] == 1)


def test_strips_export_marks_the_pixels_of_the_submission(own, run_script, monkeypatch):
    run, options = own.parent / "output" / "marker", ("--formats", "torch", "--images", "4")
    (run / "fold1" / "best.pt").unlink()
    assert run_script("infer.py", run_at(own)).code == 0
    rules = rules_of_all_kinds(run / "fold0" / "test_maps.npz")
    monkeypatch.setattr(masks, "fit_rules", lambda outcomes: dict(sorted(rules.items(), reverse=True)))
    monkeypatch.setattr(masks, "nested_dice", score_perfectly)
    for command in (["ensemble.py"], ["export.py", *options]):
        outcome = run_script(command[0], *options_for(command[0], own), *command[1:])
        assert outcome.code == 0, outcome.stderr
    model = load_model(run / "fold0" / "export")
    assert [model.meta.threshold[name] for name in CLASSES] == [rules[name].label for name in CLASSES]
    table = read_rle_table(submission(own), CLASSES).set_index(["image_id", "target"])["runs"]
    shares = dict.fromkeys(CLASSES, 0.0)
    for found in predict(model, find_files([str(own.parent / "data" / "test_images")]), 32):
        made = mark_pixels(found.maps, SIZE, model.meta.map)
        for name, mask in zip(CLASSES, made, strict=True):
            expected = rle.decode(table[found.path.name, name], SIZE).astype(bool)
            assert np.array_equal(mask & (name in found.labels), expected), (found.path.name, name)
            regions = [region for region in found.regions if region.kind == name]
            assert len(regions) == cv2.connectedComponents(expected.astype(np.uint8))[0] - 1
            shares[name] += expected.mean()
    assert shares["2"] == 0 and min(shares[name] for name in "134") > 0


# --- sending -----------------------------------------------------------------------------------------------


def test_strips_the_form_of_a_sample_that_leaves_the_classes_open(own, run_script):
    sample = own.parent / "data" / "sample_submission.csv"
    names = read_rle_table(sample, CLASSES)["image_id"].unique()
    rows = [f"{name},1 {SIZE[0] * SIZE[1]},0\n" for name in names]
    sample.write_text("".join(["ImageId,EncodedPixels,ClassId\n", *rows]))
    outcome = run_script("ensemble.py", *runs_at(own, "marker", "seer"))
    assert outcome.code == 0, outcome.stderr
    table = pd.read_csv(submission(own), dtype=str)
    assert list(table.columns) == ["ImageId", "EncodedPixels", "ClassId"]
    assert (
        table["ImageId"].tolist() == list(np.repeat(names, 4)) and table["ClassId"].tolist() == CLASSES * 10
    )
    outcome = run_script("submit.py", *submitted_at(own))
    assert outcome.code == 0, outcome.stderr
    assert "is valid: 10 images" in outcome.stdout


@pytest.mark.parametrize("suffix", [".csv", ".tuned.csv", ".untuned.csv"])
def test_strips_masks_are_sent_once_and_noted_with_their_expected_dice(
    own, kaggle_server, run_script, monkeypatch, suffix
):
    monkeypatch.setattr(send, "CONFIRM_AFTER", (0,))
    summary, file = json.loads(submission(own, ".json").read_text()), submission(own, suffix)
    for _ in range(2):
        outcome = run_script("submit.py", "--submission", file, "--set", "data.kaggle.competition=steel")
        assert outcome.code == 0, outcome.stderr
    assert list(kaggle_server.uploads.values()) == [file.read_bytes()]
    rules = suffix.split(".")[1] if suffix != ".csv" else summary["chosen"]
    decision = Decision.from_json(summary["decisions"][rules])
    (row,) = pd.read_csv(own.parent / "submissions" / "ledger.csv").to_dict("records")
    assert (row["metric"], row["rule"], row["prior"]) == ("Dice", rules, "train")
    assert row["expected_score"] == decision.expected_score and pd.isna(row["threshold"])
    assert (row["interval_low"], row["interval_high"]) == decision.interval_90
    assert (row["file"], row["sha256"]) == (file.name, sha256(file))
    description = f"[{sha256(file)[:12]}] marker + seer: {decision.text()}"
    assert kaggle_server.submissions[0]["description"] == description


def test_strips_decision_about_masks_is_that_of_the_estimate(own, run_script):
    outcome = run_script("ensemble.py", *runs_at(own, "marker", "seer"))
    summary = json.loads(submission(own, ".json").read_text())
    assert f"submitted                 {Decision.from_json(summary['decision']).text()}" in outcome.stdout
    assert summary["decision"] == summary["decisions"][summary["chosen"]]
    for rules, name in (("tuned", "tuned_nested"), ("untuned", "untuned")):
        decision = summary["decisions"][rules]
        assert decision["expected_score"] == pytest.approx(summary["estimate"][name]["dice"])
        low, high = decision["interval_90"]
        assert 0 <= low < decision["expected_score"] < high <= 1


def test_strips_masks_by_other_rules_than_the_json_knows_are_not_sent(
    own, kaggle_server, fails_with_one_line
):
    file, options = submission(own, ".untuned.csv"), ("--set", "data.kaggle.competition=steel")
    file.write_text(re.sub(r"_4,.*", "_4,1 77", file.read_text(), count=1))
    message = fails_with_one_line("submit.py", *submitted_at(own), "--submission", file, *options)
    assert "sample_submission.json does not belong to sample_submission.untuned.csv" in message
    assert not kaggle_server.requests


def swapped(text):
    head, first, second, *others = text.splitlines(keepends=True)
    return "".join([head, second, first, *others])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swapped, "differ from the sample's (missing [], unknown [], or order"),
        (lambda text: text[: text.rstrip().rindex("\n") + 1], "(missing ['"),
        (lambda text: text.replace("_4,", "_5,", 1), "class 5 is none of 1, 2, 3, 4"),
        (
            lambda text: re.sub(r"_4,.*", "_4,10240 2", text, count=1),
            "a run ends past the last of 10240 pixels",
        ),
        (lambda text: text.replace("_4,", "_4,1 1 ", 1), "does not belong to sample_submission.csv"),
    ],
)
def test_strips_masks_that_would_be_rejected_are_not_sent(
    own, kaggle_server, fails_with_one_line, change, message
):
    submission(own).write_text(change(submission(own).read_text()))
    options = ("--set", "data.kaggle.competition=steel")
    assert message in fails_with_one_line("submit.py", *submitted_at(own), *options)
    assert not kaggle_server.requests


def test_the_notebook_makes_masks_of_the_hidden_strips(own, tmp_path, run_script):
    assert run_script("ensemble.py", run_at(own)).code == 0  # of one member: every other takes seconds
    kaggle = {"competition": "steel", "kernel": "tester/steel-defects", "gpu": False}
    setting = f"data.kaggle={json.dumps(kaggle)}"
    outcome = run_script("submit.py", *submitted_at(own), "--set", setting, "--dry-run")
    assert outcome.code == 0, outcome.stderr
    chosen = json.loads(submission(own, ".json").read_text())["chosen"]
    for rules in ("tuned", "untuned"):
        options = ("--submission", submission(own, f".{rules}.csv"), "--set", setting, "--dry-run")
        assert run_script("submit.py", *submitted_at(own), *options).code == 0
        folder = submission(own, "").with_name(f"sample_submission.{rules}_bundle")
        made = (folder / "kernel" / "notebook.ipynb").read_text()
        assert f"WRITTEN = 'sample_submission.{rules}.csv'" in made
        whole = submission(own, "").with_name("sample_submission_bundle") / "kernel" / "notebook.ipynb"
        assert (made == whole.read_text()) == (rules == chosen)
    place = tmp_path / "kaggle"
    (place / "working").mkdir(parents=True)
    (place / "input").mkdir()
    submission(own, "").with_name("sample_submission_bundle").joinpath("dataset").rename(
        place / "input" / "steel-defects-bundle"
    )
    data = (own.parent / "data").rename(place / "input" / "steel")
    for number, path in enumerate(sorted((data / "test_images").iterdir())):
        path.rename(path.with_name(f"hidden_{number}.jpg"))
    names = [f"hidden_{number}.jpg" for number in range(10)][::-1]
    rows = [f"{name}_{target},1 1\n" for name in names for target in CLASSES]
    (data / "sample_submission.csv").write_text("".join(["ImageId_ClassId,EncodedPixels\n", *rows]))
    done = run_cells(own, place)
    assert done.returncode == 0, done.stderr
    written = place / "working" / "submission.csv"
    assert read_rle_table(written, CLASSES)["image_id"].tolist() == list(np.repeat(names, 4))
