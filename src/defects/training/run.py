"""One experiment x one fold: the run folder, what goes into it, and when it counts as finished."""

import copy
import shutil
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, default_collate

from defects.config import Config, as_yaml, resolve
from defects.data.datasets import DeviceBatches, plain_loader, to_device, training_loader
from defects.data.labels import DEFECT, target_labels
from defects.data.split import FULL, fold_names, load_folds, load_training_rows, training_list
from defects.errors import UserError
from defects.files import array_archive, locked, read_csv, write_csv
from defects.models import Detector, build_detector
from defects.processes import follow_main, own_rows
from defects.stamps import Stamp, differences, in_short, is_stamp
from defects.tensors import load_tensors
from defects.training import checkpoint
from defects.training.costs import Stopwatch, device_name, model_size, peak_memory_mb
from defects.training.scorer import Scorer, score_batches
from defects.training.sides import Sides, make_sides
from defects.training.tracking import Tracker
from defects.training.trainer import Trainer, make_accelerator, planned_steps
from defects.writing import write_bytes

OOF_MAPS, TEST_MAPS = "oof_maps.npz", "test_maps.npz"  # of a run folder
UPDATE = "update"  # folder in a run folder: files of src/update.py on their way into it
OOF_COLUMNS = ["image_id", "target", "fold", "label", "score", "probability"]


def run_folder(config: Config, fold: str) -> Path:
    return config.experiment_dir / (FULL if fold == FULL else f"fold{fold}")


def finished(config: Config, fold: str) -> bool:
    return (run_folder(config, fold) / "best.pt").exists()


def trained_folds(config: Config) -> list[str]:
    """Finished folds in order, without `full`."""
    return [fold for fold in fold_names(config) if fold != FULL and finished(config, fold)]


def train_fold(config: Config, fold: str, restart: bool = False) -> None:
    """Train one fold (or `full`) and score its held-out images; resumes, and skips what is finished.

    Writes config.yaml, metrics.jsonl, costs.json, last.pt, oof.csv, oof_maps.npz (of a detector with maps)
    and, last of all, best.pt.
    """
    accelerator = make_accelerator(config.train)
    with accelerator.main_process_first():
        table, rows = load_folds(config), load_training_rows(config, fold)
    planned, epochs = _plan(config, fold)
    sides = make_sides(planned, fold, table, rows)
    folder = run_folder(config, fold)
    fingerprint = checkpoint.fingerprint(planned, fold, epochs)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(folder, wait=False))
            if restart:
                _clear(folder)
        accelerator.wait_for_everyone()
        if finished(config, fold):
            _confirm(planned, fold, sides, fingerprint, accelerator)
            return
        _train(planned, fold, epochs, sides, fingerprint, accelerator)
    accelerator.print(f"wrote {folder}")


def _confirm(config: Config, fold: str, sides: Sides, fingerprint: Stamp, accelerator: Accelerator) -> None:
    """Of a finished run: scored again if other maps are asked for; UserError if it is another run."""
    path, best = run_folder(config, fold) / "best.pt", load_best(config, fold)
    checkpoint.check_fingerprint(path, best, fingerprint, but=checkpoint.MAPS_ONLY)
    other_maps = differences(best["fingerprint"], fingerprint)
    if not other_maps:
        accelerator.print(f"{path.parent} is finished; --restart trains it again")
        return
    accelerator.print(f"{path.parent} is trained and only scored again ({in_short(other_maps)})")
    detector = load_detector(config, fold, other_maps=True)
    if accelerator.is_main_process:
        write_bytes(path.with_name("config.yaml"), as_yaml(config).encode())
    write_result(detector, config, fold, sides.held, accelerator, best | {"fingerprint": fingerprint})
    accelerator.wait_for_everyone()


def load_best(config: Config, fold: str) -> dict[str, Any]:
    """best.pt of a fold: detector (state), fingerprint, epoch (whose weights these are)."""
    _refuse_half_updated(config, fold)
    return checkpoint.load(run_folder(config, fold) / "best.pt")


def _refuse_half_updated(config: Config, fold: str) -> None:
    """UserError if src/update.py was stopped while it put its files into place: they belong together."""
    folder = run_folder(config, fold)
    if (folder / UPDATE).exists():
        raise UserError(f"{folder}: an update was interrupted; run src/update.py again, which completes it")


def load_detector(config: Config, fold: str, other_maps: bool = False) -> Detector:
    """The trained detector of a fold. Raises UserError if its checkpoint belongs to another config.

    With `other_maps` its out-of-fold maps may have been kept at another size than `config` says.
    """
    load_folds(config)  # another experiment on these images may have written its own training lists since
    detector = build_detector(config, pretrained=False)
    content = load_best(config, fold)
    # The number of epochs of the full fit was chosen by the folds: it is the checkpoint's to tell.
    planned = _without_selection(config, detector) if fold == FULL else config
    saved = content.get("fingerprint")
    epochs = saved["settings"].get("epochs") if is_stamp(saved) else None
    current = checkpoint.fingerprint(planned, fold, epochs)
    but = checkpoint.MAPS_ONLY if other_maps else ()
    checkpoint.check_fingerprint(run_folder(config, fold) / "best.pt", content, current, but)
    checkpoint.fill(detector, run_folder(config, fold) / "best.pt", content)
    return detector


def load_oof(config: Config, targets: tuple[str, ...] = (DEFECT,)) -> pd.DataFrame:
    """Out-of-fold rows of all finished folds for `targets`, with the group of each image.

    Raises UserError if there are none, or if images or labels are not those of the present folds.csv.
    """
    table = load_folds(config)
    folds = table[["image_id", "fold", "group"]]
    names = trained_folds(config)
    if not names:
        raise UserError(
            f"{config.experiment_dir} holds no oof.csv of a finished fold: run src/train.py first"
        )
    for fold in names:
        _refuse_half_updated(config, fold)
    files = [run_folder(config, fold) / "oof.csv" for fold in names]
    oof = pd.concat([read_csv(path, OOF_COLUMNS, "src/train.py") for path in files], ignore_index=True)
    oof = oof[oof["target"].isin(targets)]
    answered = pd.DataFrame({"target": oof["target"].unique()})
    expected = folds[folds["fold"].isin(names)].merge(answered, "cross")
    keys = ["image_id", "fold", "target"]
    joined = oof.merge(expected, on=keys, how="outer", indicator=True)
    differing = joined.loc[(joined["_merge"] != "both") | joined.duplicated(keys), "image_id"]
    if len(differing):
        raise UserError(
            f"{config.experiment_dir}: its out-of-fold images are not those of "
            f"{config.dataset_dir / 'folds.csv'} ({len(differing)} differ, {differing.iloc[0]} first): train "
            "again with --restart"
        )
    labels = joined["image_id"].map(table.set_index("image_id")["label"])
    has_other_label = (joined["target"] == DEFECT) & (joined["label"].astype(float) != labels.astype(float))
    if has_other_label.any():
        first = joined.loc[has_other_label, "image_id"].iloc[0]
        raise UserError(
            f"{config.experiment_dir}: {has_other_label.sum()} out-of-fold labels are not those of "
            f"{config.dataset_dir / 'images.csv'} ({first} first): train again with --restart"
        )
    return joined.drop(columns="_merge")


def score_table(
    detector: Detector, config: Config, rows: pd.DataFrame, fold: str, accelerator: Accelerator, maps: Path
) -> pd.DataFrame:
    """image_id, target, fold, score, probability for each of `rows`, TTA averaged; maps go to `maps`.

    Raises UserError when a score is not finite.
    """
    loader = accelerator.prepare(plain_loader(config, rows))
    scores, ids = np.full((len(rows), len(detector.targets)), np.nan), rows["image_id"].to_numpy()
    scorer = Scorer(detector.to(accelerator.device), config.infer, config.data.symmetries)
    with array_archive(maps) if accelerator.is_main_process else nullcontext() as add:
        for index, score, found in score_batches(scorer, loader, accelerator):
            scores[index.numpy()] = score.numpy()
            if found is not None and add is not None:
                for row, array in zip(index.tolist(), _packed(found, detector.segments), strict=True):
                    add(ids[row], array)
    if not np.isfinite(scores).all():
        first = ids[np.argwhere(~np.isfinite(scores))[0, 0]]
        raise UserError(f"fold {fold}: the score of {first} is not finite; train with a lower train.lr")
    with torch.inference_mode():
        probability = detector.cpu().probability(torch.from_numpy(scores))
    table = _long(ids, detector.targets, score=scores, probability=probability.numpy())
    table.insert(2, "fold", fold)
    return table


def write_result(
    detector: Detector,
    config: Config,
    fold: str,
    held: pd.DataFrame,
    accelerator: Accelerator,
    best: dict[str, Any],
    folder: Path | None = None,
) -> None:
    """Score the held-out images, if there are any: oof.csv and its maps; then best.pt, which ends a run.

    They go into `folder`, by default that of the run.
    """
    run, start = run_folder(config, fold), time.perf_counter()
    folder = folder or run
    if len(held):
        oof = score_table(detector, config, held, fold, accelerator, folder / OOF_MAPS)
        rate = len(held) / (time.perf_counter() - start)
        Stopwatch(run / "costs.json", accelerator.is_main_process).note(
            score_images_per_second=round(rate, 2)
        )
    if not accelerator.is_main_process:
        return
    if len(held):
        ids, labels = held["image_id"].to_numpy(), target_labels(held, detector.targets)
        labels = _long(ids, detector.targets, label=labels).astype({"label": "Int64"})
        oof = oof.merge(labels, on=["image_id", "target"], validate="one_to_one")
        write_csv(folder / "oof.csv", oof[OOF_COLUMNS])
    checkpoint.save(folder / "best.pt", best | {"detector": detector.cpu().state_dict()})


def _long(ids: np.ndarray, targets: tuple[str, ...], **values: np.ndarray) -> pd.DataFrame:
    """A row for each image and target, with a column for each array [N, C]."""
    keys = {"image_id": np.repeat(ids, len(targets)), "target": np.tile(targets, len(ids))}
    return pd.DataFrame(keys | {name: array.ravel() for name, array in values.items()})


def _packed(maps: torch.Tensor, probabilities: bool) -> np.ndarray:
    """[B, K, h, w] -> [B, h, w] for a single class, else [B, K, h, w].

    float16; probabilities as uint8 of 0 to 255: most are next to 0, which packs well if they are equal.
    """
    maps = maps.squeeze(1).numpy()
    if probabilities:
        return (maps * 255).round().astype(np.uint8)
    largest = np.finfo(np.float16).max
    return maps.clip(-largest, largest).astype(np.float16)


def _train(
    config: Config,
    fold: str,
    epochs: int | None,
    sides: Sides,
    fingerprint: Stamp,
    accelerator: Accelerator,
) -> None:
    folder, main = run_folder(config, fold), accelerator.is_main_process
    set_seed(config.train.seed)
    _refuse_leaking_weights(config, fold)
    detector = build_detector(config)
    sides = sides.learnt_by(detector, config)
    if config.train.select == "inner" and sides.inner["label"].nunique() < 2:
        accelerator.print("note: the inner hold-out has one class only: the epoch is chosen by the loss")
    training = _training(detector, config, sides, accelerator)  # before anything is written
    if main:
        write_bytes(folder / "config.yaml", as_yaml(config).encode())
    tracker = Tracker(config, fold, folder, active=main)
    stopwatch = Stopwatch(folder / "costs.json", active=main)
    trainer = Trainer(detector, config.train, epochs, folder, fingerprint, accelerator, tracker, stopwatch)
    _fit(trainer, config, sides, training)
    stopwatch.lap()
    costs = {"peak_memory_mb": round(peak_memory_mb()), "device": device_name(accelerator.device)}
    stopwatch.note(**model_size(detector), **costs)
    best = {"fingerprint": fingerprint, "epoch": trainer.chosen_epoch()}
    write_result(detector, config, fold, sides.held, accelerator, best)
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
            f"name the best.pt of its fold {fold}, or other weights"
        )


def _fit(trainer: Trainer, config: Config, sides: Sides, training: DataLoader | None) -> None:
    """Everything that a detector learns: preparation, epochs if it has weights to train, calibration."""
    detector, accelerator, device = trainer.detector, trainer.accelerator, trainer.accelerator.device
    process = accelerator.process_index, accelerator.num_processes
    share = process if detector.shares_preparation else (0, 1)
    originals = DeviceBatches(config, sides.originals, device, detector.labels, in_windows=True, share=share)
    detector.to(device)
    if not trainer.resume():
        with torch.no_grad():
            detector.eval().prepare(originals)
        trainer.stopwatch.lap()
        trainer.keep_prepared()
    if training is not None:
        looked_at = sides.watched(config.train)
        own = looked_at.iloc[own_rows(len(looked_at), config.infer.batch_size, *process)]
        watched = plain_loader(config, own, detector.labels) if len(looked_at) else None
        _keep_samples(trainer, originals)
        trainer.fit(training, watched)
    if detector.needs_holdout:
        with torch.no_grad():
            batches = DeviceBatches(config, sides.inner_normal, device, detector.labels)
            detector.to(device).eval().calibrate(batches)
        follow_main(detector)


def _training(
    detector: Detector, config: Config, sides: Sides, accelerator: Accelerator
) -> DataLoader | None:
    """Of a detector that has weights to train. Raises UserError if it would learn from other than it scores,
    if its batches cannot be shared out evenly or learnt from, and for a warm-up that does not fit into the
    training.

    Detectors that are calibrated may depend on the size of what they see; others are told by their labels.
    """
    if not any(weights.requires_grad for weights in detector.parameters()):
        return None
    loader, (height, width) = training_loader(config, sides.fitted, detector.labels), config.seen_size
    planned_steps(config.train, len(loader))
    size, processes = config.train.batch_size, accelerator.num_processes
    if processes > 1 and (size % processes or len(sides.fitted) < size):
        raise UserError(
            f"train.batch_size={size} cannot be shared out evenly: set it to a multiple of the {processes} "
            f"processes, and to no more than the {len(sides.fitted)} images of the training list"
        )
    if config.infer.window and detector.needs_holdout and loader.dataset.shown != (height, width):
        raise UserError(
            f"infer.window={list(config.infer.window)}: {config.model.name} must learn from such parts too: "
            f"add {{name: RandomCrop, height: {height}, width: {width}}} to augment"
        )
    smallest = min(size, len(sides.fitted)) // processes
    is_cropped = loader.dataset.shown != (height, width)
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
    learner = copy.deepcopy(detector).train()
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            learner.training_loss(batch)
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


def _keep_samples(trainer: Trainer, batches: DeviceBatches) -> None:
    """samples.png: what the detector learns from, if it makes that itself."""
    samples = trainer.detector.training_samples(next(iter(batches)))
    if samples is not None and trainer.accelerator.is_main_process:
        encoded = cv2.imencode(".png", cv2.cvtColor(samples, cv2.COLOR_RGB2BGR))[1]
        write_bytes(trainer.folder / "samples.png", encoded.tobytes())


def _plan(config: Config, fold: str) -> tuple[Config, int | None]:
    """The full fit has nothing to select on: it takes the number of epochs that the folds chose.

    No number means as many as the config says.
    """
    if fold != FULL:
        return config, None
    planned = _without_selection(config, build_detector(config, pretrained=False))
    if config.train.select == "last" and not config.train.patience:
        return planned, None
    chosen = [load_best(config, name)["epoch"] for name in trained_folds(config)]
    if not chosen:
        raise UserError(f"--fold {FULL} takes its number of epochs from the folds: train them first")
    return planned, round(float(np.median(chosen)))


def _without_selection(config: Config, detector: Detector) -> Config:
    """Every image is learnt from, but for those that the detector is calibrated on."""
    changes: dict[str, Any] = {"select": "last", "patience": None}
    if not detector.needs_holdout:
        changes["inner_holdout"] = 0.0
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
