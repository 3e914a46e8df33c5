"""An export whose scores can be foretold, made without training."""

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from conftest import texture
from onnx import TensorProto, helper

from defects.config_schema import ClaimsConfig
from defects.deploy.model import META, VERSION
from defects.evaluation.acceptance import state_claims
from defects.evaluation.claim_records import Claims
from defects.files import array_archive, sha256, write_json

SIZE = 32  # pixels of an image in both directions
CELLS = 8  # of a map in both directions


def bright_spots(targets: int, maps: bool) -> onnx.ModelProto:
    """A graph whose map is the brightness of cells; scores say how far the brightest is above 200.

    Every further target asks for 20 grey levels more.
    """
    levels = np.array([[200 + 20 * place for place in range(targets)]], np.float32)
    constants = [
        helper.make_tensor("levels", TensorProto.FLOAT, levels.shape, levels.ravel()),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("colours", TensorProto.INT64, [1], [3]),
        helper.make_tensor("cells", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("ones", TensorProto.INT64, [1], [1]),
    ]
    step = SIZE // CELLS
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "colours"], ["grey"], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "ones"], ["plane"]),
        helper.make_node("AveragePool", ["plane"], ["map"], kernel_shape=[step, step], strides=[step, step]),
        helper.make_node("ReduceMax", ["map", "cells"], ["highest"], keepdims=0),
        helper.make_node("Sub", ["highest", "levels"], ["above"]),
        helper.make_node("Mul", ["above", "scale"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["probability"]),
    ]
    shapes = {"score": ["batch", targets], "probability": ["batch", targets]}
    shapes |= {"map": ["batch", 1, CELLS, CELLS]} if maps else {}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    graph = helper.make_graph(nodes, "bright_spots", [image], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_claims(folds: int = 2) -> Claims:
    """What is claimed of a run that decides all of 30 defects and 70 normal images rightly."""
    labels = (np.arange(100) < 30).astype(int)
    images = pd.DataFrame({"image_id": [f"{number}.png" for number in range(100)], "label": labels})
    images = images.assign(fold=[str(number % folds) for number in range(100)], group=range(100))
    nested = labels if folds > 1 else None
    return state_claims(ClaimsConfig(), images, nested, "searched", None)


def write_export(
    folder: Path, targets: tuple[str, ...] = ("defect",), maps: bool = True, claims: Claims | None = None
) -> Path:
    """model.onnx, model.json and normals.npz, as src/export.py writes them."""
    folder.mkdir()
    onnx.save(bright_spots(len(targets), maps), folder / "model.onnx")
    size = {"size": [CELLS, CELLS], "classes": ["defect"], "normal": [128.0], "threshold": [190.0]}
    values = {
        "version": VERSION,
        "experiment": "spots",
        "fold": "0",
        "detector": "bright_spots",
        "checkpoint_sha256": "",
        "image_size": [SIZE, SIZE],
        "targets": list(targets),
        "threshold": dict.fromkeys(targets, 0.5),
        "map": size if maps else None,
        "claims": None if claims is None else claims.to_json(),
        "files": {"model.onnx": sha256(folder / "model.onnx")},
        "packages": {},
    }
    write_json(folder / META, values)
    with array_archive(folder / "normals.npz") as add:
        for seed in range(8):
            add(f"normal_{seed}.png", np.repeat(texture(seed)[..., None], 3, axis=2))
    return folder
