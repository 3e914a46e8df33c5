"""Listings of all layouts: names, ids, folders that overlap, masks among images."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import defective, write_masks, write_pictures, write_png
from listings import listing_data, listing_error

from defects.data.layouts import list_data


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_listing_names_that_are_no_utf8_are_refused_in_readable_letters(tmp_path):
    write_pictures(tmp_path, "normal/1.png")
    for name in (b"Pr\xfcfung.png", b"line\rend.png"):
        renamed = (tmp_path / "normal/1.png").rename(tmp_path / "normal" / os.fsdecode(name))
        message = listing_error(listing_data(tmp_path, "folders"))
        assert message.isprintable()
        assert "rename these files" in message
        renamed.rename(tmp_path / "normal/1.png")


def test_listing_a_listing_is_the_same_in_every_order_of_the_disk(make_dataset, monkeypatch):
    data = listing_data(make_dataset(defects=3, normals=5, tests=2), "defect_normal")
    expected = list_data(data).images
    listed = os.scandir

    @contextmanager
    def shuffled(path: Path):
        with listed(path) as entries:
            entries = list(entries)
        yield [entries[i] for i in np.random.default_rng(0).permutation(len(entries))]

    monkeypatch.setattr(os, "scandir", shuffled)
    assert list_data(data).images.equals(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_listing_many_unreadable_names_are_shortened(tmp_path):
    for i in range(9):
        write_pictures(tmp_path, f"normal/{i}.png")
        (tmp_path / f"normal/{i}.png").rename(tmp_path / "normal" / os.fsdecode(b"\xb0%d.png" % i))
    assert "and 6 more: rename these files" in listing_error(listing_data(tmp_path, "folders"))


@pytest.mark.skipif(sys.platform == "win32", reason="not allowed there")
def test_listing_odd_letters_in_names_are_kept(tmp_path):
    names = ['normal/a,"b";c|d.png', "normal/'x' #1 %.png", "normal/ .png"]
    write_pictures(tmp_path, *names)
    assert set(list_data(listing_data(tmp_path, "folders")).images["image_id"]) == set(names)


def _ids(root: Path, **folders: str) -> list[str]:
    return sorted(list_data(listing_data(root, "folders", folders=folders)).images["image_id"])


def test_listing_two_folders_of_one_name_have_different_ids(tmp_path):
    write_pictures(tmp_path, "OK/images/1.png", "NG/images/1.png", "new/images/1.png")
    found = _ids(tmp_path, normal="OK/images", abnormal="NG/images", test="./new/../new/images/")
    assert found == ["NG/images/1.png", "OK/images/1.png", "new/images/1.png"]


def test_listing_the_root_itself_may_be_a_folder(tmp_path):
    write_pictures(tmp_path, "1.png", "bad/1.png")
    assert _ids(tmp_path, normal=".", abnormal="bad") == ["1.png", "bad/1.png"]


def test_listing_folders_outside_the_root_are_told_apart(tmp_path):
    write_pictures(tmp_path, "in/images/1.png", "a/images/1.png", "b/images/1.png")
    found = _ids(tmp_path / "in", normal="images", abnormal="../a/images", test=str(tmp_path / "b/images"))
    assert found == ["a/images/1.png", "b/images/1.png", "images/1.png"]


def _listed(root: Path, source: str = "folders", **more) -> dict[str, tuple]:
    """split, label and masks by path."""
    images = list_data(listing_data(root, source, **more)).images
    assert images["path"].is_unique
    return {row.path: (row.split, row.label, row.mask_path) for row in images.itertuples()}


def test_listing_masks_inside_the_folder_of_the_abnormal_images(tmp_path):
    write_pictures(tmp_path, "good/1.png", "bad/a.png", "bad/b.png")
    write_masks(tmp_path, "bad/masks/a_mask.png", "bad/masks/b.png")
    for masks in ("bad/masks", "./bad/../bad/masks", str(tmp_path / "bad" / "masks")):
        folders = {"normal": "good", "abnormal": "bad", "masks": masks}
        found = _listed(tmp_path, folders=folders)
        assert set(found) == {"good/1.png", "bad/a.png", "bad/b.png"}
        assert found["bad/a.png"][2].endswith("bad/masks/a_mask.png")


def test_listing_test_images_inside_the_folder_of_the_normal_ones(tmp_path):
    write_pictures(tmp_path, "good/1.png", "good/sub/2.png", "good/test/3.png")
    found = _listed(tmp_path, folders={"normal": "good", "test": "good/test"})
    assert {path: split for path, (split, _, _) in found.items()} == {
        "good/1.png": "train",
        "good/sub/2.png": "train",
        "good/test/3.png": "test",
    }


def test_listing_a_link_into_another_folder_is_no_second_place(tmp_path):
    write_pictures(tmp_path, "good/1.png", "new/2.png", "bad/3.png")
    (tmp_path / "good/later").symlink_to(tmp_path / "new")
    found = _listed(tmp_path, folders={"normal": "good", "abnormal": "bad", "test": "new"})
    assert set(found) == {"good/1.png", "new/2.png", "bad/3.png"}


@pytest.mark.parametrize(
    ("folders", "settings"),
    [
        ({"normal": "good", "test": "good"}, ["data.folders.normal", "data.folders.test"]),
        ({"normal": "good", "test": "linked"}, ["data.folders.normal", "data.folders.test"]),
        ({"normal": "good", "abnormal": "x/../good"}, ["data.folders.normal", "data.folders.abnormal"]),
        (
            {"normal": "good", "abnormal": "bad", "masks": "good"},
            ["data.folders.normal", "data.folders.masks"],
        ),
        ({"normal": "all/good", "test": "all"}, ["data.folders.normal", "data.folders.test"]),
        ({"normal": "good", "test": "pool"}, ["data.folders.normal", "data.folders.test"]),
    ],
    ids=[
        "same",
        "same by a link",
        "same by another spelling",
        "masks",
        "inside the test folder",
        "linked part",
    ],
)
def test_listing_what_may_be_meant_for_both_is_refused(tmp_path, folders, settings):
    write_pictures(
        tmp_path, "good/1.png", "good/part/4.png", "bad/2.png", "all/good/3.png", "all/5.png", "pool/6.png"
    )
    (tmp_path / "x").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "good")
    (tmp_path / "pool/part").symlink_to(tmp_path / "good/part")
    message = listing_error(listing_data(tmp_path, "folders", folders=folders))
    assert all(setting in message for setting in settings)
    assert str(tmp_path) in message


def test_listing_links_between_the_folders_of_a_fixed_layout_are_refused(make_dataset, mvtec):
    root = make_dataset(defects=2, normals=2, tests=1)
    (root / "train/normal_images/more").symlink_to(root / "train/defect_images")
    assert set(list_data(listing_data(root, "defect_normal")).images["path"].str.count("defect_")) == {0, 2}
    (root / "train/normal_images/more").unlink()
    shutil.rmtree(root / "test/images")
    (root / "test/images").symlink_to(root / "train/normal_images")
    assert "test/images" in listing_error(listing_data(root, "defect_normal"))
    shutil.rmtree(mvtec / "test/good")
    (mvtec / "test/good").symlink_to(mvtec / "train/good")
    assert "test/good" in listing_error(listing_data(mvtec, "mvtec"))


def test_listing_a_mask_beside_its_image(tmp_path):
    write_pictures(tmp_path, "good/1.png", "bad/a.png", "bad/b.png")
    write_masks(tmp_path, "bad/a.bmp", "bad/b_mask.png")
    for masks in (None, "bad"):
        folders = {"normal": "good", "abnormal": "bad", "masks": masks}
        found = _listed(tmp_path, folders=folders)
        assert set(found) == {"good/1.png", "bad/a.png", "bad/b.png"}
        assert found["bad/b.png"] == ("train", 1, "bad/b_mask.png")


@pytest.mark.parametrize("source", ["defect_normal", "mvtec"])
def test_listing_masks_beside_images_in_every_layout(make_dataset, mvtec, source):
    root = mvtec if source == "mvtec" else make_dataset(defects=2, normals=2, tests=2)
    shutil.rmtree(root / ("ground_truth" if source == "mvtec" else "train/defect_masks"))
    data = listing_data(root, source, use_test_as="train")
    images = list_data(data).images
    for path, label in zip(images["path"], images["label"].fillna(0), strict=True):
        mask = defective(1)[1] if label else np.zeros((32, 32), np.uint8)
        write_png((root / path).with_name(f"{(root / path).stem}_mask.png"), mask)
    listed = list_data(data).images
    assert listed["path"].tolist() == images["path"].tolist()
    assert (listed.loc[listed["label"] == 1, "mask_path"] != "").all()


def test_listing_two_pictures_of_one_stem_are_both_taken(tmp_path):
    write_pictures(tmp_path, "normal/1.png", "normal/1.bmp")
    assert len(_listed(tmp_path)) == 2


def test_listing_several_masks_of_one_image_are_listed_together(mvtec):
    for name in ("000/000.png", "000/001.png"):
        write_masks(mvtec / "ground_truth/contamination", name)
    (mvtec / "ground_truth/contamination/000_mask.png").unlink()
    found = _listed(mvtec, "mvtec", use_test_as="train")
    assert found["test/contamination/000.png"][2] == (
        "ground_truth/contamination/000/000.png|ground_truth/contamination/000/001.png"
    )


def test_listing_masks_of_other_images_are_counted(make_dataset):
    root = make_dataset(defects=2, normals=1, tests=0)
    for i in range(5, 10):
        write_masks(root, f"train/defect_masks/defect_{i}.png")
    notes = list_data(listing_data(root, "defect_normal")).notes
    assert notes == [
        "5 masks belong to no image: train/defect_masks/defect_5.png, train/defect_masks/defect_6.png, "
        "train/defect_masks/defect_7.png and 2 more"
    ]


@pytest.mark.parametrize("source", ["defect_normal", "folders"])
def test_listing_a_folder_of_masks_may_hold_those_of_normal_images(make_dataset, source):
    root = make_dataset(defects=1, normals=1, tests=0)
    write_masks(root, "train/defect_masks/normal_0.png", "train/defect_masks/other.png")
    folders = {
        "normal": "train/normal_images",
        "abnormal": "train/defect_images",
        "masks": "train/defect_masks",
    }
    listing = list_data(listing_data(root, source, folders=folders))
    assert sorted(listing.images["mask_path"]) == [
        "train/defect_masks/defect_0.png",
        "train/defect_masks/normal_0.png",
    ]
    assert listing.notes == ["1 masks belong to no image: train/defect_masks/other.png"]


def test_listing_masks_without_abnormal_images_are_noted(folders):
    listing = list_data(listing_data(folders, "folders", folders={"normal": "normal", "masks": "masks"}))
    assert listing.notes == ["data.folders.masks is not used, since data.folders.abnormal names no images"]


def test_listing_a_mask_that_fits_two_images_is_refused(tmp_path):
    write_pictures(tmp_path, "normal/1.png", "bad/a.png", "bad/a.bmp")
    write_masks(tmp_path, "masks/a.png")
    folders = {"normal": "normal", "abnormal": "bad", "masks": "masks"}
    message = listing_error(listing_data(tmp_path, "folders", folders=folders))
    assert "masks/a.png may be the mask of" in message
    assert str(tmp_path / "bad/a.bmp") in message


def test_listing_masks_with_other_names_show_how_they_are_called(tmp_path):
    write_pictures(tmp_path, "normal/1.png", "bad/a.png")
    write_masks(tmp_path, "masks/defect-of-a.png")
    folders = {"normal": "normal", "abnormal": "bad", "masks": "masks"}
    assert "masks that fit no image: defect-of-a.png" in listing_error(
        listing_data(tmp_path, "folders", folders=folders)
    )


@pytest.mark.skipif(sys.platform == "win32", reason="not allowed there")
def test_listing_a_mask_whose_name_holds_the_separator_is_refused(tmp_path):
    write_pictures(tmp_path, "normal/1.png", "bad/a|b.png")
    write_masks(tmp_path, "masks/a|b.png")
    folders = {"normal": "normal", "abnormal": "bad", "masks": "masks"}
    assert "rename it" in listing_error(listing_data(tmp_path, "folders", folders=folders))


def test_listing_mvtec_skips_junk_among_its_kinds_and_masks(mvtec):
    for name in ("test/__MACOSX/._000.png", "test/@eaDir/000.png", "ground_truth/contamination/@eaDir/x.png"):
        write_pictures(mvtec, name)
    listing = list_data(listing_data(mvtec, "mvtec"))
    assert len(listing.answers) == 4
    assert not listing.notes
