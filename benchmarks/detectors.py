"""Images/s of every reduced detector from a batch in memory, as a share of its bare backbone's.

The backbone is the cut and frozen network whose features a detector looks at; EfficientAD's is its teacher.
ConvAE and DRAEM have none. Weights are random, what is fitted before the epochs is fitted on generated
textures. Detector and backbone take turns, so that a noisy neighbour hits both.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from defects.config import known_config_files, load_config  # noqa: E402
from defects.config_schema import ROOT  # noqa: E402
from defects.data.images import resize  # noqa: E402
from defects.data.layouts.demo import TEXTURES, draw_image  # noqa: E402
from defects.models import Detector, build_detector  # noqa: E402

BATCH = 8
IMAGES = 48  # to fit on


class Textures:
    """Batches of IMAGES textures of one size, made once."""

    images = IMAGES

    def __init__(self, size: tuple[int, int]):
        names = list(TEXTURES)
        pictures = [draw_image([0, number], names[number % len(names)])[0] for number in range(IMAGES)]
        grey = np.stack([resize(picture, size) for picture in pictures])
        grey = torch.from_numpy(grey).float()[:, None] / 255
        self.batches = [
            {"image": part.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), "row": row}
            for part, row in zip(grey.split(BATCH), torch.arange(IMAGES).split(BATCH), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}, batches of {BATCH}")
    for name in known_config_files("models"):
        if name.endswith("_reduced") and name != "segmenter_reduced":
            measure(name, arguments.repeats)


def measure(name: str, repeats: int) -> None:
    # As many patches as a hundredth of those of 500 images.
    sets = ["model.options.ratio=0.1"] if name == "patchcore_reduced" else []
    config = load_config(ROOT / "configs" / "magnetic_tile.yaml", sets, model=name)
    detector = build_detector(config, pretrained=False).eval()
    textures = Textures(config.data.image_size)
    with torch.inference_mode():
        if name != "efficientad_reduced":  # what it would fit needs a teacher
            detector.prepare(textures)
        image = textures.batches[0]["image"]
        bare = backbone(detector)
        rates = [(rate(detector, image), rate(bare, image) if bare else np.nan) for _ in range(repeats)]
    own, alone = np.median(rates, axis=0)
    share = "" if bare is None else f", {np.median([one / other for one, other in rates]):.2f} of {alone:.0f}"
    print(f"{name:36}{'x'.join(map(str, config.data.image_size)):>9}{own:8.0f} images/s{share}")


def backbone(detector: Detector) -> nn.Module | None:
    return getattr(detector, "features", None) or getattr(detector, "teacher", None)


def rate(network: nn.Module, image: torch.Tensor) -> float:
    """Images/s over about a second, after one run that is not timed."""
    network(image)
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < 1:
        network(image)
        runs += 1
    return runs * len(image) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
