"""Detectors of normal images learn from each image once, as it is scored; others from the training list."""

import numpy as np
import pytest

from defects.config import ROOT
from defects.config_files import known_config_files, load_config
from defects.data.datasets import plain_loader, training_loader
from defects.data.fold_files import load_training_rows
from defects.models import build_detector
from defects.models.convae import ConvAE
from defects.stages import ensure_tables
from defects.training.fold import divide_images, train_fold

CONVAE = ["model.backbone=null", "model.options={width: 4, error: l2, smoothing: 1.0}"]
RESNET = ["model.backbone={name: test_resnet, weights: none}"]
ONE_CLASS = {
    "convae": CONVAE,
    "dfr": [*RESNET, "model.options={layers: [layer1, layer2]}"],
    "draem": ["model.backbone=null", "model.options={width_reconstructive: 4, width_discriminative: 4}"],
    "efficientad": [*RESNET, "model.options={width: 0.25, channels: 16}"],
    "patchcore": RESNET,
    "supersimplenet": [*RESNET, "model.options={hidden: 8, class_channels: 4}"],
}
BOTH_CLASSES = {
    "classifier": RESNET,
    "draem": [*ONE_CLASS["draem"], "model.options.real_defects=true"],
    "supersimplenet": [*RESNET, "model.options={hidden: 8, supervised: true}"],
}


@pytest.fixture
def configured(make_dataset, make_config):
    """configured(name, options, *overrides) -> config of a detector on 6 defects and 24 normal images."""

    def make(name, options, *overrides):
        root = make_dataset(defects=6, normals=24, tests=0, size=40)
        data = ["data.sample_submission=null", "data.image_size=[40, 40]", "data.symmetries=dihedral"]
        holdout = ["infer.tta=false", "train.inner_holdout=0.3"]
        return make_config(root, *data, *holdout, f"model.name={name}", *options, *overrides)

    return make


def sides_of(config):
    sides = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    return sides.suited_to(build_detector(config, pretrained=False), config)


def images_of(loader):
    """The images of a loader's batches as bytes, sorted."""
    return sorted(image.numpy().tobytes() for batch in loader for image in batch["image"])


def upright_images(config, label=0):
    """Training images of fold 0, outside the inner hold-out, as scoring reads them: bytes, sorted."""
    sides = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    unseen = [*sides.inner["image_id"], *sides.validation["image_id"]]
    table = ensure_tables(config).folds
    rows = table[(table["label"] == label) & ~table["image_id"].isin(unseen)]
    return images_of(plain_loader(config, rows))


@pytest.mark.parametrize("name", sorted(ONE_CLASS))
def test_detector_of_normal_images_is_given_each_once_and_upright(configured, name):
    config = configured(name, ONE_CLASS[name], "train.batch_size=1")
    sides = sides_of(config)
    assert images_of(training_loader(config, sides.training_rows)) == upright_images(config)


@pytest.mark.parametrize("name", sorted(BOTH_CLASSES))
def test_detector_of_both_classes_is_given_the_training_list(configured, name):
    config = configured(name, BOTH_CLASSES[name], "train.batch_size=1")
    sides = sides_of(config)
    normal = sides.training_rows[sides.training_rows["label"] == 0]
    defect = sides.training_rows[sides.training_rows["label"] == 1]
    assert len(images_of(training_loader(config, normal))) == len(upright_images(config))
    assert images_of(training_loader(config, normal)) != upright_images(config)
    assert len(defect) > len(upright_images(config, label=1))


def test_detector_that_trains_on_features_is_given_the_training_list_upright(configured):
    """Defects as often as planned; the features are turned, not the images."""
    config = configured("patch_head", RESNET, "train.batch_size=1")
    rows = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    sides = sides_of(config)
    assert sides.training_rows["image_id"].tolist() == rows.training_rows["image_id"].tolist()
    for label in (0, 1):
        part = sides.training_rows[sides.training_rows["label"] == label]
        assert set(images_of(training_loader(config, part))) <= set(upright_images(config, label))


@pytest.mark.parametrize("method", ["oversample", "none"])
def test_balancing_two_classes_does_not_touch_the_one_that_is_learnt(configured, method):
    balance = [f"split.balance.method={method}", "split.balance.ratio=1.0"]
    config = configured("convae", CONVAE, "train.batch_size=1", *balance)
    loader = training_loader(config, sides_of(config).training_rows)
    assert images_of(loader) == upright_images(config)


@pytest.mark.parametrize("name", known_config_files("models"))
def test_shipped_settings_do_not_turn_what_one_class_is_learnt_from(name):
    config = load_config(ROOT / "configs" / "demo.yaml", [], model=name)
    is_supervised = config.model.options.get("supervised", False)
    if config.model.name in ONE_CLASS and not is_supervised:
        assert config.augment == []


def test_training_run_sees_upright_images_only(configured, monkeypatch):
    config = configured("convae", CONVAE, "train.batch_size=2", "train.epochs=2")
    seen = []

    def recording_loss(detector, batch):
        seen.extend(np.rint(image * 255).astype(np.uint8).tobytes() for image in batch["image"].numpy())
        return training_loss(detector, batch)

    training_loss = ConvAE.training_loss
    monkeypatch.setattr(ConvAE, "training_loss", recording_loss)
    train_fold(config, "0", ensure_tables(config).folds)
    expected = set()
    for image in upright_images(config):
        pixels = np.frombuffer(image, np.uint8).reshape(40, 40, 3)
        expected.add(pixels.transpose(2, 0, 1).tobytes())
    assert set(seen) == expected
