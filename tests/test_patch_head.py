"""The patch head: what it learns from, where it lights up, and the features that are computed once."""

import cv2
import numpy as np
import pytest
import torch
from conftest import defective, texture, write_png

from defects.config import load_config
from defects.config_schema import Config
from defects.data.datasets import training_loader
from defects.messages import UserError
from defects.models import build_detector
from defects.models.patch_head import DISTANCE_STD, PatchHead
from defects.runs import Run
from defects.stages import ensure_tables
from defects.training import embedding
from defects.training.checkpoint import load_checkpoint

SIZE = 64


def patch_head(targets=None, size=(SIZE, SIZE), symmetries="dihedral", **options) -> PatchHead:
    torch.manual_seed(0)  # of the backbone and the heads
    config = Config(
        experiment="e",
        data={
            "name": "d",
            "source": "folders",
            "root": ".",
            "image_size": size,
            "symmetries": symmetries,
            "classes": targets or [],
        },
        model={
            "name": "patch_head",
            "backbone": {"name": "test_resnet", "weights": "none"},
            "options": {"width": 16, "heads": 2} | options,
        },
    )
    return build_detector(config).eval()


class OneBatch(list):
    """A batch as `prepare` takes it."""

    def __init__(self, batch):
        super().__init__([batch])
        self.images = len(batch["label"])


def make_batch(images, masks, labels=None, masked=None):
    """Of grey images and masks, uint8 [H, W] each, as a loader gives it; every image is a group."""
    pixels = torch.from_numpy(np.stack(images)).float().div(255)[:, None].expand(-1, 3, -1, -1)
    mask = torch.from_numpy(np.stack(masks))[:, None].gt(0).float()
    label = mask.amax((2, 3)) if labels is None else torch.tensor(labels)[:, None]
    known = torch.ones(len(images), 1) if masked is None else torch.tensor(masked)[:, None]
    groups = torch.arange(len(images))
    return {"image": pixels, "mask": mask, "label": label, "masked": known, "group": groups}


def defects_and_normals(count=8):
    drawn = [defective(seed, SIZE) for seed in range(count)]
    normal = [(texture(100 + seed, SIZE), np.zeros((SIZE, SIZE), np.uint8)) for seed in range(count)]
    return make_batch(*zip(*drawn, *normal, strict=True))


def fit(detector, batch, steps=40, lr=3e-3):
    """The detector trained on one batch."""
    with torch.no_grad():
        detector.prepare(OneBatch(batch))
        embedded = detector.embed(batch)
    optimizer = torch.optim.AdamW(detector.head.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        detector.training_loss(embedded)["loss"].backward()
        optimizer.step()
    return detector


@pytest.fixture(scope="module")
def trained():
    return fit(patch_head(), defects_and_normals())


def test_patch_head_lights_up_where_the_defect_is(trained):
    image, mask = defective(77, SIZE)
    batch = make_batch([image, texture(177, SIZE)], [mask, mask])
    with torch.inference_mode():
        score, maps = trained(batch["image"])
    assert score[0] > score[1]
    assert maps.shape == (2, 1, 8, 8) and maps.min() >= 0 and maps.max() <= 1
    marked = cv2.resize(mask, (8, 8), interpolation=cv2.INTER_AREA) > 127
    assert maps[0, 0].numpy()[marked].mean() > 2 * maps[0, 0].numpy()[~marked].mean()


@pytest.mark.parametrize("size", [(64, 96), (70, 100), (128, 64)])
def test_patch_head_takes_images_of_any_shape(trained, size):
    score, maps = trained(torch.rand(2, 3, *size))
    assert score.shape == (2, 1) and maps.shape[:2] == (2, 1)


def test_patch_head_scores_the_mean_of_the_largest_logits(trained):
    images = defects_and_normals(2)["image"]
    with torch.inference_mode():
        logits = trained.head(
            trained.embed(defects_and_normals(2) | {"group": torch.full((4,), -1)})["features"]
        ).flatten(2)
        trained.top_patches = 5
        score, maps = trained(images)
        trained.top_patches = 8
    assert torch.allclose(score[:, 0], logits.topk(5, 2).values.mean(2).mean(1), atol=1e-5)
    assert torch.allclose(maps.flatten(2)[:, 0], logits.mean(1).sigmoid(), atol=1e-5)


def test_patch_head_scores_images_of_fewer_patches_by_all_of_them(trained):
    with torch.inference_mode():
        score, maps = trained(torch.rand(1, 3, 8, 16))
    assert maps.shape[2] * maps.shape[3] < trained.top_patches
    assert score.isfinite().all()


def test_patch_head_comes_back_from_its_weights(trained):
    again = patch_head()
    again.load_state_dict(trained.state_dict())
    images = defects_and_normals(2)["image"]
    with torch.inference_mode():
        assert torch.equal(again(images)[0], trained(images)[0])


def test_patch_head_leaves_an_images_group_out_of_its_bank():
    """A copy of the image in its own group changes nothing; one in another group makes all patches near."""
    batch = make_batch([texture(seed, SIZE) for seed in range(6)], [np.zeros((SIZE, SIZE), np.uint8)] * 6)
    detector = patch_head(bank=6 * 64, symmetries="none")
    detector.prepare(OneBatch(batch))
    own = detector.embed(batch)["features"][:, -1]
    others = detector.embed(batch | {"group": torch.full((6,), 99)})["features"][:, -1]
    assert (own > others).all()
    is_other = detector.bank_groups != 0
    patches = detector.whitening(detector.features.patches(batch["image"][:1])).flatten(2)[0].T
    distances = torch.cdist(patches, detector.memory_bank[is_other]) - detector.reductions[is_other]
    expected = DISTANCE_STD * (distances.amin(1) - detector.distance_mean) / detector.distance_std
    assert torch.allclose(own[0].flatten(), expected, atol=1e-3)


def test_patch_head_measures_distances_within_a_single_group():
    """There are no others: the whole bank counts."""
    batch = defects_and_normals(2) | {"group": torch.zeros(4, dtype=torch.int64)}
    detector = patch_head()
    detector.prepare(OneBatch(batch))
    assert torch.isfinite(detector.embed(batch)["features"]).all()


def test_patch_head_gives_an_image_to_be_scored_the_whole_bank(trained):
    batch = defects_and_normals(2)
    with torch.inference_mode():
        features = trained.embed(batch | {"group": torch.full((4,), 99)})["features"]
        maps = trained(batch["image"])[1]
        assert torch.allclose(trained.head(features).mean(1, keepdim=True).sigmoid(), maps, atol=1e-4)


def test_patch_head_scales_distances_of_unseen_normal_patches():
    """To one mean and deviation, of the candidates."""
    batch = defects_and_normals(8)
    detector = patch_head(symmetries="none")
    detector.prepare(OneBatch(batch))
    distances = detector.embed(batch)["features"][8:, -1]
    assert distances.mean().abs() < 0.01 and abs(distances.std() / DISTANCE_STD - 1) < 0.01


@pytest.mark.parametrize("bank", [0, 20])
def test_patch_head_bounds_its_bank(bank):
    detector = patch_head(bank=bank)
    detector.prepare(OneBatch(defects_and_normals(4)))
    assert detector.head[0].in_channels == 240 + (bank > 0)
    assert len(getattr(detector, "memory_bank", ())) == bank


def test_patch_head_learns_only_its_heads():
    detector = patch_head()
    names = {name.split(".")[0] for name, weights in detector.named_parameters() if weights.requires_grad}
    assert names == {"head"}


def test_patch_head_learns_from_image_labels_alone():
    """Unknown masks do not say that there is nothing: the loss is that of the scores."""
    batch = defects_and_normals()
    batch["masked"][:8] = 0
    batch["mask"][:8] = 0
    detector = fit(patch_head(), batch)
    image, mask = defective(77, SIZE)
    with torch.inference_mode():
        score, _ = detector(make_batch([image, texture(177, SIZE)], [mask, mask])["image"])
    assert score[0] > score[1]


def test_patch_head_ignores_unknown_masks():
    detector = patch_head(noise=0.0, symmetries="none")
    batch = defects_and_normals(2)
    detector.prepare(OneBatch(batch))
    batch["masked"][:2] = 0
    losses = []
    for value in (0.0, 1.0):
        batch["mask"][:2] = value
        losses.append(detector.training_loss(detector.embed(batch))["loss"])
    assert torch.equal(*losses)


def test_patch_head_keeps_and_counts_masks_smaller_than_a_patch(capsys):
    image, mask = texture(1, SIZE), np.zeros((SIZE, SIZE), np.uint8)
    mask[13, 21] = 255
    batch = make_batch(
        [image, defective(2, SIZE)[0], texture(3, SIZE)], [mask, defective(2, SIZE)[1], 0 * mask]
    )
    detector = patch_head()
    detector.prepare(OneBatch(batch))
    assert (
        "note: 1 of 2 marked images have less marked than one patch of 64 pixels" in capsys.readouterr().out
    )
    cells = detector.embed(batch)["mask"][0, 0]
    assert cells.sum() == 1 and cells[1, 2] == 1


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_patch_head_averages_finer_layers_down_to_its_grid(size):
    layers = ["layer1", "layer2", "layer3"]
    detector = patch_head(size=size, layers=layers, grid="layer2", symmetries="none")
    images = torch.rand(1, 3, *size)
    fine, middle, _ = detector.features(images)
    patches = detector.features.patches(images, "layer2")
    assert patches.shape[2:] == middle.shape[2:]
    smoothed = torch.nn.functional.avg_pool2d(fine, 3, 1, 1)
    assert torch.allclose(patches[0, : fine.shape[1], 1, 2], smoothed[0, :, 2:4, 4:6].mean((1, 2)), atol=1e-5)
    assert detector(images)[1].shape[2:] == middle.shape[2:]


def test_patch_head_refuses_a_grid_of_another_layer():
    with pytest.raises(UserError, match="model.options.grid=layer1 is none of the layers layer2, layer3"):
        patch_head(grid="layer1")


@pytest.mark.parametrize("shrinkage", [0.01, 1.0])
def test_patch_head_whitens_with_one_normal_image(shrinkage):
    """Fewer patches than channels: shrinkage makes the covariance invertible."""
    batch = defects_and_normals(1)
    detector = patch_head(shrinkage=shrinkage)
    detector.prepare(OneBatch(batch))
    features = detector.embed(batch)["features"]
    assert torch.isfinite(features).all()
    assert features[1].mean((1, 2)).abs().max() < 1e-2


def test_patch_head_whitens_with_normal_images_alone():
    batch = defects_and_normals()
    normal = {name: value[8:] for name, value in batch.items()}
    both, alone = patch_head(), patch_head()
    both.prepare(OneBatch(batch))
    alone.prepare(OneBatch(normal))
    assert torch.allclose(both.whitening.weight, alone.whitening.weight, rtol=1e-4, atol=1e-4)


def test_patch_head_tells_classes_apart():
    """A map and a logit for each class, and a logit for any."""
    batch = defects_and_normals()
    mask = torch.zeros(16, 2, SIZE, SIZE)
    mask[:4, 0], mask[4:8, 1] = batch["mask"][:4, 0], batch["mask"][4:8, 0]
    batch["mask"] = mask
    batch["label"] = torch.cat([mask.amax((2, 3)), batch["label"]], 1)
    detector = fit(patch_head(["dark", "bright"]), batch, steps=3)
    score, maps = detector(batch["image"])
    assert score.shape == (16, 3) and maps.shape == (16, 2, 8, 8)


def test_patch_head_without_defects_names_other_detectors(tmp_path, config_file, fails_with_one_line):
    for seed in range(12):
        write_png(tmp_path / "data" / "normal" / f"{seed}.png", texture(seed))
    model = {"name": "patch_head", "backbone": {"name": "test_resnet", "weights": "none"}}
    data = {"source": "folders", "sample_submission": None}
    path = config_file(tmp_path / "data", data=data, model=model)
    message = fails_with_one_line("train.py", "--config", path)
    assert "no defect images to learn from; patch_head needs them" in message
    assert "--model patchcore_reduced" in message


@pytest.fixture
def run_config(make_dataset, config_file):
    """The config file of a small patch head."""
    return config_file(
        make_dataset(tests=0),
        data={"image_size": [64, 64], "sample_submission": None},
        model={
            "name": "patch_head",
            "backbone": {"name": "test_resnet", "weights": "none"},
            "options": {"width": 8, "heads": 2, "pool_size": 24},
        },
        train={"steps": 6, "batch_size": 8, "warmup_epochs": 0, "paste": 0.3, "synthetic": 0.3},
    )


def test_training_images_are_embedded_once(run_config, run_script, monkeypatch):
    """Three epochs of 24 images: the backbone sees 24 augmented images for them."""
    seen = []
    embed = PatchHead.embed

    def count(detector, batch):
        seen.append(len(batch["label"]))
        return embed(detector, batch)

    monkeypatch.setattr(PatchHead, "embed", count)
    outcome = run_script("train.py", "--config", run_config)
    assert outcome.code == 0, outcome.stderr
    assert sum(seen) == 24
    assert load_checkpoint(Run(load_config(run_config)), "0")["epoch"] == 2


@pytest.mark.parametrize(("budget_images", "expected"), [(20, 20), (1, 8), (1000, 64)])
def test_embedded_images_stay_within_their_memory(run_config, monkeypatch, budget_images, expected):
    """As many as fit, a batch at least, and pool_size at most."""
    config = load_config(run_config, ["train.steps=100", "model.options.pool_size=64"])
    tables = ensure_tables(config)
    detector = build_detector(config).eval()
    loader = training_loader(config, tables.folds.assign(angle=0.0, flip="none"), detector.labels)
    image_bytes = (240 + 1 + 1) * 8 * 8 * 2 + 4 + 4  # float16 features, distance and mask, label, masked
    monkeypatch.setattr(embedding, "POOL_BYTES", budget_images * image_bytes)
    embedded = embedding.embed_training_images(detector, loader, torch.device("cpu"), config.train)
    assert len(embedded.dataset) == expected
