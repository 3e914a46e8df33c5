"""The benchmark of a GPU, in its tiny form, on whatever this machine has."""

import json
import subprocess
import sys

from defects.config_schema import ROOT


def test_gpu_benchmark_measures_every_part_in_its_tiny_form(tmp_path):
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--workers", "0"]
    finished = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    parts = json.loads(output.read_text())
    assert {name: part for name, part in parts.items() if {"failed", "skipped"} & part.keys()} == {}
    assert parts["test_efficientnet"]["training_images_per_s"] > 0
    assert parts["patchcore_reduced"]["score_images_per_second"] > 0
    resumed = parts["resumed on another device"]
    assert len(resumed["training_loss_by_epoch"]) == len(resumed["devices"].split(" -> "))
