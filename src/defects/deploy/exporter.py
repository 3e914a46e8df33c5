"""A trained fold as files that run without this program's training part; nothing is written that scores
differently."""

import shutil
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from defects.config import Config, resolve
from defects.data.datasets import plain_loader
from defects.data.fold_files import DataTables
from defects.data.images import read_image
from defects.deploy import graph as graphs
from defects.deploy.limits import map_limits, mask_rules, thresholds
from defects.deploy.model import (
    META,
    VERSION,
    MapMeta,
    MaskRule,
    Meta,
    Output,
    load_model,
    parts,
    read_meta,
)
from defects.deploy.parity import MAP_LIMIT, SCORE_LIMIT, Parity, compare_runtimes, table
from defects.deploy.portable import Graph, save_portable
from defects.deploy.similar import NORMALS, shrink, spread_positions
from defects.evaluation.mask_rules import Rule
from defects.files import array_archive, locked, sha256, write_csv, write_json
from defects.messages import UserError
from defects.models import Detector
from defects.runs import FULL, Run
from defects.training.checkpoint import load_detector

FORMATS = {  # for --formats: the file, and whether it has to score as training did
    "torch": ("model.pt", True),
    "onnx": ("model.onnx", True),
    "openvino": ("openvino_fp32.xml", True),
    "openvino_int8": ("openvino_int8.xml", False),
}
CALIBRATION = 200  # training images that the ranges of INT8 are taken from
MAX_COPIES = 64  # of the network in one graph
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "timm")


def export(
    run: Run, tables: DataTables, fold: str, formats: list[str], images: int
) -> tuple[Path, pd.DataFrame]:
    """The folder of what was written, and a table of how each file scores `images` images beside training.

    Raises UserError, and writes nothing, when a file that has to score as training did does not.
    """
    detector = load_detector(run, fold)
    formats = formats or default_formats(detector)
    _check_copies(run.config, detector, formats)
    folder = run.fold_folder(fold) / "export"
    part, old = folder.with_name(".export.part"), folder.with_name(".export.old")
    with locked(run.fold_folder(fold), wait=False):
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            found = _write(run, tables, detector, fold, formats, images, part)
            if folder.exists():
                folder.replace(old)  # as a whole, so that an interruption never leaves half of it
            part.replace(folder)
        finally:
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
    return folder, found


def _check_copies(config: Config, detector: Detector, formats: list[str]) -> None:
    """Say how often the graph will hold the network. UserError where that is beyond MAX_COPIES.

    ONNX has no loop that all runtimes run fast, so views and windows are written out one after another; each
    copy takes the exporter seconds.
    """
    scorer = Graph(detector, config).scorer
    copies = scorer.count_passes(config.data.image_size)
    views = len(scorer.members)
    if copies == 1 or formats == ["torch"]:
        return
    text = f"{copies} copies of the network ({views} views x {copies // views} windows)"
    if copies > MAX_COPIES:
        raise UserError(
            f"the graph would hold {text}, more than {MAX_COPIES}: export --formats torch, which needs no "
            "copies, or train with a larger infer.window or infer.tta=false"
        )
    print(f"note: the graph holds {text}; writing it takes some seconds for each")


def default_formats(detector: Detector) -> list[str]:
    return [name for name in FORMATS if detector.int8 or name != "openvino_int8"]


def _write(
    run: Run,
    tables: DataTables,
    detector: Detector,
    fold: str,
    formats: list[str],
    images: int,
    folder: Path,
) -> pd.DataFrame:
    config = run.config
    rows = checked_rows(tables, fold, images)
    graph = Graph(detector, config)
    _write_models(config, graph, tables.folds[tables.folds["fold"] != fold], formats, folder)
    names = [FORMATS[name][0] for name in FORMATS if (folder / FORMATS[name][0]).exists()]
    _write_meta(run, tables, graph, fold, names, folder)
    limits = read_meta(folder).threshold
    models = {name: load_model(folder / name) for name in names}
    found = compare_runtimes(_expected(config, graph, rows), models, limits, partial(_probability, detector))
    _refuse([name for name, exact in FORMATS.values() if exact and name in names], found)
    _write_normals(config, tables.folds[tables.folds["fold"] != fold], folder)
    truth = None if rows["label"].isna().any() else rows["label"].to_numpy(dtype=int)
    result = table(found, truth)
    write_csv(folder / "parity.csv", result.reset_index(names="file"))
    return result


def checked_rows(tables: DataTables, fold: str, images: int) -> pd.DataFrame:
    """Up to `images` rows of images.csv that the model has not learnt from, defects first.

    Those that the fold held out; for the full fit the test images or, where there are none, what it learnt.
    """
    rows = tables.folds[tables.folds["fold"] == fold]
    if fold == FULL:
        test = tables.images[tables.images["split"] == "test"]
        rows = test if len(test) else tables.folds
    is_defect = (rows["label"] == 1).fillna(False)  # the test images' labels are not known
    defects = _spread(rows[is_defect], images // 2)
    others = _spread(rows[~is_defect], images - len(defects))
    return pd.concat([defects, others], ignore_index=True)


def _write_models(
    config: Config, graph: Graph, training: pd.DataFrame, formats: list[str], folder: Path
) -> None:
    """`training` are the images of the training side."""
    onnx, fp32 = folder / "model.onnx", folder / "openvino_fp32.xml"
    rest = [name for name in formats if name != "torch"]
    if "torch" in formats:
        save_portable(folder / "model.pt", graph.scorer.detector, config)
    if rest:
        rows = learnt_rows(graph.scorer.detector, training)
        graphs.write_onnx(graph, next(_image_batches(config, rows[:1])), onnx)
        if rest != ["onnx"]:
            graphs.write_openvino(onnx, fp32)
    if "openvino_int8" in rest:
        single = config.model_copy(update={"infer": config.infer.model_copy(update={"batch_size": 1})})
        sample = _spread(rows, CALIBRATION)
        graphs.write_int8(fp32, folder / "openvino_int8.xml", _image_batches(single, sample), len(sample))
    for name in FORMATS.keys() - set(formats):  # written on the way only
        for file in parts(FORMATS[name][0]):
            (folder / file).unlink(missing_ok=True)


def learnt_rows(detector: Detector, training: pd.DataFrame) -> pd.DataFrame:
    """Those images of the training side that the detector has learnt from."""
    return training[training["label"] == 0] if detector.learns_from == "normal" else training


def _image_batches(config: Config, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """The graph's input, uint8 [B, H, W, 3]."""
    for batch in plain_loader(config, rows):
        yield batch["image"].numpy()


@torch.inference_mode()
def _expected(config: Config, graph: Graph, rows: pd.DataFrame) -> Iterator[tuple[np.ndarray, Output]]:
    """Batches of images, and what training-time scoring makes of them."""
    for images in tqdm(_image_batches(config, rows), "comparing", leave=False, disable=None):
        score, maps = graph.scorer(torch.from_numpy(images))
        probability = _probability(graph.scorer.detector, score.numpy())
        yield images, Output(score.numpy(), probability, None if maps is None else maps.numpy())


@torch.inference_mode()
def _probability(detector: Detector, scores: np.ndarray) -> np.ndarray:
    """[N, C], in double precision, as training's."""
    return detector.probability(torch.from_numpy(scores).double()).numpy()


def _refuse(names: list[str], found: dict[str, Parity]) -> None:
    for name in names:
        if not found[name].passes:
            raise UserError(
                f"{name} fails the parity gate: scores differ by {found[name].score_difference:.1e} "
                f"(limit {SCORE_LIMIT:.0e}), maps by {found[name].map_difference:.1e} "
                f"(limit {MAP_LIMIT:.0e}), {found[name].wrong_labels} labels; nothing was exported"
            )


def _write_meta(
    run: Run, tables: DataTables, graph: Graph, fold: str, names: list[str], folder: Path
) -> None:
    config = run.config
    detector = graph.scorer.detector
    with torch.inference_mode():
        blank = torch.zeros(1, *config.data.image_size, 3, dtype=torch.uint8)
        maps = graph(blank).get("map")
    files = [file for name in names for file in parts(name)]
    rules = mask_rules(run, tables, detector)
    labels = {} if rules is None else {name: rule.label for name, rule in rules.items()}
    meta = Meta(
        version=VERSION,
        experiment=config.experiment,
        fold=fold,
        detector=config.model.name,
        checkpoint_sha256=sha256(run.fold_folder(fold) / "best.pt"),
        image_size=config.data.image_size,
        bits=config.data.bits,
        targets=list(detector.targets),
        threshold=thresholds(run, tables, detector, fold) | labels,
        map=None if maps is None else _map_meta(run, tables, detector, fold, tuple(maps.shape[1:]), rules),
        files={name: sha256(folder / name) for name in files},
        packages={name: version(name) for name in PACKAGES},
    )
    write_json(folder / META, meta.model_dump(mode="json"))


def _map_meta(
    run: Run,
    tables: DataTables,
    detector: Detector,
    fold: str,
    shape: tuple[int, int, int],
    rules: dict[str, Rule] | None,
) -> MapMeta:
    """`shape` is that of a map, [K, h, w]; `rules` are those of its classes."""
    config = run.config
    normal, cut = map_limits(run, tables, detector, fold)
    if rules is None:
        classes = config.data.classes if shape[0] > 1 else ["defect"]
        return MapMeta(size=shape[1:], classes=classes, normal=normal, threshold=cut)
    masks = [MaskRule(pixel=rule.pixel, component=rule.component, area=rule.area) for rule in rules.values()]
    cut = [rule.pixel for rule in rules.values()]
    return MapMeta(size=shape[1:], classes=list(rules), normal=normal, threshold=cut, rules=masks)


def _write_normals(config: Config, training: pd.DataFrame, folder: Path) -> None:
    """normals.npz: small normal images that the model has learnt from, for people to compare with."""
    rows = _spread(training[training["label"] == 0], NORMALS)
    with array_archive(folder / "normals.npz") as add:
        for row in rows.itertuples():
            image = read_image(resolve(config.data.root) / row.path, bits=config.data.bits)
            add(row.image_id, shrink(image))


def _spread(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` of the rows, evenly spread over them; all if there are no more."""
    return rows.iloc[spread_positions(len(rows), count)].reset_index(drop=True)
