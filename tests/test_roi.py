"""Regions of interest: how they are told, what lies in them, and that training carries them along."""

from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import data_in, texture, write_png

from defects.config import load_config
from defects.data.datasets import ImageDataset, as_input
from defects.data.images import resize
from defects.data.labels import Labels
from defects.data.roi import SIZES_IN_MEMORY, draw_inside, find_foreground, load_roi, scale_inside
from defects.data.roi_check import check_roi
from defects.deploy.exporter import describe_roi, read_shared_inside
from defects.deploy.frames import decode_inside, make_frame, read_frame
from defects.deploy.graph import Graph, load_portable, save_portable
from defects.deploy.model import MapMeta, RoiMeta
from defects.deploy.outlines import outline_prediction
from defects.deploy.prediction import Prediction
from defects.deploy.regions import draw_overlay, find_regions
from defects.evaluation.pixels import NOT_JUDGED, masked_maps, pixel_metrics
from defects.evaluation.thresholds import fit_map_limits
from defects.messages import UserError
from defects.models import build_detector

SIDE = 32
RIGHT = {"rectangle": [0.5, 0, 1, 1]}
STEPS = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "rotate": [-40, 40], "p": 0.7},
    {"name": "RandomCrop", "height": 24, "width": 24, "p": 1.0},
]


def right_half():
    inside = np.zeros((SIDE, SIDE), bool)
    inside[:, SIDE // 2 :] = True
    return inside


def base64_png(inside):
    return b64encode(cv2.imencode(".png", 255 * inside.astype(np.uint8))[1].tobytes()).decode()


def rows_of(root: Path, marked: slice = np.s_[8:12, 20:24]) -> pd.DataFrame:
    """A defective image, marked there, and a normal one; a bright frame is in the left half of both."""
    records = []
    for number, name in enumerate(("bad/1.png", "good/2.png")):
        image = texture(number, SIDE)
        image[:, : SIDE // 2] = 250
        write_png(root / name, image)
        records.append({"image_id": name, "path": name, "label": 1 - number, "mask_path": ""})
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[marked] = 255
    write_png(root / "masks/1.png", mask)
    records[0]["mask_path"] = "masks/1.png"
    return pd.DataFrame(records).assign(width=SIDE, height=SIDE, sha256="")


@pytest.mark.parametrize(
    ("roi", "problem"),
    [
        ("{}", "exactly one of mask, folder, polygon, rectangle, foreground; set are none"),
        ("{foreground: on_dark, rectangle: [0, 0, 1, 1]}", "set are rectangle, foreground"),
        ("{rectangle: [0.5, 0, 0.5, 1]}", "left below right"),
        ("{rectangle: [10, 10, 200, 200]}", "write parts of the image from 0 to 1"),
        ("{polygon: [[0, 0], [64, 0], [64, 64]]}", "write parts of the image from 0 to 1"),
        ("{polygon: [[0, 0], [1, 1], [1, 0], [0, 1]]}", "crosses itself behind points 1 and 3"),
        ("{polygon: [[0, 0], [1, 1]]}", "encloses nothing: write three points"),
        ("{polygon: [[0, 0.5], [0.4, 0.5], [1, 0.5]]}", "encloses nothing"),
        ("{foreground: dark}", "on_dark"),
    ],
)
def test_roi_settings_that_say_nothing_are_refused(config_file, make_dataset, roi, problem):
    with pytest.raises(UserError, match="data.roi") as caught:
        load_config(config_file(make_dataset(tests=0)), [f"data.roi={roi}"])
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_draw_inside_takes_whole_pixels_alone():
    corners = np.array([(0.5, 0), (1, 0), (1, 1), (0.5, 1)])
    assert draw_inside(corners, (4, 8)).sum(axis=1).tolist() == [4] * 4
    assert draw_inside(corners, (4, 7)).sum(axis=1).tolist() == [3] * 4  # the middle one is half outside


def test_scale_inside_nothing_outside_has_a_part_in_a_pixel():
    inside = np.zeros((8, 8), bool)
    inside[:, 3:] = True
    assert scale_inside(inside, (4, 4))[0].tolist() == [False, False, True, True]
    assert not scale_inside(inside, (16, 16))[:, :6].any()


def test_scale_inside_what_lies_outside_changes_no_grey_level():
    """Nor where it is less than a thousandth of a pixel, as where corners meet."""
    image = np.random.default_rng(0).integers(0, 256, (369, 357), np.uint8)
    size = (128, 128)
    for start in range(7):
        inside = np.ones(image.shape, bool)
        inside[start::7, start::7] = False
        dark = resize(np.where(inside, image, 0).astype(np.uint8), size)
        bright = resize(np.where(inside, image, 255).astype(np.uint8), size)
        judged = scale_inside(inside, size)
        assert judged.any()
        np.testing.assert_array_equal(dark[judged], bright[judged])


@pytest.mark.parametrize("background", [20, 230])
def test_find_foreground_holes_and_broken_edges_are_judged_and_specks_are_not(background):
    image = np.full((128, 128), background, np.uint8)
    image[30:90, 40:100] = 120
    image[50:60, 60:70] = background  # a hole
    image[85:90, 60:75] = background  # a piece that is broken out of the edge
    cv2.line(image, (5, 5), (30, 120), 120, 2)
    image[100:110, 110:120] = 120
    way = "on_dark" if background < 120 else "on_bright"
    inside = find_foreground(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), way)
    part = np.zeros_like(inside)
    part[30:90, 40:100] = True
    assert inside[32:88, 42:98].all()
    assert (inside & ~part).mean() < 0.01


def test_roi_mask_file_and_folder_give_the_same(tmp_path):
    write_png(tmp_path / "roi.png", 255 * right_half().astype(np.uint8))
    write_png(tmp_path / "rois/bad/1.png", right_half().astype(np.uint8))
    for roi in ({"mask": tmp_path / "roi.png"}, {"folder": tmp_path / "rois"}, RIGHT):
        reader = load_roi(data_in(tmp_path, roi=roi))
        np.testing.assert_array_equal(reader.read("bad/1.png", (SIDE, SIDE)), right_half())
    with pytest.raises(UserError, match=r"holds no mask for good/2.png: add an image named 2"):
        load_roi(data_in(tmp_path, roi={"folder": tmp_path / "rois"})).read("good/2.png", (SIDE, SIDE))


def test_roi_relative_paths_start_at_data_root(tmp_path):
    write_png(tmp_path / "data/roi.png", 255 * right_half().astype(np.uint8))
    write_png(tmp_path / "data/rois/1.png", 255 * right_half().astype(np.uint8))
    for roi in ({"mask": "roi.png"}, {"folder": "rois"}):
        reader = load_roi(data_in(tmp_path / "data", roi=roi))
        np.testing.assert_array_equal(reader.read("bad/1.png", (SIDE, SIDE)), right_half())


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("input/mine/roi.png", "paths start at data.root, not at the repository: write roi.png"),
        ("shared/roi.png", "not at the repository: write {root}/shared/roi.png"),
        ("no.png", "{root}/input/mine/no.png does not exist; paths start at data.root: correct it"),
    ],
)
def test_roi_a_path_from_the_repository_is_refused(tmp_path, monkeypatch, written, problem):
    """Where earlier versions looked for it."""
    monkeypatch.setattr("defects.config_schema.ROOT", tmp_path)
    for place in ("input/mine", "shared"):
        write_png(tmp_path / place / "roi.png", 255 * right_half().astype(np.uint8))
    with pytest.raises(UserError) as caught:
        load_roi(data_in(Path("input/mine"), roi={"mask": written}))
    assert f"data.roi.mask={written}: " in str(caught.value)
    assert problem.format(root=tmp_path) in str(caught.value)


def test_roi_regions_of_many_sizes_do_not_stay_in_memory(tmp_path):
    roi = load_roi(data_in(tmp_path, roi=RIGHT))
    for side in range(8, 8 + 4 * SIZES_IN_MEMORY):
        assert roi.read("a.png", (side, 2 * side)).sum() == side * side
    roi.read("a.png", roi.image_size)
    assert len(roi.fixed) == SIZES_IN_MEMORY + 1
    assert roi.image_size in roi.fixed


# --- bad input ---------------------------------------------------------------------------------------------


def problem_of(root: Path, rows: pd.DataFrame, roi: dict) -> str:
    with pytest.raises(UserError) as caught:
        check_roi(data_in(root, roi=roi), rows)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_check_roi_a_mask_of_another_size(tmp_path):
    rows = rows_of(tmp_path)
    write_png(tmp_path / "roi.png", np.full((8, 16), 255, np.uint8))
    message = problem_of(tmp_path, rows, {"mask": tmp_path / "roi.png"})
    assert "2 of 2 images" in message and "roi.png is 16x8, bad/1.png 32x32: use data.roi.rect" in message
    message = problem_of(tmp_path, rows.assign(width=8, height=16), {"mask": tmp_path / "roi.png"})
    assert "roi.png is 16x8, bad/1.png 8x16: turn the mask by 90 degrees, as the image is shown" in message


def test_check_roi_nothing_is_left(tmp_path):
    rows = rows_of(tmp_path)
    write_png(tmp_path / "roi.png", np.zeros((SIDE, SIDE), np.uint8))
    message = problem_of(tmp_path, rows, {"mask": tmp_path / "roi.png"})
    assert "data.roi leaves nothing of bad/1.png at 32x32 pixels" in message
    assert "leaves nothing" in problem_of(tmp_path, rows, {"rectangle": [0.51, 0.51, 0.53, 0.53]})


def test_check_roi_a_defect_outside_is_named(tmp_path):
    rows = rows_of(tmp_path, marked=np.s_[4:8, 2:6])
    message = problem_of(tmp_path, rows, RIGHT)
    assert "the defects that masks/1.png marks lie outside the region of interest" in message


def test_check_roi_a_defect_that_reaches_out_is_counted(tmp_path):
    notes = check_roi(data_in(tmp_path, roi=RIGHT), rows_of(tmp_path, marked=np.s_[4:8, 12:20]))
    assert notes[0] == "region of interest (rectangle): 50% of each image is judged"
    assert notes[1].startswith("1 images have defects that reach out of the region of interest")


def test_check_roi_a_mask_of_two_images(tmp_path):
    rows = rows_of(tmp_path).assign(path=["a/1.png", "b/1.png"])
    write_png(tmp_path / "rois/1.png", 255 * right_half().astype(np.uint8))
    assert "named like several images" in problem_of(tmp_path, rows, {"folder": tmp_path / "rois"})
    message = problem_of(tmp_path, rows, {"folder": tmp_path / "no"})
    assert "no does not exist" in message


def test_check_roi_missing_masks_are_counted(tmp_path):
    rows = pd.concat([rows_of(tmp_path)] * 3, ignore_index=True)
    rows["path"] = [f"good/{number}.png" for number in range(6)]
    write_png(tmp_path / "rois/5.bmp", right_half().astype(np.uint8))
    message = problem_of(tmp_path, rows, {"folder": "rois"})
    assert message.startswith("data.roi does not suit 5 of 6 images: data.roi.folder=rois holds no mask for ")
    assert "good/2.png: add an image named 2 and 2 more" in message


def test_check_roi_masks_among_the_images(tmp_path):
    rows = rows_of(tmp_path).assign(path=["bad/1.png", "good/rois/2.png"])
    write_png(tmp_path / "good/rois/2.png", right_half().astype(np.uint8))
    message = problem_of(tmp_path, rows, {"folder": "good/rois"})
    assert message.startswith("1 masks of data.roi are listed as images (good/rois/2.png): put them into a")


def test_prepare_names_the_defect_outside(make_dataset, config_file, fails_with_one_line):
    root = make_dataset(defects=2, normals=3, tests=0)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:4, :4] = 255
    write_png(root / "train/defect_masks/defect_1.png", mask)
    config = config_file(root, data={"sample_submission": None, "roi": {"rectangle": [0.2, 0.2, 1, 1]}})
    message = fails_with_one_line("prepare.py", "--config", config)
    assert "defect_masks/defect_1.png marks lie outside the region of interest" in message


# --- what networks are given -------------------------------------------------------------------------------


def test_image_dataset_nothing_outside_reaches_the_network(tmp_path):
    rows = rows_of(tmp_path)
    roi = load_roi(data_in(tmp_path, roi=RIGHT))
    dataset = ImageDataset(rows, tmp_path, (SIDE, SIDE), [], 0, Labels(masks=True), roi=roi)
    before = dataset[0]
    for name in rows["path"]:
        image = cv2.imread(str(tmp_path / name), cv2.IMREAD_GRAYSCALE)
        image[:, : SIDE // 2] = texture(77, SIDE)[:, : SIDE // 2]
        write_png(tmp_path / name, image)
    after = dataset[0]
    assert torch.equal(before["image"], after["image"])
    assert (before["image"][..., 3].numpy() == 255 * right_half()).all()


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (90, 40)])
def test_an_enlarged_image_does_not_mix_with_the_outside(tmp_path, shape):
    """In training, and as models are given files and arrays."""
    data = data_in(tmp_path, roi={"rectangle": [0.25, 0.25, 1, 1]}, image_size=[64, 128])
    roi = load_roi(data)
    inside_png = base64_png(roi.read("", data.image_size))
    meta = SimpleNamespace(roi=RoiMeta(inside_png=inside_png), image_size=data.image_size, bits=None)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    outside = np.ones(shape, bool)
    outside[shape[0] // 4 :, shape[1] // 4 :] = False
    read = []
    for level in (0, 255):
        path = write_png(tmp_path / f"{level}.png", np.where(outside, level, image).astype(np.uint8))
        pixels, judged = roi.read_image(path.name, data.image_size)
        read.append(pixels)
        for frame in (read_frame(path, meta), make_frame(cv2.imread(str(path), 0), meta)):
            np.testing.assert_array_equal(frame.image[judged], pixels[judged])
    assert judged.mean() > 0.5
    np.testing.assert_array_equal(read[0], read[1])


def test_image_dataset_augmentation_carries_the_region(tmp_path):
    """A bright frame outside never comes in, and marked pixels stay inside."""
    rows = rows_of(tmp_path, marked=np.s_[8:12, 14:20]).assign(angle=[30.0, 0.0], flip=["horizontal", "none"])
    roi = load_roi(data_in(tmp_path, roi=RIGHT))
    dataset = ImageDataset(rows, tmp_path, (SIDE, SIDE), STEPS, 0, Labels(masks=True), roi=roi)
    for epoch in range(8):
        for row in range(2):
            sample = dataset[(epoch, row)]
            inside = sample["image"][..., 3] > 0
            assert 0.1 < inside.float().mean() < 0.95
            assert sample["image"][..., :3].max() < 235
            assert not sample["mask"][..., 0][~inside].any()


def test_as_input_outside_gets_the_mean_colour_of_the_inside():
    images = torch.full((1, 4, 4, 4), 200, dtype=torch.uint8)
    images[:, :, :2] = torch.tensor([10, 20, 30, 255], dtype=torch.uint8)
    images[:, :, 2:, 3] = 0
    values = as_input(images)
    assert values.shape == (1, 4, 4, 4)
    colours = torch.tensor([10, 20, 30]).view(3, 1, 1).expand(-1, 4, 4) / 255
    torch.testing.assert_close(values[0, :3], colours)


# --- what is measured --------------------------------------------------------------------------------------


def test_pixel_metrics_count_the_region_alone(tmp_path):
    rows = rows_of(tmp_path)
    anomaly_map = np.full((SIDE, SIDE), 9, np.float16)  # the frame: false alarms everywhere
    anomaly_map[:, SIDE // 2 :] = 1
    anomaly_map[8:12, 20:24] = 5
    maps = dict.fromkeys(rows["image_id"], anomaly_map)
    maps["good/2.png"] = np.where(anomaly_map == 5, 1, anomaly_map).astype(np.float16)
    roi = load_roi(data_in(tmp_path, roi=RIGHT))
    judged = list(masked_maps(rows, maps, tmp_path, roi))
    assert (judged[0][1] == NOT_JUDGED).sum() == SIDE * SIDE / 2
    assert pixel_metrics(judged)["pixel_auroc"] == 1
    assert pixel_metrics(masked_maps(rows, maps, tmp_path))["pixel_auroc"] < 0.6


def test_fit_map_limits_of_cells_and_of_planes():
    planes = np.arange(12, dtype=np.float16).reshape(1, 3, 4)
    of_cells = fit_map_limits([planes.reshape(1, 12)], 0.5, False, True)
    assert of_cells == fit_map_limits([planes], 0.5, False, True)


# --- exports -----------------------------------------------------------------------------------------------


def test_graph_holds_a_region_that_all_images_share(make_config, make_dataset, tmp_path):
    """As PyTorch file too, which knows nothing of the data; what lies outside changes nothing."""
    config = make_config(
        make_dataset(tests=0),
        "data.roi.rectangle=[0.5, 0, 1, 1]",
        "model.options.map_loss=1",
        "infer.tta=false",
    )
    graph = Graph(build_detector(config), config, read_shared_inside(config))
    images = torch.randint(0, 255, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    inside = torch.from_numpy(255 * right_half().astype(np.uint8)).expand(3, -1, -1)[..., None]
    noisy = torch.where(inside > 0, images, torch.randint(0, 255, images.shape, dtype=torch.uint8))
    with torch.inference_mode():
        expected_score, expected_map = graph.scorer(torch.cat([images, inside], 3))
        outputs = graph(images)
        assert torch.equal(outputs["score"], expected_score) and torch.equal(outputs["map"], expected_map)
        assert torch.equal(graph(noisy)["score"], expected_score)
    save_portable(tmp_path / "model.pt", graph, config)
    loaded = load_portable(tmp_path / "model.pt")(noisy.numpy())
    np.testing.assert_array_equal(loaded["score"], expected_score.numpy())
    roi = describe_roi(graph, config)
    np.testing.assert_array_equal(decode_inside(roi.inside_png), right_half())


def test_graph_takes_regions_that_differ_as_a_fourth_channel(make_config, make_dataset):
    config = make_config(make_dataset(tests=0), "data.roi.foreground=on_bright")
    assert read_shared_inside(config) is None
    graph = Graph(build_detector(config), config)
    assert describe_roi(graph, config).foreground == "on_bright"
    with torch.inference_mode():
        assert graph(torch.zeros(2, SIDE, SIDE, 4, dtype=torch.uint8))["score"].shape == (2, 1)


@pytest.mark.parametrize("side", [SIDE, 4 * SIDE])
def test_predictions_mark_nothing_outside(tmp_path, side):
    """Boxes, outlines and overlays, of images of the network's size and of larger ones."""
    meta = MapMeta(size=(4, 4), classes=["defect"], normal=[0.0], threshold=[0.5])
    maps = np.ones((1, 4, 4), np.float32)
    inside = right_half()
    inside[:, : SIDE // 2 + 3] = False  # no border of cells
    regions = find_regions(maps, (side, side), meta, inside)
    border = side * (SIDE // 2 + 3) / SIDE
    assert len(regions) == 1 and border <= regions[0].x < border + 0.1 * side
    image = np.full((side, side, 3), 90, np.uint8)
    overlay = draw_overlay(image, maps, meta, [], inside)
    outside = overlay[:, : int(border)]
    assert (outside == 30).all() and np.ptp(overlay[0, -1]) > 20
    prediction = Prediction(
        probability={"defect": 0.9},
        labels=["defect"],
        regions=regions,
        maps=maps,
        shape=(side, side),
        inside=inside,
    )
    for case in (prediction, replace(prediction, regions=[])):
        (outline,) = outline_prediction(case, SimpleNamespace(map=meta))
        assert outline.points[:, 0].min() >= border
