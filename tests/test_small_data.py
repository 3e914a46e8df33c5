"""A handful of images: the whole way works, or ends in one line that says what is lacking."""

import pandas as pd
import pytest
from conftest import options_for, write_config, write_dataset

STAGES = [
    ("train.py", "--fold", "all"),
    ("infer.py",),
    ("ensemble.py",),
    ("report.py",),
    ("errors.py",),
    ("compare.py",),
]
BANK = {
    "model": {"name": "patchcore", "backbone": {"name": "test_resnet", "weights": "none"}},
    "train": {"inner_holdout": 0.1},
    "infer": {"tta": False},
    "split": {"folds": 2, "duplicates": {"enabled": False}},
}


def test_one_defect_goes_the_whole_way(tmp_path, run_script):
    root = write_dataset(tmp_path / "data", defects=1, normals=6, tests=4)
    path = write_config(tmp_path, root, split=BANK["split"])
    said = ""
    for script, *options in STAGES:
        outcome = run_script(script, *options_for(script, path), *options)
        assert outcome.code == 0, outcome.stderr
        said += outcome.stdout
    assert "note: the defects lie in 1 group" in said
    assert "no defects among the out-of-fold images" in said
    folds = pd.read_csv(tmp_path / "output" / "tiny_data" / "folds.csv", dtype=str)
    assert folds.loc[folds["image_id"].str.contains("defect"), "fold"].tolist() == ["train"]
    oof = pd.concat(pd.read_csv(found) for found in (tmp_path / "output" / "tiny").glob("fold*/oof.csv"))
    assert len(oof) == 6 and (oof["label"] == 0).all()


@pytest.mark.parametrize("defects", [0, 1, 2])
def test_few_normal_images_calibrate_a_detector_that_never_sees_defects(tmp_path, run_script, defects):
    root = write_dataset(tmp_path / "data", defects=max(defects, 1), normals=12, tests=0)
    data = {"source": "folders", "sample_submission": None}
    data["folders"] = {"normal": "train/normal_images", "abnormal": None, "masks": None, "test": None}
    if defects:
        data["folders"]["abnormal"] = "train/defect_images"
    path = write_config(tmp_path, root, data=data, **BANK)
    outcome = run_script("train.py", "--config", path, "--fold", "0")
    assert outcome.code == 0, outcome.stderr


def test_too_few_normal_images_to_calibrate_are_counted(tmp_path, fails_with_one_line):
    path = write_config(tmp_path, write_dataset(tmp_path / "data", defects=2, normals=2, tests=0), **BANK)
    command = ["train.py", "--config", path, "--set", "data.sample_submission=null"]
    message = fails_with_one_line(*command)
    assert "train.inner_holdout=0.1 keeps none of 1 (in 1 group)" in message
    assert "add normal images" in message and "set it" not in message
    unset = fails_with_one_line(*command, "--set", "train.inner_holdout=0")
    assert "train.inner_holdout=0 keeps none of 1" in unset and "set it, such as to 0.1" in unset


def test_an_epoch_cannot_be_chosen_by_no_image(tmp_path, run_script, fails_with_one_line):
    root = write_dataset(tmp_path / "data", defects=2, normals=6, tests=0)
    select = {"train": {"select": "inner", "inner_holdout": 0.2}, "data": {"sample_submission": None}}
    path = write_config(tmp_path, root, split=BANK["split"], **select)
    assert "the epoch is chosen by the loss" in run_script("train.py", "--config", path).stdout
    few = write_dataset(tmp_path / "few", defects=2, normals=2, tests=0)
    path = write_config(tmp_path, few, "few", split=BANK["split"], **select)
    message = fails_with_one_line("train.py", "--config", path, "--set", "data.name=few_data")
    assert "train.inner_holdout=0.2 keeps none of 2 images" in message and "train.select=last" in message
