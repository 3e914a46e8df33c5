"""ConvAE: its layers, any image size, its two errors, stains after a short training, saving and loading."""

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from defects.config import load_config
from defects.config_schema import ROOT
from defects.messages import UserError
from defects.models import build_detector
from defects.models.convae import ConvAE
from defects.models.losses import ssim


@pytest.fixture
def make_convae(make_config, tmp_path):
    """make_convae(*overrides, size=(32, 32)) -> a narrow ConvAE, from the same seed each time."""

    def make(*overrides: str, size: tuple[int, int] = (32, 32)) -> ConvAE:
        torch.manual_seed(0)
        settings = ["model.name=convae", "model.options={width: 8, smoothing: 2}"]
        settings.append(f"data.image_size={list(size)}")
        return build_detector(make_config(tmp_path, *settings, *overrides)).eval()

    return make


def pictures(count: int, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    """Clouds [count, 3, H, W], smooth enough to be restored from an eighth of the resolution."""
    clouds = []
    for seed in range(count):
        noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 8)
        clouds.append((0.5 + 0.12 * smooth / smooth.std()).clip(0, 1))
    return torch.from_numpy(np.stack(clouds))[:, None].expand(-1, 3, -1, -1).contiguous()


def stained(image: torch.Tensor, y: int, x: int) -> torch.Tensor:
    """`image` [3, H, W] with a white dot of 9 pixels across."""
    painted = image.permute(1, 2, 0).numpy().copy()
    cv2.circle(painted, (x, y), 4, (1.0, 1.0, 1.0), -1)
    return torch.from_numpy(painted).permute(2, 0, 1)


def train(detector: ConvAE, images: torch.Tensor, steps: int) -> list[float]:
    optimizer, losses = torch.optim.Adam(detector.parameter_groups(0.0), lr=4e-3), []
    detector.train()
    for _ in range(steps):
        loss = detector.training_loss({"image": images})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    detector.eval()
    return losses


def test_convae_published_layers():
    config = load_config(ROOT / "configs" / "demo.yaml", [], model="convae")
    detector = build_detector(config)
    convolutions = [layer for layer in detector.modules() if isinstance(layer, nn.Conv2d)]
    widths = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    assert widths == [(3, 64), (64, 128), (128, 256), (256, 256), (256, 128), (128, 64), (64, 3)]
    assert detector.encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 256, 8, 8)


@pytest.mark.parametrize("error", ["l2", "ssim"])
def test_convae_loss_is_the_named_error_of_what_is_restored(make_convae, error):
    detector, images = make_convae(f"model.options.error={error}"), pictures(2)
    with torch.no_grad():
        restored = detector.restore(images)
        losses = detector.training_loss({"image": images})
    expected = ((images - restored) ** 2).mean() if error == "l2" else 1 - ssim(images, restored).mean()
    torch.testing.assert_close(losses["loss"], expected)
    assert torch.equal(losses[error], losses["loss"])


@pytest.mark.parametrize("error", ["l2", "ssim"])
@pytest.mark.parametrize("size", [(48, 48), (30, 75), (53, 41)])
def test_convae_a_stain_raises_the_score_and_lights_up_where_it_is(make_convae, size, error):
    detector, normal = make_convae(f"model.options.error={error}", size=size), pictures(4, size)
    losses = train(detector, normal, 50)
    assert losses[-1] < 0.3 * losses[0]
    for place in ((0.2, 0.2), (0.8, 0.3), (0.5, 0.8), (0.95, 0.95)):
        y, x = (int(share * side) for share, side in zip(place, size, strict=True))
        with torch.no_grad():
            score, maps = detector(stained(normal[0], y, x)[None])
            before, _ = detector(normal[:1])
        assert maps.shape == (1, 1, *size)
        row, column = divmod(int(maps.flatten().argmax()), size[1])
        # The rim of the stain, which is what structural similarity sees, and half of its window.
        assert max(abs(row - y), abs(column - x)) <= 10, (place, row, column)
        assert score > before


@pytest.mark.parametrize("size", [(40, 48), (41, 47), (33, 39)])
def test_convae_what_is_filled_up_is_cropped_where_it_was_added(make_convae, size):
    detector, images = make_convae(size=size), torch.rand(1, 3, *size)
    detector.encoder, detector.decoder = nn.Identity(), nn.Identity()
    assert torch.equal(detector.restore(images), images)


@pytest.mark.parametrize("size", [(256, 1600), (5, 7)])
def test_convae_strips_and_tiny_images_keep_their_size(make_convae, size):
    with torch.no_grad():
        score, maps = make_convae("model.options.ssim_window=5", size=size)(torch.rand(1, 3, *size))
    assert maps.shape == (1, 1, *size)
    assert score.shape == (1, 1)


def test_convae_saved_and_loaded_it_scores_the_same(make_convae, tmp_path):
    detector, images = make_convae("model.options.error=ssim"), pictures(6)
    train(detector, images, 3)
    with torch.no_grad():
        detector.calibrate([{"image": images[:3]}, {"image": images[3:]}])
        score, maps = detector(images)
    torch.save(detector.state_dict(), tmp_path / "state.pt")
    other = make_convae("model.options.error=ssim")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    with torch.no_grad():
        found = other(images)
    assert torch.equal(found[0], score)
    assert torch.equal(found[1], maps)
    assert torch.equal(other.probability(score), detector.probability(score))


def test_convae_a_window_larger_than_the_images_is_refused_at_once(make_convae):
    with pytest.raises(UserError, match="window of 11 pixels .* does not fit images of 8 x 40"):
        make_convae("model.options.error=ssim", size=(8, 40))
