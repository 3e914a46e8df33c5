"""Reading images: the one OpenCV path that training, inference and prediction share."""

from pathlib import Path

import cv2
import numpy as np

from defects.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
END_MARKS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}  # first bytes -> end mark

cv2.utils.logging.setLogLevel(
    cv2.utils.logging.LOG_LEVEL_SILENT
)  # a broken file is reported by this program, in one line, with its name


def list_images(folder: Path) -> list[Path]:
    """All image files under `folder`, by path. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: check data.root, or put the data set there")
    images = sorted(path for path in folder.rglob("*") if _is_listed(path, folder))
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    return images


def _is_listed(path: Path, folder: Path) -> bool:
    """Skips what is hidden: macOS leaves `._name.jpg` beside a copied file, Jupyter `.ipynb_checkpoints/`."""
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        return False
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 [H, W, 3]: EXIF rotation applied, alpha dropped, 16 bits scaled to 8, palettes resolved.

    Raises UserError naming a file that is missing, empty, truncated or no image.
    """
    return _decode(path, cv2.IMREAD_COLOR_RGB)


def read_mask(path: Path) -> np.ndarray:
    """bool [H, W]: everything that is not black is defect (annotation tools write 1, 128 or 255).

    Read in full depth: the 1 of a 16-bit mask, or a dark colour, would be rounded to black.
    """
    return _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH).any(axis=2)


def _decode(path: Path, mode: int) -> np.ndarray:
    try:
        # imdecode, not imread: on Windows the latter cannot open names outside the code page.
        content = path.read_bytes()
        image = None if _is_cut_short(content) else cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run src/prepare.py again if files were moved") from None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path} is empty, truncated or no image: replace or remove it")
    return image


def _is_cut_short(content: bytes) -> bool:
    """Empty, or a JPEG or PNG without its end mark.

    OpenCV fills the missing rows of a JPEG whose tail is zeros (an interrupted download), and libpng
    complains about a short PNG on stderr, past this program's one line.
    """
    end = next((mark for start, mark in END_MARKS.items() if content.startswith(start)), b"")
    return not content or content.rfind(end) < 0


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring [H, W] or [H, W, C] to size = (height, width); area averaging down, bilinear up."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinking = image.shape[0] >= height and image.shape[1] >= width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] to size; a defect of one pixel survives shrinking (any coverage counts)."""
    return resize(mask.astype(np.float32), size) > 0
