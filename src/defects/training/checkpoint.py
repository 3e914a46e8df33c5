"""Checkpoints: tensors and plain values only, written whole or not at all, loaded without running code."""

import io
from pathlib import Path
from typing import Any

import torch

from defects.config import Config, resolve
from defects.data.prepare import training_sha256
from defects.data.split import training_list
from defects.errors import UserError
from defects.models import Detector
from defects.tensors import load_tensors
from defects.writing import sha256, write_bytes

# Settings that change neither the weights nor what they mean.
RUNTIME = {"workers", "save_every", "validate_every"}


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
    """Put the weights of a checkpoint into its detector. Raises UserError when they are those of another."""
    try:
        detector.load_state_dict(content["detector"])
    except (RuntimeError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} does not hold this detector's weights: use src/train.py --restart") from None


def mean(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of several states, tensor by tensor; counters as in the last."""
    states = [load(path) for path in paths]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


def fingerprint(config: Config, fold: str, epochs: int | None) -> dict[str, Any]:
    """What a run's weights depend on, to be compared before it is resumed or used."""
    values = config.model_dump(mode="json", include={"model", "augment"})
    values["train"] = config.train.model_dump(mode="json", exclude=RUNTIME | {"pseudo"})
    values["train"]["pseudo"] = _content(config.train.pseudo)
    values["balance"] = config.split.balance.model_dump(mode="json")
    values["image_size"] = list(config.data.image_size)
    # Checkpoints from before there was a choice hold none.
    values["fit"] = None if config.data.fit == "squash" else config.data.fit
    values["bits"] = config.data.bits
    values["threshold_fpr"] = config.threshold.fpr  # detectors are calibrated to it
    values["tta"] = config.infer.tta  # out-of-fold scores were averaged so
    values["window"] = config.infer.window and list(config.infer.window)
    values["fold"], values["epochs"] = fold, epochs
    values["symmetries"] = config.data.symmetries
    values["images.csv"] = training_sha256(config)
    lists = [config.dataset_dir / "folds.csv", training_list(config, fold)]
    return values | {path.name: sha256(path) for path in lists}


def _content(path: Path | None) -> str | None:
    if path is None:
        return None
    if not resolve(path).exists():
        raise UserError(f"{resolve(path)} does not exist: run src/pseudo.py first, or correct train.pseudo")
    return sha256(resolve(path))


def check_fingerprint(path: Path, content: dict[str, Any], current: dict[str, Any]) -> None:
    """UserError naming what differs between the run that wrote the checkpoint and the present config."""
    if "fingerprint" not in content:
        raise UserError(f"{path} is no checkpoint of this program: train again with src/train.py --restart")
    differing = sorted(_differences(content["fingerprint"], current, ""))
    if differing:
        raise UserError(
            f"{path} belongs to another config or other data ({', '.join(differing)} differ): restore these, "
            "train a new run (--set experiment=NAME), or replace this one (src/train.py --restart)"
        )


def _differences(saved: Any, current: Any, key: str) -> list[str]:
    if isinstance(saved, dict) and isinstance(current, dict):
        keys = saved.keys() | current.keys()
        return [
            text
            for name in keys
            for text in _differences(saved.get(name), current.get(name), f"{key}.{name}")
        ]
    return [] if saved == current else [key.removeprefix(".")]
