"""Run-length masks as COCO writes them: lengths down the columns, of unmarked and marked pixels in turn.

Compressed, a length is the difference to the one two places before it, in groups of five bits, the lowest
first; a sixth bit says that more follow, and 48 is added to make a letter.
"""

import numpy as np


def decompress_counts(text: str) -> list[int]:
    """The lengths of a compressed mask. Raises ValueError for what is none."""
    counts: list[int] = []
    value = 0
    shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError("letters that no compressed mask holds")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value = 0
        shift = 0
    if shift:
        raise ValueError("a compressed mask that ends within a number")
    return counts


def runs_of_counts(counts: list[int], size: tuple[int, int]) -> str:
    """The same mask as runs (defects.data.rle). Raises ValueError for lengths that do not fill `size`."""
    lengths = np.array(counts, dtype=object)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("lengths that are no whole numbers from 0 up")
    if lengths.sum() != size[0] * size[1]:
        raise ValueError(f"{lengths.sum()} pixels in place of {size[0] * size[1]} ({size[1]}x{size[0]})")
    ends = np.cumsum(lengths)
    texts = []
    for number in range(1, len(counts), 2):
        if counts[number]:
            texts.append(f"{ends[number - 1] + 1} {counts[number]}")
    return " ".join(texts)
