"""Run-length masks of the Severstal family: `start length` pairs, from 1, down the columns, left to right."""

import cv2
import numpy as np

ALLOWED = set("0123456789 -")  # int() would take 1_000 and other alphabets; a minus has its own reason
UNLIMITED = (2**31, 2**31)  # the size of an image that holds any run


def encode(mask: np.ndarray) -> str:
    """The runs of bool or uint8 [H, W], nonzero is defect; "" for an empty mask."""
    pixels = cv2.transpose((mask != 0).view(np.uint8)).ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0] * pixels[0], edges, [len(pixels)] * pixels[-1]]).astype(np.int64)
    starts, ends = edges[::2], edges[1::2]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def decode(runs: str, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] of 0 and 1. Raises ValueError like `parse`."""
    starts, ends = parse(runs, shape)
    height, width = shape
    edges = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel(), [height * width]])
    values = np.arange(len(edges) - 1, dtype=np.uint8) & 1  # a gap, a run, a gap, ...
    return cv2.transpose(np.repeat(values, np.diff(edges)).reshape(width, height))


def unite(texts: list[str]) -> str:
    """The runs of several masks of one image, overlapping or not. Raises ValueError like `parse`."""
    starts, ends = np.concatenate([parse(text, UNLIMITED) for text in texts], axis=1)
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    is_first = np.append(True, starts[1:] > reached[:-1])  # runs that touch become one
    is_last = np.append(is_first[1:], True)
    starts, ends = starts[is_first], reached[is_last]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def parse(runs: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (exclusive) of the runs, int64 [R], counted from 0 down the columns of (H, W).

    Raises ValueError, with a short reason, for what is no sorted list of separate runs inside the image.
    """
    values = _numbers(runs)
    if len(values) % 2:
        raise ValueError(f"odd number of values ({len(values)})")
    starts, lengths = values[::2] - 1, values[1::2]
    if (lengths < 1).any():
        raise ValueError(f"run length {lengths[lengths < 1][0]} is below 1")
    if (starts < 0).any():
        raise ValueError(f"run start {starts.min() + 1} is below 1")
    if (starts[1:] <= starts[:-1]).any():
        raise ValueError("runs are not sorted")
    pixels = shape[0] * shape[1]
    # Compared without adding start and length: a number near 2^63 would wrap around.
    if (lengths[:-1] > np.diff(starts)).any():
        raise ValueError("runs overlap")
    if len(starts) and lengths[-1] > pixels - starts[-1]:
        raise ValueError(f"a run ends past the last of {pixels} pixels ({shape[1]}x{shape[0]})")
    return starts, starts + lengths


def _numbers(runs: str) -> np.ndarray:
    try:
        if set(runs) <= ALLOWED:
            return np.array(runs.split(), np.int64)
    except (ValueError, OverflowError):
        pass
    raise ValueError("not made of whole numbers")
