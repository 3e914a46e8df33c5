"""Scoring: the one path by which validation, test and single images get their scores and maps.

Test scores are written fold by fold, and of many images shard by shard, so that a stopped run goes on.
"""

import math
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from defects.config_schema import Config, InferConfig
from defects.data.datasets import as_input, plain_loader
from defects.data.images import windows
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.files import array_archive, join_archives, read_csv, read_json, write_csv, write_json
from defects.messages import UserError
from defects.models import Detector
from defects.models.folding import folded_norms
from defects.models.inside import average_inside, cells_inside, lower_empty, lower_outside, split_inside
from defects.runs import FULL, TEST_COLUMNS, TEST_MAPS, Run, name_model
from defects.stamps import Stamp, differences, join_differences
from defects.training.checkpoint import load_detector

MANY_PASSES = 256  # of the detector, windows times views of one image; more are mentioned
SHARDS = "test_shards"  # folder in a fold's folder, while the test images are being scored

Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Scorer(nn.Module):
    """A detector as it scores: images uint8 [B, H, W, 3] -> raw score [B, C], map [B, K, h, w] or None.

    With a fourth channel (see data.datasets.as_input) of the region of interest alone; outside it a map holds
    the smallest value that it has inside.

    Averaged over the label-preserving members of the dihedral group if `infer.tta`, from overlapping windows
    of images larger than `infer.window`; the longer side of a map is at most `infer.map_size`. What is
    exported is this very module.
    """

    def __init__(self, detector: Detector, infer: InferConfig, symmetries: str):
        super().__init__()
        self.detector = detector
        self.infer = infer
        self.views = DIHEDRAL[symmetries] if infer.tta else [(0, False)]

    def count_passes(self, size: tuple[int, int]) -> int:
        """How often the detector runs on an image of `size` (height, width): for each window of each view."""
        sizes = [size[::-1] if turns % 2 else size for turns, _ in self.views]
        return sum(len(windows(view_size, self.infer.window)) for view_size in sizes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        images = as_input(images)
        _, inside = split_inside(images)
        scores = []
        maps = []
        for view in self.views:
            score, view_maps = _score_windows(self.detector, turn(images, *view), self.infer.window)
            scores.append(score)
            if view_maps is not None:
                maps.append(_shrink_maps(turn_back(view_maps, *view), self.infer.map_size, inside))
        score = torch.stack(scores).mean(dim=0)
        if not maps:
            return score, None
        mean = torch.stack(maps).mean(dim=0)
        return score, lower_outside(mean, cells_inside(inside, mean.shape[2:]))


@torch.inference_mode()
def score_batches(scorer: Scorer, loader: DataLoader, accelerator: Accelerator) -> Iterator[Scored]:
    """Yields (row [B], raw score [B, C], map [B, K, h, w] or None) batch by batch, on the CPU.

    In full precision: a bf16 logit near 5 has steps of 0.03, which would tie images. Memory does not grow
    with the number of images.
    """
    scorer.eval()
    for batch in tqdm(loader, "scoring", leave=False, disable=None):
        images = batch["image"].to(accelerator.device, non_blocking=True)
        scores, maps = scorer(images)
        parts = [batch["row"].to(accelerator.device), scores] + ([] if maps is None else [maps])
        gathered = [part.cpu() for part in accelerator.gather_for_metrics(parts)]
        yield gathered[0], gathered[1], None if maps is None else gathered[2]


def _score_windows(
    detector: Detector, images: torch.Tensor, window: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The highest score of all windows, and their maps averaged where they overlap."""
    size = images.shape[2:]
    grid = windows(size, window)
    if len(grid) == 1:
        return detector(images)
    scores, maps = zip(*(detector(images[..., rows, columns]) for rows, columns in grid), strict=True)
    of_windows = [
        lower_empty(score, images[..., rows, columns])
        for score, (rows, columns) in zip(scores, grid, strict=True)
    ]
    score = torch.stack(of_windows).amax(0)
    if maps[0] is None:
        return score, None
    _, inside = split_inside(images)
    total = images.new_zeros(images.shape[0], maps[0].shape[1], *size)
    times = images.new_zeros(size)
    for (rows, columns), window_maps in zip(grid, maps, strict=True):
        part = total[..., rows, columns]
        enlarge = partial(functional.interpolate, size=part.shape[2:], mode="bilinear")
        cells = None if inside is None else cells_inside(inside[..., rows, columns], window_maps.shape[2:])
        part += average_inside(window_maps.float(), cells, enlarge)
        times[rows, columns] += 1
    return score, total / times


def _shrink_maps(maps: torch.Tensor, size: int, inside: torch.Tensor | None) -> torch.Tensor:
    """Maps [B, K, h, w] with longer sides of `size` cells at most; `inside` is that of the images."""
    longer = max(maps.shape[2:])
    if longer <= size:
        return maps
    height, width = (max(1, round(side * size / longer)) for side in maps.shape[2:])
    shrink = partial(functional.interpolate, size=(height, width), mode="area")
    return average_inside(maps, cells_inside(inside, maps.shape[2:]), shrink)


# --- tables of scores --------------------------------------------------------------------------------------


def score_table(
    detector: Detector, config: Config, rows: pd.DataFrame, fold: str, accelerator: Accelerator, maps: Path
) -> pd.DataFrame:
    """image_id, target, fold, score, probability for each of `rows`, TTA averaged; maps go to `maps`.

    Raises UserError when a score is not finite.
    """
    loader = accelerator.prepare(plain_loader(config, rows))
    ids = rows["image_id"].to_numpy()
    scores = np.full((len(rows), len(detector.targets)), np.nan)
    scorer = Scorer(detector.cpu(), config.infer, config.data.symmetries)
    passes = scorer.count_passes(config.data.image_size)
    if passes > MANY_PASSES:
        accelerator.print(
            f"note: every image is scored {passes} times (infer.window={config.infer.window}, infer.tta="
            f"{config.infer.tta}): a larger window takes less time"
        )
    archive = array_archive(maps) if accelerator.is_main_process else nullcontext()
    with folded_norms(detector, config.seen_size), archive as add:
        scorer.to(accelerator.device)
        for index, score, batch_maps in score_batches(scorer, loader, accelerator):
            scores[index.numpy()] = score.numpy()
            if batch_maps is not None and add is not None:
                for row, array in zip(index.tolist(), _pack_maps(batch_maps, detector.segments), strict=True):
                    add(ids[row], array)
    if not np.isfinite(scores).all():
        first = ids[np.argwhere(~np.isfinite(scores))[0, 0]]
        raise UserError(f"fold {fold}: the score of {first} is not finite; train with a lower train.lr")
    with torch.inference_mode():
        probability = detector.cpu().probability(torch.from_numpy(scores))
    table = long_table(ids, detector.targets, score=scores, probability=probability.numpy())
    table.insert(2, "fold", fold)
    return table


def long_table(ids: np.ndarray, targets: tuple[str, ...], **values: np.ndarray) -> pd.DataFrame:
    """A row for each image and target, with a column for each array [N, C] of `values`."""
    keys = {"image_id": np.repeat(ids, len(targets)), "target": np.tile(targets, len(ids))}
    return pd.DataFrame(keys | {name: array.ravel() for name, array in values.items()})


def _pack_maps(maps: torch.Tensor, are_probabilities: bool) -> np.ndarray:
    """[B, K, h, w] -> [B, h, w] for a single class, else [B, K, h, w].

    float16; probabilities as uint8 of 0 to 255: most are next to 0, which packs well if they are equal.
    """
    maps = maps.squeeze(1).numpy()
    if are_probabilities:
        return (maps * 255).round().astype(np.uint8)
    largest = np.finfo(np.float16).max
    return maps.clip(-largest, largest).astype(np.float16)


# --- test images -------------------------------------------------------------------------------------------


def score_test(run: Run, images: pd.DataFrame, use: str | None, accelerator: Accelerator) -> None:
    """Write test.csv (TEST_COLUMNS) of the test images among `images`.

    `use` is folds, full or both; None: the folds, or the full fit where no fold is trained.

    Raises UserError without test images, and where a model that is asked for is not trained.
    """
    test = images[images["split"] == "test"].reset_index(drop=True)
    if test.empty:
        path = run.config.dataset_dir / "images.csv"
        raise UserError(f"{path} lists no test images: there is nothing to score")
    trained = run.trained_folds()
    if use is None:
        use = "folds" if trained or not run.is_finished(FULL) else FULL
    if use != "folds" and not run.is_finished(FULL):
        raise UserError(f"{run.fold_folder(FULL)} is not trained: run src/train.py --fold {FULL} first")
    if use != FULL and not trained:
        raise UserError(f"{run.folder} holds no trained fold: run src/train.py first")
    models = {"folds": trained, FULL: [FULL], "both": [*trained, FULL]}[use]
    names = ", ".join(name_model(fold) for fold in models)
    accelerator.print(f"scoring {len(test)} test images with {names}")
    joined = run.folder / "test.csv"
    if accelerator.is_main_process and not all(run.is_scored(fold) for fold in models):
        # It is joined last: from an interruption on it would not be what the folds say.
        joined.unlink(missing_ok=True)
    tables = [_score_fold(run, test, fold, accelerator) for fold in models]
    if accelerator.is_main_process:
        table = pd.concat(tables).sort_values(["image_id", "fold"], kind="stable", ignore_index=True)
        write_csv(joined, table[TEST_COLUMNS])
    accelerator.wait_for_everyone()


def _score_fold(run: Run, test: pd.DataFrame, fold: str, accelerator: Accelerator) -> pd.DataFrame | None:
    """test.csv, test_maps.npz and test.json, the stamp, in the fold's folder, unless they are up to date.

    The same bytes with and without shards, interrupted or not. Returns test.csv, on the main process.
    """
    detector = load_detector(run, fold, has_other_maps=True)
    stamp = run.score_stamp(fold)
    folder = run.fold_folder(fold)
    table = None
    if not run.is_scored(fold):
        if (folder / "test.csv").exists():
            reasons = join_differences(differences(run.read_score_stamp(fold), stamp))
            accelerator.print(f"{name_model(fold)} is scored again ({reasons})")
        infer = run.config.infer
        rows = math.ceil(infer.shard / infer.batch_size) * infer.batch_size  # the same batches as in one go
        if len(test) > rows:
            table = _score_shards(detector, run, test, fold, accelerator, rows, stamp)
        else:
            table = score_table(detector, run.config, test, fold, accelerator, folder / TEST_MAPS)
            if accelerator.is_main_process:
                write_csv(folder / "test.csv", table)
        if accelerator.is_main_process:
            write_json(folder / "test.json", stamp)
    if not accelerator.is_main_process:
        return None
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    return read_csv(folder / "test.csv", TEST_COLUMNS, "src/infer.py") if table is None else table


def _score_shards(
    detector: Detector,
    run: Run,
    test: pd.DataFrame,
    fold: str,
    accelerator: Accelerator,
    rows: int,
    stamp: Stamp,
) -> pd.DataFrame | None:
    """Score the test images `rows` at a time; finished shards of the same `stamp` are not scored again.

    Returns the table of all of them, on the main process.
    """
    folder = run.fold_folder(fold)
    shards = folder / SHARDS
    starts = range(0, len(test), rows)
    tables = [shards / f"{number:05d}.csv" for number in range(len(starts))]
    maps = [table.with_suffix(".npz") for table in tables]
    finished = [0]
    if accelerator.is_main_process:
        made_from = stamp | {"rows": rows}
        if read_json(shards / "made_from.json") != made_from:
            shutil.rmtree(shards, ignore_errors=True)
            write_json(shards / "made_from.json", made_from)
        finished = [len(list(takewhile(Path.exists, tables)))]
    (first,) = broadcast_object_list(finished)
    for number in range(first, len(starts)):
        part = test[starts[number] : starts[number] + rows]
        table = score_table(detector, run.config, part, fold, accelerator, maps[number])
        if accelerator.is_main_process:
            write_csv(tables[number], table)  # after the maps: where it is, they are complete
        accelerator.free_memory()  # or the loader of every shard would stay, with its processes
        accelerator.print(f"{folder.name}: {starts[number] + len(part)} of {len(test)} images are scored")
    if not accelerator.is_main_process:
        return None
    join_archives(folder / TEST_MAPS, [path for path in maps if path.exists()])
    parts = [read_csv(path, TEST_COLUMNS, "src/infer.py") for path in tables]
    table = pd.concat(parts, ignore_index=True)
    write_csv(folder / "test.csv", table)
    return table
