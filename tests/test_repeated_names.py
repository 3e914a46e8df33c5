"""Which file names say that several images show one part, and which are ordinary numbering."""

import numpy as np
import pytest

from defects.evaluation.repeated_names import find_repeated_names

ORDINARY = {
    "Roboflow without versions": [f"a{n}_png.rf.{n:032x}.jpg" for n in range(40)],
    "numbers": [f"normal/{number:04d}.png" for number in range(40)],
    "kinds": [f"test/{kind}/{number:03d}.png" for kind in ("crack", "hole") for number in range(20)],
    "kinds in names": [f"{kind}_{number}.png" for kind in ("crack", "hole", "dent") for number in range(5)],
    "a renamed folder": [f"defect ({number}).jpg" for number in range(1, 40)],
    "few cameras": [f"cam{camera}_{number}.png" for camera in (1, 2) for number in range(50)],
    "lots": [f"lot{lot}/{number}.png" for lot in range(9) for number in range(1, 9)],
    "times": [f"IMG_20240501_{90_000 + 37 * number}.jpg" for number in range(40)],
    "random numbers": [f"exp{number % 6}_num_{number * 7919 % 99_991}.jpg" for number in range(40)],
    "hashes": [f"{number * 2_654_435_761 % 2**32:08x}.jpg" for number in range(300)],
    "one copy": [*(f"part{number}.png" for number in range(40)), "part7 (1).png"],
}
REPEATED = {
    "Roboflow's versions": [f"a{n}_png.rf.{3 * n + k:032x}.jpg" for n in range(20) for k in range(3)],
    "flips": [f"p{n}{end}.png" for n in range(20) for end in ("", "_hflip", "_vflip")],
    "copies by Windows in Korean": [f"부품{n:03}{end}.png" for n in range(20) for end in ("", " - 복사본")],
    "counts": [f"part{part:03d}_{count}.png" for part in range(20) for count in range(3)],
    "letters": [f"{part:04d}{letter}.png" for part in range(20) for letter in "ab"],
    "copies": [f"x{part}{suffix}.png" for part in range(20) for suffix in ("", " (1)")],
    "words": [f"x{part}{suffix}.png" for part in range(20) for suffix in ("", " - Copy", " copy 2")],
    "views": [f"part_{part}_{view}.png" for part in range(20) for view in ("left", "right")],
    "rotations": [f"defect_{part}_rot{angle}.png" for part in range(9) for angle in range(0, 360, 15)],
    "pieces": [
        f"panel{part}_r{row}_c{column}.png" for part in range(5) for row in (0, 1) for column in (0, 1)
    ],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_repeated_names_ordinary_numbering_is_none(name):
    image_ids = ORDINARY[name]
    assert find_repeated_names(image_ids, np.arange(len(image_ids))) == []


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_names_of_one_part_are_named(name):
    image_ids = REPEATED[name]
    repeated = find_repeated_names(image_ids, np.arange(len(image_ids)))
    assert len(repeated) > 1
    assert set(repeated) <= set(image_ids)


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_names_say_nothing_where_groups_are_known(name):
    image_ids = REPEATED[name]
    groups = np.arange(len(image_ids))
    first, second, *_ = find_repeated_names(image_ids, groups)
    groups[image_ids.index(second)] = groups[image_ids.index(first)]
    assert find_repeated_names(image_ids, groups) == []
