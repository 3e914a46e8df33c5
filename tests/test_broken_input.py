"""Input broken in every way: what parses files ends well, or in one UserError with the file's name."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_at, texture
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.config import load_config
from defects.config_schema import ROOT
from defects.data import rle
from defects.data.images import read_image
from defects.data.mask_files import read_mask
from defects.data.rle import read_rle_table
from defects.evaluation.pixels import Maps
from defects.files import array_archive, read_csv, read_json
from defects.messages import UserError
from defects.training import checkpoint

CONFIG = b"data: {name: a, source: folders, root: x, image_size: [32, 48]}\nmodel: {options: {a: 1}}\n"
TABLE = b"image_id,label,score\na.png,1,0.5\nb.png,0,1e-3\nc.png,,\n"
RUNS = b"ImageId,EncodedPixels,ClassId\na.jpg,1 3 10 5,1\nb.jpg,2 2,2\n"
JUNK = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
        b'"',
        b"nan",
        b"-1",
        b"1e999",
        b"9" * 5000,
        b"2024-13-45",
    ),
    *("ü\u2028😀".encode(), b"[" * 2000, b"&a [*a]", b"!!int ''", b"!!python/name:os.system ", b"\xff" * 4),
]


def picture(suffix: str) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(texture(0), cv2.COLOR_GRAY2BGR))[1].tobytes()


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(
        {"fingerprint": {"a": 1}, "detector": {"weight": torch.ones(4, 4)}, "history": [{"b": 0.5}]}, buffer
    )
    return buffer.getvalue()


def unpickled() -> bytes:
    """The pickle of a checkpoint, which its archive guards by a checksum."""
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def load_repacked(path: Path) -> None:
    """A checkpoint with the file's content as its pickle."""
    whole = path.with_suffix(".pt")
    with zipfile.ZipFile(io.BytesIO(saved())) as old, zipfile.ZipFile(whole, "w") as new:
        for name in old.namelist():
            new.writestr(name, path.read_bytes() if name.endswith("data.pkl") else old.read(name))
    checkpoint.load(whole)


def decode(path: Path) -> None:
    with suppress(ValueError):  # which is what the codec promises
        rle.decode(path.read_bytes().decode("utf-8", "replace"), (8, 8))


PARSERS = {
    **{
        f"image{suffix}": (picture(suffix), read_image)
        for suffix in (".jpg", ".png", ".bmp", ".tiff", ".webp")
    },
    **{f"mask{suffix}": (picture(suffix), read_mask) for suffix in (".png", ".tiff")},
    "reduced.jpg": (picture(".jpg"), lambda path: read_image(path, (8, 8))),
    "runs.txt": (b"1 3 10 5", decode),
    "runs.csv": (RUNS, lambda path: read_rle_table(path, ["1", "2"])),
    "table.csv": (TABLE, lambda path: read_csv(path, ["image_id", "label", "score"], "x.py")),
    "values.json": (b'{"a": [1, {"b": null}], "c": "d"}', read_json),
    "config.yaml": (CONFIG, load_config),
    "model.pt": (saved(), checkpoint.load),
    "pickle.pkl": (unpickled(), load_repacked),
}


@st.composite
def broken(draw, content: bytes) -> bytes:
    """`content` cut short, with junk in it, with other bytes, or with a piece of it missing or twice."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        piece = content[start : start + draw(st.integers(1, 40))]
        rest = content[start + len(piece) :]
        middle = draw(
            st.sampled_from([b"", 2 * piece, *(junk + piece for junk in JUNK)]) | st.binary(max_size=8)
        )
        content = content[:start] + middle + draw(st.sampled_from([rest, rest, rest, b""]))
    return content


@pytest.mark.parametrize("name", PARSERS)
def test_broken_input_any_content_is_taken_or_refused_by_name(name, tmp_path):
    content, parse = PARSERS[name]
    path = tmp_path / name

    @settings(max_examples=40, deadline=None)  # a busy machine is no failure
    @given(changed=broken(content))
    def refused_or_taken(changed):
        path.write_bytes(changed)
        try:
            parse(path)
        except UserError as error:
            assert path.stem in str(error)

    refused_or_taken()


@pytest.mark.parametrize(
    "text",
    [
        "experiment: !!int ''",
        f"augment: {'[' * 700}",
        "model: &a {options: *a}",
        "experiment: !!python/object/apply:builtins.open [MARKER, w]",
    ],
    ids=["empty number", "deep", "within itself", "code"],
)
def test_broken_input_yaml_that_python_stumbles_over(tmp_path, fails_with_one_line, text):
    path, marker = tmp_path / "x.yaml", tmp_path / "marker"
    path.write_text(text.replace("MARKER", str(marker)), encoding="utf-8")
    assert "x.yaml is not valid YAML" in fails_with_one_line("prepare.py", "--config", path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["train: {epochs: %s}" % (5000 * "9"), "model: {options: {a: %s}}" % (5000 * "9")]
)
def test_broken_input_a_number_of_thousands_of_digits(tmp_path, fails_with_one_line, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert "4300 digits" in fails_with_one_line("prepare.py", "--config", path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a device of Unix")
def test_broken_input_a_config_without_end(fails_with_one_line):
    assert "/dev/zero is no plain file" in fails_with_one_line("prepare.py", "--config", "/dev/zero")


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("modern", [True, False], ids=["archive", "pickle"])
@pytest.mark.parametrize("place", ["best.pt", "last.pt", "weights.pt"])
def test_broken_input_a_checkpoint_with_code_in_it_runs_none(
    make_dataset, config_file, fails_with_one_line, tmp_path, place, modern
):
    config, marker = config_file(make_dataset()), tmp_path / "marker"
    folder = tmp_path if place == "weights.pt" else tmp_path / "output" / "tiny" / "fold0"
    folder.mkdir(parents=True, exist_ok=True)
    if modern:
        torch.save({"fingerprint": Payload(marker)}, folder / place)
    else:
        (folder / place).write_bytes(pickle.dumps(Payload(marker), protocol=2))
    options = ["--set", f"model.backbone.weights={folder / place}"] if place == "weights.pt" else []
    assert place in fails_with_one_line("train.py", "--config", config, *options)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("images.csv", "label,width\n1,wide\n", "column width holds what is no number"),
        ("images.csv", "label,width\nyes,3\n", "column label holds what is no number"),
        ("images.csv", "label,width\n2,3\n", "a label is neither 0 nor 1"),
        ("images.csv", "label,width\n0.5,3\n", "a label is neither 0 nor 1"),
    ],
)
def test_broken_input_numbers_that_are_none(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=problem):
        read_csv(tmp_path / name, ["label"], "src/prepare.py")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", "null"])
def test_broken_input_json_that_is_deep_or_no_object(tmp_path, content):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("change", ["a row twice", "a row less", "another image"])
def test_broken_input_folds_that_are_not_those_of_the_images(make_dataset, config_file, run_script, change):
    config = config_file(make_dataset())
    assert run_script("split.py", "--config", config).code == 0
    path = config.parent / "output" / "tiny_data" / "folds.csv"
    header, first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = {"a row twice": [first, first], "a row less": [], "another image": [f"x{first}"]}[change]
    path.write_text("".join([header, *changed, *rest]), encoding="utf-8")
    outcome = run_script("train.py", "--config", config)
    assert outcome.code == 2 and "folds.csv does not list every training image once" in outcome.stderr


def test_broken_input_out_of_fold_rows_that_come_twice(make_dataset, config_file, run_script):
    config = config_file(make_dataset())
    assert run_script("train.py", "--config", config).code == 0
    path = config.parent / "output" / "tiny" / "fold0" / "oof.csv"
    table = pd.read_csv(path)
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    outcome = run_script("report.py", run_at(config))
    assert outcome.code == 2 and "its out-of-fold images are not those of" in outcome.stderr


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"detector": None},
        {"detector": {"weight": torch.ones(2, 2)}},
        {"detector": {"weight": torch.ones(3)}},
    ],
    ids=["none", "no table", "a part", "another shape"],
)
def test_broken_input_a_checkpoint_without_the_weights(content):
    with pytest.raises(UserError, match=r"best\.pt does not hold this detector's weights"):
        checkpoint.fill(torch.nn.Linear(2, 2), Path("best.pt"), content)


def test_broken_input_test_scores_of_a_fold_that_does_not_exist(make_dataset, config_file, run_script):
    config = config_file(make_dataset())
    assert run_script("train.py", "--config", config).code == 0
    assert run_script("infer.py", run_at(config)).code == 0
    path = config.parent / "output" / "tiny" / "test.csv"
    table = pd.read_csv(path)
    table.assign(fold="9" * 400).to_csv(path, index=False)
    outcome = run_script("ensemble.py", run_at(config))
    assert outcome.code == 2 and "test.csv was scored with other models" in outcome.stderr


def as_objects(path: Path) -> None:
    np.savez(path, **{"a.png": np.array([{}])})


def as_text_member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png.npy", b"no array")


def as_broken_header(path: Path) -> None:
    with array_archive(path) as add:
        add("a.png", np.ones((2, 3), np.float16))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("a.png.npy").replace(b"{'descr'", b"{'(((((")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png.npy", content)


def as_numbers_of_another_shape(path: Path) -> None:
    np.savez(path, **{"a.png": np.float16(1)})


@pytest.mark.parametrize("write", [as_objects, as_text_member, as_broken_header, as_numbers_of_another_shape])
def test_broken_input_maps_that_are_none(tmp_path, write):
    write(tmp_path / "oof_maps.npz")
    maps = Maps(tmp_path / "oof_maps.npz")
    for look in (lambda: maps.segment, lambda: maps["a.png"]):
        with pytest.raises(UserError, match=r"oof_maps\.npz: map a\.png is broken"):
            look()


def test_broken_input_a_single_array_is_no_archive_of_maps(tmp_path):
    with (tmp_path / "oof_maps.npz").open("wb") as stream:
        np.save(stream, np.ones(3))
    with pytest.raises(UserError, match="no archive of maps"):
        Maps(tmp_path / "oof_maps.npz")


def claiming(height: int, width: int) -> bytes:
    """A small PNG whose header tells another size."""
    content = picture(".png")
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]


def test_broken_input_an_image_that_claims_gigabytes_is_refused_before_they_are_taken(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(claiming(30_000, 30_000))  # within OpenCV's own limit
    code = f"from pathlib import Path; from defects.data.images import *; read_image(Path({str(path)!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    environment.pop("OPENCV_IO_MAX_IMAGE_PIXELS", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "bomb.png claims to have more pixels than OPENCV_IO_MAX_IMAGE_PIXELS=268435456" in done.stderr


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_broken_input_a_jpeg_that_claims_more_than_any_decoder_takes(tmp_path, read):
    content, path = bytearray(picture(".jpg")), tmp_path / "bomb.jpg"
    start = content.index(b"\xff\xc0\0")
    content[start + 5 : start + 9] = 2 * (65_500).to_bytes(2)  # the most that libjpeg allows
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bomb\.jpg claims to have more pixels"):
        read(path)


def test_broken_input_a_png_with_a_flipped_bit_is_told_in_one_line(tmp_path, capfd):
    content, path = bytearray(picture(".png")), tmp_path / "x.png"
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png is empty, truncated or no image"):
        read_image(path)
    assert capfd.readouterr().err == ""  # libpng has a line of its own
