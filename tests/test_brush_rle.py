"""Brush masks of Label Studio."""

import numpy as np
import pytest

from defects.data.annotations.brush_rle import decode_brush

# Of 3x5 pixels, by mask2rle of label-studio-sdk 2.1.2.
PACKED = [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 108, 2, 63, 249, 192, 0]


def test_decode_brush_marks_what_was_painted():
    mask = np.zeros((3, 5), bool)
    mask[1, 1:4] = True
    mask[2, 2] = True
    assert np.array_equal(decode_brush(PACKED, (3, 5)), mask)


def test_decode_brush_of_single_values_and_faint_paint():
    """Four pixels as one block of 16 single values of 8 bits; alpha 0, 100, 100 and 30."""
    alphas = [0, 100, 100, 30]
    bits = f"{16:032b}{7:05b}" + 4 * f"{4:04b}" + "0" + "00" + f"{15:05b}"
    bits += "".join(f"{value:08b}" for alpha in alphas for value in (9, 9, 9, alpha))
    bits += "0" * (-len(bits) % 8)
    values = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert decode_brush(values, (2, 2)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (PACKED[:-4], "ends too early"),
        ([], "ends too early"),
        ([0, 0, 0, 61, *PACKED[4:]], "61 values, which is no image of 5x3"),
        ([300], "no list of bytes"),
        ([2.5], "no list of bytes"),
        (5, "no list of bytes"),
        ("abc", "no list of bytes"),
        (None, "no list of bytes"),
    ],
)
def test_decode_brush_refuses(values, problem):
    with pytest.raises(ValueError, match=problem):
        decode_brush(values, (3, 5))
