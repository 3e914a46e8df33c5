from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from defects.data.layouts import demo

SMALL = demo.Settings(normal=10, defect=20, test=40)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """The folder that holds the default set, `data`, and its key, `key.csv`."""
    folder = tmp_path_factory.mktemp("demo")
    demo.generate_demo(folder / "data", folder / "key.csv", demo.Settings())
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _read(folder: Path) -> np.ndarray:
    """All images of a folder by name, (count, height, width), as they are stored."""
    return np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(folder.iterdir())])


def _best_macro_f1(score: np.ndarray, label: np.ndarray) -> float:
    """The best of all thresholds, in both directions: rows are the cuts between distinct scores."""
    cuts = np.unique(score)
    above = score[None] >= cuts[:, None]
    return max(_macro_f1(predicted, label).max() for predicted in (above, ~above))


def _macro_f1(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Macro-F1 of each row of predictions, (rows, images) against (images,)."""
    per_class = []
    for value in (False, True):
        hits = ((predicted == value) & (label == value)).sum(1)
        per_class.append(2 * hits / ((predicted == value).sum(1) + (label == value).sum()))
    return np.mean(per_class, axis=0)


def test_demo_same_seed_same_bytes_and_other_seed_other_images(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        settings = SMALL.model_copy(update={"seed": seed})
        demo.generate_demo(tmp_path / name / "data", tmp_path / name / "key.csv", settings)
    a, b, c = (_contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not {a[name] for name in a if name.endswith(".png")} & {c[name] for name in c}


def test_demo_layout_and_counts(full):
    names = {Path(name) for name in _contents(full / "data")}
    expected = {Path(f"train/normal_images/normal_{i:04d}.png") for i in range(600)}
    expected |= {
        Path(f"train/defect_{part}/defect_{i:04d}.png") for part in ("images", "masks") for i in range(30)
    }
    expected |= {Path(f"test/images/test_{i:04d}.png") for i in range(400)}
    assert names == expected | {Path("test/sample_submission.csv")}
    assert {p.name for p in full.iterdir()} == {"data", "key.csv"}


def test_demo_images_are_grey_and_never_clipped(full):
    for part in ("train/normal_images", "train/defect_images", "test/images"):
        images = _read(full / "data" / part)
        assert images.shape[1:] == (128, 128)
        assert images.dtype == np.uint8
        assert images.min() > 0
        assert images.max() < 255


def test_demo_all_images_differ(full):
    images = [data for name, data in _contents(full / "data").items() if "images" in name]
    assert len(set(images)) == len(images)


def test_demo_masks_are_binary_and_small(full):
    masks = _read(full / "data/train/defect_masks")
    assert masks.shape[1:] == (128, 128)
    assert set(np.unique(masks)) == {0, 255}
    share = (masks > 0).mean((1, 2))
    assert share.min() > 0.003
    assert share.max() < 0.08


@pytest.mark.parametrize("texture", demo.TEXTURES)
@pytest.mark.parametrize("kind", demo.DEMO_DEFECTS)
def test_demo_a_defect_changes_its_mask_and_nothing_far_from_it(texture, kind):
    plain, nothing = demo.draw_image([5, 0], texture)
    image, mask = demo.draw_image([5, 0], texture, kind)
    change = np.abs(image.astype(int) - plain)
    far = cv2.dilate(mask, np.ones((31, 31))) == 0
    assert not nothing.any()
    assert change[mask > 0].mean() > 5
    assert change[far].max() <= 1  # the tail of a soft edge may tip a rounding


@pytest.mark.parametrize("kind", list(demo.DEMO_DEFECTS))
def test_demo_strength_multiplies_the_change_alone(kind):
    normal, weak, full = (
        demo.draw_image([7], "cast", *last)[0].astype(int) for last in ((), (kind, 0.5), (kind,))
    )
    assert np.abs(2 * (weak - normal) - (full - normal)).max() <= 2  # grey levels, of rounding
    assert np.abs(full - normal).max() > 20


def test_demo_every_part_holds_all_textures_and_kinds_about_equally():
    for count in (30, 60):
        textures, kinds = zip(*demo._plan(count, has_defects=True), strict=True)
        assert set(np.unique(textures, return_counts=True)[1]) == {count // 10}
        assert len(set(kinds)) == 4
        assert np.ptp(np.unique(kinds, return_counts=True)[1]) <= 1
    assert len(set(demo._plan(40, has_defects=True))) == 40
    assert {texture for texture, _ in demo._plan(340, has_defects=False)} == set(demo.TEXTURES)
    assert len(demo.TEXTURES) == 10


def test_demo_sample_and_hidden_key_agree(full):
    sample = pd.read_csv(full / "data/test/sample_submission.csv")
    key = pd.read_csv(full / "key.csv")
    names = sorted(p.name for p in (full / "data/test/images").iterdir())
    assert list(sample.columns) == ["ImageId", "answer"]
    assert list(key.columns) == ["ImageId", "answer", "kind"]
    assert list(sample["ImageId"]) == list(key["ImageId"]) == names
    assert (sample["answer"] == 0).all()
    assert key["answer"].sum() == 60
    assert ((key["kind"] != "normal") == (key["answer"] == 1)).all()
    assert key["kind"].value_counts().to_dict() == {"normal": 340} | dict.fromkeys(demo.DEMO_DEFECTS, 15)
    assert 20 < key["answer"][:200].sum() < 40  # shuffled


@pytest.mark.parametrize("statistic", [np.mean, np.std])
def test_demo_global_statistics_do_not_tell(full, statistic):
    normal, defect = (_read(full / "data/train" / f"{name}_images") for name in ("normal", "defect"))
    train = statistic(np.concatenate([normal, defect]), axis=(1, 2))
    label = np.arange(len(train)) >= len(normal)
    assert _best_macro_f1(train, label) < 0.65
    test = statistic(_read(full / "data/test/images"), axis=(1, 2))
    assert _best_macro_f1(test, pd.read_csv(full / "key.csv")["answer"].to_numpy() == 1) < 0.65
