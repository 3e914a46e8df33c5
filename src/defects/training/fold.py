"""One fold of a run: the images it learns from and is scored by, its training, and its files.

`train_fold` is the whole way, from the tables to best.pt.
"""

import copy
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, default_collate

from defects.config_schema import Config, TrainConfig, as_yaml, resolve
from defects.data.datasets import DeviceBatches, plain_loader, to_device, training_loader
from defects.data.fold_files import load_training_rows, training_list
from defects.data.folds import inner_holdout
from defects.data.labels import target_labels
from defects.files import locked, remove, write_bytes, write_csv
from defects.messages import UserError
from defects.models import Detector, build_detector
from defects.numerics import load_tensors
from defects.processes import follow_main, own_rows
from defects.runs import FULL, OOF_COLUMNS, OOF_MAPS, Run
from defects.stamps import Stamp, differences, is_stamp, join_differences
from defects.training import checkpoint
from defects.training.checkpoint import load_checkpoint, load_detector, without_selection
from defects.training.embedding import embed_training_images
from defects.training.loop import Trainer, make_accelerator, plan_steps
from defects.training.scoring import long_table, score_table
from defects.training.tracking import Stopwatch, Tracker, device_name, model_size, peak_memory_mb


def train_fold(config: Config, fold: str, folds: pd.DataFrame, restart: bool = False) -> None:
    """Train one fold (or `full`) and score its validation images; resumes, and skips what is finished.

    `folds` is the table of folds.csv. Writes config.yaml, metrics.jsonl, costs.json, last.pt, oof.csv,
    oof_maps.npz (of a detector with maps) and, last of all, best.pt.
    """
    accelerator = make_accelerator(config.train)
    planned, epochs = _plan_epochs(config, fold)
    data = divide_images(planned, fold, folds, load_training_rows(config, fold))
    run = Run(planned)
    folder = run.fold_folder(fold)
    fingerprint = checkpoint.fingerprint(planned, fold, epochs)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(folder, wait=False))
            if restart:
                for path in folder.iterdir():
                    if path.name != ".lock":
                        remove(path)
        accelerator.wait_for_everyone()
        if run.is_finished(fold):
            _check_finished(run, fold, data, fingerprint, accelerator)
            return
        _train(run, fold, epochs, data, fingerprint, accelerator)
    accelerator.print(f"wrote {folder}")


# --- the images of a fold ----------------------------------------------------------------------------------


@dataclass
class FoldData:
    """Rows of images.csv by their part in one fold; no object is in two parts."""

    training_rows: pd.DataFrame  # what is learnt from, in the rotations of the training list
    training_images: pd.DataFrame  # all that may be learnt from, once and upright
    inner: pd.DataFrame  # the inner hold-out, kept unseen within the training side
    validation: pd.DataFrame  # the fold to be scored; none for the full fit

    @property
    def originals(self) -> pd.DataFrame:
        """The images learnt from, once and as they are."""
        once = self.training_rows.drop_duplicates("image_id", ignore_index=True)
        return once.drop(columns=["angle", "flip"])

    @property
    def inner_normal(self) -> pd.DataFrame:
        return self.inner[self.inner["label"] == 0].reset_index(drop=True)

    @property
    def scored(self) -> pd.DataFrame:
        """The rows of oof.csv: the fold, or of the full fit the normal images that calibrate it."""
        return self.inner_normal if self.validation.empty else self.validation

    def monitored(self, train: TrainConfig) -> pd.DataFrame:
        """What epochs are validated on: the inner hold-out where it selects, or else the fold."""
        selects = train.select == "inner"
        return self.inner if selects or self.validation.empty else self.validation

    def suited_to(self, detector: Detector, config: Config) -> "FoldData":
        """With `training_rows` as the detector asks for them: normal images alone, upright ones alone.

        A detector that learns upright is given every training image once: the training list copies, rotates
        and leaves out images to balance two classes, of which it learns one. One that trains on features is
        given the training list with all images upright: it turns the features. Raises UserError where the
        images that the detector needs are missing.
        """
        self._check_detector(detector, config)
        rows = self.training_rows
        if detector.learns_upright:
            rows = self.training_images.assign(angle=0.0, flip="none")
        elif detector.trains_on_features:
            rows = rows.assign(angle=0.0, flip="none")
        if detector.learns_from == "normal":
            rows = rows[rows["label"] == 0]
        return replace(self, training_rows=rows[rows["label"].notna()].reset_index(drop=True))

    def _check_detector(self, detector: Detector, config: Config) -> None:
        """UserError where the images, or the settings, are not those that the detector needs."""
        name = config.model.name
        labels = self.training_rows["label"]
        needed = {0: "normal"} if detector.learns_from == "normal" else {0: "normal", 1: "defect"}
        if len(detector.targets) > 1:
            del needed[0]  # classes differ from each other too
        missing = [word for label, word in needed.items() if not (labels == label).any()]
        if missing:
            problem = f"{config.data.name}: no {missing[0]} images to learn from; {name} needs them"
            if missing[0] == "defect":
                problem += ": add some, or choose a detector of normal images, such as "
                problem += "--model patchcore_reduced"
            raise UserError(problem)
        if detector.needs_holdout and self.inner_normal.empty:
            raise UserError(self._explain_no_calibration(config))
        if config.train.select == "inner" and self.inner.empty:
            raise UserError(
                f"train.inner_holdout={config.train.inner_holdout:g} keeps none of {len(self.originals)} "
                "images unseen to choose the epoch by, since one group of a class must be left to learn: "
                "add images, or set train.select=last"
            )
        if detector.needs_holdout and config.infer.tta:
            raise UserError(
                f"{name} is calibrated on images as they are, which averages over turns would not fit: set "
                "infer.tta=false"
            )

    def _explain_no_calibration(self, config: Config) -> str:
        """Why no normal image is kept unseen to calibrate a detector on, and what to do."""
        normal = self.originals[self.originals["label"] == 0]
        groups = normal["group"].nunique()
        fraction = config.train.inner_holdout
        problem = (
            f"{config.model.name} is calibrated on an inner hold-out of normal images, and "
            f"train.inner_holdout={fraction:g} keeps none of {len(normal)} "
            f"(in {groups} group{'s' * (groups != 1)})"
        )
        if fraction == 0:
            return f"{problem}: set it, such as to 0.1"
        advice = "add normal images of other objects"
        normal_validation = self.validation[self.validation["label"] == 0]
        if groups + normal_validation["group"].nunique() > config.split.folds:
            advice += f", or raise split.folds={config.split.folds}, so that a fold holds out fewer"
        return f"{problem}, since one group must be left to learn from: {advice}"


def divide_images(config: Config, fold: str, folds: pd.DataFrame, rows: pd.DataFrame) -> FoldData:
    """Divide the images of folds.csv by the training list `rows` (image_id, angle, flip) of one fold.

    Raises UserError if a group would be in two parts.
    """
    validation = folds[folds["fold"] == fold]
    training_side = folds[folds["fold"] != fold]
    inner = training_side[inner_holdout(training_side, config.train.inner_holdout, config.split.seed)]
    training_rows = rows.merge(folds, on="image_id", how="left", validate="many_to_one")
    training_rows = training_rows[~training_rows["image_id"].isin(inner["image_id"])].reset_index(drop=True)
    is_inner = training_side["image_id"].isin(inner["image_id"])
    training_images = training_side[~is_inner].reset_index(drop=True)
    learnt = pd.concat([training_rows, training_images])
    unseen_groups = pd.concat([inner, validation])["group"]
    shared = learnt.loc[learnt["group"].isin(unseen_groups) | learnt["group"].isna(), "image_id"].unique()
    if len(shared):
        raise UserError(
            f"{config.dataset_dir}: the training list of fold {fold} shares a group with validation images "
            f"({len(shared)} images, {shared[0]} first): run src/split.py again"
        )
    return FoldData(training_rows, training_images, inner, validation)


# --- training ----------------------------------------------------------------------------------------------


def _plan_epochs(config: Config, fold: str) -> tuple[Config, int | None]:
    """The config to train with, and the number of epochs; None: as many as the config says.

    The full fit has nothing to select on: it takes the number of epochs that the folds chose.
    """
    if fold != FULL:
        return config, None
    planned = without_selection(config, build_detector(config, pretrained=False))
    if config.train.select == "last":
        return planned, None
    run = Run(config)
    chosen = [load_checkpoint(run, name)["epoch"] for name in run.trained_folds()]
    if not chosen:
        raise UserError(f"--fold {FULL} takes its number of epochs from the folds: train them first")
    return planned, round(float(np.median(chosen)))


def _train(
    run: Run,
    fold: str,
    epochs: int | None,
    data: FoldData,
    fingerprint: Stamp,
    accelerator: Accelerator,
) -> None:
    """Prepare the detector, train its epochs if it has weights to train, calibrate it, write the results."""
    config = run.config
    folder = run.fold_folder(fold)
    is_main = accelerator.is_main_process
    set_seed(config.train.seed)
    _refuse_leaking_weights(config, fold)
    detector = build_detector(config)
    data = data.suited_to(detector, config)
    if config.train.select == "inner" and data.inner["label"].nunique() < 2:
        accelerator.print("note: the inner hold-out has one class only: the epoch is chosen by the loss")
    training = make_training_loader(detector, config, data, accelerator)  # before anything is written
    if is_main:
        write_bytes(folder / "config.yaml", as_yaml(config).encode())
    tracker = Tracker(config, fold, folder, active=is_main)
    stopwatch = Stopwatch(folder / "costs.json", active=is_main)
    trainer = Trainer(detector, config.train, epochs, folder, fingerprint, accelerator, tracker, stopwatch)

    device = accelerator.device
    process = (accelerator.process_index, accelerator.num_processes)
    share = process if detector.shares_preparation else (0, 1)
    originals = DeviceBatches(config, data.originals, device, detector.labels, in_windows=True, share=share)
    detector.to(device)
    if not trainer.resume():
        with torch.no_grad():
            detector.eval().prepare(originals)
        stopwatch.lap()
        trainer.save_prepared()
    if training is not None:
        samples = detector.training_samples(next(iter(originals)))  # of detectors that draw defects
        if samples is not None and is_main:
            encoded = cv2.imencode(".png", cv2.cvtColor(samples, cv2.COLOR_RGB2BGR))[1]
            write_bytes(folder / "samples.png", encoded.tobytes())
        monitored = data.monitored(config.train)
        own = monitored.iloc[own_rows(len(monitored), config.infer.batch_size, *process)]
        if detector.trains_on_features:
            training = embed_training_images(detector, training, device, config.train)
        trainer.fit(training, plain_loader(config, own, detector.labels) if len(monitored) else None)
    if detector.needs_holdout:
        with torch.no_grad():
            batches = DeviceBatches(config, data.inner_normal, device, detector.labels)
            detector.to(device).eval().calibrate(batches)
        follow_main(detector)

    stopwatch.lap()
    costs = {"peak_memory_mb": round(peak_memory_mb()), "device": device_name(device)}
    stopwatch.note(**model_size(detector), **costs)
    best = {"fingerprint": fingerprint, "epoch": trainer.chosen_epoch()}
    write_result(detector, run, fold, data.scored, accelerator, best)
    tracker.close()
    accelerator.wait_for_everyone()


def _refuse_leaking_weights(config: Config, fold: str) -> None:
    """UserError if the backbone starts from a run that has learnt from images which `fold` is scored on.

    A run on other images may be started from.
    """
    weights = config.model.backbone.weights if config.model.backbone else "none"
    path = resolve(weights)
    if fold == FULL or weights in ("none", "imagenet") or not path.is_file():
        return
    try:
        made_from = load_tensors(path).get("fingerprint")
    except ValueError:
        return  # no checkpoint of this program
    if not is_stamp(made_from):
        return
    lists = {"images.csv", "folds.csv", training_list(config, fold).name}
    now = checkpoint.fingerprint(config, fold, None)["files"]
    same = {name for name in lists if made_from["files"].get(name) == now[name]}
    if "images.csv" in same and same != lists:
        raise UserError(
            f"model.backbone.weights={path}: that run has learnt from images that fold {fold} is scored on: "
            "name other weights"
        )


def make_training_loader(
    detector: Detector, config: Config, data: FoldData, accelerator: Accelerator
) -> DataLoader | None:
    """Of a detector that has weights to train; None for any other.

    Raises UserError if it would learn from other than it scores, if its batches cannot be shared out evenly
    or learnt from, and for a warm-up that does not fit into the training.
    """
    if not any(weights.requires_grad for weights in detector.parameters()):
        return None
    loader = training_loader(config, data.training_rows, detector.labels)
    height, width = config.seen_size
    plan_steps(config.train, len(loader))
    size = config.train.batch_size
    images = len(data.training_rows)
    processes = accelerator.num_processes
    if processes > 1 and (size % processes or images < size):
        raise UserError(
            f"train.batch_size={size} cannot be shared out evenly: set it to a multiple of the {processes} "
            f"processes, and to no more than the {images} images of the training list"
        )
    # Calibrated detectors may depend on the size of what they see; those that learn from labels do not.
    is_cropped = loader.dataset.shown != (height, width)
    if config.infer.window and detector.needs_holdout and is_cropped:
        raise UserError(
            f"infer.window={list(config.infer.window)}: {config.model.name} must learn from such parts too: "
            f"add {{name: RandomCrop, height: {height}, width: {width}}} to augment"
        )
    smallest = min(size, images) // processes
    if smallest == 1 or is_cropped:
        _try_step(detector, loader, min(smallest, 2), is_cropped)
    return loader


def _try_step(detector: Detector, loader: DataLoader, images: int, is_cropped: bool) -> None:
    """UserError unless the detector can learn from so few `images` at a time, of the size that augment gives.

    Batch normalisation after pooling has one value for each channel of a single image, and no deviation; and
    a network may have been built for images of another size. A copy takes the step: nothing is changed.
    """
    batch = to_device(
        default_collate([loader.dataset[(0, row)] for row in range(images)]), torch.device("cpu")
    )
    learner = copy.deepcopy(detector)
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            if learner.trains_on_features:
                batch = learner.eval().embed(batch)
            learner.train().training_loss(batch)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        if "more than 1 value per channel" in reason:
            raise UserError(
                f"train.batch_size={loader.batch_size}, {len(loader.dataset)} images to learn from: a "
                "process is given one at a time, which a batch normalisation of this network cannot learn "
                "from: raise it, use fewer processes, larger images, or another network or decoder"
            ) from None
        if not is_cropped:
            raise
        height, width = loader.dataset.shown
        raise UserError(
            f"augment gives images of {height}x{width} pixels, which do not suit this network ({reason}): "
            "change the crop, or set infer.window to its size"
        ) from None
    finally:
        np.random.set_state(numpy_state)


# --- results ------------------------------------------------------------------------------------------------


def _check_finished(
    run: Run, fold: str, data: FoldData, fingerprint: Stamp, accelerator: Accelerator
) -> None:
    """Check a finished fold: scored again for maps of another size; UserError if it is of other settings."""
    path = run.fold_folder(fold) / "best.pt"
    best = load_checkpoint(run, fold)
    checkpoint.check_fingerprint(path, best, fingerprint, but=checkpoint.MAPS_ONLY)
    map_changes = differences(best["fingerprint"], fingerprint)
    if not map_changes:
        accelerator.print(f"{path.parent} is finished (src/train.py --restart trains it again)")
        return
    accelerator.print(f"{path.parent} is trained and only scored again ({join_differences(map_changes)})")
    detector = load_detector(run, fold, has_other_maps=True)
    if accelerator.is_main_process:
        write_bytes(path.with_name("config.yaml"), as_yaml(run.config).encode())
    write_result(detector, run, fold, data.scored, accelerator, best | {"fingerprint": fingerprint})
    accelerator.wait_for_everyone()


def write_result(
    detector: Detector,
    run: Run,
    fold: str,
    rows: pd.DataFrame,
    accelerator: Accelerator,
    best: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Score the held-out `rows`, if there are any: oof.csv and its maps; then best.pt, which ends a fold.

    They go into `folder`, by default that of the fold.
    """
    start = time.perf_counter()
    fold_folder = run.fold_folder(fold)
    folder = folder or fold_folder
    if len(rows):
        oof = score_table(detector, run.config, rows, fold, accelerator, folder / OOF_MAPS)
        rate = len(rows) / (time.perf_counter() - start)
        stopwatch = Stopwatch(fold_folder / "costs.json", accelerator.is_main_process)
        stopwatch.note(score_images_per_second=round(rate, 2))
    if not accelerator.is_main_process:
        return
    if len(rows):
        ids = rows["image_id"].to_numpy()
        labels = target_labels(rows, detector.targets)
        labels = long_table(ids, detector.targets, label=labels).astype({"label": "Int64"})
        oof = oof.merge(labels, on=["image_id", "target"], validate="one_to_one")
        write_csv(folder / "oof.csv", oof[OOF_COLUMNS])
    checkpoint.save(folder / "best.pt", best | {"detector": detector.cpu().state_dict()})
