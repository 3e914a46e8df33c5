"""Data sets: crops with their labels, training lists of detectors of normal images."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_at, texture, write_png

from defects.config import known_config_files, load_config
from defects.config_schema import ROOT
from defects.data import rle
from defects.data.black_out import BlackOut
from defects.data.datasets import ImageDataset, plain_loader, training_loader
from defects.data.fold_files import load_training_rows
from defects.data.labels import Labels
from defects.messages import UserError
from defects.models import build_detector
from defects.models.convae import ConvAE
from defects.stages import ensure_tables
from defects.training.fold import divide_images, train_fold

RANDOM = {"name": "RandomCrop", "height": 24, "width": 32}


DEFECT = {"name": "CropNonEmptyMaskIfExists", "height": 24, "width": 32}


CLASSES = Labels(("1", "2", "defect"))


EPOCHS = 20


def one_of(share: float) -> dict:
    """The crop of a defect in that share of all cases."""
    return {"name": "OneOf", "p": 1.0, "transforms": [DEFECT | {"p": share}, RANDOM | {"p": 1 - share}]}


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    """Rows of images.csv: white squares, the left one of class 1, the right one of class 2, or no square."""
    rows = []
    for number, sides in enumerate([(12,), (100,), (12, 100), ()]):
        image, runs = (40 + texture(number, 128)[:64] // 4).astype(np.uint8), ["", ""]
        for left in sides:
            mask = np.zeros((64, 128), np.uint8)
            mask[30:40, left : left + 10] = 1
            image[mask > 0] = 255
            runs[left > 64] = rle.encode(mask)
        write_png(tmp_path / f"{number}.png", image)
        rows.append((f"{number}.png", int(bool(sides)), "", 64, 128, *runs))
    return pd.DataFrame(
        rows, columns=["path", "label", "mask_path", "height", "width", "defect_1", "defect_2"]
    )


def samples(dataset, epochs=EPOCHS):
    """Every row in every epoch."""
    return [dataset[epoch, row] for row in range(len(dataset)) for epoch in range(epochs)]


@pytest.mark.parametrize("steps", [[RANDOM], [DEFECT], [one_of(0.5), {"name": "HorizontalFlip"}]])
@pytest.mark.parametrize(
    "labels", [CLASSES, Labels(), Labels(CLASSES.targets, masks=True), Labels(masks=True)]
)
def test_crops_labels_are_those_of_the_defects_in_the_crop(table, tmp_path, steps, labels):
    found = samples(ImageDataset(table, tmp_path, (64, 96), steps, 0, labels))
    for sample in found:
        assert sample["image"].shape == (24, 32, 3) and ("mask" in sample) == labels.masks
        white = bool(sample["image"].max() > 180)  # a pixel at the rim of a square may be grey
        assert sample["label"][-1] >= white and (white or sample["image"].max() < 180)
        if labels.masks:
            classes = sample["mask"].flatten(0, 1).any(0)
            assert sample["label"].tolist() == (
                [*classes, classes.any()] if labels.classes else classes.tolist()
            )
    held = torch.stack([sample["label"] for sample in found]).view(4, EPOCHS, -1)
    assert not held[3].any()
    if labels.classes:
        assert not held[0, :, 1].any() and not held[1, :, 0].any()  # of the other class
        assert (held[2, :, 0] != held[2, :, 1]).any()  # never both are in one crop
    assert held[:3, :, -1].bool().all() == (steps == [DEFECT])


def test_crops_the_share_of_crops_with_a_defect_can_be_chosen(table, tmp_path):
    shares = {}
    for share in (0.0, 0.5, 1.0):
        dataset = ImageDataset(table, tmp_path, (64, 128), [one_of(share)], 0, CLASSES)
        found = [dataset[epoch, 0]["label"][-1].item() for epoch in range(200)]
        shares[share] = np.mean(found)
    assert shares[1.0] == 1 and 0.1 < shares[0.0] < 0.6
    assert shares[0.5] == pytest.approx((shares[0.0] + 1) / 2, abs=0.1)


def test_crops_a_crop_depends_on_seed_epoch_and_row_alone(table, tmp_path):
    one, again, other = (
        samples(ImageDataset(table, tmp_path, (64, 128), [one_of(0.5)], seed, CLASSES), 3)
        for seed in (0, 0, 1)
    )
    same = [
        [torch.equal(a["image"], b["image"]) for a, b in zip(one, each, strict=True)]
        for each in (again, other)
    ]
    assert all(same[0]) and not any(same[1])


def test_crops_black_out_hides_from_crops_too(table, tmp_path):
    black_out = BlackOut(table, tmp_path, (64, 128), 0.5, 0)
    found = samples(ImageDataset(table, tmp_path, (64, 128), [DEFECT], 0, CLASSES, black_out))
    labels = [sample["label"][-1].item() for sample in found]
    assert labels == [sample["image"].max().item() > 180 for sample in found]
    assert 0.3 < np.mean(labels[: 3 * EPOCHS]) < 0.7


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([RANDOM | {"height": 65}], r"augment on images of 64x128 \(data.image_size\): Crop size .*65, 32"),
        ([DEFECT | {"width": 129}], r"augment on images of 64x128 \(data.image_size\): Crop size \(24,129\)"),
        ([{"name": "OneOf", "transforms": [RANDOM | {"heigth": 3}]}], "augment: RandomCrop: .*heigth"),
        ([{"name": "OneOf", "transforms": [{"name": "RandomCorp"}]}], "'RandomCorp' is no transform"),
        ([{"name": "OneOf"}], "augment: OneOf: "),
        ([{"name": "OneOf", "transforms": 3}], "augment: OneOf: "),
    ],
)
def test_crops_that_do_not_fit(table, tmp_path, steps, message):
    with pytest.raises(UserError, match=message) as caught:
        ImageDataset(table, tmp_path, (64, 128), steps, 0, CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [[RANDOM | {"p": 0.5}], [one_of(0.5) | {"p": 0.5}]])
def test_crops_images_of_several_sizes_make_no_batch(table, tmp_path, steps):
    dataset = ImageDataset(table, tmp_path, (64, 128), steps, 0, CLASSES)
    with pytest.raises(UserError, match="images of several sizes: set p: 1.0"):
        samples(dataset)


def test_crops_a_defect_without_mask_cannot_be_cropped(table, tmp_path):
    unknown = table.assign(defect_1="", defect_2="")
    with pytest.raises(UserError, match=r"no mask says whether a crop of 0\.png .*\(3 such images\)"):
        ImageDataset(unknown, tmp_path, (64, 128), [RANDOM], 0)
    assert len(samples(ImageDataset(unknown[3:], tmp_path, (64, 128), [RANDOM], 0))) == EPOCHS
    assert len(samples(ImageDataset(unknown, tmp_path, (64, 128), [{"name": "HorizontalFlip"}], 0))) == 80


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_crops_a_run_on_crops_is_scored_in_windows(
    make_dataset, config_file, run_script, fails_with_one_line, name
):
    root = make_dataset(defects=6, normals=12, tests=3, size=64)
    model = {"name": name, "backbone": {"name": "test_efficientnet", "weights": "none"}}
    sides = {"height": 32, "width": 32}
    path = config_file(
        root,
        data={"image_size": [64, 64]},
        model=model,
        infer={"window": [32, 32]},
    )
    path.write_text(path.read_text() + f"augment:\n- {DEFECT | sides}\n")
    crop = ("--set", "augment=[{name: RandomCrop, height: 65, width: 32}]")
    assert "65" in fails_with_one_line("train.py", "--config", path, *crop)
    for command in (["train.py", "--config", path], ["infer.py", run_at(path)]):
        outcome = run_script(*command)
        assert outcome.code == 0, outcome.stderr


def test_crops_the_training_loader_crops(make_dataset, make_config):
    root = make_dataset(defects=6, normals=12, tests=3)
    config = make_config(root, "augment=[{name: RandomCrop, height: 8, width: 8}]", "train.batch_size=64")
    labels = [batch["label"] for batch in training_loader(config, ensure_tables(config).folds)]
    assert 0 < torch.cat(labels).mean() < 6 / 18


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


def divide_suited(config):
    parts = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    return parts.suited_to(build_detector(config, pretrained=False), config)


def images_of(loader):
    """The images of a loader's batches as bytes, sorted."""
    return sorted(image.numpy().tobytes() for batch in loader for image in batch["image"])


def upright_images(config, label=0):
    """Training images of fold 0, outside the inner hold-out, as scoring reads them: bytes, sorted."""
    parts = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    unseen = [*parts.inner["image_id"], *parts.validation["image_id"]]
    table = ensure_tables(config).folds
    rows = table[(table["label"] == label) & ~table["image_id"].isin(unseen)]
    return images_of(plain_loader(config, rows))


@pytest.mark.parametrize("name", sorted(ONE_CLASS))
def test_upright_detector_of_normal_images_is_given_each_once_and_upright(configured, name):
    config = configured(name, ONE_CLASS[name], "train.batch_size=1")
    parts = divide_suited(config)
    assert images_of(training_loader(config, parts.training_rows)) == upright_images(config)


@pytest.mark.parametrize("name", sorted(BOTH_CLASSES))
def test_upright_detector_of_both_classes_is_given_the_training_list(configured, name):
    config = configured(name, BOTH_CLASSES[name], "train.batch_size=1")
    parts = divide_suited(config)
    normal = parts.training_rows[parts.training_rows["label"] == 0]
    defect = parts.training_rows[parts.training_rows["label"] == 1]
    assert len(images_of(training_loader(config, normal))) == len(upright_images(config))
    assert images_of(training_loader(config, normal)) != upright_images(config)
    assert len(defect) > len(upright_images(config, label=1))


def test_upright_detector_that_trains_on_features_is_given_the_training_list(configured):
    """Defects as often as planned; the features are turned, not the images."""
    config = configured("patch_head", RESNET, "train.batch_size=1")
    rows = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    parts = divide_suited(config)
    assert parts.training_rows["image_id"].tolist() == rows.training_rows["image_id"].tolist()
    for label in (0, 1):
        part = parts.training_rows[parts.training_rows["label"] == label]
        assert set(images_of(training_loader(config, part))) <= set(upright_images(config, label))


@pytest.mark.parametrize("method", ["oversample", "none"])
def test_upright_balancing_two_classes_does_not_touch_the_one_that_is_learnt(configured, method):
    balance = [f"split.balance.method={method}", "split.balance.ratio=1.0"]
    config = configured("convae", CONVAE, "train.batch_size=1", *balance)
    loader = training_loader(config, divide_suited(config).training_rows)
    assert images_of(loader) == upright_images(config)


@pytest.mark.parametrize("name", known_config_files("models"))
def test_upright_shipped_settings_do_not_turn_what_one_class_is_learnt_from(name):
    config = load_config(ROOT / "configs" / "demo.yaml", [], model=name)
    is_supervised = config.model.options.get("supervised", False)
    if config.model.name in ONE_CLASS and not is_supervised:
        assert config.augment == []


def test_upright_training_run_sees_upright_images_only(configured, monkeypatch):
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
