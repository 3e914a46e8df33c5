"""PatchCore: distances to a bank of normal patches, where they light up, and a bank that can grow."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import run_at, texture, write_png

from defects.config import load_config
from defects.config_schema import Config
from defects.messages import UserError
from defects.models import build_detector
from defects.models.patchcore import PatchCore
from defects.runs import Run
from defects.training.checkpoint import load_checkpoint

SIZE = (64, 64)


class Images(list):
    """What a detector is prepared with: batches of generated textures [N, 3, H, W] in [0, 1]."""

    def __init__(self, seeds, size=SIZE, change=lambda image: image):
        drawn = [change(texture(seed, max(size))[: size[0], : size[1]]) for seed in seeds]
        pixels = torch.from_numpy(np.stack(drawn)).float().div(255)[:, None].expand(-1, 3, -1, -1)
        numbers = torch.arange(len(pixels)).split(4)
        super().__init__(
            {"image": part, "row": row} for part, row in zip(pixels.split(4), numbers, strict=True)
        )
        self.images, self.pixels = len(pixels), pixels


def patchcore(size=SIZE, seed=0, **options) -> PatchCore:
    backbone = {"name": "test_resnet", "weights": "none"}
    torch.manual_seed(0)  # of the backbone
    config = Config(
        experiment="e",
        data={"name": "d", "source": "folders", "root": ".", "image_size": size},
        model={"name": "patchcore", "backbone": backbone, "options": {"ratio": 0.2} | options},
        train={"seed": seed},
    )
    return build_detector(config).eval()


def prepared(images: Images, **options) -> PatchCore:
    detector = patchcore(tuple(images.pixels.shape[2:]), **options)
    detector.prepare(images)
    return detector


def scores(detector: PatchCore, images: Images) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([detector(batch["image"])[0][:, 0] for batch in images])


def test_patchcore_scores_are_those_of_the_paper():
    """Equations 6 and 7, written out for one image after the other."""
    detector = prepared(Images(range(8)), neighbours=5)
    new, bank = Images(range(50, 54)), detector.memory_bank.double()
    found = scores(detector, new)
    for image, score in zip(new.pixels, found, strict=True):
        patches = detector.patches(image[None])[0].flatten(0, 1).double()
        distances = torch.cdist(patches, bank)
        largest, at = distances.min(1).values.max(0)
        match = distances[at].argmin()
        around = torch.cdist(bank[match][None], bank)[0].argsort()[:5]
        weight = 1 - largest.exp() / distances[at, around].exp().sum()
        assert float(score) == pytest.approx(float(weight * largest), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_patchcore_a_share_of_the_patches_makes_the_score(share):
    detector = prepared(Images(range(8)), neighbours=0, top_share=share)
    new = Images(range(50, 54))
    patches = detector.patches(new.pixels).flatten(1, 2)
    distances = torch.cdist(patches, detector.memory_bank).min(2).values.sort(1, descending=True).values
    count = {0.0: 1, 0.1: 6, 1.0: 64}[share]
    assert torch.allclose(scores(detector, new), distances[:, :count].mean(1), rtol=1e-4)


def test_patchcore_whitened_patches_are_uncorrelated():
    images = Images(range(8))
    detector = prepared(images, whiten=1e-6)
    patches = detector.patches(images.pixels).flatten(0, 2).double()
    plain = prepared(images).patches(images.pixels).flatten(0, 2).double()
    covariance = torch.cov(patches.T)
    varied = torch.linalg.eigvalsh(torch.cov(plain.T)) > 1e-3 * torch.cov(plain.T).trace() / 240
    variances = torch.linalg.eigvalsh(covariance)
    assert torch.allclose(variances[varied], torch.ones(int(varied.sum())).double(), atol=0.02)
    assert patches.mean(0).abs().max() < 1e-2


def test_patchcore_shrinkage_of_one_scales_all_channels_alike():
    images = Images(range(8))
    patches = prepared(images, whiten=1.0).patches(images.pixels).flatten(0, 2).double()
    plain = prepared(images).patches(images.pixels).flatten(0, 2).double()
    deviation = (torch.cov(plain.T).trace() / 240).sqrt()
    assert torch.allclose(patches, (plain - plain.mean(0)) / deviation, atol=1e-3)


@pytest.mark.parametrize("images", [Images([0]), Images([0, 1])], ids=["one image", "fewer than dimensions"])
def test_patchcore_whitening_takes_fewer_patches_than_dimensions(images):
    """A covariance of low rank: shrinkage alone makes it invertible."""
    detector = prepared(images, whiten=0.1, density=0.5, neighbours=0)
    assert torch.isfinite(scores(detector, Images(range(50, 54)))).all()


def test_patchcore_whitening_refuses_patches_that_are_all_equal(monkeypatch):
    detector = patchcore(whiten=0.1)
    monkeypatch.setattr(detector.features, "patches", lambda images: torch.ones(len(images), 240, 8, 8))
    with pytest.raises(UserError, match="normal patches have the same features") as caught:
        detector.prepare(Images([0, 1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whiten", [None, 0.1])
def test_patchcore_density_takes_the_spacing_off_before_the_smallest_is_chosen(whiten):
    """Distance less half of the bank patch's mean distance to its nine nearest other candidates."""
    images, new = Images(range(8)), Images(range(50, 54))
    detector = prepared(images, neighbours=0, density=0.5, top_share=0.1, whiten=whiten)
    pool = detector.patches(images.pixels).flatten(0, 2).double()
    bank = detector.memory_bank.double()
    spacing = torch.cdist(bank, pool).sort(1).values[:, 1:10].mean(1)
    patches = detector.patches(new.pixels).flatten(1, 2).double()
    corrected = (torch.cdist(patches, bank) - 0.5 * spacing).amin(2)
    expected = corrected.topk(6, 1).values.mean(1)
    assert torch.allclose(scores(detector, new).double(), expected, rtol=1e-3, atol=1e-3)


def test_patchcore_density_of_a_bank_that_grows_stays_in_order():
    options = {"neighbours": 0, "density": 0.5, "ratio": 0.1}
    detector = prepared(Images(range(8)), max_bank=60, **options)
    spacing = detector.spacing.clone()
    detector.update(Images(range(20, 28), change=brighter))
    assert len(detector.spacing) == len(detector.memory_bank) == 60
    grown = prepared(Images(range(8)), **options)
    grown.update(Images(range(20, 28), change=brighter))
    assert torch.equal(grown.spacing[: len(spacing)], spacing)
    assert len(grown.spacing) == len(grown.memory_bank) > len(spacing)
    assert (grown.spacing > 0).all()


def test_patchcore_patches_are_means_of_neighbours_on_the_finest_grid():
    detector = patchcore((64, 96), layers=["layer2", "layer3"])
    fine, coarse = detector.features(Images([0], (64, 96)).pixels)
    found = detector.patches(Images([0], (64, 96)).pixels)[0].numpy()
    padded = np.pad(fine[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    assert found.shape == (8, 12, 48 + 192)
    for y, x in ((0, 0), (3, 5), (7, 11)):
        expected = padded[:, y : y + 3, x : x + 3].mean((1, 2))
        assert found[y, x, :48] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    middle = np.pad(coarse[0].numpy(), ((0, 0), (1, 1), (1, 1)))
    enlarged = cv2.blur(middle[0], (3, 3))[1:-1, 1:-1]
    enlarged = cv2.resize(enlarged, (12, 8), interpolation=cv2.INTER_LINEAR)
    assert found[..., 48] == pytest.approx(enlarged, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (64, 160), (128, 96), (70, 100)])
def test_patchcore_a_defect_lights_up_where_it_is(size):
    detector = prepared(Images(range(8), size))
    height, width = size
    for y, x in ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75)):
        top, left = int(y * height), int(x * width)

        def spot(image, top=top, left=left):
            image = image.copy()
            image[top - 5 : top + 5, left - 5 : left + 5] = 255
            return image

        with torch.inference_mode():
            score, maps = detector(Images([99], size, spot).pixels)
            plain, _ = detector(Images([99], size).pixels)
        assert score > plain
        assert maps.shape == (1, 1, round(height / 4), round(width / 4))
        at = np.unravel_index(int(maps.argmax()), maps.shape[2:])
        place = [(cell + 0.5) / cells for cell, cells in zip(at, maps.shape[2:], strict=True)]
        assert abs(place[0] - y) * height <= 10 and abs(place[1] - x) * width <= 10


def test_patchcore_smoothing_is_in_pixels_of_the_image():
    """A Gaussian's variance adds to that of the interpolated patch, whatever the size of the map."""
    spread = {}
    for sigma in (4.0, 12.0):
        detector = patchcore((256, 256), smoothing=sigma)
        one = torch.zeros(1, 1, 32, 32)
        one[..., 16, 16] = 1
        profile = detector._make_map(one, torch.Size((256, 256)))[0, 0].sum(0)
        at = 4 * torch.arange(len(profile))
        mean = (profile * at).sum() / profile.sum()
        spread[sigma] = (profile * (at - mean) ** 2).sum() / profile.sum()
    assert float(spread[12.0] - spread[4.0]) == pytest.approx(12**2 - 4**2, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"whiten": 0.1, "density": 0.5, "neighbours": 0}])
def test_patchcore_a_saved_detector_scores_the_same(options):
    detector, new = prepared(Images(range(8)), **options), Images(range(50, 54))
    again = patchcore(**options)
    again.load_state_dict(detector.state_dict())
    assert torch.equal(again.memory_bank, detector.memory_bank)
    assert torch.equal(scores(again, new), scores(detector, new))
    repeated = prepared(Images(range(8)), **options).state_dict()
    assert repeated.keys() == detector.state_dict().keys()
    for name, value in repeated.items():
        assert torch.equal(value, detector.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "patches"),
    [
        ({"ratio": 0.1}, 51),  # of 8 images with 8 x 8 patches
        ({"ratio": 0.1, "max_bank": 20}, 20),
        ({"ratio": 0.1, "max_bank": 200}, 51),
        ({"ratio": 0.5, "max_patches": 100}, 48),  # 12 of each image
        ({"ratio": 0.5, "max_patches": 3}, 4),  # one of each
        ({"ratio": 0.001}, 1),
        ({"ratio": 0.1, "projection": 16}, 51),
    ],
)
def test_patchcore_the_bank_has_the_size_asked_for(options, patches):
    images = Images(range(8))
    detector = prepared(images, **options)
    assert detector.memory_bank.shape == (patches, 240)
    pool = detector.patches(images.pixels).flatten(0, 2)
    assert (torch.cdist(detector.memory_bank, pool).min(1).values < 1e-3).all()
    assert torch.isfinite(scores(detector, images)).all()


def test_patchcore_every_patch_lies_within_the_radius():
    images = Images(range(8))
    detector = prepared(images, projection=None)
    pool = detector.patches(images.pixels).flatten(0, 2)
    farthest = torch.cdist(pool, detector.memory_bank).min(1).values.max()
    assert float(detector.radius) == pytest.approx(float(farthest), rel=1e-4)


def brighter(image):
    return np.clip(image.astype(int) + 70, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("projection", [None, 16])
def test_patchcore_new_normal_images_enter_the_bank(projection):
    detector = prepared(Images(range(8)), projection=projection)
    before, bank = detector.radius.clone(), detector.memory_bank.clone()
    unseen, known = Images(range(70, 78), change=brighter), Images(range(50, 58))
    high, usual = scores(detector, unseen), scores(detector, known)
    entered = detector.update(Images(range(20, 28), change=brighter))
    assert 0 < entered == len(detector.memory_bank) - len(bank)
    assert torch.equal(detector.memory_bank[: len(bank)], bank)
    assert torch.equal(detector.radius, before)
    assert (scores(detector, unseen) < high).all()
    assert torch.allclose(scores(detector, known).mean(), usual.mean(), rtol=0.2)
    # What is known by now does not enter twice.
    assert detector.update(Images(range(20, 28), change=brighter)) == 0


def test_patchcore_an_updated_bank_stays_within_its_cap():
    detector = prepared(Images(range(8)), ratio=0.1, max_bank=60)
    before = detector.radius.clone()
    detector.update(Images(range(20, 28), change=brighter))
    assert len(detector.memory_bank) == len(detector.bank_norms) == 60
    assert detector.radius > before
    assert detector.update(Images(range(20, 28), change=brighter)) < 60


def test_patchcore_more_than_fits_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**5))
    with pytest.raises(UserError, match="patchcore needs .* lower model.options.max_patches=250000") as error:
        prepared(Images(range(8)))
    assert "\n" not in str(error.value)
    prepared(Images(range(8)), max_patches=40, ratio=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["layer9"]}, "test_resnet has no layer layer9: it has .*layer4"),
        ({"ratio": 0}, "model.options: ratio=0"),
        ({"density": 0.5}, "density=0.5 and neighbours=9 both correct .*: set neighbours=0"),
        ({"whiten": 0.0}, "model.options: whiten=0"),
        ({"neighbors": 9}, "unknown key neighbors, did you mean neighbours?"),
    ],
)
def test_patchcore_options_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        patchcore(**options)


@pytest.mark.parametrize("options", [{}, {"whiten": 0.1, "density": 0.5, "neighbours": 0}])
def test_patchcore_the_graph_can_be_exported(options):
    detector, new = prepared(Images(range(8)), **options), Images(range(50, 52)).pixels.contiguous()
    exported = torch.export.export(detector, (new,)).module()
    for found, expected in zip(exported(new), detector(new), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5)


@pytest.fixture
def trained(make_dataset, config_file, run_script):
    """The config file of a PatchCore whose fold 0 is trained."""
    path = config_file(
        make_dataset(tests=0),
        data={"image_size": [64, 64], "sample_submission": None},
        model={"name": "patchcore", "backbone": {"name": "test_resnet", "weights": "none"}},
        train={"inner_holdout": 0.3},
        infer={"tta": False},
    )
    outcome = run_script("train.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    return path


def test_patchcore_a_trained_run_takes_in_a_folder(trained, run_script, tmp_path):
    config = load_config(trained)
    before, old = pd.read_csv(config.experiment_dir / "fold0/oof.csv"), load_checkpoint(Run(config), "0")
    for seed in range(5):
        write_png(tmp_path / "new" / f"{seed}.png", brighter(texture(3000 + seed)))
    outcome = run_script("update.py", run_at(trained), tmp_path / "new")
    assert outcome.code == 0, outcome.stderr
    after, new = pd.read_csv(config.experiment_dir / "fold0/oof.csv"), load_checkpoint(Run(config), "0")
    size = len(new["detector"]["memory_bank"])
    assert size > len(old["detector"]["memory_bank"]) and f"which holds {size:,}" in outcome.stdout
    assert new["fingerprint"] == old["fingerprint"] and new["added_images"] == 5
    assert after["image_id"].tolist() == before["image_id"].tolist()
    assert (after["score"] <= before["score"] * (1 + 1e-5)).mean() > 0.9
    assert new["detector"]["cut"] <= old["detector"]["cut"] * (1 + 1e-5)


def test_patchcore_what_cannot_be_added_is_said_in_one_line(trained, fails_with_one_line, tmp_path):
    (tmp_path / "empty").mkdir()
    best = load_config(trained).experiment_dir / "fold0/best.pt"
    before = best.read_bytes()
    for images, parts in (
        (tmp_path / "empty", ["empty holds no images"]),
        (tmp_path / "absent", ["absent is not a folder"]),
        (tmp_path / "data/train/normal_images", ["normal_", " shows what ", "add images of other objects"]),
    ):
        message = fails_with_one_line("update.py", run_at(trained), images)
        assert all(part in message for part in parts)
    message = fails_with_one_line("update.py", run_at(trained), tmp_path / "empty", "--fold", "1")
    assert "best.pt does not exist: run src/train.py first" in message
    assert best.read_bytes() == before


def test_patchcore_only_a_memory_bank_can_be_added_to(
    make_dataset, config_file, run_script, fails_with_one_line, tmp_path
):
    path = config_file(make_dataset(tests=0), data={"sample_submission": None})
    assert run_script("train.py", "--config", path).code == 0
    write_png(tmp_path / "new/0.png", texture(3000))
    message = fails_with_one_line("update.py", run_at(path), tmp_path / "new")
    assert "model.name=classifier has no memory bank" in message
