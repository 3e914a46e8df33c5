"""Adding new normal images to a trained memory bank."""

import pandas as pd
import pytest
from conftest import texture, write_png

from defects.config import load_config
from defects.data.images import read_image
from defects.training.run import load_detector

SETS = [
    "model.backbone={name: test_resnet, weights: none}",
    "model.options={layers: null, neighbours: 0}",
    "data.image_size=[64, 64]",
    "train.inner_holdout=0.3",
]
FLAGS = ["--detector", "patchcore_reduced", *(part for value in SETS for part in ("--set", value))]


@pytest.fixture
def trained(make_dataset, config_file, run_script):
    """Path of a config whose fold 0 is trained."""
    path = config_file(make_dataset(defects=4, normals=20))
    assert run_script("train.py", "--config", path, *FLAGS).code == 0
    return path


def bank(path):
    return load_detector(load_config(path, SETS, "patchcore_reduced"), "0").memory_bank


def test_the_bank_grows_and_what_depends_on_it_is_redone(trained, run_script, tmp_path):
    for i in range(4):
        write_png(tmp_path / "new" / f"{i}.png", 255 - texture(900 + i, 64))
    run = tmp_path / "output" / "tiny_data_patchcore_reduced"
    assert run_script("infer.py", "--config", trained, *FLAGS).code == 0
    before, oof = bank(trained), pd.read_csv(run / "fold0" / "oof.csv")
    tests = pd.read_csv(run / "test.csv")
    outcome = run_script("update.py", tmp_path / "new", "--config", trained, *FLAGS)
    assert outcome.code == 0 and "patches entered the bank" in outcome.stdout
    after = bank(trained)
    assert len(after) > len(before) and (after[: len(before)] == before).all()
    again = pd.read_csv(run / "fold0" / "oof.csv")
    assert again["image_id"].tolist() == oof["image_id"].tolist()
    assert (again["score"] <= oof["score"] + 1e-5).all()
    # The old test scores are those of another model now.
    assert run_script("infer.py", "--config", trained, *FLAGS).code == 0
    assert not pd.read_csv(run / "test.csv")["score"].equals(tests["score"])


@pytest.mark.parametrize("alter", [lambda image: image, lambda image: image[::-1] // 4 * 3])
def test_other_photographs_of_held_out_objects_are_refused(trained, fails_with_one_line, tmp_path, alter):
    before, oof = bank(trained), tmp_path / "output" / "tiny_data_patchcore_reduced" / "fold0" / "oof.csv"
    held = pd.read_csv(oof).query("label == 0")["image_id"].iloc[0]
    image = read_image(trained.parent / "data" / "train" / held)
    write_png(tmp_path / "new" / "again.png", alter(image))
    message = fails_with_one_line("update.py", tmp_path / "new", "--config", trained, *FLAGS)
    assert "again.png shows what" in message and held in message
    assert (bank(trained) == before).all()


def test_other_detectors_have_no_bank(make_dataset, config_file, run_script, fails_with_one_line, tmp_path):
    path = config_file(make_dataset())
    assert run_script("train.py", "--config", path).code == 0
    assert "memory bank" in fails_with_one_line("update.py", tmp_path, "--config", path)
