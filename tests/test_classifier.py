"""The classifier that also learns where defects are: its losses, its maps, what they are used for."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import options_for

from defects.config import load_config
from defects.evaluation.pixels import Maps
from defects.files import array_archive
from defects.messages import UserError
from defects.models import build_detector
from defects.models.classifier import balanced_map_loss
from defects.runs import Run
from defects.training.checkpoint import load_detector

SIDE = 64  # two cells of the last feature map


@pytest.fixture
def build(make_config, tmp_path):
    """build(classes, backbone, **options) -> an untrained classifier."""

    def make(classes=(), backbone="test_efficientnet", **options):
        settings = [f"data.image_size=[{SIDE}, {SIDE}]", f"data.classes={list(classes)}"]
        config = make_config(tmp_path, *settings, f"model.backbone.name={backbone}")
        config.model.options = options
        torch.manual_seed(0)
        return build_detector(config)

    return make


def batch(known=(1, 1, 1, 1, 1), classes=1):
    """Noise with a bright square of the first class in each quarter in turn, and one image without."""
    torch.manual_seed(0)
    images, masks = 0.4 * torch.rand(5, 3, SIDE, SIDE), torch.zeros(5, classes, SIDE, SIDE)
    for i in range(4):
        y, x = 12 + 32 * (i // 2), 12 + 32 * (i % 2)
        images[i, :, y : y + 8, x : x + 8], masks[i, 0, y : y + 8, x : x + 8] = 1, 1
    label = masks.amax((2, 3))
    label = torch.cat([label, label.amax(1, keepdim=True)], 1) if classes > 1 else label
    known = torch.tensor(known, dtype=torch.float32)[:, None]
    return {"image": images, "mask": masks, "masked": known, "label": label}


def test_classifier_off_it_neither_sees_masks_nor_makes_maps(build):
    detector = build()
    learnt = {name: values for name, values in batch().items() if not name.startswith("mask")}
    assert not detector.uses_masks and not detector.labels.masks and detector(learnt["image"])[1] is None
    assert detector.training_loss(learnt).keys() == {"loss", "score"}
    assert not [name for name in detector.state_dict() if name.startswith("where")]
    # The network itself starts from the same weights whether its map learns or not.
    other, images = build(map_loss=1), learnt["image"]
    assert torch.equal(detector.eval()(images)[0], other.eval()(images)[0])


@pytest.mark.parametrize(("backbone", "classes"), [("test_efficientnet", 1), ("test_convnext", 2)])
def test_classifier_it_learns_where_the_defects_are(build, backbone, classes):
    detector = build(["1", "2"][: classes if classes > 1 else 0], backbone, map_loss=1.0, drop_rate=0).train()
    learnt, losses = batch(classes=classes), []
    optimizer = torch.optim.Adam(detector.parameters(), 0.003)
    for _ in range(40):
        found = detector.training_loss(learnt)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append((found["loss"].item(), found["map"].item()))
    assert losses[-1][0] < 0.5 * losses[0][0] and losses[-1][1] < 0.5 * losses[0][1]
    with torch.inference_mode():
        score, maps = detector(learnt["image"])  # with the statistics of the batch
    assert score.shape == (5, len(detector.targets)) and maps.shape == (5, classes, 2, 2)
    assert maps[:4, 0].flatten(1).argmax(1).tolist() == [0, 1, 2, 3]
    assert maps.min() >= 0 and maps[4].max() < 0.5 < maps[:4, 0].amax((1, 2)).min() <= 1


def test_classifier_the_weight_is_that_of_the_map_in_the_loss(build):
    none, half = (build(map_loss=weight, drop_rate=0).eval() for weight in (1e-9, 0.5))
    one, other = none.training_loss(batch()), half.training_loss(batch())
    assert other["loss"].item() == pytest.approx(one["loss"].item() + 0.5 * other["map"].item())
    assert half.validation(batch()).keys() == {"loss", "map", "score"}


def test_classifier_images_without_known_mask_teach_nothing_of_the_map(build):
    detector = build(map_loss=1.0).eval()
    unknown, learnt = detector.training_loss(batch(known=(0,) * 5)), batch(known=(1, 0, 1, 1, 1))
    wrong = learnt | {"mask": learnt["mask"].clone()}
    wrong["mask"][1] = 1
    unknown["loss"].backward()
    assert unknown["map"] == 0 and (detector.where.weight.grad == 0).all()
    assert detector.training_loss(learnt)["map"] == detector.training_loss(wrong)["map"] > 0


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_classifier_a_defect_of_one_pixel_weighs_as_much_as_all_that_is_normal(size):
    maps, masks = torch.zeros(3, 1, 4, 4, requires_grad=True), torch.zeros(3, 1, *size)
    masks[0, 0, 20, 40] = 1
    balanced_map_loss(maps, masks, torch.ones(3, 1)).backward()
    defective = maps.grad < 0
    assert defective.sum() == 1 and defective[0, 0, 1, 40 * 4 // size[1]]
    assert maps.grad[defective].sum().item() == pytest.approx(-maps.grad[~defective].sum().item())


@pytest.mark.parametrize(
    ("backbone", "weight", "message"),
    [
        ("test_vit", 1, r"model\.options\.map_loss: test_vit ends in no feature map .*\(17, 64\)"),
        ("test_mambaout", 1, r"test_mambaout ends in no feature map .*set map_loss to 0"),
        ("test_efficientnet", -1, "map_loss.*greater than or equal to 0"),
    ],
)
def test_classifier_what_cannot_be_built_is_told_in_one_line(build, backbone, weight, message):
    with pytest.raises(UserError, match=message):
        build((), backbone, map_loss=weight)


def test_classifier_frozen_layers_stay_as_they_were_in_a_step(build):
    detector = build(frozen_until="blocks.0").train()
    before = {name: values.clone() for name, values in detector.network.state_dict().items()}
    optimizer = torch.optim.AdamW(detector.parameter_groups(0.1), lr=0.1)
    detector.training_loss(batch())["loss"].backward()  # the head is zero, so it alone moves in a first step
    optimizer.step()
    detector.training_loss(batch())["loss"].backward()
    optimizer.step()
    changed = {
        name for name, values in detector.network.state_dict().items() if not values.equal(before[name])
    }
    assert not [name for name in changed if name.startswith(("conv_stem", "bn1", "blocks.0."))]
    assert [name for name in changed if name.startswith("blocks.1.")]


def test_classifier_frozen_until_a_layer_that_is_not_there_is_refused(build):
    names = r"blocks\.\d, blocks\.\d, blocks\.\d and \d+ more"
    with pytest.raises(UserError, match=rf"frozen_until=blocks\.9: .* has no such layer: it has {names}"):
        build(frozen_until="blocks.9")


def test_classifier_only_probabilities_of_pixels_become_masks(tmp_path):
    for name, maps in {"segmenter": [np.uint8], "classifier": [np.float16], "nothing": []}.items():
        with array_archive(tmp_path / f"{name}.npz") as add:
            for kind in maps:
                add("image", np.ones((2, 4, 4), kind))
        assert Maps(tmp_path / f"{name}.npz").segment == (name == "segmenter")


def test_classifier_from_training_to_the_report(make_dataset, config_file, run_script):
    root = make_dataset(size=SIDE)
    model = {"backbone": {"name": "test_efficientnet", "weights": "none"}, "options": {"map_loss": 1.0}}
    sections = {"model": model, "train": {"epochs": 2, "paste": 0.2}, "data": {"image_size": [SIDE, SIDE]}}
    path = config_file(root, **sections)
    for command in (["train.py", "--fold", "all"], ["infer.py"], ["report.py"]):
        outcome = run_script(command[0], *options_for(command[0], path), *command[1:])
        assert outcome.code == 0, outcome.stderr
    folder = path.parent / "output" / "tiny" / "fold0"
    maps, oof = np.load(folder / "oof_maps.npz"), pd.read_csv(folder / "oof.csv")
    assert set(maps.files) == set(oof["image_id"]) and maps[oof["image_id"][0]].shape == (2, 2)
    assert len(np.load(folder / "test_maps.npz").files) == 6
    detector, saved = (
        load_detector(Run(load_config(path)), "0"),
        torch.load(folder / "best.pt", weights_only=True),
    )
    assert torch.equal(detector.where.weight, saved["detector"]["where.weight"])
    assert detector.where.weight.abs().sum() > 0
