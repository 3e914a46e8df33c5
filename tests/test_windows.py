"""Windows: detectors of normal images learn from, are calibrated on and score parts of one size."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from defects.data.datasets import DeviceBatches
from defects.data.fold_files import load_training_rows
from defects.data.images import windows
from defects.data.labels import Labels
from defects.messages import UserError
from defects.models import build_detector
from defects.models.statistics import exact_quantile
from defects.runs import Run
from defects.stages import ensure_tables
from defects.training.checkpoint import load_detector
from defects.training.fold import divide_images, train_fold
from defects.training.scoring import score_table

NETWORK = "model.backbone={name: test_resnet, weights: none}"
SETS = ["data.image_size=[64, 96]", "infer.window=[40, 48]", "infer.tta=false", "train.inner_holdout=0.3"]
CROP = "augment=[{name: RandomCrop, height: 40, width: 48}]"
DETECTORS = {
    "patchcore": [NETWORK, "model.options.max_bank=50"],
    "dfr": [NETWORK, "model.options.layers=[layer1, layer2]", CROP],
    "convae": ["model.backbone=null", "model.options={width: 4, error: l2}", CROP],
}


@pytest.fixture
def configured(make_dataset, make_config):
    """configured(name, *overrides) -> config of a detector that is scored in windows."""

    def make(name, *overrides):
        sets = [*SETS, f"model.name={name}", *DETECTORS[name], *overrides]
        return make_config(make_dataset(defects=4, normals=16, tests=0), "data.sample_submission=null", *sets)

    return make


def sides_of(config):
    sides = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    return sides.suited_to(build_detector(config, pretrained=False), config)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_the_threshold_is_that_of_images_scored_in_windows(configured, name):
    config = configured(name, "threshold.fpr=0.5")
    train_fold(config, "0", ensure_tables(config).folds)
    detector, normal = load_detector(Run(config), "0"), sides_of(config).inner_normal
    maps = Run(config).fold_folder("0") / "calibrated.npz"
    table = score_table(detector, config, normal, "0", Accelerator(cpu=True), maps)
    scores = torch.tensor(table["score"].to_numpy())
    assert len(scores) > 2 and len(scores.unique()) == len(scores)
    assert detector.cut.item() == pytest.approx(exact_quantile(scores, 0.5).item(), rel=1e-4)
    assert {each.shape for each in np.load(maps).values()} == {(43, 64)}


def test_a_bank_knows_the_windows_of_its_own_images(configured):
    """At the scale, and with the borders, at which they are scored."""
    config = configured("patchcore", "model.options={ratio: 1.0, max_bank: null, neighbours: 0}")
    detector, rows = build_detector(config).eval(), sides_of(config).originals
    batches = DeviceBatches(config, rows, torch.device("cpu"), in_windows=True)
    assert batches.images == 6 * len(rows) and len(list(batches)) == len(batches) == 6
    with torch.no_grad():
        detector.prepare(batches)
    maps = config.experiment_dir / "known.npz"
    for size, known in ((config.infer.window, True), ((40, 96), False)):
        changed = config.model_copy(update={"infer": config.infer.model_copy(update={"window": size})})
        table = score_table(detector, changed, rows, "0", Accelerator(cpu=True), maps)
        assert (table["score"] < 1e-3).all() == known


def test_masks_are_cut_like_their_images(configured):
    config = configured("patchcore")
    rows = ensure_tables(config).folds.query("label == 1")
    labels = Labels(masks=True)
    (whole,) = DeviceBatches(config, rows, torch.device("cpu"), labels)
    parts = list(DeviceBatches(config, rows, torch.device("cpu"), labels, in_windows=True))
    for place, part in zip(windows((64, 96), (40, 48)), parts, strict=True):
        for name in ("image", "mask"):
            assert torch.equal(part[name], whole[name][..., *place])
        assert torch.equal(part["label"], whole["label"])


@pytest.mark.parametrize("name", ["dfr", "convae"])
@pytest.mark.parametrize("augment", ["[]", "[{name: RandomCrop, height: 40, width: 40}]"])
def test_windows_without_crops_of_their_size(configured, name, augment):
    config = configured(name, f"augment={augment}")
    with pytest.raises(
        UserError, match=r"window=\[40, 48\]: .* add {name: RandomCrop, height: 40, width: 48}"
    ):
        train_fold(config, "0", ensure_tables(config).folds)
    assert not (Run(config).fold_folder("0") / "last.pt").exists()
