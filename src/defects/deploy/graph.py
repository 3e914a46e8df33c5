"""A detector as a graph of its own, and the files that hold it: PyTorch, ONNX, OpenVINO.

torch.export's own archive is loaded by unpickling and by executing strings; the portable PyTorch file holds
tensors and plain values only, and brings neither a data set nor a config along.
"""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defects.config import validate_config
from defects.config_schema import Config
from defects.deploy.model import Arrays, ScoreImages, openvino_core
from defects.deploy.torch_2_6 import TORCH_2_6
from defects.messages import UserError
from defects.models import Detector, build_detector
from defects.training import checkpoint
from defects.training.scoring import Scorer
from defects.versions import parse_release

# Sections that detectors read.
PORTABLE_SECTIONS = {"experiment", "data", "split", "model", "train", "infer", "threshold"}
SOURCE_OPTIONS = {"teacher", "textures", "texture_classes", "penalty"}  # that name files to learn from
EXAMPLE_BATCH = 2  # images that the graph is traced with: 1 would be taken for a constant
MOST_IMAGES = 2**31 - 1  # of a batch; torch 2.6 refuses one without a limit


class Graph(torch.nn.Module):
    """What is exported: images uint8 [B, H, W, 3] -> score and probability [B, C], map [B, K, h, w].

    `inside` uint8 [H, W, 1] is a region of interest that all images share, 255 inside. One that differs
    between images is their fourth channel.
    """

    def __init__(self, detector: Detector, config: Config, inside: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer("inside", inside)
        self.scorer = Scorer(detector, config.infer, config.data.symmetries).eval()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.inside is not None:
            image = torch.cat([image, self.inside.expand(image.shape[0], -1, -1, -1)], 3)
        score, maps = self.scorer(image)
        outputs = {"score": score, "probability": self.scorer.detector.probability(score)}
        if maps is not None:
            outputs["map"] = maps
        return outputs


def save_portable(path: Path, graph: Graph, config: Config) -> None:
    """Weights and the settings they need, without the folders of this machine."""
    values = config.model_dump(mode="json", include=PORTABLE_SECTIONS, exclude_defaults=True)
    values["data"]["root"] = "."
    values["data"].pop("roi", None)  # it is in the graph, or comes with the images
    model = values["model"]
    options = model.get("options", {})
    model["options"] = {name: value for name, value in options.items() if name not in SOURCE_OPTIONS}
    if "backbone" in model:
        model["backbone"]["weights"] = "none"
    content = {"config": values, "detector": graph.scorer.detector.state_dict()}
    if graph.inside is not None:
        content["inside"] = graph.inside
    checkpoint.save(path, content)


def load_portable(path: Path, threads: int | None = None) -> ScoreImages:
    """Raises UserError when the file is truncated, or holds anything but tensors and plain values."""
    content = checkpoint.load(path)
    if set(content) - {"inside"} != {"config", "detector"}:
        raise UserError(f"{path} is no portable model: src/export.py writes one")
    config = validate_config(content["config"], str(path))
    detector = build_detector(config, pretrained=False)
    detector.load_state_dict(content["detector"])
    if threads is not None:
        torch.set_num_threads(threads)
    graph = Graph(detector, config, content.get("inside"))

    @torch.inference_mode()
    def run(images: np.ndarray) -> Arrays:
        outputs = graph(torch.from_numpy(images))
        return {name: values.numpy() for name, values in outputs.items()}

    return run


def write_onnx(graph: Graph, example: np.ndarray, path: Path) -> None:
    """One file with dynamic batch; `example` is a batch of images. Raises UserError if that fails."""
    inputs = {"image": torch.from_numpy(np.repeat(example[:1], EXAMPLE_BATCH, 0))}
    shapes = {"image": {0: torch.export.Dim("batch", max=MOST_IMAGES)}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        for name in ("torch.onnx", "torch.fx.experimental.symbolic_shapes"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            # strict and optimize: the defaults of newer versions of torch than 2.6.
            program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes, strict=False)
            if parse_release(torch.__version__) < (2, 7):
                program = program.run_decompositions(TORCH_2_6)
            with torch.inference_mode():
                outputs = list(graph(**inputs))
            names = {"input_names": list(inputs), "output_names": outputs}
            options = {"dynamo": True, "optimize": True, "verbose": False}
            written = torch.onnx.export(program, kwargs=inputs, **options, **names)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise UserError(f"this detector cannot be exported to ONNX: {str(error)[:300]}") from None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # where on this machine each line of the program lies
    written.save(path, external_data=False)


def write_openvino(onnx: Path, path: Path) -> None:
    """The .xml at `path` and the .bin beside it."""
    import openvino  # not to be imported with the portable file

    _save_openvino(openvino.convert_model(onnx), path)


def write_int8(fp32: Path, path: Path, batches: Iterable[np.ndarray], images: int) -> None:
    """The network in 8 bits, calibrated on `batches` of single images; what follows it is unchanged."""
    import nncf  # slow to import

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino_core().read_model(fp32)
    ignored = nncf.IgnoredScope(names=_list_tail(model))
    quantized = nncf.quantize(model, nncf.Dataset(batches), subset_size=images, ignored_scope=ignored)
    _save_openvino(quantized, path)


def _save_openvino(model: Any, path: Path) -> None:
    import openvino

    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # all that it says of a full disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be written ({reason}): free the disk, or choose --set output=FOLDER"
        ) from None


def _list_tail(model: Any) -> list[str]:
    """Names of the operations of an openvino.Model that no convolution of the network comes after.

    Distances to a memory bank would lose their order in 8 bits. Convolutions after a matrix product smooth
    maps: they belong to the tail themselves.
    """
    network = []
    for operation in model.get_ops():
        if operation.get_type_name().endswith("Convolution"):
            inputs = _list_dependencies([operation])
            if all(source.get_type_name() != "MatMul" for source in inputs.values()):
                network.append(operation)
    quantized = _list_dependencies(network)
    names = {operation.get_friendly_name(): operation.get_type_name() for operation in model.get_ops()}
    plain = ("Constant", "Parameter", "Result")
    return [name for name, kind in names.items() if name not in quantized and kind not in plain]


def _list_dependencies(operations: list[Any]) -> dict[str, Any]:
    """These operations (openvino.Node) and all that they depend on, by name."""
    dependencies = {}
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        name = operation.get_friendly_name()
        if name not in dependencies:
            dependencies[name] = operation
            waiting += [port.get_source_output().get_node() for port in operation.inputs()]
    return dependencies
