"""Prediction on a PC without torch: a new virtual environment with the documented packages alone.

A tiny model is exported, the packages come from the package index, and predictions are made in that
environment with ONNX Runtime, then with OpenVINO. Not part of the suite, since it needs a network:
`python -m pytest tests/line_pc.py`.
"""

import csv
import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import yaml
from conftest import defective, texture, write_png

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 12  # normal ones; half as many defects
NOT_INSTALLED = ("torch", "pandas", "scipy", "psutil")


def documented_packages() -> list[str]:
    """The packages that the documentation has one install on a line PC, ONNX Runtime first."""
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        line = re.search(r"pip install (onnxruntime [^`]+)`", path.read_text(encoding="utf-8"))
        if line:
            return line[1].split()
    raise LookupError("no `pip install onnxruntime …` in README.md or docs/")


def test_predict_runs_with_the_documented_packages_alone(tmp_path):
    exported = export_tiny_model(tmp_path)
    python = create_environment(tmp_path / "environment", documented_packages())
    expected = predict(Path(sys.executable), exported / "model.onnx", tmp_path)
    assert_equal(predict(python, exported / "model.onnx", tmp_path), expected)
    run(python, "-m", "pip", "install", "--quiet", "openvino")
    assert_equal(predict(python, exported / "openvino_fp32.xml", tmp_path), expected)


def export_tiny_model(folder: Path) -> Path:
    """The export folder of a classifier with maps that has seen one epoch."""
    for number in range(IMAGES):
        write_png(folder / "images" / "normal" / f"{number}.png", texture(number))
    for number in range(IMAGES // 2):
        image, mask = defective(number)
        write_png(folder / "images" / "abnormal" / f"{number}.png", image)
        write_png(folder / "images" / "masks" / f"{number}.png", mask)
    values = {
        "experiment": "plates_classifier",
        "output": str(folder / "output"),
        "data": {
            "name": "plates",
            "source": "folders",
            "root": str(folder / "images"),
            "folders": {"normal": "normal", "abnormal": "abnormal", "masks": "masks"},
            "image_size": [32, 32],
        },
        "split": {"folds": 2, "duplicates": {"enabled": False}},
        "model": {
            "name": "classifier",
            "backbone": {"name": "test_efficientnet", "weights": "none"},
            "options": {"map_loss": 1.0},
        },
        "train": {"epochs": 1, "batch_size": 8},
        "infer": {"tta": False},
    }
    config = folder / "plates.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    script(Path(sys.executable), "train.py", "--config", config, "--fold", "0")
    run = folder / "output" / "plates_classifier"
    script(Path(sys.executable), "export.py", run, "--formats", "onnx", "openvino")
    return run / "fold0" / "export"


def create_environment(folder: Path, packages: list[str]) -> Path:
    """Its interpreter. Without what documentation does not name: an import of it must fail here."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    run(python, "-m", "pip", "install", "--quiet", *packages)
    for name in NOT_INSTALLED:
        missing = subprocess.run([python, "-c", f"import {name}"], capture_output=True)
        assert missing.returncode != 0, f"{name} is installed, so this environment proves nothing"
    return python


def predict(python: Path, model: Path, folder: Path) -> list[dict[str, str]]:
    """Rows of the CSV; JSON lines and pictures with heat maps are written too."""
    images, made = folder / "images" / "abnormal", folder / "predicted"
    table, lines, pictures = made / "table.csv", made / "lines.jsonl", made / "pictures"
    script(python, "predict.py", model, images, "--output", table, "--overlays", pictures)
    script(python, "predict.py", model, images, "--output", lines)
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == IMAGES // 2 == len(list(pictures.glob("*.png")))
    found = [json.loads(line)["score"]["defect"] for line in lines.read_text(encoding="utf-8").splitlines()]
    assert found == [float(row["score"]) for row in rows]
    return rows


def assert_equal(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    for row, other in zip(rows, expected, strict=True):
        assert row["path"] == other["path"] and row["error"] == other["error"] == ""
        assert abs(float(row["score"]) - float(other["score"])) < 1e-4, (row, other)


def script(python: Path, name: str, *arguments: object) -> None:
    run(python, ROOT / "src" / name, *arguments)


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)
