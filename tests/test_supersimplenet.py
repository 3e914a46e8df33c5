"""SuperSimpleNet: where noise may go, what each kind of label teaches, and where its map points."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

from defects.messages import UserError
from defects.models import build_detector
from defects.models.supersimplenet import shrink_masks

OPTIONS = {"hidden": 16, "class_channels": 8}


class Listed(NamedTuple):
    """Batches in memory."""

    batches: list
    images: int

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


@pytest.fixture
def build(make_config, tmp_path):
    """build(size, **options) -> detector with small heads on an untrained test_resnet."""

    def make(size=(32, 32), **options):
        config = make_config(tmp_path, f"data.image_size={list(size)}")
        config.model.name, config.model.backbone.name = "supersimplenet", "test_resnet"
        config.model.options = OPTIONS | options
        torch.manual_seed(0)
        np.random.seed(0)
        return build_detector(config)

    return make


def normal_batch(images=4, size=(32, 32)):
    return {"image": torch.rand(images, 3, *size), "label": torch.zeros(images, 1)}


def mixed_batch(kinds, size=32):
    """One image for each of normal, masked (a bright square in the lower right corner), weak."""
    batch = normal_batch(len(kinds), (size, size))
    batch["label"] = torch.tensor([[float(kind != "normal")] for kind in kinds])
    batch["masked"] = torch.tensor([[float(kind != "weak")] for kind in kinds])
    batch["mask"] = torch.zeros(len(kinds), 1, size, size)
    for number, kind in enumerate(kinds):
        if kind == "masked":
            batch["mask"][number, :, size // 2 :, size // 2 :] = 1
            batch["image"][number, :, size // 2 :, size // 2 :] = 1
    return batch


def noise_of(detector, batch, monkeypatch):
    """The noise [2 B, C, h, w] that a training step adds."""
    added = []
    draw = type(detector)._draw_noise
    monkeypatch.setattr(
        type(detector), "_draw_noise", lambda *arguments: added.append(draw(*arguments)) or added[-1]
    )
    detector.training_loss(batch)
    return added[0]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 160)])
@pytest.mark.parametrize("layers", [None, ["layer3", "layer2"], ["layer1"]])
def test_supersimplenet_scores_and_whole_maps_for_every_size(build, size, layers):
    detector = build(size, layers=layers)
    losses = detector.training_loss(normal_batch(2, size))
    score, maps = detector.eval()(torch.rand(3, 3, *size))
    assert all(value.isfinite() for value in losses.values())
    assert score.shape == (3, 1)
    assert maps.shape == (3, 1, *size)


@pytest.mark.parametrize("supervised", [False, True])
def test_supersimplenet_losses_are_named_and_add_up(build, supervised):
    batch = mixed_batch(["normal", "masked", "weak", "normal"])
    losses = build(supervised=supervised).training_loss(batch)
    assert set(losses) == {"loss", "map", "focal_map", "focal_score"}
    assert losses["loss"].item() == pytest.approx(
        sum(losses[name].item() for name in losses if name != "loss")
    )


@pytest.mark.parametrize("supervised", [False, True])
def test_supersimplenet_the_score_teaches_the_map_only_where_it_may(build, supervised):
    detector = build(supervised=supervised)
    losses = detector.training_loss(mixed_batch(["normal", "masked", "normal", "masked"]))
    losses["focal_score"].backward()
    gradient = detector.segmentation[0].weight.grad
    assert (gradient is not None and gradient.abs().sum() > 0) == supervised
    assert detector.classification.logit.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in detector.features.parameters())


def test_supersimplenet_noise_stays_off_defects_and_off_images_without_mask(build, monkeypatch):
    detector = build(supervised=True, perlin_threshold=-0.9)  # blotches nearly everywhere
    noise = noise_of(detector, mixed_batch(["normal", "masked", "weak"] * 4), monkeypatch)
    noisy = noise.abs().sum(1) > 0
    half = noisy.shape[1] // 2
    normal, masked, weak = noisy[0::3], noisy[1::3], noisy[2::3]
    assert normal.any()
    assert masked.any()
    assert not masked[:, half:, half:].any()
    assert not weak.any()


def test_supersimplenet_half_of_the_images_stay_clean_and_noise_has_its_deviation(build, monkeypatch):
    detector = build(perlin_threshold=-0.9, noise_std=0.3)
    noise = noise_of(detector, normal_batch(100), monkeypatch)
    noisy = noise.abs().sum(1) > 0
    assert len(noise) == 200  # every image twice
    assert 0.35 < noisy.flatten(1).any(1).float().mean() < 0.65
    assert noise.permute(0, 2, 3, 1)[noisy].std().item() == pytest.approx(0.3, rel=0.05)


def test_supersimplenet_weak_defects_teach_the_score_and_not_the_map(build):
    """Without any mask the map's losses see normal images alone, however many weak defects there are."""
    detector = build(supervised=True, perlin_threshold=0.99)  # no noise
    batch = mixed_batch(["normal", "normal", "weak", "weak"])
    normal = {name: value[:2] for name, value in batch.items()}
    detector.eval()  # batch statistics would couple the images
    both, alone = detector.training_loss(batch), detector.training_loss(normal)
    for name in ("map", "focal_map"):
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-5)
    both["focal_score"].backward()
    assert both["focal_score"].item() != pytest.approx(alone["focal_score"].item(), rel=1e-3)
    assert detector.adaptor.weight.grad.isfinite().all()


@pytest.mark.parametrize("pixels", [1, 2, 5, 16])
def test_supersimplenet_small_defects_survive_shrinking(pixels):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 23 : 23 + pixels, 30 : 30 + pixels] = 1
    coverage = functional.interpolate(mask, size=(16, 16), mode="area")
    kept = shrink_masks(coverage)
    assert kept.any()
    assert (coverage[kept > 0] > 0).all()
    assert coverage.argmax() in kept.flatten().nonzero()


def test_supersimplenet_wide_defects_are_cut_at_half_a_cell():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:39, 16:41] = 1  # the last row of cells is covered to 3/4, the last column to 1/4
    kept = shrink_masks(functional.interpolate(mask, size=(16, 16), mode="area"))
    expected = torch.zeros(16, 16)
    expected[2:10, 4:10] = 1
    assert kept[0, 0].equal(expected)


def test_supersimplenet_standardized_channels_have_mean_0_and_deviation_1(build):
    images = 0.2 + 0.1 * torch.rand(10, 3, 32, 32)
    batches = Listed([{"image": images[:7]}, {"image": images[7:]}], 10)
    detector, raw = build(standardize=True), build()
    for each in (detector, raw):
        each.prepare(batches)
    features, before = detector._features(images), raw._features(images)
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(features.shape[1]), atol=1e-3, rtol=0)
    spread = features.std((0, 2, 3), correction=0)
    assert (spread < 1.01).all()
    assert spread.median().item() == pytest.approx(1, abs=0.01)
    assert not torch.allclose(before.mean((0, 2, 3)), features.mean((0, 2, 3)), atol=1e-2)


def test_supersimplenet_a_silent_channel_does_not_explode(build):
    detector = build(standardize=True)
    detector.prepare(Listed([{"image": torch.full((2, 3, 32, 32), 0.5)}], 2))
    score, maps = detector.eval()(torch.rand(2, 3, 32, 32))
    assert score.isfinite().all()
    assert maps.isfinite().all()


def test_supersimplenet_the_adaptor_learns_half_as_fast_and_the_backbone_not_at_all(build):
    detector = build()
    heads, adaptor = detector.parameter_groups(0.1)
    assert (heads.get("lr_scale", 1), adaptor["lr_scale"]) == (1, 0.5)
    assert heads["weight_decay"] == adaptor["weight_decay"] == 0.1
    learning = {id(parameter) for group in (heads, adaptor) for parameter in group["params"]}
    assert learning == {id(each) for each in detector.parameters() if each.requires_grad}
    assert {id(each) for each in detector.adaptor.parameters()} == {id(each) for each in adaptor["params"]}


def test_supersimplenet_calibration_belongs_to_the_unsupervised_mode(build):
    unsupervised, supervised = build().eval(), build(supervised=True).eval()
    assert (unsupervised.learns_from, unsupervised.uses_masks, unsupervised.needs_holdout) == (
        "normal",
        False,
        True,
    )
    assert (supervised.learns_from, supervised.uses_masks, supervised.needs_holdout) == ("both", True, False)
    scores = torch.linspace(-3, 3, 5)[:, None]
    with torch.no_grad():
        for detector in (unsupervised, supervised):
            detector.calibrate(Listed([normal_batch(8), normal_batch(8)], 16))
    assert unsupervised.probability(unsupervised.cut).item() == pytest.approx(0.5)
    assert unsupervised.cut != 0
    torch.testing.assert_close(supervised.probability(scores), torch.sigmoid(scores))


def squares(images, size, side, generator):
    """Grey noise with a bright square each, [N, 3, H, W], and their masks [N, 1, H, W]."""
    masks = torch.zeros(images, 1, *size)
    for mask in masks:
        y, x = (int(torch.randint(0, length - side, (), generator=generator)) for length in size)
        mask[:, y : y + side, x : x + side] = 1
    grey = 0.5 + 0.05 * torch.randn(images, 3, *size, generator=generator)
    return torch.where(masks > 0, 0.9, grey), masks


@pytest.mark.parametrize("size", [(48, 48), (33, 90)])
def test_supersimplenet_the_map_points_at_squares_it_has_not_seen(build, size):
    options = {"standardize": True, "noise_std": 0.5, "perlin_threshold": 0.9, "layers": ["layer1", "layer2"]}
    detector = build(size, supervised=True, **options)
    generator = torch.Generator().manual_seed(3)
    detector.prepare(Listed([{"image": squares(16, size, 16, generator)[0]}], 16))
    optimizer = torch.optim.AdamW(detector.parameter_groups(0.0), lr=1e-2)
    others = {name: torch.ones(6, 1) for name in ("label", "masked")}
    for _ in range(24):
        image, mask = squares(6, size, 16, generator)
        optimizer.zero_grad()
        detector.training_loss({"image": image, "mask": mask} | others)["loss"].backward()
        optimizer.step()
    image, mask = squares(12, size, 16, generator)
    with torch.no_grad():
        brightest = detector.eval()(image)[1].flatten(1).argmax(1, keepdim=True)
    near = functional.max_pool2d(mask, 9, 1, 4)  # within half a cell of the backbone
    assert near.flatten(1).gather(1, brightest).all()


@pytest.mark.parametrize("supervised", [False, True])
def test_supersimplenet_a_saved_detector_scores_alike(build, supervised, tmp_path):
    detector = build(supervised=supervised, standardize=True)
    images = torch.rand(4, 3, 32, 32)
    detector.prepare(Listed([{"image": images}], 4))
    detector.training_loss(mixed_batch(["normal", "masked", "weak", "normal"]))  # moves batch statistics
    with torch.no_grad():
        detector.eval().calibrate(Listed([{"image": images}], 4))
        before = detector(images)
        torch.save(detector.state_dict(), tmp_path / "saved.pt")
        other = build(supervised=supervised, standardize=True).eval()
        other.load_state_dict(torch.load(tmp_path / "saved.pt"))
        after = other(images)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert other.probability(after[0]).equal(detector.probability(before[0]))


@pytest.mark.parametrize("options", [{"noise_std": 0}, {"hiden": 3}, {"perlin_threshold": 1.5}])
def test_supersimplenet_wrong_options_are_refused(build, options):
    with pytest.raises(UserError, match="model.options"):
        build(**options)
