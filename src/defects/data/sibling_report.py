"""What the search for siblings compared and decided: kept in siblings.json, told in words."""

from typing import Any

import numpy as np
import pandas as pd

from defects.config import Config
from defects.data.duplicates import SiblingSearch
from defects.files import read_json, write_json

NAME = "siblings.json"
EDGES = np.linspace(0, 5, 101)  # of the histograms, in Fisher transforms of correlations
CLOSEST_APART = 12  # pairs not joined that are kept, to be looked at
ADVICE = "name photographs that belong together in split.group_file or split.group_pattern"


def write_search(
    config: Config, ids: np.ndarray, search: SiblingSearch | None, stricter: float | None
) -> None:
    """siblings.json in the data set's folder; none where the search is switched off.

    `ids` [N] are those of the images searched.

    `stricter` is the correlation that pairs needed where all would have left too few groups for the folds.
    """
    path = config.dataset_dir / NAME
    if search is None:
        path.unlink(missing_ok=True)
        return
    joined = pd.MultiIndex.from_frame(search.pairs[["i", "j"]])
    is_joined = pd.MultiIndex.from_frame(search.compared[["i", "j"]]).isin(joined)
    apart = search.compared[~is_joined]
    closest = apart.sort_values("correlation", ascending=False, kind="stable")[:CLOSEST_APART]
    write_json(
        path,
        {
            "kind": search.kind,
            "threshold": search.threshold,
            "chance_level": search.chance_level,
            "stricter": stricter,
            "compared": _histogram(search.compared["correlation"].to_numpy()),
            "different": _histogram(search.different),
            "closest_apart": [
                [str(ids[i]), str(ids[j]), correlation, flip]
                for i, j, correlation, flip in closest[["i", "j", "correlation", "flip"]].to_numpy()
            ],
        },
    )


def load_search(config: Config) -> dict[str, Any] | None:
    """The values of siblings.json, or None where the search is switched off."""
    return read_json(config.dataset_dir / NAME)


def describe_search(config: Config) -> list[str]:
    """How the threshold was found, and notes about what it may have missed."""
    search = load_search(config)
    if search is None:
        return ["split.duplicates.enabled=false: only exact copies are kept together"]
    threshold = show_correlation(search["threshold"])
    chance_level = show_correlation(search["chance_level"])
    if search["kind"] == "few":
        lines = [
            "note: too few images to tell what different objects have in common: only pairs above",
            f"      {threshold} are taken for one object; {ADVICE}",
        ]
    elif search["kind"] == "alike":
        lines = [
            f"note: the images look alike (different objects correlate up to {chance_level}): only pairs",
            f"      that stand out from all others, most above {threshold}, are taken for one object;",
            f"      {ADVICE}",
        ]
    else:
        lines = [
            f"pairs above {threshold} are taken for one object; "
            f"different objects of this set correlate up to {chance_level}"
        ]
    if search["stricter"] is not None:
        lines += [
            f"note: their groups would be too few for split.folds={config.split.folds}: only pairs above",
            f"      {show_correlation(search['stricter'])} are kept together (fewer folds keep more)",
        ]
    return lines


def show_correlation(value: float) -> str:
    """With the more digits, the closer to 1 it is."""
    digits = 2 if value < 0.9 else 3 if value < 0.99 else 4
    return f"{value:.{digits}f}"


def _histogram(correlations: np.ndarray) -> list[int]:
    """Counts between EDGES; what lies outside counts in the first and last one."""
    agreements = np.arctanh(np.clip(correlations, np.tanh(EDGES[0]), np.tanh(EDGES[-1])))
    return np.histogram(np.clip(agreements, EDGES[0], EDGES[-1]), EDGES)[0].tolist()
