"""What a code competition's notebook needs: source, configs, checkpoints, wheels; and the notebook itself."""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defects.config_schema import ROOT, Config, DataConfig, KaggleConfig, TrackingConfig, as_yaml, resolve
from defects.data.folder_scan import scan_folder
from defects.data.roi import load_roi
from defects.files import partial, sha256, write_json
from defects.messages import UserError
from defects.runs import FULL, OOF_MAPS, Run, fold_folder_name
from defects.training.checkpoint import load_detector

ROI_FOLDER = "roi"  # in the archive


@dataclass(frozen=True)
class Bundle:
    """`folder` holds dataset/ (uploaded as `dataset`) and kernel/ (pushed as `kernel`): owner/slug each."""

    folder: Path
    dataset: str
    kernel: str
    sha256: str  # of the notebook, which itself names the hash of the data set


def build_bundle(runs: list[Run], summary: dict, folder: Path, wheels: Path | None) -> Bundle:
    """Write everything but the wheels that must be downloaded (see fetch_wheels).

    The same inputs give the same bytes, so that an interrupted submission is recognised. Raises UserError
    when `summary` was not made from the present runs, and where data changed since these were trained.
    """
    _check_inputs(summary)
    kaggle = runs[0].config.data.kaggle
    uploaded = folder / "dataset"
    dataset = f"{kaggle.kernel}-bundle"
    _write_archive(uploaded / "project.zip", _project(runs))
    wheel_lines = _copy_wheels(wheels, uploaded) if wheels else _keep_wheels(pins(kaggle), uploaded)
    digest = hashlib.sha256("\n".join([sha256(uploaded / "project.zip"), *wheel_lines]).encode()).hexdigest()
    write_json(uploaded / "bundle.json", {"sha256": digest})
    write_json(uploaded / "dataset-metadata.json", dataset_metadata(dataset))
    _write_kernel(folder / "kernel", kaggle, dataset, digest, runs, _written(summary))
    return Bundle(folder, dataset, kaggle.kernel, sha256(folder / "kernel" / "notebook.ipynb"))


def _written(summary: dict) -> str:
    """Which of the files that ensemble.py writes there is the submission."""
    rules = f".{summary['chosen']}" if "chosen" in summary else ""
    return f"sample_submission{rules}.csv"


def _write_kernel(
    folder: Path, kaggle: KaggleConfig, dataset: str, digest: str, runs: list[Run], written: str
) -> None:
    constants = {
        "COMPETITION": kaggle.competition,
        "BUNDLE": dataset.partition("/")[2],
        "SHA256": digest,
        "RUNS": {run.name: _use(run) for run in runs},
        "WRITTEN": written,
        "ROI": _roi_settings(runs[0].config.data),
    }
    write_json(folder / "notebook.ipynb", notebook(constants))
    metadata = kernel_metadata(kaggle.kernel, kaggle.competition, dataset, kaggle.gpu)
    write_json(folder / "kernel-metadata.json", metadata)


def pins(kaggle: KaggleConfig) -> list[str]:
    """`name==version` of data.kaggle.wheels, by constraints.txt."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", constraints, re.MULTILINE))
    unknown = sorted(set(kaggle.wheels) - set(pinned))
    if unknown:
        raise UserError(f"data.kaggle.wheels: constraints.txt pins no {', '.join(unknown)}")
    return [f"{name}=={pinned[name]}" for name in sorted(kaggle.wheels)]


def download_command(requirements: list[str], folder: Path) -> list[str]:
    """Arguments for python; no dependencies, since Kaggle's image has them."""
    return ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), *requirements]


def fetch_wheels(requirements: list[str], folder: Path) -> None:
    """Download the pinned wheels that `folder` does not hold."""
    wheel_files = list(folder.glob("*.whl"))
    missing = [pin for pin in requirements if not any(_is_wheel_of(path, pin) for path in wheel_files)]
    if not missing:
        return
    command = [sys.executable, *download_command(missing, folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(
            f"the wheels of {', '.join(missing)} cannot be downloaded ({' '.join(reason)}): go online, "
            "or name a folder that holds them with --wheels"
        )


def _is_wheel_of(path: Path, pin: str) -> bool:
    """Whether a wheel, such as `some_tool-0.6.0-py3-none-any.whl`, is that of `some-tool==0.6.0`."""
    name, version = pin.split("==")
    return path.name.lower().startswith(f"{re.sub('[-.]', '_', name).lower()}-{version}-")


def _keep_wheels(requirements: list[str], folder: Path) -> list[str]:
    """Remove the wheels of other requirements or of an earlier --wheels; returns `requirements`."""
    for path in folder.glob("*.whl"):
        if not any(_is_wheel_of(path, pin) for pin in requirements):
            path.unlink()
    return requirements


def _copy_wheels(source: Path, folder: Path) -> list[str]:
    """Put the wheels of `source` in place of those in `folder`; their names and hashes."""
    wheel_files = sorted(source.glob("*.whl"))
    if not wheel_files:
        raise UserError(f"--wheels {source}: there is no wheel in this folder")
    for path in folder.glob("*.whl"):
        path.unlink()
    return [f"{path.name} {sha256(shutil.copyfile(path, folder / path.name))}" for path in wheel_files]


def _check_inputs(summary: dict) -> None:
    for name, digest in summary["inputs"].items():
        path = resolve(name)
        if not path.exists() or sha256(path) != digest:
            raise UserError(f"{path} changed since the submission was made: run src/ensemble.py again")


def _use(run: Run) -> str:
    """The --use that test.csv was scored with. Raises UserError when its models have changed since."""
    scored = set(run.load_test_scores()["fold"])
    if FULL not in scored:
        return "folds"
    return "both" if len(scored) > 1 else "full"


def _project(runs: list[Run]) -> dict[str, Path | bytes]:
    """Name in the archive -> file or content."""
    config = runs[0].config
    files: dict[str, Path | bytes] = {}
    for path in sorted((ROOT / "src").rglob("*")):  # with the templates of pages
        if path.is_file() and "__pycache__" not in path.parts:
            files[path.relative_to(ROOT).as_posix()] = path
    tables = [config.dataset_dir / "folds.csv", config.dataset_dir / "split.json"]
    tables += config.dataset_dir.glob("train_*.csv")
    files |= {f"output/{config.data.name}/{path.name}": path for path in tables}
    group_file = config.split.group_file
    if group_file is not None:
        if group_file.is_absolute() or ".." in group_file.parts:
            raise UserError(
                f"split.group_file={group_file} lies outside the repository: the notebook cannot find it"
            )
        files[group_file.as_posix()] = resolve(group_file)
    files |= _roi_files(config.data)
    for run in runs:
        scored = run.trained_folds() + ([] if _use(run) == "folds" else [FULL])
        for fold in scored:
            load_detector(run, fold, has_other_maps=True)  # or Kaggle would refuse it, hours later
            place = f"output/{run.name}/{fold_folder_name(fold)}"
            files |= {f"{place}/{path.name}": path for path in _fold_files(run, fold)}
            files[f"{place}/config.yaml"] = _portable(run.config)
    return files


def _roi_files(data: DataConfig) -> dict[str, Path | bytes]:
    """The masks of data.roi, which the competition's own files do not hold."""
    if load_roi(data) is None:
        return {}
    source = data.roi.locate_masks(resolve(data.root))
    if data.roi.mask is not None:
        return {f"{ROI_FOLDER}/{source.name}": source}
    if data.roi.folder is not None:
        masks = scan_folder(source).images
        return {f"{ROI_FOLDER}/{path.relative_to(source).as_posix()}": path for path in masks}
    return {}


def _roi_settings(data: DataConfig) -> dict[str, str]:
    """Where they lie in the archive, by the setting that names them."""
    if data.roi is None:
        return {}
    if data.roi.mask is not None:
        return {"data.roi.mask": f"{ROI_FOLDER}/{data.roi.mask.name}"}
    return {} if data.roi.folder is None else {"data.roi.folder": ROI_FOLDER}


def _fold_files(run: Run, fold: str) -> list[Path]:
    """The checkpoint, and the out-of-fold scores (of masks, also the maps) that the thresholds come from."""
    folder = run.fold_folder(fold)
    if fold not in run.held_out_folds():
        return [folder / "best.pt"]
    paths = [folder / "best.pt", folder / "oof.csv"]
    if run.config.data.classes and (folder / OOF_MAPS).exists():
        paths.append(folder / OOF_MAPS)
    return paths


def _portable(config: Config) -> bytes:
    """The config with the notebook's folders; data.root is set there, when its place is known."""
    data = config.data.model_copy(update={"answers": None})
    changes = {"output": Path("output"), "submissions": Path("submissions"), "tracking": TrackingConfig()}
    return as_yaml(config.model_copy(update={"data": data, **changes})).encode()


def _write_archive(path: Path, files: dict[str, Path | bytes]) -> None:
    """Whole or not at all; entries sorted and without dates."""
    with partial(path) as written:
        with zipfile.ZipFile(written, "w") as archive:
            for name in sorted(files):
                content = files[name]
                entry = zipfile.ZipInfo(name)  # dated 1980, not today
                packing = zipfile.ZIP_STORED if name.endswith(".pt") else zipfile.ZIP_DEFLATED
                data = content if isinstance(content, bytes) else content.read_bytes()
                archive.writestr(entry, data, packing)
        written.replace(path)


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
    for name, place in ROI.items():
        command += ["--set", f"{name}={project / place}"]
    subprocess.run(command, check=True, cwd=project)


for name, use in RUNS.items():
    run("infer.py", name, "--use", use)
run("ensemble.py", *RUNS, "--set", "ensemble.compare=false")
shutil.copyfile(project / "submissions" / WRITTEN, WORKING / "submission.csv")
"""


def notebook(constants: dict[str, Any]) -> dict[str, Any]:
    """The .ipynb as JSON: `constants` (COMPETITION, BUNDLE, SHA256, RUNS, WRITTEN, ROI) come first."""
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
    """dataset-metadata.json; private by default."""
    title = bundle.partition("/")[2].replace("-", " ")
    return {"id": bundle, "title": title, "licenses": [{"name": "other"}]}
