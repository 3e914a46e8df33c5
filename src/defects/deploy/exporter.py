"""A trained fold as files that run without this program's training part; nothing is written that scores
differently."""

import shutil
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from tqdm import tqdm

from defects.config_schema import Config, resolve
from defects.data.datasets import plain_loader
from defects.data.fold_files import DataTables
from defects.data.images import read_image
from defects.data.roi import load_roi
from defects.deploy.graph import Graph, save_portable, write_int8, write_onnx, write_openvino
from defects.deploy.model import (
    META,
    VERSION,
    MapMeta,
    MaskRule,
    Meta,
    Output,
    RoiMeta,
    list_parts,
    load_model,
    read_meta,
)
from defects.deploy.parity import MAP_LIMIT, SCORE_LIMIT, build_parity_table, compare_runtimes
from defects.deploy.similar import NORMAL_IMAGES, shrink, spread_positions
from defects.evaluation.acceptance import state_run_claims
from defects.evaluation.mask_rules import Rule
from defects.evaluation.pixels import Maps, judged_cells
from defects.evaluation.scales import align_oof, rescale
from defects.evaluation.thresholds import choose_threshold, fit_map_limits
from defects.files import array_archive, locked, sha256, write_csv, write_json
from defects.messages import UserError
from defects.models import Detector
from defects.runs import FULL, OOF_MAPS, Run
from defects.submission.mask_claims import list_mask_predictions
from defects.submission.masks import RuleChoice, choose_rules
from defects.training.checkpoint import load_detector

EXPORT_FORMATS = {  # for --formats: the file, and whether it has to score as training did
    "torch": ("model.pt", True),
    "onnx": ("model.onnx", True),
    "openvino": ("openvino_fp32.xml", True),
    "openvino_int8": ("openvino_int8.xml", False),
}
CALIBRATION_IMAGES = 200  # of the training part, which the ranges of INT8 are taken from
MAX_COPIES = 64  # of the network in one graph
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "timm")


def export(
    run: Run, tables: DataTables, fold: str, formats: list[str], images: int
) -> tuple[Path, pd.DataFrame]:
    """The folder of what was written, and a table of how each file scores `images` images beside training.

    Without `formats`, all that suit the detector. Raises UserError, and writes nothing, when a file that has
    to score as training did does not.
    """
    detector = load_detector(run, fold)
    if not formats:
        formats = [name for name in EXPORT_FORMATS if detector.int8 or name != "openvino_int8"]
    graph = Graph(detector, run.config, read_shared_inside(run.config))
    check_copies(graph, run.config, formats)
    folder = run.fold_folder(fold) / "export"
    part = folder.with_name(".export.part")
    old = folder.with_name(".export.old")
    with locked(run.fold_folder(fold), wait=False):
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            table = _write_export(run, tables, graph, fold, formats, images, part)
            if folder.exists():
                folder.replace(old)  # in one step, so that an interruption never leaves half of it
            part.replace(folder)
        finally:
            for path in (part, old):
                shutil.rmtree(path, ignore_errors=True)
    return folder, table


def read_shared_inside(config: Config) -> torch.Tensor | None:
    """uint8 [H, W, 1] at data.image_size, 255 inside a region that all images share; None if they do not."""
    roi = load_roi(config.data)
    if roi is None or not roi.settings.is_fixed:
        return None
    inside = roi.read("", config.data.image_size)
    return torch.from_numpy(255 * inside.astype(np.uint8)[..., None])


def describe_roi(graph: Graph, config: Config) -> RoiMeta | None:
    """For model.json."""
    if config.data.roi is None:
        return None
    if graph.inside is None:
        return RoiMeta(foreground=config.data.roi.foreground)
    content = cv2.imencode(".png", graph.inside.numpy())[1].tobytes()
    return RoiMeta(inside_png=b64encode(content).decode())


def check_copies(graph: Graph, config: Config, formats: list[str]) -> None:
    """Say how often the graph will contain the network. UserError where that is beyond MAX_COPIES.

    ONNX has no loop that all runtimes run fast, so views and windows are written out one after another; each
    copy takes the exporter seconds.
    """
    copies = graph.scorer.count_passes(config.data.image_size)
    views = len(graph.scorer.views)
    if copies == 1 or formats == ["torch"]:
        return
    text = f"the network {copies} times, once for each of {views} views x {copies // views} windows"
    if copies > MAX_COPIES:
        raise UserError(
            f"the exported file would contain {text}; the limit is {MAX_COPIES}: export --formats torch, "
            "which contains it once, or train with a larger infer.window or infer.tta=false"
        )
    print(f"note: the exported file contains {text}; writing it takes some seconds for each")


def _write_export(
    run: Run, tables: DataTables, graph: Graph, fold: str, formats: list[str], images: int, folder: Path
) -> pd.DataFrame:
    """All files of an export into `folder`; the parity table. UserError where a file misses the gate."""
    config = run.config
    detector = graph.scorer.detector
    training = tables.folds[tables.folds["fold"] != fold]
    _write_models(config, graph, training, formats, folder)
    names = [file for file, _ in EXPORT_FORMATS.values() if (folder / file).exists()]
    _write_meta(run, tables, graph, fold, names, folder)
    rows = checked_rows(tables, fold, images)
    models = {name: load_model(folder / name) for name in names}
    thresholds = read_meta(folder).threshold
    probability = partial(_probability, detector)
    parities = compare_runtimes(_score_as_training(config, graph, rows), models, thresholds, probability)
    for name, is_exact in EXPORT_FORMATS.values():
        if is_exact and name in names and not parities[name].passes:
            raise UserError(
                f"{name} fails the parity gate: scores differ by {parities[name].score_difference:.1e} "
                f"(limit {SCORE_LIMIT:.0e}), maps by {parities[name].map_difference:.1e} "
                f"(limit {MAP_LIMIT:.0e}), {parities[name].wrong_labels} labels; nothing was exported"
            )
    normals = _spread(training[training["label"] == 0], NORMAL_IMAGES)
    with array_archive(folder / "normals.npz") as add:  # small, for people to compare with
        for row in normals.itertuples():
            image = read_image(resolve(config.data.root) / row.path, bits=config.data.bits)
            add(row.image_id, shrink(image))
    truth = None if rows["label"].isna().any() else rows["label"].to_numpy(dtype=int)
    table = build_parity_table(parities, truth)
    write_csv(folder / "parity.csv", table.reset_index(names="file"))
    return table


def checked_rows(tables: DataTables, fold: str, images: int) -> pd.DataFrame:
    """Up to `images` rows of images.csv that the model has not learnt from, defects first.

    The validation images of the fold; for the full fit the test images or, where there are none, the training
    images.
    """
    rows = tables.folds[tables.folds["fold"] == fold]
    if fold == FULL:
        test = tables.images[tables.images["split"] == "test"]
        rows = test if len(test) else tables.folds
    is_defect = (rows["label"] == 1).fillna(False)  # test images have no label
    defects = _spread(rows[is_defect], images // 2)
    normals = _spread(rows[~is_defect], images - len(defects))
    return pd.concat([defects, normals], ignore_index=True)


def _write_models(
    config: Config, graph: Graph, training: pd.DataFrame, formats: list[str], folder: Path
) -> None:
    """`training` are the training images of the fold. OpenVINO files are made from the ONNX file."""
    detector = graph.scorer.detector
    onnx = folder / "model.onnx"
    fp32 = folder / "openvino_fp32.xml"
    if "torch" in formats:
        save_portable(folder / "model.pt", graph, config)
    if formats == ["torch"]:
        return
    rows = select_learnt(detector, training)
    write_onnx(graph, next(_image_batches(config, graph, rows[:1])), onnx)
    if "openvino" in formats or "openvino_int8" in formats:
        write_openvino(onnx, fp32)
    if "openvino_int8" in formats:
        single = config.model_copy(update={"infer": config.infer.model_copy(update={"batch_size": 1})})
        sample = _spread(rows, CALIBRATION_IMAGES)
        write_int8(fp32, folder / "openvino_int8.xml", _image_batches(single, graph, sample), len(sample))
    for name in EXPORT_FORMATS.keys() - set(formats):  # written on the way only
        for part in list_parts(EXPORT_FORMATS[name][0]):
            (folder / part).unlink(missing_ok=True)


def select_learnt(detector: Detector, training: pd.DataFrame) -> pd.DataFrame:
    """Those training images that the detector has learnt from."""
    return training[training["label"] == 0] if detector.learns_from == "normal" else training


def _image_batches(config: Config, graph: Graph, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """The graph's input, uint8 [B, H, W, 3], with a fourth channel if regions of interest differ."""
    for batch in plain_loader(config, rows):
        yield _as_graph_input(batch["image"], graph).numpy()


def _as_graph_input(images: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Without the region of interest that the graph holds itself."""
    return images if graph.inside is None else images[..., :3].contiguous()


@torch.inference_mode()
def _score_as_training(
    config: Config, graph: Graph, rows: pd.DataFrame
) -> Iterator[tuple[np.ndarray, Output]]:
    """Batches of images, and their scores, probabilities and maps as training computes them."""
    for batch in tqdm(plain_loader(config, rows), "comparing", leave=False, disable=None):
        score, maps = graph.scorer(batch["image"])
        probability = _probability(graph.scorer.detector, score.numpy())
        images = _as_graph_input(batch["image"], graph).numpy()
        yield images, Output(score.numpy(), probability, None if maps is None else maps.numpy())


@torch.inference_mode()
def _probability(detector: Detector, scores: np.ndarray) -> np.ndarray:
    """[N, C], in double precision, as training's."""
    return detector.probability(torch.from_numpy(scores).double()).numpy()


def _spread(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` of the rows, evenly spread over them; all if there are no more."""
    return rows.iloc[spread_positions(len(rows), count)].reset_index(drop=True)


# --- model.json: thresholds and limits ---------------------------------------------------------------------


def _write_meta(
    run: Run, tables: DataTables, graph: Graph, fold: str, names: list[str], folder: Path
) -> None:
    config = run.config
    detector = graph.scorer.detector
    with torch.inference_mode():
        channels = 3 if config.data.roi is None or graph.inside is not None else 4
        blank = torch.zeros(1, *config.data.image_size, channels, dtype=torch.uint8)
        maps = graph(blank).get("map")
    thresholds = choose_thresholds(run, tables, detector, fold)
    choice = choose_mask_rules(run, tables, detector)
    rules = None
    masks = None
    if choice is not None:
        rules = {name: choice.rules[choice.chosen][name] for name in config.data.classes}
        thresholds |= {name: rule.label for name, rule in rules.items()}
        if choice.is_nested:
            image_ids = run.load_oof(tables.folds)["image_id"]
            masks = list_mask_predictions(choice.scored[choice.chosen], image_ids, config.data.classes)
    map_meta = None
    if maps is not None:
        map_meta = _describe_map(run, tables, detector, fold, tuple(maps.shape[1:]), rules)
    meta = Meta(
        version=VERSION,
        experiment=config.experiment,
        fold=fold,
        detector=config.model.name,
        checkpoint_sha256=sha256(run.fold_folder(fold) / "best.pt"),
        image_size=config.data.image_size,
        bits=config.data.bits,
        roi=describe_roi(graph, config),
        targets=list(detector.targets),
        threshold=thresholds,
        claims=state_run_claims(run, tables, masks),
        map=map_meta,
        files={part: sha256(folder / part) for name in names for part in list_parts(name)},
        packages={name: version(name) for name in PACKAGES},
    )
    write_json(folder / META, meta.model_dump(mode="json"))


def _describe_map(
    run: Run,
    tables: DataTables,
    detector: Detector,
    fold: str,
    shape: tuple[int, int, int],
    rules: dict[str, Rule] | None,
) -> MapMeta:
    """`shape` is that of a map, [K, h, w]; `rules` are those of its classes."""
    normal, threshold = measure_map_limits(run, tables, detector, fold)
    if rules is None:
        classes = run.config.data.classes if shape[0] > 1 else ["defect"]
        return MapMeta(size=shape[1:], classes=classes, normal=normal, threshold=threshold)
    masks = [MaskRule(pixel=rule.pixel, component=rule.component, area=rule.area) for rule in rules.values()]
    threshold = [rule.pixel for rule in rules.values()]
    return MapMeta(size=shape[1:], classes=list(rules), normal=normal, threshold=threshold, rules=masks)


def choose_thresholds(run: Run, tables: DataTables, detector: Detector, fold: str) -> dict[str, float]:
    """The probability from which a target counts as present, by `threshold.rule` on all out-of-fold images.

    The scores of the folds are brought to one scale first (evaluation.scales), the threshold to that of
    `fold`. The full fit, which has no out-of-fold images, gets the threshold of the common scale.
    """
    settings = run.config.threshold
    thresholds = {}
    for target in detector.targets:
        oof = run.load_oof(tables.folds, (target,))
        aligned, scales, common = align_oof(oof)
        scores = aligned.to_numpy()
        labels = oof["label"].to_numpy(dtype=int)
        threshold = choose_threshold(labels, scores, settings)
        threshold = move_between_scores(threshold, scores)
        thresholds[target] = float(expit(rescale(threshold, common, scales.get(fold, common))))
    return thresholds


def move_between_scores(threshold: float, scores: np.ndarray) -> float:
    """The same decisions on the log-odds [N], as far from both neighbours as can be; 1 beyond the outermost.

    On a score itself, another runtime's rounding would decide.
    """
    below = scores[scores < threshold]
    above = scores[scores >= threshold]
    low = below.max() if len(below) else above.min() - 2
    high = above.min() if len(above) else below.max() + 2
    return float((low + high) / 2)


def measure_map_limits(
    run: Run, tables: DataTables, detector: Detector, fold: str
) -> tuple[list[float], list[float]]:
    """Of each class of the maps: the median over out-of-fold normal images, and from where a cell is marked.

    The latter is reached anywhere in a share `threshold.fpr` of these images; that of a probability of a
    pixel is 0.5. Normal images of the fold are preferred, then those of any fold, as for the full fit. Where
    no fold has a normal image, both are quantiles of all cells of all out-of-fold images.
    """
    oof = run.load_oof(tables.folds)
    normal = oof[oof["label"] == 0]
    if normal.empty:
        print("note: no normal image is out of fold: the scale of the maps comes from images with defects")
    choices = (normal[normal["fold"] == fold], normal, oof[oof["fold"] == fold], oof)
    rows = next(choice for choice in choices if len(choice))
    has_normal = (rows["label"] == 0).all()
    planes = _read_maps(run, tables, rows)
    return fit_map_limits(planes, run.config.threshold.fpr, detector.segments, has_normal)


def _read_maps(run: Run, tables: DataTables, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """float16 [K, ...]: the cells of each of these out-of-fold rows that are judged."""
    roi = load_roi(run.config.data)
    paths = tables.folds.set_index("image_id")["path"]
    for fold, of_fold in rows.groupby("fold"):
        maps = Maps(run.fold_folder(fold) / OOF_MAPS)
        for image_id in tqdm(of_fold["image_id"], "scale of the maps", leave=False, disable=None):
            yield judged_cells(maps.of_classes(image_id), roi, paths[image_id])


def choose_mask_rules(run: Run, tables: DataTables, detector: Detector) -> RuleChoice | None:
    """Rules of the classes, fitted out of fold or the default ones, as src/ensemble.py chooses for this run.

    None for a detector that makes no masks of classes.
    """
    if not (detector.segments and run.config.data.classes):
        return None
    oof = {run.name: run.load_oof(tables.folds, tuple(run.config.data.classes))}
    choice = choose_rules([run], oof, tables.images)
    untuned = choice.estimates["untuned"]
    tuned = choice.estimates["tuned_nested"]
    nested = "not estimated: a single fold" if tuned is None else f"{tuned['dice']:.4f} (nested)"
    print(f"mask rules: {choice.chosen}; out-of-fold Dice tuned {nested}, untuned {untuned['dice']:.4f}")
    return choice
