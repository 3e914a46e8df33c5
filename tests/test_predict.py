"""src/predict.py: its lines, its pictures, and how it refuses bad input."""

import json
import os
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import defective, texture, write_png
from exports import make_claims, write_export

from defects.data.images import read_image
from defects.deploy.model import find_claim, load_model
from defects.deploy.prediction import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`images`: a folder of images in normal, abnormal and masks; `export`: a model for them."""
    root = tmp_path_factory.mktemp("predict")
    for seed in range(6):
        image, mask = defective(seed, 56)
        write_png(root / "abnormal" / f"defect_{seed}.png", image[:40])
        write_png(root / "masks" / f"defect_{seed}.png", mask[:40])
        write_png(root / "normal" / f"normal_{seed}.png", texture(seed, 56)[:40])
    return SimpleNamespace(images=root, export=write_export(root / "export"))


@pytest.mark.parametrize(
    ("folds", "arguments", "text"),
    [
        (
            2,
            [],
            "may be claimed: at this threshold, with 95 % confidence, at most 9.51 % of defects like these",
        ),
        (2, ["--threshold", 0.3], "nothing is claimed at the threshold 0.3"),
        (1, [], "nothing is claimed: only one fold is trained"),
    ],
)
def test_predict_states_what_may_be_claimed_of_the_model(run, tmp_path, run_script, folds, arguments, text):
    model = write_export(tmp_path / "export", claims=make_claims(folds))
    outcome = run_script("predict.py", model, run.images / "normal" / "normal_0.png", *arguments)
    assert outcome.code == 0, outcome.stderr
    assert text in outcome.stderr


def test_predict_claims_nothing_of_the_file_that_scores_differently():
    meta = SimpleNamespace(claims=make_claims())
    assert find_claim(meta, "openvino_int8.xml").startswith("nothing is claimed of INT8 scores")
    assert find_claim(meta, "model.onnx") == f"{meta.claims.sentence}; {meta.claims.limits[0]}"
    assert find_claim(SimpleNamespace(claims=None), "model.onnx") == ""


def test_predict_writes_a_line_for_every_file(run, tmp_path, run_script):
    images = run.images / "abnormal"
    broken = tmp_path / "broken.png"
    broken.write_bytes((images / "defect_0.png").read_bytes()[:200])
    output, pictures = tmp_path / "out" / "found.csv", tmp_path / "pictures"
    arguments = [run.export, images, broken, "--output", output, "--overlays", pictures, "--threshold", 0]
    outcome = run_script("predict.py", *arguments)
    assert outcome.code == 2 and "1 of 7 files could not be read" in outcome.stderr
    table = pd.read_csv(output, keep_default_na=False)
    assert list(table.columns) == ["path", "label", "score", "probability", "defect_score", "boxes", "error"]
    assert table["label"].tolist() == 6 * ["defect"] + [""]
    assert (table["defect_score"][:6].astype(float) >= 50).all()
    assert "broken.png is empty, truncated or no image" in table["error"].iloc[-1]
    assert len(list(pictures.rglob("*.png"))) == 6
    assert {read_image(path).shape for path in pictures.rglob("*.png")} == {(40, 56, 3)}


def test_predict_keeps_pictures_in_their_folder(run, tmp_path, run_script):
    images, pictures = run.images, tmp_path / "deep" / "down" / "pictures"
    paths = [images / "masks" / ".." / ".." / images.name / "normal" / "normal_0.png", images / "abnormal"]
    write_png(tmp_path / "normal_0.png", texture(3))
    arguments = [run.export / "model.onnx", *paths, tmp_path / "normal_0.png", "--overlays", pictures]
    assert run_script("predict.py", *arguments).code == 0
    made = sorted(path.name for path in tmp_path.rglob("*.png.png"))
    assert made == [f"defect_{i}.png.png" for i in range(6)] + 2 * ["normal_0.png.png"]
    assert len(list(pictures.rglob("*.png"))) == 8


def test_predict_refuses_pictures_in_place_of_images(run, tmp_path, fails_with_one_line):
    for name in ("1.png", "1.png.png"):
        write_png(tmp_path / name, texture(1))
    message = fails_with_one_line("predict.py", run.export / "model.onnx", tmp_path, "--overlays", tmp_path)
    assert "a picture would replace" in message and "1.png.png" in message


def test_predict_refuses_a_link_out_of_the_pictures_folder(run, tmp_path, fails_with_one_line):
    for name in ("in/a/1.png", "in/b/1.png"):
        write_png(tmp_path / name, texture(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").symlink_to(tmp_path / "in" / "b")
    arguments = [run.export / "model.onnx", tmp_path / "in", "--overlays", tmp_path / "out"]
    assert "a link in it leads to" in fails_with_one_line("predict.py", *arguments)


def test_predict_scores_on_after_a_picture_that_cannot_be_written(run, tmp_path, run_script):
    long = "x" * 251 + ".png"  # no room for a second ending
    for name in ("a.png", long, "z.png"):
        write_png(tmp_path / "in" / name, texture(1))
    output, pictures = tmp_path / "found.csv", tmp_path / "out"
    arguments = [run.export / "model.onnx", tmp_path / "in", "--output", output, "--overlays", pictures]
    outcome = run_script("predict.py", *arguments)
    assert outcome.code == 2 and outcome.stderr.count("\n") == 1
    assert "1 of 3 overlays could not be written" in outcome.stderr
    assert len(pd.read_csv(output)) == 3 and {path.name for path in pictures.iterdir()} == {
        "a.png.png", "z.png.png"
    }  # fmt: skip


def test_predict_scores_images_whose_names_are_no_text(run, tmp_path, run_script):
    name = os.fsdecode("결함.png".encode("cp949"))
    try:
        for each in ("a.png", name, "z.png"):
            write_png(tmp_path / "in" / each, texture(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (tmp_path / "in" / "broken\udcff.png").write_bytes(b"no image")
    for output in ("found.csv", "found.jsonl"):
        arguments = [run.export / "model.onnx", tmp_path / "in", "--output", tmp_path / output]
        outcome = run_script("predict.py", *arguments, "--overlays", tmp_path / "out")
        assert outcome.code == 2 and "1 of 4 files could not be read" in outcome.stderr
        lines = (tmp_path / output).read_text(encoding="utf-8").splitlines()
        assert sum("b0\\xe1" in line.replace("\\\\", "\\") for line in lines) == 1
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_predict_writes_json_lines_and_takes_globs(run, tmp_path, run_script):
    output = tmp_path / "found.jsonl"
    pattern = f"{run.images}/*/*_1.png"
    assert run_script("predict.py", run.export / "model.onnx", pattern, "--output", output).code == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["path"].rsplit("/", 2)[-2] for row in rows] == ["abnormal", "masks", "normal"]
    assert all(
        row["label"] in ("defect", "normal") and 0 <= row["probability"]["defect"] <= 1 for row in rows
    )


def test_predict_yields_a_result_before_the_next_one(run):
    path = run.images / "normal" / "normal_0.png"
    endless = predict(load_model(run.export / "model.onnx"), [path] * 10_000, 2)
    assert next(endless).path == path
    endless.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{export}", "{root}/*.tif"], "matches no file"),
        (["{export}", "{root}/nothing"], "1 of 1 files could not be read"),
        (["{export}", "{root}/empty"], "holds no images"),
        (["{export}", "{root}", "--output", "found.txt"], "end it in one of .csv, .jsonl"),
        (["{export}", "{root}/folder.csv/1.png", "--output", "{root}/folder.csv"], "choose another file"),
        (["{root}/nothing", "{root}"], "nothing does not exist: name an export's folder"),
        (["{export}/..", "{root}"], "/export"),
        (["{export}/normals.npz", "{root}"], "is no model"),
    ],
)
def test_predict_refuses_wrong_arguments_in_one_line(run, tmp_path, arguments, message, fails_with_one_line):
    (tmp_path / "empty").mkdir()
    write_png(tmp_path / "folder.csv" / "1.png", texture(1))
    filled = [text.format(export=run.export, root=tmp_path) for text in arguments]
    assert message in fails_with_one_line("predict.py", *filled)
