"""What prepare says about a data set at its end, and what it makes of several masks for one image."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import defective, texture, write_png

from defects.config import load_config
from defects.data import index
from defects.data.labels import join_masks, read_mask_files, read_masks, split_masks
from defects.data.listing import Listing, make_rows
from defects.messages import shorten_names
from defects.stages import ensure_images


@pytest.fixture
def root(make_dataset) -> Path:
    return make_dataset(defects=4, normals=6, tests=3)


@pytest.fixture
def lines(config_file, run_script) -> Callable[..., list[str]]:
    """lines(root, **data) -> what prepare.py prints."""

    def run(root: Path, **data) -> list[str]:
        done = run_script("prepare.py", "--config", config_file(root, data=data))
        assert (done.code, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def _line(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.startswith(start))


def test_an_inventory_is_printed_and_kept(root, lines, output):
    printed = lines(root)
    assert printed[0] == f"inventory of {root}: 17 image files"
    assert len(printed) <= 20
    kept = json.loads((output / "inventory.json").read_text())
    assert kept["images"] == {"test unlabelled": 3, "train defect": 4, "train normal": 6}
    assert kept["sizes"] == {"32x32": 13}
    assert kept["pixels"]["kinds"] == {"8 bits grey": 13}


def test_inventory_what_is_not_taken_is_counted(root, lines):
    folder = root / "train/normal_images"
    for name in ("a.heic", "b.HEIC", "c.json", ".DS_Store", "Thumbs.db", "__MACOSX/._1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (root / "train/more_images").mkdir()
    printed = lines(root)
    assert _line(printed, "not taken").endswith("no images: 2 .heic, 1 .json")
    assert _line(printed, "skipped").endswith("1 Thumbs.db, 1 __MACOSX, 1 hidden")
    assert _line(printed, "not used").endswith("train/more_images")


def test_inventory_counts_what_a_layout_of_single_files_does_not_list(root, config_file, monkeypatch, capsys):
    def list_normal(data):
        paths = sorted((root / "train/normal_images").iterdir())
        return Listing(make_rows(data, paths, root, "train", 0))

    monkeypatch.setattr(index, "list_data", list_normal)
    ensure_images(load_config(config_file(root)))
    printed = capsys.readouterr().out.splitlines()
    assert _line(printed, "inventory").endswith(": 6 image files")
    unlisted = _line(printed, "not used")
    assert "3 image files in test/images, 4 image files in train/defect_images" in unlisted
    assert not any(line.startswith("folders") for line in printed)


@pytest.mark.parametrize(
    ("roi", "unused"), [({"mask": "roi.png"}, "rois"), ({"folder": "rois"}, "1 image files in .")]
)
def test_inventory_masks_of_regions_of_interest_are_used(root, lines, roi, unused):
    everything = np.full((32, 32), 255, np.uint8)
    write_png(root / "roi.png", everything)
    for path in [*(root / "train").glob("*_images/*"), *(root / "test/images").iterdir()]:
        write_png(root / "rois" / path.name, everything)
    assert _line(lines(root, roi=roi), "not used").split(maxsplit=2)[2] == unused


def test_inventory_names_the_null_setting_of_an_unused_folder(root, lines):
    (root / "masks").mkdir()
    (root / "more").mkdir()
    folders = {"normal": "train/normal_images", "masks": None}
    unused = _line(lines(root, source="folders", folders=folders), "not used")
    assert "masks (data.folders.masks set to null), more" in unused


def test_inventory_folders_behind_links_are_told(root, lines, tmp_path):
    for i in range(3):
        write_png(tmp_path / f"disk/{i}.png", texture(70 + i))
    (root / "train/normal_images/more").symlink_to(tmp_path / "disk")
    printed = lines(root)
    assert _line(printed, "links").endswith("3 files lie in 1 linked folders: train/normal_images/more")
    assert "train normal            9" in printed


def test_inventory_sizes_and_pixels_are_told(root, lines):
    write_png(root / "train/normal_images/wide.png", np.tile(texture(5), (1, 2)))
    write_png(root / "train/normal_images/colour.png", np.dstack([texture(i) for i in range(3)]))
    printed = lines(root)
    assert _line(printed, "sizes").endswith(
        "2 sizes, 32 to 64 wide and 32 to 32 high, most often 32x32 (14), 64x32 (1)"
    )
    assert _line(printed, "pixels").endswith("14 of 8 bits grey, 1 of 8 bits RGB")


@pytest.mark.parametrize(
    ("largest", "told"), [(1023, "data.bits=10"), (3000, "data.bits=12"), (20_000, None)]
)
def test_inventory_deep_images_that_use_few_bits_are_noted(root, lines, largest, told):
    for path in (root / "train/normal_images").iterdir():
        image = texture(1).astype(np.uint16)
        image[0, 0] = largest
        write_png(path, image)
    notes = [line for line in lines(root, contradictions="report") if "of 16 bits never" in line]
    assert len(notes) == (told is not None)
    assert told is None or told in notes[0]


def test_inventory_images_that_look_like_masks_are_noted(root, lines):
    write_png(root / "train/normal_images/label.png", defective(0)[1])
    note = _line(lines(root), "note: 1 images have few grey levels")
    assert "train/normal_images/label.png" in note


def test_inventory_a_data_set_of_images_with_few_levels_is_not_noted(root, lines):
    for path in [*root.glob("train/*_images/*.png"), *root.glob("test/images/*.png")]:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_png(path, np.where(image > 128, 255, 0).astype(np.uint8))
    assert not [line for line in lines(root) if "few grey levels" in line]


def test_inventory_drawings_among_the_images_are_noted(root, lines):
    first = sorted((root / "train/normal_images").iterdir())[0]
    write_png(first.with_name(f"{first.stem}_overlay.png"), texture(50))
    write_png(first.with_name("front_overlay.png"), texture(51))
    note = _line(lines(root), "note: 1 images are named like drawings")
    assert f"{first.stem}_overlay.png" in note and "train/normal_images" in note


def test_inventory_the_share_that_masks_mark(root, lines):
    write_png(root / "train/defect_masks/defect_2.png", np.full((32, 32), 255, np.uint8))
    printed = lines(root)
    assert _line(printed, "masks").startswith("masks       4 of 4 defects have one")
    assert "6.25% of an image (median), at most 100.00% (train/defect_images/defect_2.png)" in _line(
        printed, "marked"
    )


def test_inventory_masks_that_are_dropped_are_told(root, lines):
    write_png(root / "train/defect_masks/defect_2.png", np.zeros((32, 32), np.uint8))
    printed = lines(root, bad_masks="drop")
    assert _line(printed, "masks").startswith("masks       3 of 4")
    assert _line(printed, "note: 1 masks are left out").endswith("train/defect_images/defect_2.png")


def test_inventory_run_length_masks_and_classes_are_told(tmp_path, lines):
    for i in range(3):
        write_png(tmp_path / f"train_images/{i}.png", texture(i))
    (tmp_path / "train.csv").write_text(
        "ImageId,ClassId,EncodedPixels\n0.png,a,1 512\n1.png,b,1 10\n1.png,a,5 10\n"
    )
    printed = lines(tmp_path, source="severstal", classes=["a", "b"], sample_submission=None)
    assert _line(printed, "masks").endswith("2 of 2 defects have one (run-length)")
    assert "at most 50.00% (train_images/0.png)" in _line(printed, "marked")
    assert _line(printed, "classes").endswith("a 2, b 1 images")


def test_inventory_another_command_prints_it_once(root, make_config, capsys):
    ensure_images(make_config(root))
    assert "inventory of" in capsys.readouterr().out
    ensure_images(make_config(root))
    assert capsys.readouterr().out == ""


def test_inventory_overlapping_folders_are_told(root, lines):
    shutil.move(root / "train/defect_masks", root / "train/defect_images/masks")
    folders = {"normal": "train/normal_images", "abnormal": "train/defect_images"}
    folders["masks"] = "train/defect_images/masks"
    printed = lines(root, source="folders", folders=folders, sample_submission=None)
    assert (
        "note: data.folders.masks lies inside data.folders.abnormal: its files are taken as masks only"
        in printed
    )


# --- several masks for one image --------------------------------------------------------------------------


@pytest.fixture
def halves(root) -> np.ndarray:
    """The mask of defect_0.png, which now lies in two files, each with a part of it."""
    mask = defective(0)[1]
    first = mask.copy()
    columns = np.flatnonzero(mask.any(axis=0))
    first[:, columns[len(columns) // 2 :]] = 0
    write_png(root / "train/defect_masks/defect_0.png", first)
    write_png(root / "train/defect_masks/defect_0_mask.png", mask - first)
    return mask > 0


def test_inventory_several_masks_are_united(root, halves, lines, output, config_file):
    printed = lines(root)
    assert (
        "note: 1 images have several masks each, which are united: train/defect_images/defect_0.png"
        in printed
    )
    images = ensure_images(load_config(config_file(root)))
    row = images[images["mask_path"].str.contains("|", regex=False)].iloc[0].to_dict()
    assert row["image_id"] == "defect_images/defect_0.png"
    assert np.array_equal(read_masks(row, root, [])[..., 0] > 0, halves)


def test_inventory_a_picture_among_the_masks_of_an_image_is_refused(
    root, halves, config_file, fails_with_one_line
):
    write_png(root / "train/defect_masks/defect_0_mask.png", texture(0))
    message = fails_with_one_line("prepare.py", "--config", config_file(root))
    assert f"{root / 'train/defect_masks/defect_0.png'}" in message
    assert f"{root / 'train/defect_masks/defect_0_mask.png'}" in message
    assert "looks like a picture" in message


def test_inventory_masks_of_several_sizes_are_refused(root, halves, config_file, fails_with_one_line):
    write_png(root / "train/defect_masks/defect_0_mask.png", np.eye(16, dtype=np.uint8))
    assert "differ in size" in fails_with_one_line("prepare.py", "--config", config_file(root))


def test_inventory_the_order_of_masks_does_not_matter(root, halves):
    names = ["train/defect_masks/defect_0.png", "train/defect_masks/defect_0_mask.png"]
    for order in (names, names[::-1]):
        assert np.array_equal(read_mask_files(join_masks(order), root), halves)


def test_inventory_inverted_masks_are_read_the_other_way_round(root, halves, lines, config_file):
    for path in (root / "train/defect_masks").iterdir():
        mask = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
        write_png(path, 255 - mask)
    printed = lines(root)
    assert "note: the masks mark what is no defect: they are read the other way round" in printed
    assert "6.25% of an image (median), at most 6.25%" in _line(printed, "marked")
    images = ensure_images(load_config(config_file(root)))
    row = images.set_index("image_id", drop=False).loc["defect_images/defect_0.png"].to_dict()
    assert row["mask_path"].startswith("inverted|train/defect_masks/defect_0.png|")
    assert np.array_equal(read_masks(row, root, [])[..., 0] > 0, halves)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("paths", [[], ["a.png"], ["a.png", "b/c d.png"]])
def test_inventory_joined_masks_come_apart(paths, inverted):
    assert split_masks(join_masks(paths, inverted)) == (paths, inverted and paths != [])


def test_inventory_a_mask_of_a_normal_image_must_be_empty(
    tmp_path, config_file, fails_with_one_line, run_script, output
):
    for i in range(4):
        image, mask = defective(i)
        write_png(tmp_path / f"in/bad/{i}.png", image)
        write_png(tmp_path / f"in/bad/{i}_mask.png", mask)
        write_png(tmp_path / f"in/normal/{i}.png", texture(9 + i))
        write_png(tmp_path / f"in/normal/{i}_mask.png", 0 * mask)
    data = {"source": "folders", "sample_submission": None, "folders": {"abnormal": "bad"}}
    path = config_file(tmp_path / "in", data=data)
    assert run_script("prepare.py", "--config", path).code == 0
    images = pd.read_csv(output / "images.csv", keep_default_na=False)
    assert images["mask_path"].tolist() == [f"bad/{i}_mask.png" for i in range(4)] + [""] * 4
    write_png(tmp_path / "in/normal/2_mask.png", defective(2)[1])
    message = fails_with_one_line("prepare.py", "--config", path)
    assert "normal/2.png is among the normal images, and its mask marks 6.2% of it" in message
    assert "data.contradictions=report" in message


def test_inventory_masks_of_an_answer_key_are_examined(tmp_path, config_file, fails_with_one_line):
    for i, name in enumerate(("train/good/0.png", "test/good/0.png", "test/cut/0.png")):
        write_png(tmp_path / name, texture(i))
    write_png(tmp_path / "ground_truth/cut/0_mask.png", np.zeros((32, 32), np.uint8))
    data = {"source": "mvtec", "sample_submission": None}
    message = fails_with_one_line("prepare.py", "--config", config_file(tmp_path, data=data))
    assert "0_mask.png marks no pixel" in message


# --- lists in messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more")]
)
def test_inventory_shorten_names(names, text):
    assert shorten_names(names) == text


def test_inventory_two_files_of_one_id_are_both_named(root, config_file, fails_with_one_line):
    for name in ("u\u0308.png", "ü.png"):
        write_png(root / "train/normal_images" / name, texture(len(name)))
    if len(list((root / "train/normal_images").glob("*.png"))) < 8:
        pytest.skip("this file system knows one spelling only")
    message = fails_with_one_line("prepare.py", "--config", config_file(root))
    assert "'train/normal_images/u\\u0308.png' and 'train/normal_images/\\xfc.png'" in message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_inventory_names_of_other_code_pages_are_counted_and_told(root, lines):
    for name in ("정상.heic", "정상.메모"):
        (root / "train/normal_images" / os.fsdecode(name.encode("cp949"))).touch()
    (root / "train" / os.fsdecode("불량".encode("cp949"))).mkdir()
    printed = lines(root)
    assert "1 .heic" in _line(printed, "not taken")
    assert "1 .\\udcb8" in _line(printed, "not taken")
    assert "train/\\udcba" in _line(printed, "not used")


def test_inventory_output_among_the_images_is_refused(root, config_file, fails_with_one_line, tmp_path):
    data = {"source": "folders", "sample_submission": None, "folders": {"normal": str(tmp_path)}}
    message = fails_with_one_line("prepare.py", "--config", config_file(root, data=data))
    assert f"output={tmp_path / 'output'} lies inside data.folders.normal" in message
