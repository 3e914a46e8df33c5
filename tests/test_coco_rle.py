"""Run-length masks of COCO. The strings were written by pycocotools 2.0.11."""

import numpy as np
import pytest

from defects.data.annotations.coco_rle import decompress_counts, runs_of_counts
from defects.data.rle import decode


def test_decompress_counts_of_a_mask_with_a_hole():
    mask = np.zeros((6, 7), np.uint8)
    mask[1:4, 2:5] = 1
    mask[2, 3] = 0
    counts = decompress_counts("=33NN022;")
    assert np.array_equal(decode(runs_of_counts(counts, (6, 7)), (6, 7)), mask)


def test_decompress_counts_of_large_numbers():
    mask = np.zeros((300, 400), np.uint8)
    mask[100:250, 50:333] = 1
    text = "lg>f4f4" + 281 * "00" + "0Pac0"
    counts = decompress_counts(text)
    assert np.array_equal(decode(runs_of_counts(counts, (300, 400)), (300, 400)), mask)


def test_runs_of_counts_of_an_image_that_begins_with_a_defect():
    assert runs_of_counts([0, 3, 9], (3, 4)) == "1 3"


def test_runs_of_counts_of_an_empty_mask():
    assert runs_of_counts([12], (3, 4)) == ""


@pytest.mark.parametrize("text", ["a", "=33~", "=3 3"])
def test_decompress_counts_refuses_other_text(text):
    with pytest.raises(ValueError, match="compressed mask"):
        decompress_counts(text)


@pytest.mark.parametrize("counts", [[5, 3], [-1, 13], [True, 11], ["5", 7], [10**30, 2]])
def test_runs_of_counts_refuses_what_does_not_fill_the_image(counts):
    with pytest.raises(ValueError, match="whole numbers|pixels in place of 12"):
        runs_of_counts(counts, (3, 4))
