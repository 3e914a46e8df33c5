"""The portable PyTorch file: weights and the settings they need, nothing that could run code.

torch.export's own archive is loaded by unpickling and by executing strings; this file holds tensors and plain
values only, and brings neither a data set nor a config along.
"""

from pathlib import Path

import numpy as np
import torch

from defects.config import Config
from defects.config_files import validate_config
from defects.deploy.model import Arrays, ScoreImages
from defects.messages import UserError
from defects.models import Detector, build_detector
from defects.training import checkpoint
from defects.training.scoring import Scorer

KEPT = {"experiment", "data", "split", "model", "train", "infer", "threshold"}  # sections detectors read
SOURCES = {"teacher", "textures", "texture_classes", "penalty"}  # options that name files to learn from


class Graph(torch.nn.Module):
    """What is exported: images uint8 [B, H, W, 3] -> score and probability [B, C], map [B, K, h, w]."""

    def __init__(self, detector: Detector, config: Config):
        super().__init__()
        self.scorer = Scorer(detector, config.infer, config.data.symmetries).eval()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        score, maps = self.scorer(image)
        found = {"score": score, "probability": self.scorer.detector.probability(score)}
        return found if maps is None else found | {"map": maps}


def save_portable(path: Path, detector: Detector, config: Config) -> None:
    values = config.model_dump(mode="json", include=KEPT, exclude_defaults=True)
    # Where training found its files is nobody's business, and what it made of them is in the weights.
    values["data"]["root"], model = ".", values["model"]
    model["options"] = {name: each for name, each in model.get("options", {}).items() if name not in SOURCES}
    if "backbone" in model:
        model["backbone"]["weights"] = "none"
    checkpoint.save(path, {"config": values, "detector": detector.state_dict()})


def load_portable(path: Path, threads: int | None = None) -> ScoreImages:
    """Raises UserError when the file is truncated, or holds anything but tensors and plain values."""
    content = checkpoint.load(path)
    if set(content) != {"config", "detector"}:
        raise UserError(f"{path} is no portable model: src/export.py writes one")
    config = validate_config(content["config"], str(path))
    detector = build_detector(config, pretrained=False)
    detector.load_state_dict(content["detector"])
    if threads is not None:
        torch.set_num_threads(threads)
    graph = Graph(detector, config)

    @torch.inference_mode()
    def run(images: np.ndarray) -> Arrays:
        found = graph(torch.from_numpy(images))
        return {name: values.numpy() for name, values in found.items()}

    return run
