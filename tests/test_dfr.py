"""DFR: the latent width in checkpoints, its thresholds, where its maps light up."""

import cv2
import numpy as np
import pytest
import torch
from conftest import texture
from sklearn.decomposition import PCA
from torch.nn import functional

from defects.messages import UserError
from defects.models import build_detector
from defects.models.dfr import DFR

SIZES = [(64, 64), (48, 96), (70, 44), (41, 57)]


class Several:
    """Batches of images [N, 3, H, W], `size` at a time."""

    def __init__(self, images: torch.Tensor, size: int = 4):
        self.parts, self.images = images.split(size), len(images)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self):
        return ({"image": part} for part in self.parts)


def pictures(count: int, size: tuple[int, int] = (32, 32), first: int = 0) -> torch.Tensor:
    """Textures [count, 3, H, W]."""
    height, width = size
    grey = np.stack([texture(first + i, max(size))[:height, :width] for i in range(count)])
    return torch.from_numpy(grey).float().div(255)[:, None].expand(-1, 3, -1, -1).contiguous()


@pytest.fixture
def make_dfr(make_config, tmp_path):
    """make_dfr(*overrides, size=(32, 32)) -> DFR on an untrained test_resnet, the same one each time."""

    def make(*overrides: str, size: tuple[int, int] = (32, 32)) -> DFR:
        torch.manual_seed(0)
        settings = [
            "model.name=dfr",
            "model.backbone.name=test_resnet",
            "model.options={layers: [act1, layer2, layer3]}",
            f"data.image_size={list(size)}",
        ]
        return build_detector(make_config(tmp_path, *settings, *overrides)).eval()

    return make


def train(detector: DFR, images: torch.Tensor, steps: int) -> None:
    with torch.no_grad():
        detector.prepare(Several(images))
    optimizer = torch.optim.Adam(detector.parameter_groups(0.0), lr=3e-3)
    detector.train()
    for _ in range(steps):
        detector.training_loss({"image": images})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    detector.eval()


@pytest.mark.parametrize("standardize", [False, True])
def test_dfr_latent_width_is_found_on_all_images(make_dfr, standardize):
    detector, images = make_dfr(f"model.options.standardize={standardize}"), pictures(10)
    with torch.no_grad():
        whole = detector._common_grid(images).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        detector.prepare(Several(images))
    if standardize:
        floor = 0.01 * whole.std(0, ddof=1).mean()
        whole = (whole - whole.mean(0)) / whole.std(0, ddof=1).clip(floor)
    expected = PCA(n_components=0.9, svd_solver="full").fit(whole).n_components_
    widths = [layer.out_channels for layer in detector.encoder if hasattr(layer, "out_channels")]
    assert widths == [(272 + 2 * expected) // 2, 2 * expected, expected]


def test_dfr_pooling_follows_the_published_one_where_they_can_agree(make_dfr):
    detector = make_dfr(size=(64, 64))
    with torch.no_grad():
        fine, _, coarse = detector.features(pictures(2, (64, 64)))
        pooled = detector._common_grid(pictures(2, (64, 64)))
    full = functional.interpolate(coarse, (64, 64), mode="bilinear")
    torch.testing.assert_close(pooled[:, -192:], functional.avg_pool2d(full, 4, 4))
    torch.testing.assert_close(pooled[:, :32], functional.avg_pool2d(fine, 2, 2))


def test_dfr_saved_and_loaded_it_scores_the_same(make_dfr, tmp_path):
    detector = make_dfr("model.options.standardize=true")
    train(detector, pictures(8), 3)
    with torch.no_grad():
        detector.calibrate(Several(pictures(6, first=50)))
        expected = [*detector(pictures(5, first=90)), detector.pixel_cut, detector.image_cut]
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    other = make_dfr("model.options.standardize=true", "train.seed=5")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    with torch.no_grad():
        found = [*other(pictures(5, first=90)), other.pixel_cut, other.image_cut]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(("cut", "fpr"), [("image", 0.25), ("pixel", 0.01)])
def test_dfr_cuts_leave_exactly_the_expected_rate_of_normals_above(make_dfr, cut, fpr):
    detector = make_dfr(f"model.options.cut={cut}", f"threshold.fpr={fpr}")
    train(detector, pictures(4), 2)
    with torch.no_grad():
        detector.calibrate(Several(pictures(8, first=50), 3))
        score, maps = detector(pictures(8, first=50))
    assert (score > detector.image_cut).sum() == int(fpr * 8)
    assert (maps > detector.pixel_cut).sum() == int(fpr * maps.numel())
    assert (detector.cut == detector.image_cut) == (cut == "image")
    assert (detector.cut == detector.pixel_cut) == (cut == "pixel")
    assert torch.equal(detector.probability(score) > 0.5, score > detector.cut)


@pytest.mark.parametrize("size", SIZES)
def test_dfr_a_stain_lights_up_where_it_is(make_dfr, size):
    detector, normal = make_dfr(size=size), pictures(4, size)
    train(detector, normal, 15)
    for place in ((0.15, 0.2), (0.8, 0.25), (0.5, 0.85), (0.85, 0.9)):
        y, x = (int(share * side) for share, side in zip(place, size, strict=True))
        stained = normal[0].permute(1, 2, 0).numpy().copy()
        cv2.circle(stained, (x, y), 4, (1.0, 1.0, 1.0), -1)
        with torch.no_grad():
            score, maps = detector(torch.from_numpy(stained).permute(2, 0, 1)[None])
            before, _ = detector(normal[:1])
        row, column = divmod(int(maps.flatten().argmax()), maps.shape[3])
        found = np.array([(row + 0.5) * size[0] / maps.shape[2], (column + 0.5) * size[1] / maps.shape[3]])
        assert np.abs(found - (y, x)).max() < 9, (place, found)
        assert score > before


def test_dfr_an_unknown_layer_is_named(make_dfr):
    with pytest.raises(UserError, match="test_resnet has no layer layer9: it has .*layer3"):
        make_dfr("model.options.layers=[layer9]")
