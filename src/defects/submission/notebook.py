"""The notebook of a code competition: unpacks the bundle, installs its wheels, runs the same src/infer.py."""

from typing import Any

START = '''\
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

INPUT, WORKING = Path("/kaggle/input"), Path("/kaggle/working")


def mounted(name):
    """The folder of a competition or a data set; where it lies differs between Kaggle's images."""
    places = [INPUT / name, INPUT / "competitions" / name, *INPUT.glob(f"datasets/*/{name}")]
    found = [place for place in places if place.is_dir()]
    if not found:
        raise RuntimeError(f"{name} is not attached to this notebook")
    return found[0]


data, bundle = mounted(COMPETITION), mounted(BUNDLE)
if json.loads((bundle / "bundle.json").read_text())["sha256"] != SHA256:
    raise RuntimeError(f"{BUNDLE} is not the version that this notebook was made for")
'''

INSTALL = """\
wheels = sorted(str(path) for path in bundle.glob("*.whl"))
if wheels:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, *wheels], check=True)
"""

UNPACK = """\
project = Path(tempfile.mkdtemp()) / "project"
unpacked = next(bundle.rglob("src/infer.py"), None)  # Kaggle may have unpacked the archive itself
if unpacked:
    shutil.copytree(unpacked.parents[1], project, copy_function=shutil.copyfile)
else:
    shutil.unpack_archive(bundle / "project.zip", project)
"""

SCORE = """\
def run(script, *arguments):
    command = [sys.executable, str(project / "src" / script), *arguments, "--set", f"data.root={data}"]
    subprocess.run(command, check=True, cwd=project)


for name, use in RUNS.items():
    run("infer.py", name, "--use", use)
run("ensemble.py", *RUNS, "--set", "ensemble.compare=false")
shutil.copyfile(project / "submissions" / WRITTEN, WORKING / "submission.csv")
"""


def notebook(constants: dict[str, Any]) -> dict[str, Any]:
    """The .ipynb as JSON: `constants` (COMPETITION, BUNDLE, SHA256, RUNS, WRITTEN) come first."""
    head = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    cells = [f"{head}\n{START}", INSTALL, UNPACK, SCORE]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [_cell(source) for source in cells],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def _cell(source: str) -> dict[str, Any]:
    lines = source.splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": lines}


def kernel_metadata(kernel: str, competition: str, bundle: str, gpu: bool) -> dict[str, Any]:
    """kernel-metadata.json: private and offline, with the bundle and the competition attached."""
    return {
        "id": kernel,
        "title": kernel.partition("/")[2].replace("-", " "),  # Kaggle makes the slug of the title
        "code_file": "notebook.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_internet": False,
        "dataset_sources": [bundle],
        "competition_sources": [competition],
    }


def dataset_metadata(bundle: str) -> dict[str, Any]:
    """dataset-metadata.json; private unless the client is told otherwise."""
    title = bundle.partition("/")[2].replace("-", " ")
    return {"id": bundle, "title": title, "licenses": [{"name": "other"}]}
