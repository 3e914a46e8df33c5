"""Several processes, as a launcher starts them: they do in shares what one process would do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import run_at
from forked import LIMIT, start_two

from defects.config import load_config
from defects.config_schema import ROOT
from defects.data.fold_files import load_training_rows
from defects.messages import UserError
from defects.models import build_detector
from defects.stages import ensure_tables
from defects.training.fold import divide_images, make_training_loader

WORKER = Path(__file__).with_name("worker.py")
TRAIN = ROOT / "src" / "train.py"
TESTS = 11  # images: an uneven number of batches, the last of them short

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no gloo rendezvous by default")


def kill_after(epochs: int, path: Path) -> None:
    """Train, and kill both processes at once, as a power cut would."""
    both, seen = start_two(path.parent, TRAIN, "--config", path), folder_of(path) / "metrics.jsonl"
    both[0].kill_when(lambda: seen.exists() and len(seen.read_text().splitlines()) >= epochs)
    both[1].kill_when(lambda: True)
    assert not (folder_of(path) / "best.pt").exists()


def folder_of(path: Path) -> Path:
    return path.parent / "output" / path.stem / "fold0"


def notes_of(path: Path) -> list[dict]:
    return [json.loads((path.parent / f"{path.stem}_{process}.json").read_text()) for process in (0, 1)]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder_of(path) / "best.pt", weights_only=True)["detector"]


@pytest.fixture
def settings(make_dataset, config_file):
    """settings(name, **sections): path of a config, all on one data set."""
    root = make_dataset(defects=12, normals=33, tests=TESTS, size=64)

    def make(name: str, **sections: dict) -> Path:
        shared = {"data": {"image_size": [64, 64]}, "infer": {"batch_size": 4, "tta": False, "shard": 8}}
        return config_file(root, name, **(shared | sections))

    return make


def model(backbone: str, name: str = "classifier", **options) -> dict:
    return {"name": name, "backbone": {"name": backbone, "weights": "none"}, "options": options}


def test_processes_do_together_what_one_does(settings, run_script):
    # Weights compare where there is neither batch normalisation nor dropout.
    train = {"epochs": 3, "batch_size": 8, "accumulate": 2, "inner_holdout": 0.25}
    plain = {"model": model("test_efficientnet_gn", drop_rate=0), "train": train}
    selects = {"epochs": 3, "batch_size": 8, "ema": 0.9, "inner_holdout": 0.25, "select": "inner"}
    marked = {"model": model("test_efficientnet", map_loss=0.5), "train": selects}
    patches = {"model": model("test_resnet", "patchcore", max_patches=500), "train": {"inner_holdout": 0.25}}
    steps = {"steps": 6, "batch_size": 8, "warmup_epochs": 0}
    head = {"model": model("test_resnet", "patch_head", bank=20, width=8), "train": steps}
    sections = {"killed": marked, "whole": marked, "plain": plain, "patches": patches, "head": head}
    paths = {name: settings(name, **values) for name, values in sections.items()}
    kill_after(2, paths["killed"])
    folder = paths["whole"].parent
    for process in start_two(folder, WORKER, folder, *paths.values()):
        code, printed = process.end()
        assert code == 0, printed
    for path in paths.values():
        zero, one = notes_of(path)
        assert zero["_save"] == one["_save"] and zero["write_result"] == one["write_result"]
        assert zero["written"] and not one["written"]
    for name in ("metrics.jsonl", "oof.csv", "best.pt"):
        whole, killed = ((folder_of(paths[name_]) / name).read_bytes() for name_ in ("whole", "killed"))
        assert whole == killed, name
    for name in ("whole", "plain", "patches", "head"):
        assert_scored_as_by_one(paths[name], run_script)
    alone = {name: settings(f"{name}_alone", **sections[name]) for name in ("plain", "patches")}
    for path in alone.values():
        assert run_script("train.py", "--config", path).code == 0
    assert_trained_as_by_one(paths["plain"], alone["plain"])
    assert_every_row_once(paths["plain"], train["epochs"], train["batch_size"])
    assert_same_bank(paths["patches"], alone["patches"])


def assert_scored_as_by_one(path: Path, run_script) -> None:
    folder = folder_of(path)
    names = [name for name in ("test.csv", "test_maps.npz") if (folder / name).exists()]
    shared = [per_image(folder / name) for name in names]
    (folder / "test.json").unlink()
    assert run_script("infer.py", run_at(path)).code == 0
    for name, found, limit in zip(names, shared, (1e-5, 1e-3), strict=False):  # maps have 11 bits
        alone = per_image(folder / name)
        assert list(found) == list(alone) and len(alone) == TESTS
        assert max(np.abs(found[image] - alone[image]).max() for image in alone) < limit


def per_image(path: Path) -> dict[str, np.ndarray]:
    """Image -> its scores, or its map."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name].astype(float) for name in archive}
    table = pd.read_csv(path)
    assert table["image_id"].is_unique
    return dict(zip(table["image_id"], table[["score", "probability"]].to_numpy(), strict=True))


def assert_trained_as_by_one(together: Path, alone: Path) -> None:
    two, one = (pd.read_json(folder_of(path) / "metrics.jsonl", lines=True) for path in (together, alone))
    assert one.columns.tolist() == two.columns.tolist() and one["lr"].tolist() == two["lr"].tolist()
    assert np.allclose(one, two, atol=1e-5)
    found = weights_of(together)
    for name, value in weights_of(alone).items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def assert_every_row_once(path: Path, epochs: int, batch_size: int) -> None:
    """But for those that are left over after the last whole batch."""
    config = load_config(path)
    rows = len(
        divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0")).training_rows
    )
    # Items of training come with their epoch.
    used = [
        [item for batch in process["__getitems__"] for item in batch if isinstance(item, list)]
        for process in notes_of(path)
    ]
    for epoch in range(1, epochs + 1):
        shares = [[row for number, row in items if number == epoch - 1] for items in used]
        whole = rows // batch_size * batch_size
        assert [len(share) for share in shares] == [whole // 2, whole // 2]
        assert len({*shares[0], *shares[1]}) == whole < rows


def assert_same_bank(together: Path, alone: Path) -> None:
    found = weights_of(together)
    for name, value in weights_of(alone).items():
        assert torch.allclose(found[name], value, rtol=1e-5), name
    shares = [process["candidates"][0] for process in notes_of(together)]
    assert min(shares) > 0 and abs(shares[0] - shares[1]) <= 1


def test_processes_all_end_with_an_error_in_one(settings, run_script):
    """An unreadable image in the share of the second, while the first waits for its scores."""
    path = settings("tiny", infer={"batch_size": 4, "tta": False})
    assert run_script("train.py", "--config", path).code == 0
    (path.parent / "data" / "test" / "images" / "test_5.png").write_bytes(b"no image")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(ROOT / "src" / "infer.py"), str(run_at(path))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert ran.returncode == 1 and "test_5.png" in line
    assert "exitcode  : 2" in ran.stderr and ran.stderr.count("Traceback") == 1  # the launcher's report
    assert not list(folder_of(path).glob("test*"))


def test_processes_say_once_what_all_meet(settings):
    path = settings("tiny", train={"lr": 1e30, "epochs": 2})
    both = [process.end() for process in start_two(path.parent, TRAIN, "--config", path)]
    said = [line for _, printed in both for line in printed.splitlines() if line.startswith("error: ")]
    assert [code for code, _ in both] == [2, 2]
    assert len(said) == 1 and "training diverged" in said[0]


@pytest.mark.parametrize(("size", "processes"), [(8, 3), (1, 2), (512, 2)])
def test_processes_refuse_batches_that_cannot_be_shared_out(settings, run_script, size, processes):
    config = load_config(settings("tiny", train={"batch_size": size}))
    sides = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    accelerator = SimpleNamespace(num_processes=processes)
    with pytest.raises(
        UserError, match=f"train.batch_size={size} cannot be shared out evenly: set it to a mul"
    ):
        make_training_loader(build_detector(config), config, sides, accelerator)
    accelerator.num_processes = 1
    assert make_training_loader(build_detector(config), config, sides, accelerator)
