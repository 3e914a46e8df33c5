"""Heat maps over small images."""

import numpy as np
import pytest

from defects.evaluation.display_scales import LIMIT_COLOUR
from defects.reports.figures import draw_heat_tile


def test_figures_outline_runs_where_the_map_reaches_the_threshold():
    heat = draw_heat_tile(np.zeros((80, 40, 3), np.uint8), place(8, 4, 6, 1), (0.0, 0.5))
    y, x = np.nonzero((heat == LIMIT_COLOUR).all(axis=2))
    assert (y.min(), y.max(), x.min(), x.max()) == pytest.approx((60, 69, 10, 19), abs=4)


def place(height, width, y, x):
    values = np.zeros((height, width), np.float32)
    values[y, x] = 1
    return values
