"""Files of the second stage for people: what the search for siblings decided, and why."""

import numpy as np
import pandas as pd
import pytest

from defects.data.duplicates import SiblingSearch
from defects.data.fold_files import CLOSEST_APART, describe_search, load_search, write_search


def search_of(kind: str) -> SiblingSearch:
    """A search that joined the first of 20 pairs."""
    compared = pd.DataFrame(
        {"i": 0, "j": range(1, 21), "correlation": np.linspace(0.995, 0.1, 20), "flip": "none"}
    )
    return SiblingSearch(compared[:1], 0.97, 0.91, kind, compared, np.linspace(0, 0.9, 50))


@pytest.mark.parametrize(
    ("kind", "stricter", "words"),
    [
        ("apart", None, ["pairs above 0.970 are taken for one object", "correlate up to 0.910"]),
        ("alike", None, ["the images look alike", "split.group_file or split.group_pattern"]),
        ("few", None, ["too few images to tell", "split.group_file or split.group_pattern"]),
        ("apart", 0.995, ["too few for split.folds=2: only pairs above\n      0.9950 are kept together"]),
    ],
)
def test_lines_name_the_threshold_and_the_setting(make_dataset, make_config, kind, stricter, words):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of(kind), stricter)
    text = "\n".join(describe_search(config))
    assert all(part in text for part in words), text


def test_closest_pairs_apart_are_kept_and_joined_ones_are_not(make_dataset, make_config):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of("alike"), None)
    search = load_search(config)
    assert [pair[1] for pair in search["closest_apart"]] == [f"{k}.png" for k in range(2, 2 + CLOSEST_APART)]
    assert sum(search["compared"]) == 20 and sum(search["different"]) == 50


def test_nothing_is_kept_of_a_search_that_is_switched_off(make_dataset, make_config):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of("alike"), None)
    write_search(config, np.array([]), None, None)
    assert load_search(config) is None
    assert "enabled=false" in describe_search(config)[0]
