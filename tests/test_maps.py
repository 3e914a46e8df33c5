"""Anomaly maps on their way from the detector to the archive, and masks on their way to it."""

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import write_png
from torch import nn
from torch.utils.data import DataLoader

from defects.config import InferConfig
from defects.data.datasets import ImageDataset, to_device
from defects.data.labels import Labels
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.files import array_archive
from defects.training.scoring import Scorer, score_batches


class Brightness(nn.Module):
    """The map is the image itself; the score its left-most column, which TTA must average."""

    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True)
        return grey[..., 0].mean(dim=2), grey


def scored(size, infer, symmetries="dihedral"):
    images = torch.zeros(3, *size, 3, dtype=torch.uint8)
    images[:, 1, 2] = 255
    items = [{"image": image, "row": row} for row, image in enumerate(images)]
    loader = DataLoader(items, 2)
    return list(score_batches(Scorer(Brightness(), infer, symmetries), loader, Accelerator(cpu=True)))


@pytest.mark.parametrize("symmetries", list(DIHEDRAL))
def test_turning_back_undoes_a_turn(symmetries):
    images = torch.rand(2, 3, 4, 6)
    for member in DIHEDRAL[symmetries]:
        assert torch.equal(turn_back(turn(images, *member), *member), images)


@pytest.mark.parametrize("tta", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (16, 4)])
def test_a_spot_stays_in_its_place_under_tta(size, tta):
    batches = scored(size, InferConfig(tta=tta, map_size=64))
    maps = torch.cat([maps for _, _, maps in batches])
    assert maps.shape == (3, 1, *size)
    expected = torch.zeros(*size)
    expected[1, 2] = 1
    assert torch.allclose(maps[:, 0], expected.expand(3, -1, -1))
    assert torch.cat([rows for rows, _, _ in batches]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("window", [(4, 4), (5, 16), (3, 7), (100, 100)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (16, 4), (9, 31)])
def test_windows_cover_the_image_and_the_highest_score_counts(size, window):
    batches = scored(size, InferConfig(tta=False, map_size=64, window=window))
    maps = torch.cat([maps for _, _, maps in batches])
    assert maps.shape == (3, 1, *size)
    expected = torch.zeros(*size)
    expected[1, 2] = 1
    assert torch.allclose(maps[:, 0], expected.expand(3, -1, -1))
    plain = torch.cat([score for _, score, _ in scored(size, InferConfig(tta=False))])
    assert (torch.cat([score for _, score, _ in batches]) >= plain).all()


def test_maps_are_kept_at_the_configured_size_by_averaging():
    maps = scored((8, 16), InferConfig(tta=False, map_size=4))[0][2]
    assert maps.shape == (2, 1, 2, 4)
    assert maps[0, 0].flatten().tolist() == pytest.approx([1 / 16] + [0] * 7)


def test_archives_are_whole_or_not_there_and_equal_for_equal_content(tmp_path):
    for name in ("a.npz", "b.npz"):
        with array_archive(tmp_path / name) as add:
            add("defect_images/é 1.png", np.arange(6, dtype=np.float16).reshape(2, 3))
            add("x", np.zeros(1))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.load(tmp_path / "a.npz")["defect_images/é 1.png"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ZeroDivisionError), array_archive(tmp_path / "broken.npz") as add:
        add("x", np.zeros(1))
        raise ZeroDivisionError
    with array_archive(tmp_path / "empty.npz"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("steps", [[], [{"name": "HorizontalFlip", "p": 1.0}]])
@pytest.mark.parametrize(("angle", "flip"), [(0.0, "none"), (90.0, "horizontal"), (180.0, "none")])
def test_masks_turn_with_their_image(tmp_path, steps, angle, flip):
    image = np.zeros((16, 16), np.uint8)
    image[2:6, 8:15] = 255
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "mask.png", image)
    rows = pd.DataFrame(
        {
            "path": ["image.png"] * 3,
            "label": [1, 1, 0],
            "mask_path": ["mask.png", "", ""],
            "angle": angle,
            "flip": flip,
        }
    )
    dataset = ImageDataset(rows, tmp_path, (16, 16), steps, 0, Labels(masks=True))
    batch = to_device(next(iter(DataLoader(dataset, 3))), torch.device("cpu"))
    assert batch["masked"].flatten().tolist() == [1, 0, 1]  # a defect without a mask file, a normal image
    assert torch.equal(batch["mask"][0, 0], batch["image"][0, 0])
    assert not batch["mask"][1:].any()
