"""What every detector does, whatever is inside: train, calibrate, score, come back from its file."""

import copy
import json
from contextlib import nullcontext

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import defective, texture, write_png

from defects.config import load_config
from defects.data.datasets import DeviceBatches
from defects.data.images import read_image
from defects.deploy.exporter import export
from defects.deploy.model import load_model
from defects.deploy.prediction import predict
from defects.messages import UserError
from defects.models import build_detector
from defects.models.supersimplenet import SuperSimpleNet
from defects.runs import Run
from defects.stages import ensure_images, ensure_tables
from defects.training.checkpoint import load_detector
from defects.training.distillation import distill
from defects.training.fold import train_fold

SIZE = 64
NETWORK = "model.backbone={name: test_resnet, weights: none}"
SHARED = [f"data.image_size=[{SIZE}, {SIZE}]", "train.batch_size=4", "train.inner_holdout=0.3"]
TINY = {
    "convae_reduced": ["model.options={width: 8, error: l2, smoothing: 2.0}", "train.epochs=20"],
    "dfr_reduced": [NETWORK, "model.options.layers=[layer1, layer2]", "train.epochs=8"],
    "patchcore_reduced": [NETWORK, "model.options.layers=null"],
    "patch_head": [
        NETWORK,
        "model.options={width: 32, heads: 2, pool_size: 32, layers: [layer1, layer2], grid: layer2}",
        "train.steps=60",
        "train.inner_holdout=0",
    ],
    "draem_reduced": [
        "model.options={width_reconstructive: 8, width_discriminative: 8, samples: 4}",
        "train.epochs=25",
        "train.lr=0.003",
    ],
    "efficientad_reduced": [NETWORK, "train.steps=40"],
    "supersimplenet_reduced": [
        *(
            NETWORK,
            "model.options.hidden=64",
            "model.options.noise_std=2",
            "train.epochs=30",
            "train.lr=0.003",
        )
    ],
    "supersimplenet_supervised_reduced": [
        *(NETWORK, "model.options.hidden=32", "train.epochs=8", "train.inner_holdout=0")
    ],
}


def plain(seed, height=SIZE, width=SIZE):
    """A faint texture: what there is to learn is learnt in seconds."""
    return (128 + (texture(seed, max(height, width))[:height, :width].astype(float) - 128) / 4).astype(
        np.uint8
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of 24 normal images and 6 defects, and the YAML that describes it."""
    root = tmp_path_factory.mktemp("detectors")
    for i in range(24):
        write_png(root / "normal" / f"{i}.png", plain(i))
        write_png(root / "others" / f"{i}.png", texture(500 + i, SIZE))
    for i in range(6):
        mask = defective(i, SIZE)[1]
        write_png(
            root / "abnormal" / f"{i}.png", np.where(mask, 255 * (i % 2), plain(100 + i)).astype(np.uint8)
        )
        write_png(root / "masks" / f"{i}.png", mask)
    folders = {"normal": "normal", "abnormal": "abnormal", "masks": "masks"}
    data = {
        "name": "textures",
        "source": "folders",
        "root": str(root),
        "folders": folders,
        "image_size": [8, 8],
    }
    values = {"output": str(root / "output"), "data": data, "split": {"folds": 2}, "infer": {"tta": False}}
    values["split"]["duplicates"] = {"enabled": False}
    (root / "textures.yaml").write_text(yaml.safe_dump(values | {"model": {"name": "convae"}}))
    return root


@pytest.fixture(scope="module", params=sorted(TINY))
def trained(request, folder):
    """(config, run folder) of fold 0 of each detector, trained for seconds."""
    sets = SHARED + TINY[request.param]
    if "efficientad" in request.param:
        sets += [f"model.options.teacher={folder / 'teacher.pt'}"]
        sets += [f"model.options.distillation.{key}" for key in ("steps=20", "image_size=64", "batch_size=4")]
    config = load_config(folder / "textures.yaml", sets, model=request.param)
    if "efficientad" in request.param:
        distill(config, ensure_images(config), folder / "others")
    train_fold(config, "0", ensure_tables(config).folds)
    return config, config.experiment_dir / "fold0"


@pytest.fixture(scope="module")
def detector(trained):
    return load_detector(Run(trained[0]), "0").eval()


def scores(detector, images):
    """Raw scores of uint8 [H, W] images."""
    stacked = torch.from_numpy(np.stack([np.stack([image] * 3) for image in images])).float() / 255
    with torch.inference_mode():
        return detector(stacked)


def test_detector_files_of_a_run(trained):
    _, folder = trained
    costs = json.loads((folder / "costs.json").read_text())
    assert min(costs[name] for name in ("fit_seconds", "score_images_per_second", "peak_memory_mb")) > 0
    oof = pd.read_csv(folder / "oof.csv").set_index("image_id")
    assert len(oof) == 15 and oof["probability"].between(0, 1).all()
    maps = np.load(folder / "oof_maps.npz")
    assert sorted(maps.files) == sorted(oof.index)
    assert all(max(maps[name].shape) <= 64 and np.isfinite(maps[name]).all() for name in maps.files)


def test_detector_exported_it_scores_as_in_training(trained):
    config, folder = trained
    if config.experiment == "textures_supersimplenet_supervised_reduced":
        pytest.skip("its graph is that of the unsupervised one")
    tables = ensure_tables(config)
    exported, table = export(Run(config), tables, "0", ["torch", "onnx", "openvino"], 15)
    assert list(table.index) == ["training", "model.pt", "model.onnx", "openvino_fp32.xml"]
    oof = pd.read_csv(folder / "oof.csv")
    files = [config.data.root / name for name in oof["image_id"]]
    found = list(predict(load_model(exported / "model.onnx"), files, batch_size=4))
    scores = np.array([each.score["defect"] for each in found])
    np.testing.assert_allclose(scores, oof["score"], rtol=1e-4, atol=1e-4 * oof["score"].std())


def test_detector_untrained_it_is_scored_too(trained):
    """As a comparison: preparation and calibration, no epochs."""
    config, _ = trained
    train = config.train.model_copy(update={"epochs": 0, "steps": None})
    untrained = config.model_copy(update={"train": train, "experiment": f"{config.experiment}_untrained"})
    train_fold(untrained, "0", ensure_tables(untrained).folds)
    scored = [pd.read_csv(each.experiment_dir / "fold0" / "oof.csv")["score"] for each in (config, untrained)]
    learns = any(weights.requires_grad for weights in build_detector(config, False).parameters())
    assert scored[0].equals(scored[1]) != learns


def test_detector_averages_over_turned_images_need_a_calibration_of_their_own(trained):
    config, _ = trained
    infer = config.infer.model_copy(update={"tta": True})
    changes = {"infer": infer, "experiment": f"{config.experiment}_turned"}
    changed, needed = config.model_copy(update=changes), build_detector(config, False).needs_holdout
    with pytest.raises(UserError, match="infer.tta=false") if needed else nullcontext():
        train_fold(changed, "0", ensure_tables(changed).folds)


def test_detector_made_up_training_samples_can_be_looked_at(trained):
    config, folder = trained
    assert (folder / "samples.png").exists() == (config.model.name == "draem")
    if config.model.name == "draem":
        assert read_image(folder / "samples.png").shape == (4 * SIZE, 3 * SIZE, 3)


def test_detector_loaded_from_its_file_it_scores_the_same(trained, detector):
    config, folder = trained
    oof = pd.read_csv(folder / "oof.csv").set_index("image_id")
    held = ensure_tables(config).folds.query("fold == '0'")
    with torch.inference_mode():
        batches = DeviceBatches(config, held, torch.device("cpu"))
        again = torch.cat([detector(batch["image"])[0][:, 0] for batch in batches])
    # Scores are made with batch normalisations folded into convolutions, which rounds otherwise.
    assert again.tolist() == pytest.approx(oof.loc[held["image_id"], "score"].tolist(), rel=1e-5, abs=1e-5)


def test_detector_built_for_a_checkpoint_it_needs_no_other_file(trained):
    config, folder = trained
    (folder.parents[2] / "teacher.pt").rename(folder.parents[2] / "gone.pt") if "teacher" in str(
        config.model.options
    ) else None
    state = torch.load(folder / "best.pt", weights_only=True)["detector"]
    loaded = build_detector(config, pretrained=False).load_state_dict(state)
    assert not loaded.missing_keys and not loaded.unexpected_keys


def painted(image, seed):
    """A stain or a stroke of another grey on a normal image."""
    rng, canvas = np.random.default_rng(seed), image.copy()
    start, end = (tuple(int(value) for value in rng.integers(12, SIZE - 12, 2)) for _ in range(2))
    grey = int(rng.choice([60, 196]))
    if seed % 2:
        return cv2.line(canvas, start, end, grey, 4)
    return cv2.circle(canvas, start, 7, grey, -1)


def test_detector_paint_on_normal_images_raises_the_score(detector):
    normal = [plain(2000 + i) for i in range(12)]
    clean = scores(detector, normal)[0]
    dirty = scores(detector, [painted(image, i) for i, image in enumerate(normal)])[0]
    assert (dirty > clean).float().mean() >= 0.9
    assert dirty.median() > clean.max()


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_detector_the_map_covers_the_image(detector, shape):
    score, maps = scores(detector, [plain(9, *shape)])
    assert score.shape == (1, 1) and maps.shape[:2] == (1, 1)
    assert maps.shape[2] / maps.shape[3] == pytest.approx(shape[0] / shape[1], rel=0.1)


def test_detector_a_score_does_not_depend_on_the_other_images(detector):
    images = [plain(i) for i in range(3)]
    together = scores(detector, images)[0]
    alone = torch.cat([scores(detector, [image])[0] for image in images])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5)


# --- regions of interest -----------------------------------------------------------------------------------


def as_batch(images, inside=None):
    """Labelled as normal; with `inside` bool [H, W] as the fourth channel of all images."""
    colours = torch.from_numpy(np.stack([np.stack([image] * 3) for image in images])).float() / 255
    plane = torch.ones(len(images), 1, SIZE, SIZE)
    if inside is not None:
        colours = torch.cat([colours, plane * torch.from_numpy(inside).float()], 1)
    label = torch.zeros(len(images), 1)
    label[0] = 1
    mask = torch.zeros_like(plane)
    mask[0, :, 4:12, 4:12] = 1
    groups = torch.arange(len(images))
    return {"image": colours, "label": label, "mask": mask, "masked": torch.ones_like(label), "group": groups}


def loss_of(detector, batch):
    learner = copy.deepcopy(detector)
    torch.manual_seed(0)
    np.random.seed(0)
    with torch.no_grad():
        if learner.trains_on_features:
            batch = learner.eval().embed(batch)
        return learner.train().training_loss(batch)["loss"]


def test_detector_a_region_of_all_pixels_changes_nothing(detector):
    images = [painted(plain(5), 1), plain(6), plain(7)]
    whole = np.ones((SIZE, SIZE), bool)
    with torch.inference_mode():
        expected = detector(as_batch(images)["image"])
        score, maps = detector(as_batch(images, whole)["image"])
    torch.testing.assert_close(score, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, expected[1], rtol=1e-3, atol=1e-4)
    if any(weights.requires_grad for weights in detector.parameters()):
        losses = [loss_of(detector, as_batch(images, inside)) for inside in (None, whole)]
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-4)


def test_detector_what_lies_outside_the_region_does_not_raise_the_score(detector):
    """Without the fill that hides it from the network: a stain is seen, but its cells do not count."""
    if isinstance(detector, SuperSimpleNet) and detector.supervised:
        pytest.skip("its score is learnt, and need not rise with the map")
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:, :24] = True
    stained = cv2.circle(plain(2000), (52, 32), 8, 220, -1)
    with torch.inference_mode():
        raised, full_map = detector(as_batch([stained])["image"])
        score, _ = detector(as_batch([stained], inside)["image"])
    width = full_map.shape[3]
    assert full_map[..., width // 2 :].max() > full_map[..., : width // 3].max()  # it is what is seen
    assert score.item() < raised.item()


def test_detector_masks_outside_the_region_teach_nothing(detector):
    if not any(weights.requires_grad for weights in detector.parameters()):
        pytest.skip("it does not learn from losses")
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:, :32] = True
    batch = as_batch([painted(plain(5), 1), plain(6), plain(7), plain(8)], inside)
    marked = batch | {"mask": batch["mask"].clone()}
    marked["mask"][1:, :, :, 48:] = 1
    loss = loss_of(detector, batch)
    assert torch.isfinite(loss)
    if detector.uses_masks:
        assert loss_of(detector, marked).item() == pytest.approx(loss.item(), rel=1e-5)
