"""Brush masks of Label Studio: RGBA pixels packed into bits by the scheme `rle-pack` of thi.ng/umbrella.

32 bits: how many values; 5 bits: their width less 1; four times 4 bits: widths of lengths less 1. Then come
blocks: one bit (a repeated value or single ones), two bits that choose a width, the length less 1, values.
"""

from collections.abc import Sequence

import numpy as np

VISIBLE_SHARE = 0.5  # of the most opaque pixel, at least, is a pixel's alpha where it is marked


def decode_brush(values: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] where the brush painted. Raises ValueError for bytes that hold no image of `size`."""
    height, width = size
    try:
        packed = bytes(list(values))  # NumPy 1 would take 300 for 44
    except (TypeError, ValueError):
        raise ValueError("an rle that is no list of bytes") from None
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    reader = _BitReader(bits)
    count = reader.read(32)
    if count != 4 * height * width:
        raise ValueError(f"an rle of {count} values, which is no image of {width}x{height}")
    value_bits = reader.read(5) + 1
    length_bits = [reader.read(4) + 1 for _ in range(4)]
    if value_bits > 8:
        raise ValueError(f"an rle with values of {value_bits} bits, where a brush has 8")
    pixels = np.zeros(count, np.uint8)
    position = 0
    while position < count:
        is_repeated = reader.read(1)
        end = position + 1 + reader.read(length_bits[reader.read(2)])
        if end > count:
            raise ValueError("an rle that is longer than its image")
        if is_repeated:
            pixels[position:end] = reader.read(value_bits)
        else:
            pixels[position:end] = reader.read_many(end - position, value_bits)
        position = end
    alpha = pixels.reshape(height, width, 4)[..., 3]
    return (alpha > 0) & (alpha >= VISIBLE_SHARE * alpha.max())


class _BitReader:
    """Numbers out of bits, uint8 [N] of 0 and 1, the highest bit first."""

    def __init__(self, bits: np.ndarray):
        self.bits = bits
        self.position = 0

    def read(self, width: int) -> int:
        return int(self.read_many(1, width)[0])

    def read_many(self, count: int, width: int) -> np.ndarray:
        end = self.position + count * width
        if end > len(self.bits):
            raise ValueError("an rle that ends too early")
        rows = self.bits[self.position : end].reshape(count, width).astype(np.int64)
        self.position = end
        return rows @ (1 << np.arange(width - 1, -1, -1))
