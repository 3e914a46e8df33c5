"""The papers' protocol: one fit on all normal images, scored, thresholded and evaluated without any fold."""

import json

import pandas as pd
import pytest
from conftest import run_at, run_once, submitted_at, write_config, write_dataset
from scipy.special import logit

SETS = [
    "model.backbone={name: test_resnet, weights: none}",
    "model.options.layers=[layer2, layer3]",
    "data.image_size=[64, 64]",
    "train.inner_holdout=0.3",
]
RUN = "tiny_data_patchcore_reduced"
FLAGS = ["--model", "patchcore_reduced", *(part for value in SETS for part in ("--set", value))]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Config of a memory bank of which the full fit alone is trained, scored and submitted."""
    folder = tmp_path_factory.mktemp("full")
    root = write_dataset(folder / "data", defects=4, normals=20)
    path = write_config(folder, root)
    test_images = sorted(path.name for path in (root / "test").rglob("*.png"))
    answers = [index % 2 for index in range(len(test_images))]
    pd.DataFrame({"ImageId": test_images, "answer": answers}).to_csv(folder / "key.csv", index=False)
    run_once("train.py", "--config", path, "--fold", "full", *FLAGS)
    run_once("infer.py", run_at(path, RUN))
    run_once("ensemble.py", run_at(path, RUN), "--set", "ensemble.compare=false")
    return path


def test_full_fit_holds_out_normal_images_alone(full):
    oof = pd.read_csv(full.parent / "output" / RUN / "full" / "oof.csv")
    assert set(oof["label"]) == {0} and set(oof["fold"]) == {"full"}


def test_full_fit_is_thresholded_by_its_hold_out(full, run_script):
    outcome = run_script("infer.py", run_at(full, RUN))
    assert outcome.code == 0, outcome.stderr
    assert "with the full fit" in outcome.stdout
    oof = pd.read_csv(full.parent / "output" / RUN / "full" / "oof.csv")
    summary = json.loads((full.parent / "submissions" / "sample_submission.json").read_text())
    assert summary["decision"]["rule"] == "expected_fpr"
    assert (logit(oof["probability"]) >= summary["decision"]["score_threshold"]).mean() <= 0.05


@pytest.mark.parametrize("script", ["evaluate.py", "errors.py", "submit.py"])
def test_full_fit_has_a_submission_like_any_other(full, run_script, script):
    key = ["--set", f"data.answers={full.parent / 'key.csv'}"] if script == "evaluate.py" else []
    dry_run = ["--dry-run"] if script == "submit.py" else []
    outcome = run_script(script, *submitted_at(full), *key, *dry_run)
    assert outcome.code == 0, outcome.stderr


def test_full_fit_is_compared_on_the_test_images(full, run_script):
    key = ["--set", f"data.answers={full.parent / 'key.csv'}"]
    outcome = run_script("compare.py", run_at(full, RUN), "--test", *key)
    assert outcome.code == 0, outcome.stderr
    assert "test AUROC" in outcome.stdout


def test_full_fit_of_a_classifier_alone_gives_no_threshold(
    make_dataset, config_file, fails_with_one_line, run_script
):
    path = config_file(make_dataset())
    assert run_script("train.py", "--config", path, "--fold", "full").code == 0
    message = fails_with_one_line("infer.py", run_at(path))
    assert "has seen every training image" in message and "--fold all" in message
