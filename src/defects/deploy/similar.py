"""The normal images that look most like a new one, for people to compare with.

Amplitude spectra of thumbnails, which a shift leaves alone, are compared under flips and quarter turns: the
idea by which split.py proposes siblings, but with all frequencies, since any image of the same material is
looked for and not only another of the same object. NumPy and OpenCV alone: the page starts without PyTorch.
"""

import zipfile
from pathlib import Path

import cv2
import numpy as np

from defects.data.folder_scan import list_images
from defects.data.images import read_image, resize
from defects.deploy.frames import hide_outside
from defects.deploy.model import Meta
from defects.deploy.prediction import path_text
from defects.messages import UserError

NORMAL_IMAGES = 200  # of an export or a folder
NORMAL_PIXELS = 160  # longer side of each
SPECTRUM_PIXELS = 96  # with 64, fine textures are taken for one another
CONTRAST = 1.5  # median absolute deviations of grey from its median that are distinguished


class Normals:
    """Small normal images, uint8 [H, W, 3] RGB by name, and what finds those most like another.

    They are compared by what is judged of them, where a model has a region of interest.
    """

    def __init__(self, images: dict[str, np.ndarray], meta: Meta | None = None):
        self.images = images
        self.names = list(images)
        self.meta = meta
        self._spectra = np.stack([self._describe(image).ravel() for image in images.values()])

    def find_most_similar(self, image: np.ndarray, count: int) -> list[str]:
        """Names of `count` images (of all, if there are no more), the most similar first."""
        spectrum = self._describe(image)
        views = [spectrum, spectrum[::-1], spectrum.T, spectrum.T[::-1]]
        likeness = (self._spectra @ np.stack([view.ravel() for view in views], 1)).max(1)
        # Rounded: which of two equal images comes first must not hang on the order of summing.
        return [self.names[position] for position in np.argsort(-likeness.round(5), kind="stable")[:count]]

    def _describe(self, image: np.ndarray) -> np.ndarray:
        return _spectrum(image if self.meta is None else hide_outside(image, self.meta))


def load_normals(export: Path, folder: Path | None = None, meta: Meta | None = None) -> Normals | None:
    """The images of `folder` or, by default, of the export's normals.npz; None if it has no such file.

    `meta` is that of the model. Raises UserError for what cannot be read.
    """
    bits = None if meta is None else meta.bits
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--normals {folder} is not a folder: name one of normal images")
        files = list_images(folder)
        files = [files[position] for position in spread_positions(len(files), NORMAL_IMAGES)]
        images = (shrink(read_image(path, bits=bits)) for path in files)
        names = (path_text(path.relative_to(folder).as_posix()) for path in files)
        return Normals(dict(zip(names, images, strict=True)), meta)
    path = export / "normals.npz"
    try:
        with np.load(path) as archive:
            return Normals({name: archive[name] for name in archive.files}, meta)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, cv2.error):
        raise UserError(f"{path} is damaged: export again, or name a folder with --normals") from None


def shrink(image: np.ndarray, side: int = NORMAL_PIXELS) -> np.ndarray:
    """The image with a longer side of at most `side` pixels."""
    scale = min(1.0, side / max(image.shape[:2]))
    return resize(image, tuple(max(1, round(scale * length)) for length in image.shape[:2]))


def spread_positions(total: int, count: int) -> list[int]:
    """`count` of `total` positions, evenly spread over them; all if there are no more."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def _spectrum(image: np.ndarray) -> np.ndarray:
    """float32 [S - 1, S - 1], unit norm: square roots of the amplitudes, frequency 0 in the middle."""
    grey = cv2.cvtColor(shrink(image), cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (SPECTRUM_PIXELS, SPECTRUM_PIXELS), interpolation=cv2.INTER_AREA).astype(
        np.float32
    )
    grey -= np.median(grey)
    # Strong contrasts are clipped: a scratch would otherwise decide which images are similar.
    limit = max(CONTRAST * np.median(np.abs(grey)), 1)
    window = np.hanning(SPECTRUM_PIXELS + 2)[1:-1]  # no jump where the picture wraps
    grey = grey.clip(-limit, limit)
    amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(window, window)))
    # Without the one row and column of an even transform that has no mirror image.
    middle = np.sqrt(np.fft.fftshift(amplitude)[1:, 1:]).astype(np.float32)
    smooth = cv2.GaussianBlur(middle, (0, 0), 1)  # periods differ a little, and edges turn a little
    smooth -= smooth.mean()
    return smooth / max(np.linalg.norm(smooth), np.finfo(np.float32).tiny)
