"""EfficientAD: its networks' geometry, its losses, its calibrated maps, and what it refuses."""

import cv2
import numpy as np
import pytest
import torch
from conftest import texture, write_png

from defects.config_schema import Config
from defects.messages import UserError
from defects.models import build_detector
from defects.models.efficientad import Autoencoder, OtherImages, PatchDescription, hard_mean, jitter

NARROW = {"width": 0.0625, "channels": 6, "autoencoder_width": 0.125, "latent": 4}


class Given(list):
    """Batches of given images."""

    def __init__(self, images, size=2):
        super().__init__({"image": part} for part in images.split(size))
        self.images = len(images)


def make(size=(64, 64), data=None, **options):
    """A narrow EfficientAD with a random teacher."""
    data = {"name": "d", "source": "folders", "root": ".", "image_size": list(size)} | (data or {})
    model = {"name": "efficientad", "options": NARROW | options}
    torch.manual_seed(0)
    return Config(experiment="e", data=data, model=model)


def pictures(count, size=(64, 64)):
    height, width = size
    drawn = [texture(i, max(size))[:height, :width] for i in range(count)]
    return torch.from_numpy(np.stack(drawn)).float()[:, None].expand(-1, 3, -1, -1) / 255


def teacher_file(path, images=".", **changes):
    shape = {"size": "small", "width": NARROW["width"], "channels": NARROW["channels"]}
    network = PatchDescription(**shape)
    torch.save({"teacher": network.state_dict(), "images": images, **shape, **changes}, path)
    return network


@pytest.fixture
def detector():
    """Prepared on eight pictures; in evaluation mode."""
    made = build_detector(make(), pretrained=False)
    made.has_teacher = True
    with torch.no_grad():
        made.prepare(Given(pictures(8)))
    return made.eval()


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize(("pixels", "plain", "padded"), [(256, 56, 64), (128, 24, 32), (33, 1, 9)])
def test_efficientad_grids_are_the_published_ones(size, pixels, plain, padded):
    image = torch.rand(1, 3, pixels, pixels + 8)
    for padding, grid in ((False, plain), (True, padded)):
        network = PatchDescription(size, 1 / 64, 5, padding)
        assert network(image).shape == (1, 5, grid, grid + 2)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_efficientad_published_widths(size):
    counts = {"small": 2_700_000, "medium": 8_000_000}
    made = sum(weights.numel() for weights in PatchDescription(size, 1.0, 384).parameters())
    assert made == pytest.approx(counts[size], rel=0.05)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_efficientad_an_output_sees_its_33_pixels_and_padding_moves_none(size):
    torch.manual_seed(0)  # of some networks so narrow all units are dead at the start
    network, padded = (PatchDescription(size, 1 / 16, 4, padding) for padding in (False, True))
    padded.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 64, 72, requires_grad=True)
    network(image)[0, :, 3, 5].sum().backward()
    rows, columns = (image.grad.abs().sum((0, 1)).sum(axis).nonzero().flatten() for axis in (1, 0))
    assert (rows.min(), rows.max()) == (12, 44) and (columns.min(), columns.max()) == (20, 52)
    plain, around = network(image), padded(image)
    assert torch.allclose(plain, around[..., 4:-4, 4:-4], atol=1e-6)


@pytest.mark.parametrize("quantile", [0.999, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("grid", [(3, 7, 9), (1, 11, 91), (1, 1, 1)])
def test_efficientad_hard_features_are_those_above_the_quantile_of_each_image(quantile, grid):
    target, student = torch.randn(2, *grid), torch.randn(2, *grid)
    expected = []
    for squares in ((target - student) ** 2).flatten(1).double().numpy():
        ordered = np.sort(squares)
        expected.append(ordered[ordered >= np.quantile(ordered, quantile) - 1e-15].mean())
    assert hard_mean(target, student, quantile).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_efficientad_more_values_than_torch_quantile_takes():
    values = torch.zeros(1, 1, 4096, 4097)
    values[..., 0] = 1.0
    assert hard_mean(values, torch.zeros_like(values), 0.9999).item() == 1.0


def test_efficientad_teacher_is_normalised_over_the_training_images(detector):
    described = torch.cat([detector._teach(batch["image"]) for batch in Given(pictures(8), 3)])
    assert torch.allclose(described.mean((0, 2, 3)), torch.zeros(6), atol=1e-4)
    assert torch.allclose(described.std((0, 2, 3)), torch.ones(6), atol=1e-3)


def test_efficientad_normal_quantiles_land_at_0_and_a_tenth(detector):
    held = pictures(12)[8:]
    with torch.no_grad():
        detector.calibrate(Given(held))
        differences = [
            torch.cat(maps) for maps in zip(*map(detector._differences, held.split(1)), strict=True)
        ]
    parts = []
    for (low, high), values in zip(detector.quantiles, differences, strict=True):
        parts.append(0.1 * (values - low) / (high - low))
        assert np.quantile(parts[-1], 0.9, method="inverted_cdf") == pytest.approx(0, abs=1e-6)
        assert np.quantile(parts[-1], 0.995, method="inverted_cdf") == pytest.approx(0.1, abs=1e-6)
    score = detector(held)[0]
    assert torch.allclose(score, ((parts[0] + parts[1]) / 2).amax((2, 3)), atol=1e-5)
    assert detector.cut == score.max()  # the image calibration sees maps that are scaled already


def change(size, y, x):
    """How a spot at (y, x) of a picture changes an untrained detector's map [h, w]."""
    detector, image = build_detector(make(size), pretrained=False).eval(), pictures(1, size)
    marked = image.clone()
    marked[..., y - 2 : y + 2, x - 2 : x + 2] = 1.0
    with torch.no_grad():
        return (detector(marked)[1] - detector(image)[1]).abs()[0, 0]


@pytest.mark.parametrize("size", [(128, 128), (160, 100), (104, 333), (131, 150)])
@pytest.mark.parametrize("spot", [(0.4, 0.5), (0.6, 0.4), (0.5, 0.65)])
def test_efficientad_a_defect_lights_up_where_it_is(size, spot):
    y, x = (int(share * side) for share, side in zip(spot, size, strict=True))
    changed = change(size, y, x)
    assert changed.shape == tuple(side // 4 for side in size)
    mass = (changed - changed.max() / 4).clamp(min=0)  # the autoencoder answers a little everywhere
    for axis, (centre, side) in enumerate(zip((y, x), size, strict=True)):
        along = mass.sum(1 - axis)
        found = (along * (torch.arange(len(along)) + 0.5)).sum() / along.sum() * side / len(along)
        assert found.item() == pytest.approx(centre, abs=6)


@pytest.mark.parametrize("size", [(64, 64), (72, 150)])
def test_efficientad_a_defect_in_a_corner_lights_up_there(size):
    changed = change(size, size[0] - 3, 3)
    y, x = divmod(int(changed.argmax()), changed.shape[1])
    assert y > 0.6 * changed.shape[0] and x < 0.4 * changed.shape[1]
    assert changed[-1, 0] > 0


def test_efficientad_autoencoder_has_the_published_sizes_and_takes_any_other():
    seen = []
    network = Autoencoder((256, 256), channels=5, width=0.125, latent=7)
    network.encoder.register_forward_hook(lambda *call: seen.append(call[2].shape[2:]))
    for layer in network.decoder:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    assert network(torch.rand(1, 3, 256, 256), (56, 56)).shape == (1, 5, 56, 56)
    assert [tuple(shape) for shape in seen] == [(side, side) for side in (1, 3, 8, 15, 32, 63, 127)]


@pytest.mark.parametrize("size", [(33, 33), (47, 64), (64, 400), (300, 290)])
def test_efficientad_any_size_and_its_turned_image_are_scored(size):
    detector = build_detector(make(size), pretrained=False).eval()
    with torch.no_grad():
        for shape in (size, size[::-1]):
            score, maps = detector(torch.rand(2, 3, *shape))
            assert score.shape == (2, 1) and maps.shape == (2, 1, shape[0] // 4, shape[1] // 4)
            assert score.isfinite().all() and maps.isfinite().all()


def test_efficientad_training_moves_student_and_autoencoder_but_not_the_teacher(detector):
    detector.train()
    optimizer = torch.optim.Adam(detector.parameter_groups(0.0), lr=3e-3)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    history = []
    torch.manual_seed(0)  # of the jitter
    for _ in range(20):
        losses = detector.training_loss({"image": pictures(4)})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert history[0].keys() == {"loss", "st", "ae", "stae"}
    assert history[0]["loss"] == pytest.approx(sum(history[0][name] for name in ("st", "ae", "stae")))
    for name in ("loss", "st", "ae"):
        values = [losses[name] for losses in history]
        assert np.mean(values[-5:]) < np.mean(values[:5])
    moved = {
        name.split(".")[0] for name, value in detector.state_dict().items() if not value.equal(before[name])
    }
    assert moved == {"student", "autoencoder"}


def test_efficientad_penalty_images_add_to_the_students_loss(tmp_path, detector):
    for i in range(3):
        write_png(tmp_path / f"{i}.png", cv2.applyColorMap(texture(i, 40), cv2.COLORMAP_JET))
    config = make(penalty=tmp_path, penalty_gray=0.0)
    punished = build_detector(config, pretrained=False)
    punished.load_state_dict(detector.state_dict())
    images, terms = {"image": pictures(2)}, []
    for model in (detector, punished):
        torch.manual_seed(1)
        terms.append(model.eval().training_loss(images)["st"].item())
    torch.manual_seed(1)
    jitter(images["image"])
    other = punished.others.draw(2)
    extra = punished.student(other)[:, :6].square().mean().item()
    assert terms[1] - terms[0] == pytest.approx(extra, rel=1e-3)


def test_efficientad_other_images_are_enlarged_cropped_and_sometimes_grey(tmp_path):
    image = np.zeros((30, 60, 3), np.uint8)
    image[8:23, 15:45] = (255, 0, 0)  # its middle half
    write_png(tmp_path / "image.png", image)
    torch.manual_seed(0)
    drawn = OtherImages(tmp_path, (16, 24), gray=0.3).draw(200)
    assert drawn.shape == (200, 3, 16, 24)
    red = drawn[:, 0, 2:-2, 2:-2] - drawn[:, 2, 2:-2, 2:-2]
    gray = (red == 0).all(2).all(1)
    assert 40 < gray.sum() < 80
    assert (red[~gray] == 1).all()


def test_efficientad_jitter_changes_one_thing_of_each_image_by_a_fifth_at_most():
    torch.manual_seed(0)
    flat = torch.tensor([0.6, 0.3, 0.3])[:, None, None].expand(300, 3, 4, 4)
    ratio = jitter(flat)[:, :, 0, 0] / flat[:, :, 0, 0]
    assert ratio.min() > 0.79 and ratio.max() < 1.21
    bright = torch.isclose(ratio[:, 0], ratio[:, 1], atol=1e-3)
    assert 70 < bright.sum() < 130  # the others pull colours apart or together
    assert ratio[bright].min() < 0.85 and ratio[bright].max() > 1.15


def test_efficientad_loaded_without_the_teachers_file_it_scores_the_same(tmp_path):
    path = tmp_path / "teacher.pt"
    network = teacher_file(path)
    config = make(teacher=path)
    trained = build_detector(config)
    assert all(map(torch.equal, trained.teacher.parameters(), network.parameters()))
    with torch.no_grad():
        trained.prepare(Given(pictures(4)))
        trained.calibrate(Given(pictures(4)))
    path.unlink()
    loaded = build_detector(config, pretrained=False)
    loaded.load_state_dict(trained.state_dict())
    with torch.no_grad():
        scores = [model.eval()(pictures(3))[0] for model in (trained, loaded)]
        probabilities = [
            model.probability(score) for model, score in zip((trained, loaded), scores, strict=True)
        ]
    assert torch.equal(*scores) and torch.equal(*probabilities)
    with pytest.raises(UserError, match=r"teacher.pt: no such file; make it with src/distill.py --images"):
        build_detector(config)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"size": (64, 32)}, ["64 x 32 pixels", "33 pixels", "data.image_size"]),
        ({"teacher": "broken.pt"}, ["broken.pt", "cannot be read", "src/distill.py"]),
        ({"teacher": "foreign.pt"}, ["foreign.pt", "holds no teacher"]),
        ({"teacher": "other.pt"}, ["other.pt has channels 7, model.options.channels is 6"]),
        (
            {"teacher": "outside.pt", "data": {"external_data": False}},
            ["model.options.teacher", "/elsewhere"],
        ),
        ({"penalty": "images", "data": {"external_data": False}}, ["model.options.penalty", "external_data"]),
        ({"penality": "images"}, ["did you mean penalty?"]),
    ],
)
def test_efficientad_what_cannot_work_is_said_in_one_line(tmp_path, changes, parts):
    (tmp_path / "broken.pt").write_bytes(b"PK nothing")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    teacher_file(tmp_path / "other.pt", channels=7)
    teacher_file(tmp_path / "outside.pt", images="/elsewhere")
    files = {name: tmp_path / changes[name] for name in ("teacher", "penalty") if name in changes}
    with pytest.raises(UserError) as caught:
        build_detector(make(**changes | files))
    assert all(part in str(caught.value) for part in parts) and "\n" not in str(caught.value)


def test_efficientad_training_needs_a_teacher_and_a_penalty_folder_with_images(tmp_path):
    detector = build_detector(make())
    with pytest.raises(UserError, match="model.options.teacher names no file"):
        detector.prepare(Given(pictures(2)))
    teacher_file(tmp_path / "teacher.pt")
    for folder, text in (("nowhere", "no such folder"), (".", "holds no images")):
        detector = build_detector(make(teacher=tmp_path / "teacher.pt", penalty=tmp_path / folder))
        with pytest.raises(UserError, match=text):
            detector.prepare(Given(pictures(2)))
