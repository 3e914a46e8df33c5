"""Labels that src/predict.py writes for annotation tools, and prepare reads again."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from annotation_sets import annotated_config, masks_of, prepare_annotated
from conftest import defective, texture, write_png
from exports import write_export

from defects.data.images import read_image
from defects.data.index import prepare

SHARE = 0.5  # of marked and defective pixels together that are both, at least: maps have cells of 7x5 pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`images`: defective and normal ones in folders; `masks` of the defects; `export`: a model for them."""
    root = tmp_path_factory.mktemp("labels")
    masks = {}
    for seed in range(3):
        image, mask = defective(seed, 56)
        write_png(root / "images" / "line 1" / f"defect_{seed}.png", image[:40])
        masks[f"defect_{seed}.png"] = mask[:40] > 0
    for seed in range(2):
        write_png(root / "images" / "normal_ü" / f"normal_{seed}.png", texture(seed, 56)[:40])
    return SimpleNamespace(
        root=root, images=root / "images", masks=masks, export=write_export(root / "export")
    )


def predict_labels(run, run_script, output) -> None:
    outcome = run_script("predict.py", run.export, run.images, "--output", output)
    assert outcome.code == 0, outcome.stderr


@pytest.mark.parametrize("name", ["found.COCO.JSON", "found.labelme"])
def test_label_files_are_read_again(run, tmp_path, run_script, name):
    predict_labels(run, run_script, tmp_path / name)
    masks = masks_of(run.root, str(tmp_path / name), name="again")
    assert {key: mask is not None for key, mask in masks.items()} == {
        "defect_0.png": True,
        "defect_1.png": True,
        "defect_2.png": True,
        "normal_0.png": False,
        "normal_1.png": False,
    }
    for key, truth in run.masks.items():
        assert (masks[key] & truth).sum() > SHARE * (masks[key] | truth).sum()


def test_label_files_of_label_studio_are_read_once_somebody_submits_them(run, tmp_path, run_script):
    path = tmp_path / "found.label-studio.json"
    predict_labels(run, run_script, path)
    tasks = json.loads(path.read_text(encoding="utf-8"))
    assert tasks[-1]["data"]["image"] == "/data/local-files/?d=normal_%C3%BC/normal_1.png"
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    path.write_text(json.dumps(tasks), encoding="utf-8")
    assert prepare_annotated(run.root, str(path), name="studio")["label"].sum() == 3


def test_label_files_of_coco_hold_what_tools_expect(run, tmp_path, run_script):
    predict_labels(run, run_script, tmp_path / "found.coco.json")
    values = json.loads((tmp_path / "found.coco.json").read_text(encoding="utf-8"))
    assert values["categories"] == [{"id": 1, "name": "defect"}]
    assert values["images"][0] == {"id": 1, "file_name": "line 1/defect_0.png", "width": 56, "height": 40}
    annotation = values["annotations"][0]
    x, y, width, height = annotation["bbox"]
    points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
    assert points.min(axis=0).tolist() == [x, y] and points.max(axis=0).tolist() == [x + width, y + height]
    assert annotation["iscrowd"] == 0 and 0 < annotation["area"] <= width * height
    assert 0.5 <= annotation["score"] <= 1


def test_label_files_of_labelme_lead_to_their_images(run, tmp_path, run_script):
    predict_labels(run, run_script, tmp_path / "found.labelme")
    file = tmp_path / "found.labelme" / "line 1" / "defect_0.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    assert read_image(file.parent / values["imagePath"]).shape == (40, 56, 3)
    assert (values["imageHeight"], values["imageWidth"]) == (40, 56)


def test_label_files_hold_images_of_one_name_in_two_formats(run, tmp_path, run_script):
    for name in ("a.png", "a.bmp"):
        (tmp_path / name).write_bytes((run.images / "line 1/defect_0.png").read_bytes())
    run_script(
        "predict.py", run.export, tmp_path / "a.png", tmp_path / "a.bmp", "--output", tmp_path / "x.labelme"
    )
    assert sorted(path.name for path in (tmp_path / "x.labelme").iterdir()) == ["a.bmp.json", "a.json"]


def test_label_files_leave_out_what_cannot_be_read(run, tmp_path, run_script):
    broken = write_png(tmp_path / "broken.png", texture(1))
    broken.write_bytes(broken.read_bytes()[:100])
    output = tmp_path / "found.coco.json"
    outcome = run_script("predict.py", run.export, broken, run.images, "--output", output)
    assert outcome.code == 2 and f"1 of 6 files could not be read ({broken})" in outcome.stderr
    assert len(json.loads(output.read_text(encoding="utf-8"))["images"]) == 5


def test_label_files_say_which_images_are_outlined_as_a_whole(run, tmp_path, run_script):
    arguments = [run.export, run.images / "normal_ü", "--threshold", 0, "--output", tmp_path / "x.coco.json"]
    outcome = run_script("predict.py", *arguments)
    assert (
        "2 defective images have no marked region, and are outlined as a whole: normal_0.png"
        in outcome.stderr
    )


def test_label_files_need_maps(tmp_path, fails_with_one_line):
    image = write_png(tmp_path / "a.png", texture(1))
    export = write_export(tmp_path / "export", maps=False)
    message = fails_with_one_line("predict.py", export, image, "--output", tmp_path / "x.coco.json")
    assert "bright_spots makes no maps" in message


@pytest.mark.parametrize("name", ["x.coco.json", "x.labelme"])
def test_label_files_never_replace_corrections(run, tmp_path, run_script, fails_with_one_line, name):
    predict_labels(run, run_script, tmp_path / name)
    message = fails_with_one_line("predict.py", run.export, run.images, "--output", tmp_path / name)
    assert "exists, and may hold corrections" in message


def test_label_files_refuse_other_endings(run, fails_with_one_line):
    message = fails_with_one_line("predict.py", run.export, run.images, "--output", "x.json")
    assert "end it in one of .csv, .jsonl, .coco.json, .label-studio.json, .labelme" in message


def test_label_files_of_classes_are_read_as_classes(tmp_path, run_script):
    """A person who has renamed `defect` to a class gets that class."""
    root = tmp_path
    write_png(root / "images/a.png", defective(1, 32)[0])
    run_script("predict.py", write_export(root / "export"), root / "images", "--output", root / "x.coco.json")
    path = root / "x.coco.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"name": "defect"', '"name": "dent"'), encoding="utf-8"
    )
    images = prepare(annotated_config(root, str(path), classes=["dent"]))
    assert isinstance(images, pd.DataFrame) and (images["defect_dent"] != "").all()
