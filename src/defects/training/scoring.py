"""Scoring: the one path by which validation, test and single images get their scores and maps.

Test scores are written fold by fold, and of many images shard by shard, so that a stopped run goes on.
"""

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
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

from defects.config import Config, InferConfig
from defects.data.datasets import as_input, plain_loader
from defects.data.images import windows
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.files import array_archive, join_archives, read_csv, read_json, write_csv, write_json
from defects.messages import UserError
from defects.models import Detector
from defects.runs import FULL, TEST_COLUMNS, TEST_MAPS, Run, name_model
from defects.stamps import Stamp, differences, join_differences
from defects.training.checkpoint import load_detector

MANY_PASSES = 256  # of the detector, windows times views of one image; more are mentioned
SHARDS = "test_shards"  # of a fold's folder, while the test images are being scored

Scored = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Scorer(nn.Module):
    """A detector as it scores: images uint8 [B, H, W, 3] -> raw score [B, C], map [B, K, h, w] or None.

    Averaged over the label-preserving members of the dihedral group if `infer.tta`, from overlapping windows
    of images larger than `infer.window`; the longer side of a map is at most `infer.map_size`. What is
    exported is this very module.
    """

    def __init__(self, detector: Detector, infer: InferConfig, symmetries: str):
        super().__init__()
        self.detector, self.infer = detector, infer
        self.members = DIHEDRAL[symmetries] if infer.tta else [(0, False)]

    def count_passes(self, size: tuple[int, int]) -> int:
        """How often the detector runs on an image of `size` (height, width): for each window of each view."""
        sizes = [size[::-1] if turns % 2 else size for turns, _ in self.members]
        return sum(len(windows(each, self.infer.window)) for each in sizes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        images = as_input(images)
        scores, maps = zip(*(self._score_view(images, member) for member in self.members), strict=True)
        score = torch.stack(scores).mean(dim=0)
        return score, None if maps[0] is None else torch.stack(maps).mean(dim=0)

    def _score_view(
        self, images: torch.Tensor, member: tuple[int, bool]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        score, maps = _score_windows(self.detector, turn(images, *member), self.infer.window)
        if maps is None:
            return score, None
        return score, _reduced(turn_back(maps, *member), self.infer.map_size)


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
    """The highest score of all windows, their maps averaged where they overlap; one window may be all."""
    size = images.shape[2:]
    grid = windows(size, window)
    if len(grid) == 1:
        return detector(images)
    found = [(rows, columns, *detector(images[..., rows, columns])) for rows, columns in grid]
    score = torch.stack([each[2] for each in found]).amax(0)
    if found[0][3] is None:
        return score, None
    total = images.new_zeros(images.shape[0], found[0][3].shape[1], *size)
    times = images.new_zeros(size)
    for rows, columns, _, maps in found:
        part = total[..., rows, columns]
        part += functional.interpolate(maps.float(), part.shape[2:], mode="bilinear")
        times[rows, columns] += 1
    return score, total / times


def _reduced(maps: torch.Tensor, size: int) -> torch.Tensor:
    longer = max(maps.shape[2:])
    if longer <= size:
        return maps
    height, width = (max(1, round(side * size / longer)) for side in maps.shape[2:])
    return functional.interpolate(maps, (height, width), mode="area")


# --- tables of scores --------------------------------------------------------------------------------------


def score_table(
    detector: Detector, config: Config, rows: pd.DataFrame, fold: str, accelerator: Accelerator, maps: Path
) -> pd.DataFrame:
    """image_id, target, fold, score, probability for each of `rows`, TTA averaged; maps go to `maps`.

    Raises UserError when a score is not finite.
    """
    loader = accelerator.prepare(plain_loader(config, rows))
    scores, ids = np.full((len(rows), len(detector.targets)), np.nan), rows["image_id"].to_numpy()
    scorer = Scorer(detector.to(accelerator.device), config.infer, config.data.symmetries)
    passes = scorer.count_passes(config.data.image_size)
    if passes > MANY_PASSES:
        accelerator.print(
            f"note: every image is scored {passes} times (infer.window={config.infer.window}, infer.tta="
            f"{config.infer.tta}): a larger window takes less time"
        )
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
    table = long_table(ids, detector.targets, score=scores, probability=probability.numpy())
    table.insert(2, "fold", fold)
    return table


def long_table(ids: np.ndarray, targets: tuple[str, ...], **values: np.ndarray) -> pd.DataFrame:
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


# --- test images -------------------------------------------------------------------------------------------


def score_test(run: Run, images: pd.DataFrame, use: str, accelerator: Accelerator) -> None:
    """Write test.csv (TEST_COLUMNS) of the test images among `images`; `use` is folds, full or both.

    Raises UserError without test images, and where a model that is asked for is not trained.
    """
    test = images[images["split"] == "test"].reset_index(drop=True)
    if test.empty:
        path = run.config.dataset_dir / "images.csv"
        raise UserError(f"{path} lists no test images: there is nothing to score")
    models = _models(run, use)
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


def _models(run: Run, use: str) -> list[str]:
    """The folds whose models score."""
    if use != "folds" and not run.is_finished(FULL):
        raise UserError(f"{run.fold_folder(FULL)} is not trained: run src/train.py --fold {FULL} first")
    if use == FULL:
        return [FULL]
    trained = run.trained_folds()
    if not trained:
        raise UserError(f"{run.folder} holds no trained fold: run src/train.py first")
    return trained + ([FULL] if use == "both" else [])


def _score_fold(run: Run, test: pd.DataFrame, fold: str, accelerator: Accelerator) -> pd.DataFrame | None:
    """Scores of one model, written into its folder with what they were made from.

    TEST_COLUMNS; the main process alone has them.
    """
    detector = load_detector(run, fold, has_other_maps=True)
    stamp = run.score_stamp(fold)
    shards = Shards(run, fold, stamp)
    folder = run.fold_folder(fold)
    table = None
    if not run.is_scored(fold):
        if (folder / "test.csv").exists():
            found = differences(run.read_score_stamp(fold), stamp)
            accelerator.print(f"{name_model(fold)} is scored again ({join_differences(found)})")
        table = shards.score(detector, test, accelerator)
        if accelerator.is_main_process:
            write_json(folder / "test.json", stamp)
    if not accelerator.is_main_process:
        return None
    shards.clear()
    return read_csv(folder / "test.csv", TEST_COLUMNS, "src/infer.py") if table is None else table


class Shards:
    """The test images of one fold's model, `rows` at a time.

    `made_from` is what scores depend on: finished shards made from anything else are not used.
    """

    def __init__(self, run: Run, fold: str, made_from: Stamp):
        self.config = run.config
        self.fold = fold
        self.run_folder = run.fold_folder(fold)
        self.folder = self.run_folder / SHARDS
        batch = self.config.infer.batch_size
        # In whole batches, as they would be in one go.
        self.rows = -(-self.config.infer.shard // batch) * batch
        self.made_from = made_from | {"rows": self.rows}

    def finished(self) -> int:
        """Images whose scores are safe: those of the first so many shards."""
        if read_json(self.folder / "made_from.json") != self.made_from:
            return 0
        return self.rows * next(number for number in count() if not self._table(number).exists())

    def score(self, detector: Detector, test: pd.DataFrame, accelerator: Accelerator) -> pd.DataFrame | None:
        """Write test.csv and test_maps.npz: the same bytes with and without shards, interrupted or not.

        Returns the table of test.csv; of other processes than the main one None.
        """
        if len(test) <= self.rows:
            folder = self.run_folder
            return self._score(detector, test, accelerator, folder / "test.csv", folder / TEST_MAPS)
        for start in range(self._begin(accelerator), len(test), self.rows):
            number, part = start // self.rows, test[start : start + self.rows]
            self._score(detector, part, accelerator, self._table(number), self._maps(number))
            accelerator.free_memory()  # or the loader of every shard would stay, with its processes
            accelerator.print(f"{self.run_folder.name}: {start + len(part)} of {len(test)} images are scored")
        return self._join(-(-len(test) // self.rows)) if accelerator.is_main_process else None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self, accelerator: Accelerator) -> int:
        """Images that need not be scored again, as the main process finds; stale shards are removed."""
        done = [0]
        if accelerator.is_main_process:
            done = [self.finished()]
            if not done[0]:
                self.clear()
                write_json(self.folder / "made_from.json", self.made_from)
        return broadcast_object_list(done)[0]

    def _score(
        self, detector: Detector, rows: pd.DataFrame, accelerator: Accelerator, table: Path, maps: Path
    ) -> pd.DataFrame | None:
        """The table last: where it is, the maps are. Returns it on the main process."""
        scores = score_table(detector, self.config, rows, self.fold, accelerator, maps)
        if not accelerator.is_main_process:
            return None
        write_csv(table, scores)
        return scores

    def _join(self, shards: int) -> pd.DataFrame:
        maps = [self._maps(number) for number in range(shards)]
        join_archives(self.run_folder / TEST_MAPS, [path for path in maps if path.exists()])
        tables = [read_csv(self._table(number), TEST_COLUMNS, "src/infer.py") for number in range(shards)]
        table = pd.concat(tables, ignore_index=True)
        write_csv(self.run_folder / "test.csv", table)
        return table

    def _table(self, number: int) -> Path:
        return self.folder / f"{number:05d}.csv"

    def _maps(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"
