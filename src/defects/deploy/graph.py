"""Writing the graph of a detector: torch.export, from it ONNX, from that OpenVINO."""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openvino
import torch

from defects.deploy.model import openvino_core
from defects.deploy.portable import Graph
from defects.messages import UserError

BATCH = 2  # images of the example that the graph is traced with: 1 would be taken for a constant


def write_onnx(graph: Graph, example: np.ndarray, path: Path) -> None:
    """One file with dynamic batch; `example` is a batch of images. Raises UserError if that fails."""
    inputs = {"image": torch.from_numpy(np.repeat(example[:1], BATCH, 0))}
    shapes = {"image": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.export.export(graph, (), inputs, dynamic_shapes=shapes)
            with torch.inference_mode():
                outputs = list(graph(**inputs))
            names = {"input_names": list(inputs), "output_names": outputs}
            written = torch.onnx.export(program, kwargs=inputs, dynamo=True, verbose=False, **names)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise UserError(f"this detector cannot be exported to ONNX: {str(error)[:300]}") from None
    for node in written.model.graph.all_nodes():
        node.metadata_props.clear()  # where on this machine each line of the program lies
    written.save(path, external_data=False)


def write_openvino(onnx: Path, path: Path) -> None:
    """The .xml at `path` and the .bin beside it."""
    _save(openvino.convert_model(onnx), path)


def write_int8(fp32: Path, path: Path, batches: Iterable[np.ndarray], images: int) -> None:
    """The network in 8 bits, calibrated on `batches` of single images, and what follows it as it was."""
    import nncf  # slow to import

    logging.getLogger("nncf").setLevel(logging.ERROR)
    model = openvino_core().read_model(fp32)
    quantized = nncf.quantize(
        model, nncf.Dataset(batches), subset_size=images, ignored_scope=nncf.IgnoredScope(names=_tail(model))
    )
    _save(quantized, path)


def _save(model: openvino.Model, path: Path) -> None:
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # all that it says of a full disk
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be written ({reason}): free the disk, or choose --set output=FOLDER"
        ) from None


def _tail(model: openvino.Model) -> list[str]:
    """Names of the operations that no convolution of the network comes after.

    Distances to a memory bank would lose their order in 8 bits. Convolutions after a matrix product smooth
    maps: they belong to the tail themselves.
    """
    convolutions = [op for op in model.get_ops() if op.get_type_name().endswith("Convolution")]
    network = [
        op for op in convolutions if all(each.get_type_name() != "MatMul" for each in _before([op]).values())
    ]
    kept = _before(network)
    names = {op.get_friendly_name(): op.get_type_name() for op in model.get_ops()}
    plain = ("Constant", "Parameter", "Result")
    return [name for name, kind in names.items() if name not in kept and kind not in plain]


def _before(ops: list[openvino.Node]) -> dict[str, openvino.Node]:
    """These operations and all that they depend on, by name."""
    found, waiting = {}, list(ops)
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in found:
            found[op.get_friendly_name()] = op
            waiting += [each.get_source_output().get_node() for each in op.inputs()]
    return found
