"""Exported models: one graph in several forms, and model.json, which says what it takes and gives.

Nothing of what training needs is imported here, but for the PyTorch file.
"""

import json
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from defects.config_schema import Count
from defects.evaluation.claim_records import Claims
from defects.files import sha256
from defects.messages import UserError
from defects.settings import Section, validate
from defects.versions import check_versions

META = "model.json"
VERSION = 1  # of model.json and of the graph's inputs and outputs
# Files of an export that can be run, the one to be preferred first.
INT8_FILE = "openvino_int8.xml"
MODEL_FILES = ("openvino_fp32.xml", "model.onnx", "model.pt", INT8_FILE)
RUNTIMES = {".xml": "openvino", ".onnx": "onnxruntime", ".pt": "torch"}  # the package that runs each

Arrays = dict[str, np.ndarray]
ScoreImages = Callable[[np.ndarray], Arrays]  # images -> outputs by name


class MaskRule(Section):
    """How the map of one class becomes a mask, a Rule of evaluation; its `label` is Meta.threshold."""

    pixel: float
    component: float
    area: float


class MapMeta(Section):
    """Of the anomaly map, float32 [batch, K, height, width]."""

    size: tuple[Count, Count]  # height, width in cells
    classes: list[str]  # [K]: what is marked in each plane
    normal: list[float]  # [K]: median over out-of-fold normal images
    threshold: list[float]  # [K]: a cell is marked from it on
    # [K], of a segmenter of classes; None for others and for exports from before rules were kept: cells are
    # marked by `threshold` alone.
    rules: list[MaskRule] | None = None


class RoiMeta(Section):
    """Which part of the images is judged. Without both, a mask has to come with every image."""

    # The same for all images, as part of the graph too: a PNG of image_size in base64, not black inside.
    inside_png: str | None = None
    foreground: Literal["on_dark", "on_bright"] | None = None  # what data.roi.find_foreground finds

    @property
    def is_fixed(self) -> bool:
        return self.inside_png is not None


class Meta(Section):
    """model.json: `threshold` holds the probability from which each of `targets` counts as present."""

    version: int
    experiment: str
    fold: str
    detector: str
    checkpoint_sha256: str
    image_size: tuple[Count, Count]  # height, width in pixels
    # data.bits of 16-bit images. Exports from before there was a choice were made without, as None says.
    bits: Annotated[int, Field(ge=9, le=16)] | None = None
    roi: RoiMeta | None = None  # None: all of an image is judged
    targets: list[str]
    threshold: dict[str, float]
    # Of all folds of the run, by these thresholds; None in exports from before there were claims.
    claims: Claims | None = None
    map: MapMeta | None
    files: dict[str, str]  # name -> sha256
    packages: dict[str, str]  # what wrote it

    @property
    def channels(self) -> int:
        """Of the graph's input: RGB, and 255 inside a region of interest that differs between images."""
        return 3 if self.roi is None or self.roi.is_fixed else 4

    @property
    def needs_masks(self) -> bool:
        """Whether a mask has to come with every image."""
        return self.channels == 4 and self.roi.foreground is None


def find_note(meta: Meta) -> str:
    """What to tell whoever uses the model; empty if there is nothing."""
    if meta.detector == "segmenter" and meta.map.rules is None and len(meta.targets) > 1:
        return "note: this export holds no mask rules: its regions are what exceeds 0.5; export it again"
    return ""


def find_claim(meta: Meta, file_name: str, threshold: float | None = None) -> str:
    """What may be claimed of the model, for whoever uses it; empty where the export holds no claim.

    A `threshold` other than the model's own, and the INT8 file, which scores differently, have no claim.
    """
    if meta.claims is None:
        return ""
    if meta.claims.refusal is not None:
        return meta.claims.sentence
    if threshold is not None:
        return f"nothing is claimed at the threshold {threshold:g}: claims are about the model's own"
    if file_name == INT8_FILE:
        return "nothing is claimed of INT8 scores: claims are about the FP32 files"
    return "; ".join([meta.claims.sentence, *meta.claims.limits])


class Output(NamedTuple):
    """score [B, C] (raw), probability [B, C], map [B, K, h, w] or None; C targets, K classes."""

    score: np.ndarray
    probability: np.ndarray
    map: np.ndarray | None


class ExportedModel:
    """An exported model: images uint8 [B, H, W, 3] RGB of `meta.image_size` -> Output.

    With four `meta.channels` the last is 255 in the region of interest of each image, 0 outside. May be
    called by several threads at a time.
    """

    def __init__(self, path: Path, meta: Meta, run: ScoreImages):
        self.path = path
        self.meta = meta
        self.run = run

    def __call__(self, images: np.ndarray) -> Output:
        outputs = self.run(images)
        return Output(outputs["score"], outputs["probability"], outputs.get("map"))


def load_model(path: Path, threads: int | None = None) -> ExportedModel:
    """A file of an export, or its folder: then the first of MODEL_FILES that can be run.

    `threads` None leaves their number to the runtime. Raises UserError for what is missing or broken.
    """
    if not path.exists() and not (path.parent / META).exists():
        raise UserError(f"{path} does not exist: name an export's folder, which src/export.py writes")
    folder = path if path.is_dir() else path.parent
    meta = read_meta(folder)
    path = _choose_file(folder, meta) if path.is_dir() else path
    if path.name not in MODEL_FILES:
        raise UserError(
            f"{path} is no model: give an export's folder, or one of {', '.join(MODEL_FILES)} in it"
        )
    for name in list_parts(path.name):
        part = folder / name
        if not part.is_file():
            raise UserError(f"{part} does not exist: export it, or name another of {', '.join(meta.files)}")
        if meta.files.get(name) != sha256(part):
            raise UserError(f"{part} is not the file that {META} describes: copy or export it again")
    check_versions([RUNTIMES[path.suffix]])
    try:
        return ExportedModel(path, meta, OPENERS[path.suffix](path, threads))
    except ImportError as error:
        raise UserError(f"{path} needs the package {error.name}: pip install {error.name}") from None
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be loaded ({reason}): export it again") from None


def read_meta(folder: Path) -> Meta:
    path = folder / META
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        nested = folder / "export"
        hint = f"name {nested}" if (nested / META).is_file() else "src/export.py writes it beside a model"
        raise UserError(f"{path}: {error.strerror}; {hint}") from None
    except ValueError:
        raise UserError(f"{path} is not valid JSON: export the model again") from None
    # Earlier versions wrote how images were brought to their size: stretched, as now, or kept in shape.
    if isinstance(values, dict) and values.pop("fit", "squash") == "letterbox":
        raise UserError(
            f"{path} has fit=letterbox, images kept in shape within a frame, which this version no longer "
            "reads: train and export the model again"
        )
    meta = validate(Meta, values, str(path))
    if meta.version != VERSION:
        raise UserError(f"{path} is of version {meta.version}, this program reads {VERSION}: export again")
    return meta


def list_parts(name: str) -> list[str]:
    """The files of which one of MODEL_FILES consists."""
    return [name, name.replace(".xml", ".bin")] if name.endswith(".xml") else [name]


def _choose_file(folder: Path, meta: Meta) -> Path:
    present = [folder / name for name in MODEL_FILES if name in meta.files and (folder / name).exists()]
    if not present:
        raise UserError(f"{folder} holds none of the models that its {META} names: export again")
    for path in present:
        if find_spec(RUNTIMES[path.suffix]):
            return path
    return present[0]  # its own message says what to install


@cache
def openvino_core() -> Any:
    """The one openvino.Core of this process.

    Each sets up a stack for signals and, when released, restores the previous one. Of two that end out of
    turn, the stack of the first stays in use after it is freed: the next Ctrl-C would be a segmentation
    fault.
    """
    import openvino

    return openvino.Core()


def _open_openvino(path: Path, threads: int | None) -> ScoreImages:
    # Some processors would compute in bf16 unasked, and give other scores. Pinned threads of two processes
    # (predict.py --jobs 2) would share one core, and leave the others idle.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino_core().compile_model(path, "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]
    of_thread = threading.local()  # a request must not be used by two threads at a time

    def run(images: np.ndarray) -> Arrays:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        outputs = of_thread.request.infer({"image": images})
        return {name: outputs[name] for name in names}

    return run


def _open_onnx(path: Path, threads: int | None) -> ScoreImages:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a dozen kinds, all of their own
        raise RuntimeError(error) from None
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"image": images}), strict=True))


def _open_torch(path: Path, threads: int | None) -> ScoreImages:
    from defects.deploy.graph import load_portable

    return load_portable(path, threads)


OPENERS = {".xml": _open_openvino, ".onnx": _open_onnx, ".pt": _open_torch}
