"""The data file that start.py writes: its name, its text, the size of images."""

import numpy as np
import pytest
import yaml
from conftest import write_png

from defects.config import load_config
from defects.messages import UserError
from defects.start.contents import Recognised
from defects.start.description import choose_data_file, choose_image_size, compose_data_file, make_name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Parts", "parts"),
        ("My Parts (2024)", "my_parts_2024"),
        ("부품 사진", "부품_사진"),
        ("a.b:c", "a_b_c"),
        ("...", "data"),
        ("CON", "con_data"),
        ("-x-", "x"),
        ("가" * 100, "가" * 25),
    ],
)
def test_make_name_is_valid(tmp_path, folder, name):
    assert make_name(tmp_path / folder) == name


def test_compose_data_file_is_a_configuration(tmp_path):
    settings = {
        "data": {"source": "folders", "folders": {"normal": "OK: 1", "abnormal": "불량 #2", "test": None}},
        "split": {"group_pattern": r"^(\d+)/"},
    }
    text = compose_data_file(Recognised(tmp_path, settings, ()), (96, 64), 3, tmp_path)
    path = tmp_path / "parts.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(None, (), str(path), None, needs_model=False)
    assert config.data.name == "parts"
    assert config.data.root == tmp_path
    assert config.data.image_size == (96, 64)
    assert config.data.symmetries == "flips"
    assert config.data.folders.model_dump() == {
        "normal": "OK: 1",
        "abnormal": "불량 #2",
        "images": None,
        "masks": None,
        "test": None,
    }
    assert (config.split.folds, config.split.group_pattern) == (3, r"^(\d+)/")


def test_choose_data_file_leaves_those_of_other_folders(tmp_path):
    folder = tmp_path / "Parts"
    folder.mkdir()
    files = tmp_path / "configs"
    files.mkdir()
    output = tmp_path / "output"
    first = files / "parts.yaml"
    assert choose_data_file(folder, None, output, files) == first
    first.write_text(yaml.safe_dump({"data": {"root": str(folder / "inner")}}))
    assert choose_data_file(folder, None, output, files) == first
    first.write_text(yaml.safe_dump({"data": {"root": str(tmp_path / "elsewhere")}}))
    assert choose_data_file(folder, None, output, files) == files / "parts_2.yaml"
    (output / "parts_2" / "fold0").mkdir(parents=True)  # a run of that name
    assert choose_data_file(folder, None, output, files) == files / "parts_3.yaml"
    with pytest.raises(UserError, match="--name parts: .* is of other data"):
        choose_data_file(folder, "parts", output, files)
    with pytest.raises(UserError, match="--name a/b: write letters, digits, _ and -, such as b"):
        choose_data_file(folder, "a/b", output, files)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((300, 300), (256, 256)), ((200, 210), (192, 192)), ((20, 20), (64, 64)), ((128, 800), (128, 512))],
)
def test_choose_image_size_follows_the_images(tmp_path, shape, size):
    write_png(tmp_path / "a.png", np.zeros(shape, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"")
    assert choose_image_size(tmp_path) == size
    write_png(tmp_path / "b.png", np.zeros(shape[::-1], np.uint8))
    height, width = choose_image_size(tmp_path)
    assert height == width
