"""Distillation as a user meets it: the teacher's file, resuming, which images it may see."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_at, texture, write_png
from torch.nn import functional

from defects.data.datasets import ImageDataset
from defects.training import distillation as library
from defects.training.distillation import Distillation, PatchFeatures, StepBatches

FAST = {
    "width": 0.0625,
    "channels": 8,
    "distillation": {"steps": 6, "batch_size": 4, "lr": 3e-3, "image_size": 40, "save_every": 2},
}


@pytest.fixture
def images(tmp_path):
    """A folder of ten images that belong to no data set."""
    for i in range(10):
        write_png(tmp_path / "images" / f"{i}.png", texture(500 + i, 64))
    return tmp_path / "images"


@pytest.fixture
def config(tmp_path, make_dataset, config_file):
    """config(**model sections) -> path of a config whose teacher is teacher.pt beside it."""
    root = make_dataset(defects=4, normals=8, tests=3)

    def write(name="tiny", **options):
        given = FAST | {"teacher": str(tmp_path / f"{name}.pt")} | options
        backbone = {"name": "test_resnet", "weights": "none"}
        return config_file(root, name, model={"name": "efficientad", "backbone": backbone, "options": given})

    return write


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("channels", [8, 40, 3000])
def test_patch_features_are_those_of_patchcore(channels):
    widths, grids = (5, 12), ((6, 8), (3, 4))
    maps = [torch.rand(2, width, *grid) for width, grid in zip(widths, grids, strict=True)]
    layers = []
    for each in maps:
        around = functional.unfold(each, 3, padding=1).transpose(1, 2)  # [B, places, channels x 3 x 3]
        pooled = functional.adaptive_avg_pool1d(around, 1024).transpose(1, 2).unflatten(2, each.shape[2:])
        layers.append(functional.interpolate(pooled, size=grids[0], mode="bilinear"))
    joined = torch.cat(layers, 1).permute(0, 2, 3, 1)
    expected = functional.adaptive_avg_pool1d(joined.flatten(0, 2), channels).view(2, 6, 8, channels)
    made = PatchFeatures(list(widths), channels)(maps)
    assert torch.allclose(made.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_step_batches_are_the_same_from_a_later_start():
    steps = list(StepBatches(10, 4, 3, 0, 10))
    drawn = [item for batch in steps for item in batch]
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == [(epoch, row) for row in range(10)]
    assert drawn[:10] != sorted(drawn[:10])
    assert list(StepBatches(10, 4, 3, 7, 10)) == steps[7:]


def test_distill_teaches_and_its_file_says_what_it_is(config, images, run_script, tmp_path):
    outcome = run_script("distill.py", "--config", config(), "--images", images, "--steps", 60)
    assert outcome.code == 0, outcome.stderr
    content = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert [content[name] for name in ("size", "width", "channels")] == ["small", 0.0625, 8]
    rows = metrics(tmp_path / "tiny")
    assert [row["step"] for row in rows] == list(range(2, 61, 2))
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx(1, abs=0.3)  # targets are normalised, the network starts near 0
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_distill_resumed_equals_an_undisturbed_run(config, images, run_script, tmp_path, monkeypatch):
    update, calls = Distillation._update, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update(self, batch)

    assert run_script("distill.py", "--config", config("whole"), "--images", images).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "_update", interrupted)
        assert run_script("distill.py", "--config", config("broken"), "--images", images).code == 130
    assert not (tmp_path / "broken.pt").exists()
    resumed = run_script("distill.py", "--config", config("broken"), "--images", images)
    assert resumed.code == 0 and "after step 2" in resumed.stdout
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")
    assert (tmp_path / "whole.pt").read_bytes() == (tmp_path / "broken.pt").read_bytes()


def test_distill_skips_finished_refuses_changed_and_restarts(
    config, images, run_script, fails_with_one_line, tmp_path
):
    command = ["distill.py", "--config", config(), "--images", images]
    run_script(*command)
    first = (tmp_path / "tiny.pt").read_bytes()
    assert "is finished" in run_script(*command).stdout
    message = fails_with_one_line(*command, "--steps", "4")
    assert (
        "tiny.pt was distilled otherwise (model.options.distillation.steps=" in message
        and "--restart" in message
    )
    assert run_script(*command, "--restart").code == 0
    assert (tmp_path / "tiny.pt").read_bytes() == first
    (tmp_path / "tiny.pt").unlink()  # as after an interruption
    (tmp_path / "tiny" / "last.pt").write_bytes(b"half")
    assert "last.pt cannot be read" in fails_with_one_line(*command)


def test_distill_learns_from_all_training_images_only(config, run_script, tmp_path, monkeypatch):
    learnt = []

    def make_dataset(rows, *arguments, **options):
        learnt.extend(map(Path, rows["path"]))
        return ImageDataset(rows, *arguments, **options)

    monkeypatch.setattr(library, "ImageDataset", make_dataset)
    outcome = run_script("distill.py", "--config", config(), "--set", "data.external_data=false")
    assert outcome.code == 0 and "though not their labels" in outcome.stdout
    train = tmp_path / "data" / "train"
    assert sorted(learnt) == sorted(
        path for kind in ("defect", "normal") for path in (train / f"{kind}_images").iterdir()
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--images", "data/train/normal_images"], "holds images of tiny_data"),
        (["--images", "data/test"], "holds images of tiny_data"),
        (["--images", "nowhere"], "nowhere is no folder"),
        (["--images", "images", "--set", "data.external_data=false"], "--images="),
        (["--images", "images", "--steps", "0"], "distillation.steps=0"),
        (["--images", "images", "--set", "model.options.teacher=null"], "model.options.teacher is missing"),
        (["--images", "images", "--set", "model.name=classifier"], "model.name=classifier has no teacher"),
        (["--images", "images", "--set", "model.backbone.name=resnet_x"], "timm has no such model"),
        (["--images", "images", "--set", "model.options.distillation.lr=1e30"], "distillation.lr"),
    ],
)
def test_distill_says_in_one_line_what_cannot_work(
    config, images, fails_with_one_line, tmp_path, monkeypatch, arguments, part
):
    path = config()
    monkeypatch.chdir(tmp_path)
    assert part in fails_with_one_line("distill.py", "--config", path, *arguments)
    assert not (tmp_path / "tiny.pt").exists()


def test_distill_feeds_scores_that_need_its_file_no_more(config, images, run_script, tmp_path):
    sets = ("train.inner_holdout=0.3", "data.image_size=[40, 48]", "infer.tta=false")
    train = [part for value in sets for part in ("--set", value)]
    path = config()
    missing = run_script("train.py", "--config", path, *train)
    assert missing.code == 2 and "tiny.pt: no such file; make it with src/distill.py" in missing.stderr
    assert run_script("distill.py", "--config", path, "--images", images).code == 0
    outcome = run_script("train.py", "--config", path, *train)
    assert outcome.code == 0, outcome.stderr
    row = metrics(tmp_path / "output" / "tiny" / "fold0")[0]
    assert {"train_loss", "train_st", "train_ae", "train_stae"} <= row.keys()
    (tmp_path / "tiny.pt").unlink()
    outcome = run_script("infer.py", run_at(path), *train)
    assert outcome.code == 0, outcome.stderr
