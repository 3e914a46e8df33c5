"""DRAEM: its networks, the anomalies it makes up, its losses, its score, and where its map lights up."""

import numpy as np
import pytest
import torch
from conftest import texture, write_png
from torch.nn import functional

from defects.config_schema import Config
from defects.data.transforms import rotate_flip
from defects.messages import UserError
from defects.models import build_detector, draem, synthetic_anomalies
from defects.models.draem import Discriminative, Reconstructive
from defects.models.synthetic_anomalies import perlin_mask

NARROW = {"width_reconstructive": 4, "width_discriminative": 4}
WIDER = {"width_reconstructive": 8, "width_discriminative": 8}


def make(size=(64, 64), data=None, seed=0, **options):
    """A narrow untrained DRAEM."""
    data = {"name": "d", "source": "folders", "root": ".", "image_size": list(size)} | (data or {})
    model = {"name": "draem", "options": NARROW | options}
    torch.manual_seed(seed)
    return build_detector(Config(experiment="e", data=data, model=model))


def pictures(count, size=(64, 64)):
    height, width = size
    drawn = [texture(i, max(size))[:height, :width] for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).float()[:, None].repeat(1, 3, 1, 1) / 255


def normal_batch(count, size=(64, 64)):
    return {"image": pictures(count, size), "label": torch.zeros(count, 1)}


def defect_batch(mask, known, count=2):
    """Defects with the same mask for all of them, known or not."""
    batch = normal_batch(count, mask.shape)
    return batch | {
        "label": torch.ones(count, 1),
        "mask": mask.expand(count, 1, -1, -1),
        "masked": torch.full((count, 1), float(known)),
    }


def test_draem_published_widths_make_the_published_number_of_weights():
    with torch.device("meta"):
        networks = Reconstructive(128), Discriminative(64)
    assert sum(p.numel() for net in networks for p in net.parameters()) == pytest.approx(97.4e6, rel=1e-3)


def test_draem_weights_start_as_published():
    for module in make(width_reconstructive=16, width_discriminative=16).modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (20, 200), (256, 33)])
def test_draem_any_size_is_scored_and_mapped(size):
    detector = make(size).eval()
    with torch.no_grad():
        score, maps = detector(pictures(2, size))
    assert score.shape == (2, 1)
    assert maps.shape == (2, 1, *size)
    assert ((maps >= 0) & (maps <= 1)).all()
    losses = detector.train().training_loss(normal_batch(2, size))
    assert all(value.isfinite() for value in losses.values())


def test_draem_losses_are_named_and_add_up():
    losses = make().training_loss(normal_batch(4))
    assert set(losses) == {"l2", "ssim", "focal", "loss"}
    assert losses["loss"].item() == pytest.approx(sum(losses[n].item() for n in ("l2", "ssim", "focal")))


def test_draem_half_of_the_samples_stay_clean():
    np.random.seed(0)
    samples = make((32, 32)).synthesise(normal_batch(200, (32, 32)))
    anomalous = samples.mask.amax(dim=(1, 2, 3))
    # Somewhat less than half: a mask may come out empty.
    assert 0.33 < anomalous.mean() < 0.55
    changed = (samples.mixed != samples.clean).any(dim=1, keepdim=True)
    assert not changed[samples.mask == 0].any()
    assert changed[samples.mask == 1].float().mean() > 0.9


def test_draem_a_seed_gives_the_same_samples_again():
    detector, made = make(), []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        made.append(detector.synthesise(normal_batch(4)))
    assert made[0].inside is None
    assert all(torch.equal(a, b) for a, b in zip(made[0][:-1], made[1][:-1], strict=True))
    assert not torch.equal(made[0].mixed, made[2].mixed)


@pytest.mark.parametrize(
    ("symmetries", "size", "turns"),
    [
        ("dihedral", (32, 32), {1, 3}),
        ("dihedral", (32, 48), {2}),
        ("flips", (32, 32), {0}),
        ("none", (32, 32), {0}),
    ],
)
def test_draem_normal_images_are_turned_as_the_symmetries_allow(monkeypatch, symmetries, size, turns):
    monkeypatch.setattr(draem, "ROTATED", 1.0)
    batch = normal_batch(8, size)
    clean = make(size, {"symmetries": symmetries}).synthesise(batch).clean
    seen = {
        next(k for k in range(4) if torch.equal(torch.rot90(image, k, (1, 2)), turned))
        for image, turned in zip(batch["image"], clean, strict=True)
    }
    assert seen == turns


def test_draem_three_in_ten_are_turned_by_any_angle_where_rotations_are_allowed():
    np.random.seed(0)
    batch = normal_batch(100, (32, 32))
    clean = make((32, 32)).synthesise(batch).clean
    kept = (clean == batch["image"]).all(dim=3).all(dim=2).all(dim=1)
    assert 0.6 < kept.float().mean() < 0.8
    image = (batch["image"][0] * 255).byte().permute(1, 2, 0).numpy()
    assert not any(np.array_equal(rotate_flip(image, angle, "none"), clean[~kept][0]) for angle in (90, -90))


@pytest.fixture
def textures(tmp_path):
    """Two textures, red and green, in folders of their own."""
    for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0)}.items():
        write_png(tmp_path / "textures" / name / "plain.png", np.full((10, 10, 3), colour, np.uint8))
    return tmp_path / "textures"


@pytest.mark.parametrize(("folder", "channels"), [(".", {0, 1}), ("green", {1})])
def test_draem_textures_come_from_the_folder(textures, folder, channels):
    detector = make(textures=str(textures / folder))
    drawn = [detector.texture_source(np.zeros((20, 30, 3), np.uint8)) for _ in range(20)]
    assert drawn[0].shape == (20, 30, 3)
    assert {int(each[0, 0].argmax()) for each in drawn} == channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"textures": "missing"}, "no such folder"),
        ({"textures": "empty"}, "holds no images"),
        ({"texture_classes": ["red"]}, "unknown key texture_classes"),
        ({"ssim_window": 8}, "ssim_window=8: must be odd"),
        ({"width_reconstructive": 0}, "width_reconstructive"),
    ],
)
def test_draem_wrong_options_end_in_one_line(textures, options, message):
    (textures.parent / "empty").mkdir()
    if "textures" in options:
        options["textures"] = str(textures.parent / options["textures"])
    with pytest.raises(UserError, match=message) as caught:
        make(**options).prepare([])
    assert "\n" not in str(caught.value)


def test_draem_outside_textures_are_refused_where_the_rules_forbid_them(textures):
    rules = {"root": str(textures.parent / "data"), "external_data": False}
    with pytest.raises(UserError, match="external_data"):
        make(data=rules, textures=str(textures)).prepare([])


def test_draem_a_trained_detector_scores_without_its_textures():
    make(textures="gone").eval()(pictures(1))


def test_draem_score_is_the_logit_of_the_largest_mean_over_21_pixels():
    logits = torch.randn(3, 2, 50, 70)
    pooled = functional.avg_pool2d(logits.softmax(1)[:, 1:], 21, stride=1, padding=10)
    expected = pooled.amax(dim=(2, 3)).logit()
    assert torch.allclose(make().score(logits), expected, atol=1e-5)


def test_draem_score_never_ties_where_probabilities_round_to_one():
    """An anomaly that covers all the window, ever more certain."""
    certainty = torch.arange(-60, 60, 0.5)
    logits = torch.zeros(len(certainty), 2, 40, 40)
    logits[:, 1] = certainty.view(-1, 1, 1)
    detector = make()
    assert (detector.score(logits).flatten().diff() > 0).all()


def test_draem_the_training_samples_shows_image_mask_and_anomaly():
    grid = make((32, 48), samples=3).training_samples(normal_batch(5, (32, 48)))
    assert grid.shape == (3 * 32, 3 * 48, 3)
    assert grid.dtype == np.uint8
    assert np.array_equal(grid[:32, :48, 0], texture(0, 48)[:32])


class TestRealDefects:
    """With real_defects=true."""

    def test_defects_and_masks_are_asked_for(self):
        assert (make().learns_from, make().uses_masks) == ("normal", False)
        real = make(real_defects=True)
        assert (real.learns_from, real.uses_masks) == ("both", True)

    def test_a_defect_is_shown_as_it_is(self):
        mask = torch.zeros(64, 64)
        mask[10:20, 30:50] = 1
        batch = defect_batch(mask, known=True)
        samples = make(real_defects=True).synthesise(batch)
        assert torch.equal(samples.mixed, batch["image"])
        assert torch.equal(samples.mask, batch["mask"])
        assert torch.equal(samples.restorable, batch["mask"] == 0)

    def test_the_reconstruction_is_free_under_the_mask(self):
        losses = make(real_defects=True).training_loss(defect_batch(torch.ones(64, 64), known=True))
        assert losses["l2"] == 0
        assert losses["ssim"].item() == pytest.approx(0, abs=1e-5)
        assert losses["focal"] > 0

    def test_a_defect_of_unknown_mask_is_left_out(self):
        losses = make(real_defects=True).training_loss(defect_batch(torch.zeros(64, 64), known=False))
        assert losses["loss"].item() == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("known", [True, False])
    def test_none_with_a_mask_is_an_error(self, known):
        detector, batches = make(real_defects=True), [defect_batch(torch.ones(64, 64), known)]
        if known:
            detector.prepare(batches)
        else:
            with pytest.raises(UserError, match="no defect to learn from has a mask"):
                detector.prepare(batches)


@pytest.fixture(scope="module")
def trained():
    """Some tens of steps on smooth textures with bright blots, in evaluation mode."""
    detector, steps = make(seed=1, score_window=7, **WIDER).train(), 60
    detector.texture_source = lambda image: np.full_like(image, 255)
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    images = pictures(16)
    np.random.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draem, "ANOMALOUS", 0.8)
        patch.setattr(synthetic_anomalies, "distort", lambda pixels: pixels)
        patch.setattr(
            synthetic_anomalies, "perlin_mask", lambda size: perlin_mask(size, 0.3, max_scale_power=3)
        )
        for step in range(steps):
            batch = normal_batch(4) | {"image": images[step % 4 * 4 :][:4]}
            optimizer.zero_grad()
            detector.training_loss(batch)["loss"].backward()
            optimizer.step()
            schedule.step()
    return detector.eval()


@pytest.mark.parametrize(
    ("size", "corner"), [((64, 64), (8, 40)), ((96, 64), (70, 10)), ((45, 150), (20, 120))]
)
def test_draem_a_stain_lights_up_where_it_is(trained, size, corner):
    clean = pictures(1, size)
    stained = clean.clone()
    y, x = corner
    stained[..., y : y + 14, x : x + 14] = 0.95
    with torch.no_grad():
        (before, _), (after, maps) = trained(clean), trained(stained)
    assert after > before
    stain = maps[..., y : y + 14, x : x + 14]
    around = (maps.sum() - stain.sum()) / (maps.numel() - stain.numel())
    assert stain.mean() > 2 * around


def test_draem_saved_and_loaded_it_scores_the_same(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "best.pt")
    other = make(score_window=7, **WIDER).eval()
    other.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True))
    with torch.no_grad():
        for mine, its in zip(trained(pictures(2)), other(pictures(2)), strict=True):
            assert torch.equal(mine, its)
