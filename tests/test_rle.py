"""Run-length masks: exact both ways, and a reason for every string that is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from defects.data import rle

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 1]))


def _slow_encode(mask: np.ndarray) -> str:
    """Pixel by pixel, as the competition describes it."""
    found, previous = [], 0
    for position, pixel in enumerate(mask.flatten(order="F"), start=1):
        if pixel and not previous:
            found.append([position, 0])
        if pixel:
            found[-1][1] += 1
        previous = pixel
    return " ".join(f"{start} {length}" for start, length in found)


def _slow_decode(runs: str, shape: tuple[int, int]) -> np.ndarray:
    pixels, values = [0] * (shape[0] * shape[1]), [int(value) for value in runs.split()]
    for start, length in zip(values[::2], values[1::2], strict=True):
        for position in range(start, start + length):
            pixels[position - 1] = 1
    return np.array(pixels, np.uint8).reshape(shape, order="F")


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        ([[0, 1, 1], [0, 1, 0]], "3 3"),
        ([[1, 0, 0], [0, 0, 1]], "1 1 6 1"),
        ([[0, 0], [0, 0]], ""),
        ([[1, 1], [1, 1]], "1 4"),
        ([[0, 1, 0, 1]], "2 1 4 1"),
    ],
)
def test_written_by_hand(mask, runs):
    mask = np.array(mask)
    for kind in (mask.astype(bool), mask.astype(np.uint8), mask.astype(np.uint8) * 255):
        assert rle.encode(kind) == runs
    decoded = rle.decode(runs, mask.shape)
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    assert np.array_equal(decoded, mask)


@given(MASKS)
def test_like_the_slow_one_and_back(mask):
    runs = rle.encode(mask)
    assert runs == _slow_encode(mask)
    assert np.array_equal(rle.decode(runs, mask.shape), mask)
    assert np.array_equal(_slow_decode(runs, mask.shape), mask)


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(0, 4))
@settings(max_examples=50)
def test_any_sorted_runs_decode_even_if_they_touch(steps, rest):
    """Every second step is a run; a step of another tool may split one run into two that touch."""
    ends = np.cumsum([0, *steps])
    runs = " ".join(f"{start + 1} {end - start}" for start, end in zip(ends[:-1], ends[1:], strict=True))
    shape = (1, int(ends[-1]) + rest + 1)
    assert rle.decode(runs, shape).sum() == ends[-1]
    assert np.array_equal(rle.decode(runs, shape), _slow_decode(runs, shape))


def test_a_mask_that_is_no_contiguous_block():
    mask = np.arange(60).reshape(6, 10) % 7 == 0
    assert rle.encode(mask[::2, 1::3]) == _slow_encode(mask[::2, 1::3])


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ("1", "odd number of values"),
        ("1 2 3", "odd number of values"),
        ("a b", "whole numbers"),
        ("1.5 2", "whole numbers"),
        ("1_0 2", "whole numbers"),
        ("١ 2", "whole numbers"),
        ("5-3 1", "whole numbers"),
        ("99999999999999999999 1", "whole numbers"),
        ("nan", "whole numbers"),
        ("1 0", "length 0 is below 1"),
        ("3 -2", "length -2 is below 1"),
        ("0 2", "start 0 is below 1"),
        ("-4 2", "start -4 is below 1"),
        ("1 3 3 1", "overlap"),
        ("2 2 2 2", "not sorted"),
        ("4 1 1 1", "not sorted"),
        ("6 2", "past the last of 6 pixels (3x2)"),
        ("7 1", "past the last"),
        ("2 9223372036854775807", "past the last"),
        ("1 9223372036854775807 3 1", "overlap"),
    ],
)
def test_a_reason_for_what_is_no_mask(runs, reason):
    with pytest.raises(ValueError) as caught:
        rle.decode(runs, (2, 3))
    assert reason in str(caught.value)


def test_the_last_pixel():
    assert rle.decode("409600 1", (256, 1600))[-1, -1] == 1
    with pytest.raises(ValueError, match="past"):
        rle.decode("409600 2", (256, 1600))
