"""What leaking validation costs: the macro-F1 of the validation beside the one of the test images.

The published rotation recipe copies every defect by rotation in steps of 30 degrees and splits the *copies*
70 to 30 at random, so that a copy is validated by its own sisters. Turned corners are filled black, on the
rare class alone, which marks it. The epoch with the best validation is kept. Here each leak is opened alone:

  split   random: each copy goes either way; group: all copies of one object's photographs go the same way
  fill    black: only defects are turned, with black corners; reflected: both classes are, without them

All cells learn from equally many copies with the same network and are validated on copies, so they differ in
nothing but the leak. The test images are scored as they are, with the threshold 0.5. A line of JSON for each
cell and seed goes to output/<data.name>/leak.jsonl; what stands there is not trained again.

python benchmarks/leak.py --config configs/magnetic_tile.yaml --set data.answers=KEY --seeds 3
"""

import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects import cli, stages  # noqa: E402
from defects.config_schema import Config, resolve  # noqa: E402
from defects.data.datasets import EpochSampler, ImageDataset, TrainingImage, plain_loader  # noqa: E402
from defects.data.folds import assign_folds, class_targets  # noqa: E402
from defects.data.images import read_image  # noqa: E402
from defects.data.index import training_sha256  # noqa: E402
from defects.evaluation.metrics import macro_f1, share_weights  # noqa: E402
from defects.evaluation.outcome import load_answers, outcome  # noqa: E402
from defects.files import write_bytes  # noqa: E402
from defects.messages import UserError  # noqa: E402
from defects.models import Detector, build_detector  # noqa: E402
from defects.reports.html import build_markdown_table  # noqa: E402
from defects.training.loop import Trainer, make_accelerator  # noqa: E402
from defects.training.scoring import Scorer, score_batches  # noqa: E402
from defects.training.tracking import (
    Stopwatch,  # noqa: E402
    Tracker,  # noqa: E402
)

STEP = 30  # degrees between the copies of a defect
VALIDATION_TENTHS = 3  # of the copies
SPLITS, FILLS = ("random", "group"), ("black", "reflected")
KEYS = ["split", "fill"]
FIGURES = {
    "validation_macro_f1": "macro-F1: validation",
    "macro_f1": "test",
    "macro_f1_at_training_share": "at the training share",
    "macro_f1_at_validation_share": "at the validation share",
    "validation_auroc": "AUROC: validation",
    "auroc": "test ",
}


class Blackened(ImageDataset):
    """Copies as the recipe makes them: what comes in from outside the frame is black."""

    def _load(self, item: int | tuple[int, int]) -> TrainingImage:
        row = item[1] if isinstance(item, tuple) else item
        image = read_image(self.root / self.paths[row], self.size, self.bits)
        image = rotate_black(image, self.angles[row])
        return TrainingImage({"image": image}, self.labels[row])


def main() -> None:
    parser = cli.experiment_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.set += [
        "train.select=inner",
        f"train.inner_holdout={VALIDATION_TENTHS / 10}",
        "infer.tta=false",
    ]
    arguments.set += ["model.options.map_loss=0"]  # the recipe has no use for masks
    config = cli.config_from(arguments, needs_model=True)
    if config.data.classes or config.model.name != "classifier":
        raise UserError("the leak study needs model.name=classifier and a data set without data.classes")
    path = config.dataset_dir / "leak.jsonl"
    tables = stages.ensure_tables(config)
    table = tables.folds
    key = answers(config, tables.images)
    settings = fingerprint(config)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = [line for line in map(json.loads, lines) if line["settings"] == settings]
    for seed, split, fill in itertools.product(range(arguments.seeds), SPLITS, FILLS):
        about = {"split": split, "fill": fill, "seed": seed, "settings": settings}
        if any(about.items() <= cell.items() for cell in cells):
            continue
        cells.append(about | run_cell(config, table, key, split, fill, seed))
        lines.append(json.dumps(cells[-1]))
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        figure = cells[-1]["validation_macro_f1"]
        print(f"{split}, {fill}, seed {seed}: validation macro-F1 {figure:.3f}", flush=True)
    print(build_markdown_table(summary(cells)), end="")
    print(f"wrote {path}")


def fingerprint(config: Config) -> str:
    """Cells with the same one were made with the same settings and images."""
    told = config.model_dump_json(include={"data", "split", "model", "augment", "train"})
    return hashlib.sha256((told + training_sha256(config)).encode()).hexdigest()[:12]


def answers(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """Test rows of images.csv with their labels."""
    known = load_answers(config, images)[["image_id", "label"]]
    test = images[images["split"] == "test"].drop(columns="label")
    table = test.merge(known, on="image_id", how="left")
    if table.empty or table["label"].isna().any():
        raise UserError(
            f"{config.data.name}: the leak study needs test images, and the answer to each of them"
        )
    return table


def run_cell(
    config: Config, table: pd.DataFrame, key: pd.DataFrame, split: str, fill: str, seed: int
) -> dict[str, float | int | None]:
    """Train one cell; the figures of its validation and of the test images."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    learnt, validating = divide(make_copies(table, fill, seed), split, seed)
    set_seed(seed)
    detector = build_detector(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fit(detector, config, learnt, validating, fill, Path(folder))
    best = trainer.history[trainer.chosen_epoch() - 1]
    share = float(validating["label"].mean())
    figures = {"validation_macro_f1": best["val_macro_f1"], "validation_auroc": best["val_auroc"]}
    test_figures = score_test_images(trainer, config, key, float(table["label"].mean()), share)
    return figures | {"epoch": best["epoch"], "validation_share": share} | test_figures


def make_copies(table: pd.DataFrame, fill: str, seed: int) -> pd.DataFrame:
    """Rows of `table` with angle: of defects one for each step, of normal images one, turned if reflected."""
    angles = np.arange(0.0, 360.0, STEP)
    rare, normal = table[table["label"] == 1], table[table["label"] == 0]
    turns = np.random.default_rng(seed).choice(angles, len(normal)) if fill == "reflected" else 0.0
    return pd.concat(
        [rare.merge(pd.DataFrame({"angle": angles}), "cross"), normal.assign(angle=turns)], ignore_index=True
    )


def divide(rows: pd.DataFrame, split: str, seed: int) -> list[pd.DataFrame]:
    """Copies to learn from and to validate on, 70 to 30."""
    if split == "random":
        parts = train_test_split(
            rows, test_size=VALIDATION_TENTHS / 10, stratify=rows["label"], random_state=seed
        )
    else:
        tenths = assign_folds(rows["group"].to_numpy(), class_targets(rows), 10, seed)
        is_validation = tenths < VALIDATION_TENTHS
        parts = [rows[~is_validation], rows[is_validation]]
    return [part.reset_index(drop=True) for part in parts]


def rotate_black(image: np.ndarray, angle: float) -> np.ndarray:
    """uint8 [H, W, 3], turned counter-clockwise by `angle` degrees on black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(image, matrix, (width, height)) if angle else image


def fit(
    detector: Detector,
    config: Config,
    learnt: pd.DataFrame,
    validating: pd.DataFrame,
    fill: str,
    folder: Path,
) -> Trainer:
    """Train with the epoch chosen on `validating`, whose weights are left in the detector."""
    train = config.train
    kind = Blackened if fill == "black" else ImageDataset
    root = resolve(config.data.root)
    size = config.data.image_size
    data = kind(learnt, root, size, config.augment, train.seed, bits=config.data.bits)
    validation = kind(validating, root, size, [], 0, bits=config.data.bits)
    loaders = [
        DataLoader(data, train.batch_size, sampler=EpochSampler(len(data), train.seed), drop_last=True),
        DataLoader(validation, config.infer.batch_size),
    ]
    accelerator = make_accelerator(train)
    detector.to(accelerator.device)
    tracker = Tracker(config, "leak", folder, active=False)
    stopwatch = Stopwatch(folder / "costs.json", active=False)
    trainer = Trainer(detector, train, None, folder, {}, accelerator, tracker, stopwatch)
    trainer.fit(*loaders)
    return trainer


def score_test_images(
    trainer: Trainer, config: Config, key: pd.DataFrame, training_share: float, share: float
) -> dict[str, float]:
    """Figures of the test images at the threshold 0.5, also weighted to the shares of defects."""
    loader = trainer.accelerator.prepare(plain_loader(config, key))
    scorer = Scorer(trainer.detector, config.infer, config.data.symmetries)
    batches = score_batches(scorer, loader, trainer.accelerator)
    found = [(rows, scores[:, -1]) for rows, scores, _ in batches]
    rows, scores = (torch.cat(parts).numpy() for parts in zip(*found, strict=True))
    table = key.iloc[rows].assign(score=scores, answer=(scores >= 0).astype(int))
    labels = table["label"].to_numpy(dtype=int)
    at_share = macro_f1(labels, table["answer"].to_numpy(), share_weights(labels, share))
    return outcome(table, training_share) | {"macro_f1_at_validation_share": at_share}


def summary(cells: list[dict]) -> pd.DataFrame:
    """Mean and spread over the seeds of each cell, as texts."""
    groups = pd.DataFrame(cells).groupby(KEYS, sort=False)
    table = pd.DataFrame({"seeds": groups.size().astype(str)})
    for name, title in FIGURES.items():
        mean, spread = groups[name].mean(), groups[name].std()
        table[title] = [
            f"{value:.3f}" + (f" ± {extent:.3f}" if pd.notna(extent) else "")
            for value, extent in zip(mean, spread, strict=True)
        ]
    table.index = [" / ".join(names) for names in table.index]
    return table.rename_axis("split / fill")


if __name__ == "__main__":
    cli.run(main)
