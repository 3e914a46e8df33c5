"""What several test modules share: a tiny data set, a config for it, and a way to run the scripts."""

import copy
import gc
import hashlib
import os
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import hypothesis
import numpy as np
import pytest
import yaml
from kaggle_server import KaggleServer, serving

from defects.config import load_config
from defects.config_schema import ROOT, Config, DataConfig, DuplicateConfig, data_config_class

# Threads cost more than they bring on tensors this small; set before torch is loaded, for subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure.
hypothesis.settings.register_profile("without_deadline", deadline=None)
hypothesis.settings.load_profile("without_deadline")


class Outcome(NamedTuple):
    """How a script ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


def write_png(path: Path, image: np.ndarray) -> Path:
    """Write a grey [H, W] or RGB [H, W, 3] uint8 array; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = image[..., ::-1] if image.ndim == 3 else image
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes())
    return path


def texture(seed: int, size: int = 32) -> np.ndarray:
    """Smooth grey noise, uint8 [size, size], another picture for every seed."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 30 * smooth / smooth.std(), 1, 254).astype(np.uint8)


def defective(seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A texture with a bright square of size/4 pixels, and the mask (0, 255) of that square."""
    image, mask = texture(seed, size), np.zeros((size, size), np.uint8)
    y, x = np.random.default_rng(seed).integers(0, size - size // 4, 2)
    mask[y : y + size // 4, x : x + size // 4] = 255
    return np.where(mask > 0, 255, image).astype(np.uint8), mask


def write_sample(root: Path, names: list[str]) -> Path:
    """test/sample_submission.csv with these ids in this order."""
    path = root / "test" / "sample_submission.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(["ImageId,answer\n", *(f"{name},0\n" for name in names)]), encoding="utf-8")
    return path


def write_test_images(root: Path, names: list[str]) -> None:
    """Replace the test images by others with these names."""
    for path in (root / "test/images").iterdir():
        path.unlink()
    for i, name in enumerate(names):
        write_png(root / "test/images" / name, texture(i))


def raising(error: Exception) -> Callable:
    """A function that raises `error` whatever it is called with, to put in place of another."""

    def fail(*_, **__):
        raise error

    return fail


def write_dataset(
    root: Path, *, defects: int = 12, normals: int = 30, tests: int = 6, size: int = 32
) -> Path:
    """The defect/normal layout with masks and sample_submission.csv; returns `root`.

    Files are named defect_0.png, normal_0.png, test_0.png, ... Every third test image is defective. All
    pictures differ. tests=0 leaves out the test folder.
    """
    for i in range(defects):
        image, mask = defective(i, size)
        write_png(root / "train" / "defect_images" / f"defect_{i}.png", image)
        write_png(root / "train" / "defect_masks" / f"defect_{i}.png", mask)
    for i in range(normals):
        write_png(root / "train" / "normal_images" / f"normal_{i}.png", texture(1000 + i, size))
    for i in range(tests):
        image = defective(2000 + i, size)[0] if i % 3 == 0 else texture(2000 + i, size)
        write_png(root / "test" / "images" / f"test_{i}.png", image)
    if tests:
        write_sample(root, [f"test_{i}.png" for i in range(tests)])
    return root


def write_config(folder: Path, root: Path, name: str = "tiny", **sections: dict) -> Path:
    """folder/<name>.yaml for the data set in `root`; output and submissions lie in `folder`.

    By default the layout of write_dataset and a small untrained classifier, 2 folds, 1 epoch. `sections` go
    over the defaults key by key: data={"source": "mvtec"}, train={"epochs": 2}.
    """
    values = {
        "output": str(folder / "output"),
        "submissions": str(folder / "submissions"),
        "data": {
            "name": "tiny_data",
            "source": "defect_normal",
            "root": str(root),
            "image_size": [32, 32],
            "sample_submission": "test/sample_submission.csv",
        },
        "split": {"folds": 2},
        "model": {"backbone": {"name": "test_efficientnet", "weights": "none"}},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0},
    }
    for section, changes in sections.items():
        values[section] = values.get(section, {}) | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def run_at(config: Path, name: str | None = None) -> Path:
    """The run of a config that config_file() wrote, for the scripts that take runs."""
    return config.parent / "output" / (name or config.stem)


def runs_at(config: Path, *names: str) -> list[Path]:
    """Several runs beside each other."""
    return [run_at(config, name) for name in names]


def submitted_at(config: Path) -> list[str | Path]:
    """Options of the scripts that take a submission."""
    return ["--submission", config.parent / "submissions" / "sample_submission.csv"]


def options_for(script: str, config: Path) -> list[str | Path]:
    """How a script is told what it is about: an experiment, its run, or its submission."""
    if script in ("evaluate.py", "submit.py"):
        return submitted_at(config)
    if script in ("prepare.py", "split.py", "explore.py", "train.py", "distill.py"):
        return ["--config", config]
    return [run_at(config)]


def make_data_config(**values: object) -> DataConfig:
    """A data section with the settings of its layout."""
    return data_config_class(values)(**values)


def data_in(root: Path, **settings: object) -> DataConfig:
    """The configuration of a data set in `root`."""
    values = {"name": "tiny_data", "source": "folders", "root": root, "image_size": (32, 32)}
    return make_data_config(**(values | settings))


def run_once(name: str, *arguments: object) -> None:
    """Run src/<name> in this process, for fixtures that several tests share; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "src" / name), run_name="__main__")


def copy_runs(source: Path, folder: Path) -> None:
    """Copy a folder of configs, data and runs, for a test that changes them."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in folder.rglob("*.yaml"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(source), str(folder)), encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def frozen_imports() -> Iterator[None]:
    """What is imported is never garbage: to look through it costs 0.5 s after every shard that is scored."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def known_siblings() -> Iterator[None]:
    """Stages search the same generated pictures for siblings over and over: the result is kept.

    The search is deterministic; a set of 48 images takes it 1 s. Scripts in processes of their own, and tests
    that import search_siblings themselves, search anew.
    """
    from defects.data import duplicates
    from defects.evaluation import adversarial

    search = duplicates.search_siblings
    results = {}

    def search_once(
        thumbnails: np.ndarray,
        settings: DuplicateConfig,
        folder: Path | None = None,
        aspects: np.ndarray | None = None,
    ) -> duplicates.SiblingSearch:
        pictures = hashlib.sha256(np.ascontiguousarray(thumbnails)).hexdigest()
        shapes = None if aspects is None else aspects.tobytes()
        key = (pictures, shapes, settings.model_dump_json(), folder is None)
        if key not in results:
            results[key] = search(thumbnails, settings, folder, aspects)
        return copy.deepcopy(results[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "search_siblings", search_once)
        patch.setattr(adversarial, "search_siblings", search_once)
        yield


@pytest.fixture
def make_dataset(tmp_path) -> Callable[..., Path]:
    """make_dataset(name="data", **sizes) -> root of a write_dataset() in the test's own folder."""
    return lambda name="data", **sizes: write_dataset(tmp_path / name, **sizes)


@pytest.fixture
def config_file(tmp_path) -> Callable[..., Path]:
    """config_file(root, name="tiny", **sections) -> path of a write_config() in the test's own folder."""
    return partial(write_config, tmp_path)


@pytest.fixture
def output(tmp_path) -> Path:
    """Where config_file() lets prepare.py write."""
    return tmp_path / "output" / "tiny_data"


@pytest.fixture
def make_config(config_file) -> Callable[..., Config]:
    """make_config(root, *overrides) -> Config of config_file(root); overrides as after --set."""

    def make(root: Path, *overrides: str) -> Config:
        return load_config(config_file(root), list(overrides))

    return make


@pytest.fixture
def run_script(capsys, monkeypatch) -> Callable[..., Outcome]:
    """run_script("prepare.py", "--config", path) -> (code, stdout, stderr) of src/prepare.py.

    The script runs in this process, so that no test pays for a new interpreter and monkeypatches hold.
    """

    def run(name: str, *arguments: object) -> Outcome:
        script = ROOT / "src" / name
        monkeypatch.setattr("sys.argv", [str(script), *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def fails_with_one_line(run_script) -> Callable[..., str]:
    """fails_with_one_line("prepare.py", ...) -> the message after `error: `; asserts it is the only line."""

    def run(name: str, *arguments: object) -> str:
        code, _, stderr = run_script(name, *arguments)
        assert code == 2, stderr
        stderr = re.sub(r"[^\r\n]*B/s\][\r\n]+", "", stderr)  # progress of an upload
        assert stderr.startswith("error: ")
        assert stderr.count("\n") == 1
        assert "Traceback" not in stderr
        return stderr.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def kaggle_server(tmp_path, monkeypatch) -> Iterator[KaggleServer]:
    """The stand-in for Kaggle, and an environment in which the real client knows nothing else."""
    for name in os.environ:
        if name.startswith("KAGGLE_") or name.lower() in ("http_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    with serving() as started:
        (tmp_path / "home").mkdir()
        for name, value in started.environment(str(tmp_path / "home")).items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture
def mvtec(tmp_path) -> Path:
    root = tmp_path / "bottle"
    write_pictures(
        root,
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        "test/broken_large/000.png",
        "test/broken_large/001.png",
        "test/contamination/000.png",
    )
    write_masks(
        root,
        "ground_truth/broken_large/000_mask.png",
        "ground_truth/broken_large/001_mask.png",
        "ground_truth/contamination/000_mask.png",
    )
    return root


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "mine"
    write_pictures(root, "normal/1.png", "normal/line 2/1.png", "bad/a.png", "bad/line 2/a.png", "new/x.png")
    write_masks(root, "masks/a_mask.png", "masks/line 2/a.png")
    return root


def write_pictures(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        write_png(root / name, texture(i))


def write_masks(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        write_png(root / name, defective(i)[1])
