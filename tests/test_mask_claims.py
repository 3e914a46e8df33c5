"""What may be claimed of masks, from their Dice out of fold."""

import pandas as pd

from defects.config import load_config
from defects.config_schema import ROOT
from defects.submission.mask_claims import state_mask_claims


def state(rows, is_nested=True):
    """Claims of masks of the classes 1 and 2 on images a, b, c, d; rows: image_id, target, dice, empty."""
    scored = pd.DataFrame(rows, columns=["image_id", "target", "dice", "empty"])
    has_defect = 1 - scored.groupby("image_id")["empty"].min().astype(int)
    folds = ["0", "1", "0", "1"]
    of_images = pd.DataFrame({"label": has_defect, "fold": folds, "group": range(4)})
    config = load_config(ROOT / "configs" / "severstal.yaml", ["data.classes=[1, 2]"])
    return state_mask_claims(config, scored, of_images, is_nested)


ROWS = [
    ("a", "1", 0.7, False),
    ("a", "2", 1.0, True),
    ("b", "1", 0.0, False),  # nothing of it is marked,
    ("b", "2", 0.0, True),  # but a class that is not there
    ("c", "1", 1.0, True),
    ("c", "2", 0.0, False),
    ("d", "1", 1.0, True),
    ("d", "2", 1.0, True),
]


def test_mask_claims_count_what_is_not_marked_and_what_is_marked_wrongly():
    claims = state(ROWS)
    assert (claims.escape.errors, claims.escape.images) == (1, 3)  # c: b is rejected, for another class
    assert (claims.false_alarm.errors, claims.false_alarm.images) == (0, 1)
    assert (claims.by_class["1"].escape.errors, claims.by_class["1"].escape.images) == (1, 2)
    assert (claims.by_class["2"].false_alarm.errors, claims.by_class["2"].false_alarm.images) == (1, 3)
    assert claims.sentence.startswith("with these masks, with 95 % confidence")


def test_mask_claims_are_refused_for_a_single_fold():
    assert state(ROWS, is_nested=False).refusal.startswith("only one fold is trained")
