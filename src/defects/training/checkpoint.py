"""Checkpoints: tensors and plain values only, written atomically, loaded without running code in them."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from defects.config_schema import Config
from defects.data.fold_files import training_list
from defects.data.index import training_sha256
from defects.files import sha256, write_bytes
from defects.messages import UserError
from defects.models import Detector, build_detector
from defects.numerics import load_tensors
from defects.runs import FULL, Run
from defects.stamps import (
    ABOUT_THE_INDEX,
    Stamp,
    differences,
    file_contents,
    is_stamp,
    join_differences,
    settings_but,
)

# Settings that change neither weights nor out-of-fold scores, and those whose effect is in the files that a
# fingerprint holds: images.csv, folds.csv and the training list.
NOT_THE_RUN = ABOUT_THE_INDEX | {
    "experiment",
    "output",
    "submissions",
    "ensemble",
    "tracking",
    "split.folds",
    "split.group_file",
    "split.group_pattern",
    "split.duplicates",
    "train.workers",
    "infer.batch_size",
    "infer.shard",
    "threshold.rule",
    "threshold.prior",
    "threshold.costs",
    "claims",
}
MAPS_ONLY = {"infer.map_size"}  # changes the maps that are kept, neither weights nor scores


def save(path: Path, content: dict[str, Any]) -> None:
    """Serialised in memory first: torch.save to a path would write the file's name into its bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing, truncated, or holds anything but plain values."""
    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run src/train.py first") from None
    except ValueError as error:
        raise UserError(
            f"{path} is truncated or no checkpoint ({error}): use src/train.py --restart"
        ) from None


def fill(detector: Detector, path: Path, content: dict[str, Any]) -> None:
    """Put the weights of a checkpoint into its detector. Raises UserError where they do not fit it."""
    try:
        detector.load_state_dict(content["detector"])
    except (RuntimeError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} does not hold this detector's weights: use src/train.py --restart") from None


def fingerprint(config: Config, fold: str, epochs: int | None) -> Stamp:
    """What a run's weights and out-of-fold scores depend on, to be compared before it is resumed or used."""
    excluded = NOT_THE_RUN
    if config.train.select == "last":
        excluded = excluded | {"train.validate_every"}  # nothing is chosen by what is seen then
    settings = settings_but(config, excluded) | {"fold": fold, "epochs": epochs}
    lists = [config.dataset_dir / "folds.csv", training_list(config, fold)]
    files = {path.name: sha256(path) for path in lists}
    files["images.csv"] = training_sha256(config)
    return {"settings": settings, "files": files | file_contents(settings, config.data.root)}


def check_fingerprint(path: Path, content: dict[str, Any], current: Stamp, but: Collection[str] = ()) -> None:
    """UserError naming what differs between the run that wrote the checkpoint and the present config.

    `but` are names of settings that may differ.
    """
    if "fingerprint" not in content:
        raise UserError(f"{path} is no checkpoint of this program: train again with src/train.py --restart")
    changes = differences(content["fingerprint"], current, but)
    if changes:
        raise UserError(
            f"{path} belongs to another config or other data ({join_differences(changes)}): restore these, "
            "train a new run (--set experiment=NAME), or replace this one (src/train.py --restart)"
        )


def load_checkpoint(run: Run, fold: str) -> dict[str, Any]:
    """best.pt of a fold: detector (state), fingerprint, epoch (whose weights these are)."""
    run.refuse_half_updated(fold)
    return load(run.fold_folder(fold) / "best.pt")


def load_detector(run: Run, fold: str, has_other_maps: bool = False) -> Detector:
    """The trained detector of a fold. Raises UserError if its checkpoint belongs to another config.

    With `has_other_maps` its out-of-fold maps may have been kept at another size than the config says.
    """
    detector = build_detector(run.config, pretrained=False)
    path = run.fold_folder(fold) / "best.pt"
    content = load_checkpoint(run, fold)
    # The number of epochs of the full fit was chosen by the folds: only the checkpoint knows it.
    planned = without_selection(run.config, detector) if fold == FULL else run.config
    saved = content.get("fingerprint")
    epochs = saved["settings"].get("epochs") if is_stamp(saved) else None
    excluded = MAPS_ONLY if has_other_maps else ()
    check_fingerprint(path, content, fingerprint(planned, fold, epochs), excluded)
    fill(detector, path, content)
    return detector


def without_selection(config: Config, detector: Detector) -> Config:
    """The config of the full fit: all images are learnt from, but for those to calibrate the detector on."""
    changes: dict[str, Any] = {"select": "last"}
    if not detector.needs_holdout:
        changes["inner_holdout"] = 0.0
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})
