"""Adding new normal images to a trained memory bank."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import copy_runs, raising, run_at, run_once, texture, write_config, write_dataset, write_png

from defects.config import load_config
from defects.data.images import read_image
from defects.runs import Run
from defects.training.checkpoint import load_detector

SETS = [
    "model.backbone={name: test_resnet, weights: none}",
    "model.options={layers: null, neighbours: 0}",
    "data.image_size=[64, 64]",
    "train.inner_holdout=0.3",
]
RUN = "tiny_data_patchcore_reduced"
FLAGS = ["--model", "patchcore_reduced", *(part for value in SETS for part in ("--set", value))]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Folder of a memory bank whose fold 0 is trained."""
    folder = tmp_path_factory.mktemp("bank")
    path = write_config(folder, write_dataset(folder / "data", defects=4, normals=20))
    run_once("train.py", "--config", path, *FLAGS)
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """Config in a copy of that folder."""
    copy_runs(trained_once, tmp_path)
    return tmp_path / "tiny.yaml"


def bank(path):
    return load_detector(Run(load_config(path, SETS, model="patchcore_reduced")), "0").memory_bank


def test_update_bank_grows_and_redoes_what_depends_on_it(trained, run_script, tmp_path):
    for i in range(4):
        write_png(tmp_path / "new" / f"{i}.png", 255 - texture(900 + i, 64))
    run = tmp_path / "output" / "tiny_data_patchcore_reduced"
    assert run_script("infer.py", run_at(trained, RUN)).code == 0
    before, oof = bank(trained), pd.read_csv(run / "fold0" / "oof.csv")
    tests = pd.read_csv(run / "test.csv")
    outcome = run_script("update.py", run_at(trained, RUN), tmp_path / "new")
    assert outcome.code == 0 and "patches entered the bank" in outcome.stdout
    after = bank(trained)
    assert len(after) > len(before) and (after[: len(before)] == before).all()
    again = pd.read_csv(run / "fold0" / "oof.csv")
    assert again["image_id"].tolist() == oof["image_id"].tolist()
    assert (again["score"] <= oof["score"] + 1e-5).all()
    # The old test scores are those of another model now.
    assert run_script("infer.py", run_at(trained, RUN)).code == 0
    assert not pd.read_csv(run / "test.csv")["score"].equals(tests["score"])


def run_files(path):
    folder = path.parent / "output" / "tiny_data_patchcore_reduced" / "fold0"
    return {name: (folder / name).read_bytes() for name in ("best.pt", "oof.csv", "oof_maps.npz")}


@pytest.mark.parametrize("moved", [0, 2])
def test_complete_update_moves_files_of_a_stopped_update(
    trained, run_script, fails_with_one_line, tmp_path, monkeypatch, moved
):
    """Killed after the scores and before the model, it left new scores with the old model."""
    write_png(tmp_path / "new" / "0.png", 255 - texture(900, 64))
    command = ("update.py", run_at(trained, RUN), tmp_path / "new")
    before = run_files(trained)
    replace, count = Path.replace, []

    def stop(path, target):
        if path.parent.name == "update":
            if len(count) == moved:
                raise KeyboardInterrupt
            count.append(path.name)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        assert run_script(*command).code == 130
    changed = [name for name, content in run_files(trained).items() if content != before[name]]
    assert sorted(changed) == sorted(count)
    for reader in ("infer.py", "report.py"):
        message = fails_with_one_line(reader, run_at(trained, RUN))
        assert "an update was interrupted; run src/update.py again" in message
    outcome = run_script(*command)
    assert outcome.code == 0 and "all of its images are in the bank already" in outcome.stdout
    after = run_files(trained)
    assert all(after[name] != before[name] for name in after)
    assert run_script("infer.py", run_at(trained, RUN)).code == 0
    detector = load_detector(Run(load_config(trained, SETS, model="patchcore_reduced")), "0").eval()
    oof = pd.read_csv(trained.parent / "output" / "tiny_data_patchcore_reduced" / "fold0" / "oof.csv")
    image = read_image(trained.parent / "data" / "train" / oof["image_id"][0], (64, 64))
    with torch.inference_mode():
        score = detector(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    assert score.item() == pytest.approx(oof["score"][0], rel=1e-4)


def test_update_bank_that_fails_changes_nothing(trained, run_script, tmp_path, monkeypatch):
    write_png(tmp_path / "new" / "0.png", 255 - texture(900, 64))
    before = run_files(trained)
    monkeypatch.setattr(
        "defects.training.fold.checkpoint.save", raising(OSError(28, "No space left on device"))
    )
    assert run_script("update.py", run_at(trained, RUN), tmp_path / "new").code == 2
    assert run_files(trained) == before


@pytest.mark.parametrize("alter", [lambda image: image, lambda image: image[::-1] // 4 * 3])
def test_update_bank_refuses_photographs_of_held_out_objects(trained, fails_with_one_line, tmp_path, alter):
    before, oof = bank(trained), tmp_path / "output" / "tiny_data_patchcore_reduced" / "fold0" / "oof.csv"
    held = pd.read_csv(oof).query("label == 0")["image_id"].iloc[0]
    image = read_image(trained.parent / "data" / "train" / held)
    write_png(tmp_path / "new" / "again.png", alter(image))
    message = fails_with_one_line("update.py", run_at(trained, RUN), tmp_path / "new")
    assert "again.png shows what" in message and held in message
    assert (bank(trained) == before).all()


def test_update_bank_refuses_test_images(trained, fails_with_one_line):
    before = bank(trained)
    folder = trained.parent / "data" / "test" / "images"
    message = fails_with_one_line("update.py", run_at(trained, RUN), folder)
    assert "is the test image test_0.png of tiny_data (6 such images)" in message
    assert (bank(trained) == before).all()


def test_update_bank_needs_a_bank(make_dataset, config_file, run_script, fails_with_one_line, tmp_path):
    path = config_file(make_dataset())
    assert run_script("train.py", "--config", path).code == 0
    assert "memory bank" in fails_with_one_line("update.py", run_at(path), tmp_path)
