"""Exported models: the scores of training in every runtime, or nothing; and predictions made with them."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import openvino
import pandas as pd
import pytest
import torch
import yaml
from conftest import defective, raising, run_at, texture, write_png
from line_pc import documented_packages

from defects.config import load_config
from defects.config_schema import ROOT, InferConfig
from defects.deploy import exporter
from defects.deploy.exporter import checked_rows, export, move_between_scores
from defects.deploy.graph import save_portable
from defects.deploy.model import MODEL_FILES, load_model, read_meta
from defects.deploy.prediction import predict
from defects.files import sha256
from defects.runs import Run
from defects.stages import ensure_tables
from defects.training.fold import train_fold
from defects.training.scoring import Scorer

EXACT = ["openvino_fp32.xml", "model.onnx", "model.pt"]
SHAPE = (40, 56)  # of the images, seen at 64 x 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config file, export folder) of a classifier with a map and averages over flips."""
    root = tmp_path_factory.mktemp("export")
    for i in range(16):
        write_png(root / "normal" / f"normal_{i}.png", texture(i, 56)[: SHAPE[0]])
    for i in range(6):
        image, mask = (each[: SHAPE[0]] for each in defective(i, 56))
        mask[:8, :8] = image[:8, :8] = 255
        write_png(root / "abnormal" / f"defect_{i}.png", image)
        write_png(root / "masks" / f"defect_{i}.png", mask)
    folders = {"normal": "normal", "abnormal": "abnormal", "masks": "masks"}
    values = {
        "output": str(root / "output"),
        "data": {"name": "plates", "source": "folders", "root": str(root), "folders": folders}
        | {"image_size": [64, 64], "symmetries": "flips", "bits": 12},
        "split": {"folds": 2, "duplicates": {"enabled": False}},
        "model": {
            "name": "classifier",
            "backbone": {"name": "test_efficientnet", "weights": "none"},
            "options": {"map_loss": 1.0},
        },
        "train": {"epochs": 2, "batch_size": 8},
    }
    path = root / "plates_classifier.yaml"
    path.write_text(yaml.safe_dump(values))
    config = load_config(path)
    train_fold(config, "0", ensure_tables(config).folds)
    return path, export(Run(config), ensure_tables(config), "0", [], 64)[0]


@pytest.fixture
def own(run, tmp_path):
    """A copy of the export folder, for tests that change it."""
    return shutil.copytree(run[1], tmp_path / "export")


def oof(run):
    table = pd.read_csv(run[1].parent / "oof.csv").set_index("image_id")
    return table, {name: run[0].parent / name for name in table.index}


def test_export_what_is_written(run):
    meta, table = read_meta(run[1]), pd.read_csv(run[1] / "parity.csv", index_col="file")
    assert set(table.index) == {"training", *MODEL_FILES}
    assert set(meta.files) == {path.name for path in run[1].iterdir()} - {
        "model.json", "parity.csv", "normals.npz"
    }  # fmt: skip
    assert (table.loc[EXACT, "labels changed"] == 0).all()
    assert (
        table.loc["openvino_int8.xml", "score difference (relative)"] > 1e-4
    )  # or it would not be in 8 bits
    assert meta.threshold.keys() == {"defect"} and 0 < meta.threshold["defect"] < 1
    assert meta.claims.refusal.startswith("only one fold is trained")
    assert b"src/defects" not in b"".join((run[1] / name).read_bytes() for name in EXACT)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_export_files_get_the_scores_of_training(run, name, batch_size):
    table, paths = oof(run)
    found = list(predict(load_model(run[1] / name), list(paths.values()), batch_size))
    assert [each.path for each in found] == list(paths.values())
    scores = np.array([each.score["defect"] for each in found])
    np.testing.assert_allclose(scores, table["score"], rtol=1e-4, atol=1e-5)
    probabilities = [each.probability["defect"] for each in found]
    np.testing.assert_allclose(probabilities, table["probability"], atol=1e-5)
    maps = np.load(run[1].parent / "oof_maps.npz")
    for each, image_id in zip(found, table.index, strict=True):
        np.testing.assert_allclose(each.maps[0], maps[image_id], atol=1e-3)


def test_an_export_that_scores_differently_is_not_written(run, monkeypatch, fails_with_one_line):
    before = sorted(path.stat().st_mtime_ns for path in run[1].iterdir())

    def distort(path, graph, config):
        bias = graph.scorer.detector.network.get_classifier().bias
        bias.data += 0.01
        save_portable(path, graph, config)
        bias.data -= 0.01

    monkeypatch.setattr(exporter, "save_portable", distort)
    message = fails_with_one_line("export.py", run_at(run[0]), "--formats", "torch")
    assert "model.pt fails the parity gate" in message and "nothing was exported" in message
    assert sorted(path.stat().st_mtime_ns for path in run[1].iterdir()) == before
    assert not list(run[1].parent.glob(".export*"))


def test_export_refuses_a_graph_of_too_many_copies(run, monkeypatch, fails_with_one_line):
    monkeypatch.setattr(exporter, "MAX_COPIES", 3)
    message = fails_with_one_line("export.py", run_at(run[0]))
    assert "would contain the network 4 times, once for each of 4 views x 1 windows" in message
    assert "export --formats torch" in message


def test_export_of_the_torch_file_needs_no_copies(run, own, monkeypatch, run_script):
    """The way out of that refusal."""
    monkeypatch.setattr(exporter, "MAX_COPIES", 3)
    outcome = run_script("export.py", run_at(run[0]), "--formats", "torch", "--images", "4")
    shutil.rmtree(run[1])
    shutil.copytree(own, run[1])
    assert outcome.code == 0 and " times" not in outcome.stdout


@pytest.mark.parametrize(
    ("symmetries", "window", "copies"),
    [
        ("none", None, 1),
        ("dihedral", None, 8),
        ("flips", (32, 32), 4 * 3 * 2),
        ("dihedral", (32, 16), 4 * (3 * 3) + 4 * (2 * 5)),
    ],
)
def test_export_scorer_counts_its_passes(symmetries, window, copies):
    scorer = Scorer(torch.nn.Identity(), InferConfig(window=window), symmetries)
    assert scorer.count_passes((64, 40)) == copies


def test_export_of_the_full_fit_is_compared_on_the_test_images(make_dataset, make_config):
    config = make_config(make_dataset(tests=6))
    rows = checked_rows(ensure_tables(config), "full", 4)
    assert rows["split"].tolist() == 4 * ["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fold", "1"], "run src/train.py first"),
        (["--fold", "full"], "run src/train.py first"),
    ],
)
def test_what_is_not_trained_is_not_exported(run, arguments, message, fails_with_one_line):
    assert message in fails_with_one_line("export.py", run_at(run[0]), *arguments)


def test_export_models_released_in_any_order_leave_signals_alone(run):
    """Every openvino.Core keeps a stack for signals; on that of a released one the next would crash."""
    program = """
import signal, sys
from pathlib import Path
from defects.deploy.model import load_model
models = [load_model(Path(sys.argv[1])), load_model(Path(sys.argv[1]))]
del models[0], models[0]
signal.signal(signal.SIGINT, lambda *_: print("alive"))
signal.raise_signal(signal.SIGINT)
"""
    command = [sys.executable, "-c", program, run[1] / "openvino_fp32.xml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "alive\n"), ran.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the processors of a thread are not told")
def test_export_openvino_does_not_bind_threads_to_processors(run):
    """Several processes (predict.py --jobs N) would all be bound to the first."""
    others = set(Path("/proc/self/task").iterdir())
    model = load_model(run[1] / "openvino_fp32.xml", threads=1)
    images = np.zeros((64, *model.meta.image_size, 3), np.uint8)
    scoring = Thread(target=lambda: [model(images) for _ in range(4)])
    scoring.start()
    processors = set()
    while scoring.is_alive():
        for thread in set(Path("/proc/self/task").iterdir()) - others:
            with suppress(OSError):  # one that has just ended
                processors.add(frozenset(os.sched_getaffinity(int(thread.name))))
    assert processors == {frozenset(os.sched_getaffinity(0))}


def test_export_a_disk_that_is_full_at_the_end(run, fails_with_one_line, monkeypatch):
    monkeypatch.setattr(exporter, "write_onnx", lambda _, __, path: shutil.copy(run[1] / "model.onnx", path))
    monkeypatch.setattr(openvino, "save_model", raising(RuntimeError("basic_ios::clear")))
    message = fails_with_one_line("export.py", run_at(run[0]), "--formats", "openvino", "--images", "4")
    assert "openvino_fp32.xml cannot be written" in message and (run[1] / "model.json").exists()
    assert not run[1].with_name(".export.part").exists()


def test_export_the_runtimes_send_no_usage_figures(run, tmp_path):
    """They would keep an id of the machine and what is to be sent in the home folder."""
    homes = dict.fromkeys(("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    image = run[0].parent / "normal" / "normal_0.png"
    for name in ("model.onnx", "openvino_fp32.xml"):
        command = [sys.executable, ROOT / "src" / "predict.py", run[1] / name, image]
        subprocess.run(command, check=True, env=environment | homes, capture_output=True, timeout=60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert import_module("openvino.tools.ovc.telemetry_utils").tm.__name__.endswith("stub")


def test_export_no_file_tells_where_on_this_machine_it_was_made(run):
    for path in run[1].iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path.name


def test_export_predict_imports_documented_packages_only(run):
    """A line PC has nothing else; tests/line_pc.py tries it in an environment of its own."""
    image = run[0].parent / "normal" / "normal_0.png"
    runtimes = {"onnxruntime", "openvino"}
    for name in ("model.onnx", "openvino_fp32.xml"):
        command = [sys.executable, "-X", "importtime", ROOT / "src" / "predict.py", run[1] / name, image]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert "normal_0.png" in ran.stdout
        modules = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in ran.stderr.splitlines()}
        packages = packages_distributions()
        loaded = {canonical(package) for module in modules for package in packages.get(module, [])}
        loaded.discard("setuptools")  # a hook of the environment, at the start of every program
        assert "numpy" in loaded
        assert loaded <= with_dependencies({*documented_packages(), *runtimes})


def with_dependencies(names):
    """Canonical names of these packages and of all that pip installs with them."""
    found, waiting = set(), {canonical(name) for name in names}
    while waiting:
        name = waiting.pop()
        found.add(name)
        needed = [line for line in requires(name) or [] if "extra ==" not in line]
        waiting |= {canonical(re.match(r"[\w.-]+", line)[0]) for line in needed} - found
        waiting = {name for name in waiting if is_installed(name)}
    return found


def is_installed(name):
    with suppress(PackageNotFoundError):
        return bool(version(name))
    return False


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "model.json: No such file"),
        (lambda folder: (folder / "model.json").write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / "model.json").write_text("[]"), "model.json"),
        (lambda folder: change(folder, version=2), "of version 2"),
        (lambda folder: change(folder, thresholds={}), "did you mean threshold"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"ONNX"), "is not the file that model.json"),
        (lambda folder: (folder / "model.onnx").unlink(), "does not exist"),
    ],
)
def test_a_spoilt_export_is_told_in_one_line(own, spoil, message, fails_with_one_line):
    spoil(own)
    assert message in fails_with_one_line("predict.py", own / "model.onnx", own)


def change(folder, **values):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | values))


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_export_a_hostile_model_runs_no_code(own, tmp_path, fails_with_one_line):
    marker = tmp_path / "marker"
    with zipfile.ZipFile(own / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"config": Hostile(marker)}))
        archive.writestr("archive/version", "3\n")
    files = read_meta(own).files | {"model.pt": sha256(own / "model.pt")}
    change(own, files=files)
    assert "model.pt is truncated or no checkpoint" in fails_with_one_line(
        "predict.py", own / "model.pt", own
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    ("cut", "moved"), [(0.0, -1.0), (1.0, 0.5), (0.7, 0.5), (np.nextafter(1, 2), 2.0), (3.5, 4.0)]
)
def test_export_a_threshold_lies_move_between_scores(cut, moved):
    """On a score, rounding in another runtime would decide: the labels of an export differed by one."""
    scores = np.array([3.0, 0.0, 1.0])
    assert move_between_scores(cut, scores) == pytest.approx(moved)
    assert ((scores >= move_between_scores(cut, scores)) == (scores >= cut)).all()


def test_export_portable_files_hold_no_paths_of_the_machine(run):
    content = torch.load(run[1] / "model.pt", weights_only=True)
    assert str(run[0].parent) not in json.dumps(content["config"])


def test_export_frames_of_12_bits_have_the_scores_of_8_bits(run, tmp_path):
    """The exported model holds data.bits; one of before there was a choice does not."""
    _, folder = run
    model = load_model(folder)
    assert model.meta.bits == 12
    grey = texture(3, 56)[: SHAPE[0]]
    deep = np.rint(grey.astype(float) * 4095 / 255).astype(np.uint16)
    files = [write_png(tmp_path / "grey.png", grey), tmp_path / "deep.png"]
    files[1].write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    shallow, deep = predict(model, files, 2)
    assert shallow.score == deep.score


def test_an_export_that_says_how_images_were_stretched_is_used_as_before(run, own):
    """Earlier versions wrote `fit`, and a file with weights in 16 bits beside the others."""
    old = load_model(run[1])
    files = read_meta(own).files | {"openvino_fp16.xml": "", "openvino_fp16.bin": ""}
    change(own, fit="squash", files=files)
    image = run[0].parent / "normal" / "normal_0.png"
    (before,), (after,) = (list(predict(model, [image], 1)) for model in (old, load_model(own)))
    assert before.score == after.score


def test_an_export_of_letterboxed_images_is_refused(own, fails_with_one_line):
    change(own, fit="letterbox")
    message = fails_with_one_line("predict.py", own, own)
    assert "model.json has fit=letterbox" in message and "train and export the model again" in message


def test_an_export_without_a_depth_is_read_as_before(run, tmp_path):
    _, folder = run
    values = json.loads((folder / "model.json").read_text())
    del values["bits"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert read_meta(tmp_path).bits is None
