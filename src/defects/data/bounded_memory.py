"""Large arrays in files, and few images in memory at a time: for data sets of very many images."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from defects.messages import UserError

MAX_ARRAY_BYTES = 2**26  # larger arrays lie in files
ROWS_IN_PROGRESS = 4096  # given to the threads at a time


def allocate_array(shape: tuple[int, ...], dtype: type, folder: Path | None) -> np.ndarray:
    """An array to be filled; one above MAX_ARRAY_BYTES lies in a file of `folder` that ends with it.

    The system can then take back the memory of parts that are not in use.
    Raises UserError if the disk is too small.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or size <= MAX_ARRAY_BYTES:
        return np.empty(shape, dtype)
    if shutil.disk_usage(folder).free < size:  # written through memory, a full disk would end the process
        raise UserError(
            f"{folder} needs {size / 1e9:.1f} GB for thumbnails: free it, or lower "
            "split.duplicates.thumbnail_size"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def in_threads(function: Callable[..., Any], *columns: Sequence, text: str) -> Iterator[Any]:
    """function(*row) for every row of `columns`, in order; no more than ROWS_IN_PROGRESS are under way."""
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(columns[0]), desc=text, leave=False, disable=None) as bar,
    ):
        for start in range(0, len(columns[0]), ROWS_IN_PROGRESS):
            for result in pool.map(
                function, *(column[start : start + ROWS_IN_PROGRESS] for column in columns)
            ):
                bar.update()
                yield result
