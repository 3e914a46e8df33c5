"""What every detector does, whatever is inside: train, calibrate, score, come back from its file."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import texture
from defects.config import load_config
from defects.data.datasets import DeviceBatches
from defects.data.split import load_folds
from defects.models import build_detector
from defects.training.run import load_detector

NETWORK = ["model.backbone={name: test_resnet, weights: none}"]
TINY = {
    "convae": ["model.options={width: 8}"],
    "dfr": NETWORK + ["model.options={layers: [layer1, layer2]}"],
    "patchcore": NETWORK,
    "draem": ["model.options={width_reconstructive: 4, width_discriminative: 4}"],
    "efficientad": NETWORK,
    "supersimplenet": NETWORK + ["model.options={hidden: 16, class_channels: 8}"],
    "supersimplenet_supervised": NETWORK,
}
SHARED = [
    "data.image_size=[64, 64]",
    "train.epochs=1",
    "train.batch_size=4",
    "train.inner_holdout=0.3",
    "infer.tta=false",
]
EXTRA = {
    "supersimplenet_supervised": ["train.inner_holdout=0"],
    "efficientad": ["train.steps=4", "model.options.width=0.125", "model.options.channels=16"],
}


def overrides(name, teacher):
    values = SHARED + TINY[name] + EXTRA.get(name, [])
    return values + ([f"model.options.teacher={teacher}"] if name == "efficientad" else [])


@pytest.fixture
def teacher(tmp_path, run_script, request):
    """A teacher for EfficientAD, distilled from generated images."""
    path = tmp_path / "teacher.pt"
    return path


@pytest.fixture
def config(make_dataset, config_file):
    return config_file(make_dataset(defects=6, normals=24, tests=4))


@pytest.fixture(params=sorted(TINY))
def trained(request, config, run_script, tmp_path):
    """(config, run folder) of fold 0 of each detector."""
    name = request.param
    sets = overrides(name, tmp_path / "teacher.pt")
    flags = [part for value in sets for part in ("--set", value)]
    detector = f"{name}_reduced"
    if name == "efficientad":
        distil(config, detector, flags, run_script, tmp_path)
    outcome = run_script("train.py", "--config", config, "--detector", detector, *flags)
    assert outcome.code == 0, outcome.stderr
    loaded = load_config(config, sets, detector)
    return loaded, loaded.experiment_dir / "fold0"


def distil(config, detector, flags, run_script, tmp_path):
    images = tmp_path / "data" / "train" / "normal_images"
    outcome = run_script("distill.py", "--config", config, "--detector", detector, "--images", images, *flags)
    assert outcome.code == 0, outcome.stderr


def test_a_detector_from_training_to_its_file_and_back(trained, run_script):
    config, folder = trained
    costs = json.loads((folder / "costs.json").read_text())
    assert costs["fit_seconds"] > 0 and costs["score_images_per_second"] > 0 and costs["peak_memory_mb"] > 0
    oof = pd.read_csv(folder / "oof.csv").set_index("image_id")
    assert len(oof) == 15 and oof["probability"].between(0, 1).all()
    maps = np.load(folder / "oof_maps.npz")
    assert sorted(maps.files) == sorted(oof.index)
    assert all(max(maps[name].shape) <= 64 and np.isfinite(maps[name]).all() for name in maps.files)
    # Loaded from its file, and without the files that training started from, it scores the same.
    detector = load_detector(config, "0").eval()
    held = load_folds(config)
    held = held[held["fold"] == "0"]
    with torch.inference_mode():
        batches = DeviceBatches(config, held, torch.device("cpu"))
        again = torch.cat([detector(batch["image"])[0][:, 0] for batch in batches])
    assert again.tolist() == oof.loc[held["image_id"], "score"].tolist()


def test_a_defect_lights_up_where_it_is(trained):
    """After next to no training this holds for what compares features; the others have tests of their own."""
    config, _ = trained
    detector = load_detector(config, "0").eval()
    with torch.inference_mode():
        for height, width in ((64, 64), (64, 96)):
            image = torch.from_numpy(np.stack([texture(5, 96)[:height, :width]] * 3)).float()[None] / 255
            score, maps = detector(image)
            assert score.shape == (1, 1)
            # The map covers the image: its sides are in the same proportion.
            assert maps.shape[2] / maps.shape[3] == pytest.approx(height / width, rel=0.15)


def test_scores_do_not_depend_on_the_rest_of_the_batch(trained):
    detector = load_detector(trained[0], "0").eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together, alone = detector(images)[0], torch.cat([detector(image[None])[0] for image in images])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_built_for_a_checkpoint_it_needs_no_other_file(trained):
    config, folder = trained
    state = torch.load(folder / "best.pt", weights_only=True)["detector"]
    detector = build_detector(config, pretrained=False)
    assert detector.load_state_dict(state).missing_keys == []
