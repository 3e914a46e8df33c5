"""What the page keeps of each image dropped on it, and what a threshold makes of that."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from defects.data.images import read_image, resize
from defects.deploy.model import MapMeta, Model
from defects.deploy.prediction import Prediction, predict
from defects.deploy.regions import overlay, scale_region
from defects.deploy.similar import shrink

SIDE, ICON = 1200, 112  # pixels, longer side: of the picture that is kept, and of that in the list
DRAWN = 640  # pixels, longer side from which a picture can be drawn on
BATCH = 8


@dataclass(frozen=True)
class Inspected:
    """What the model found, and the image as JPEGs, large and small; empty ones if it could not be read."""

    found: Prediction
    picture: bytes = b""
    icon: bytes = b""


def inspect(model: Model, files: list[Path]) -> Iterator[Inspected]:
    """In the order of `files`; what cannot be read has an error that names the file without its folder."""
    for found in predict(model, files, BATCH):
        if found.error:
            error = found.error.replace(str(found.path), found.path.name)
            yield Inspected(replace(found, error=error))
        else:
            image = read_image(found.path, bits=model.meta.bits)
            yield Inspected(found, jpeg(shrink(image, SIDE)), jpeg(shrink(image, ICON)))


def draw_heat_map(picture: bytes, found: Prediction, meta: MapMeta) -> bytes:
    """A JPEG of the picture under its map, with the regions boxed in it."""
    image = _enlarge(decode_upload(picture))
    regions = [scale_region(region, found.shape, image.shape[:2]) for region in found.regions]
    return jpeg(overlay(image, found.maps, meta, regions))


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Small ones to about DRAWN pixels: boxes drawn before the browser enlarges them would be blurred."""
    factor = max(1, DRAWN // max(image.shape[:2]))
    return resize(image, (factor * image.shape[0], factor * image.shape[1]))


def jpeg(image: np.ndarray) -> bytes:
    """Of RGB uint8 [H, W, 3]."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def decode_upload(content: bytes) -> np.ndarray:
    """Of what jpeg() made."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
