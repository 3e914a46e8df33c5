"""What test_processes.py starts several of: trains fold 0 of configs, scores test images, takes notes.

Usage: worker.py FOLDER CONFIG ...; FOLDER/<experiment>_<process>.json says what each process did.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from defects import cli
from defects.config import load_config
from defects.config_schema import Config
from defects.data.datasets import ImageDataset
from defects.models.patchcore import PatchCore
from defects.runs import Run
from defects.stages import ensure_tables
from defects.training import fold
from defects.training.loop import Trainer, make_accelerator
from defects.training.scoring import score_test

NOTES: dict[str, list] = {
    "_save": [],
    "write_result": [],
    "written": [],
    "candidates": [],
    "__getitems__": [],
}


def noting(owner: object, name: str, note) -> None:
    """Have owner.name also note what `note` makes of its arguments."""
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        NOTES[name].append(note(*arguments))
        return original(*arguments, **options)

    setattr(owner, name, wrapped)


def digest(module: torch.nn.Module | None) -> str | None:
    """Of all parameters and buffers, to the bit."""
    if module is None:
        return None
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.cpu().numpy().tobytes())
    return total.hexdigest()


def note_writing(event: str, arguments: tuple) -> None:
    """Files below the output folder that are opened to be written; locks may be everyone's."""
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        path = str(arguments[0])
        if ("output" in path or "submissions" in path) and not path.endswith(".lock"):
            NOTES["written"].append(path)


def work(config: Config, folder: Path) -> None:
    for notes in NOTES.values():
        notes.clear()
    tables = ensure_tables(config)
    fold.train_fold(config, "0", tables.folds)
    score_test(Run(config), tables.images, "folds", make_accelerator(config.train))
    path = folder / f"{config.experiment}_{PartialState().process_index}.json"
    path.write_text(json.dumps(NOTES), encoding="utf-8")


def main() -> None:
    folder, *configs = map(Path, sys.argv[1:])
    noting(ImageDataset, "__getitems__", lambda _, items: items)
    noting(
        Trainer,
        "_save",
        lambda trainer: [digest(trainer.detector), digest(trainer.average and trainer.average.module)],
    )
    noting(fold, "write_result", lambda detector, *_: digest(detector))
    noting(PatchCore, "candidates", lambda _, batches: len(batches))
    sys.addaudithook(note_writing)
    for path in configs:
        work(load_config(path), folder)


if __name__ == "__main__":
    cli.run(main)
