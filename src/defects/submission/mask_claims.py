"""What may be claimed of submitted masks, from their out-of-fold Dice."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from defects.config_schema import Config
from defects.data.fold_files import read_grouping
from defects.evaluation.acceptance import Predictions, state_claims
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.claim_records import Claims

WITH_MASKS = "with these masks"  # the condition of the claim


def state_mask_claims(
    config: Config, scored: pd.DataFrame | None, of_images: pd.DataFrame, is_nested: bool
) -> Claims:
    """What may be claimed of masks whose Dice is `scored` (image_id, target, dice, empty) out of fold.

    A defect of a class escapes where none of it is marked (Dice 0); a false alarm is anything marked of a
    class that is not there. An image is rejected where any of this is marked. `of_images`: label, fold, group
    by image_id. Nothing is claimed of a single fold, where `is_nested` is False.
    """
    images = of_images
    by_class = {}
    nested = None
    if is_nested:
        images = of_images.loc[scored["image_id"].drop_duplicates()]
        by_class = list_mask_predictions(scored, images.index, config.data.classes)
        nested = np.max([predictions.predicted for predictions in by_class.values()], axis=0)
    rows = images.rename_axis("image_id").reset_index()
    grouping = read_grouping(config)
    comparison = stored_comparison(config)
    return state_claims(config.claims, rows, nested, grouping, comparison, by_class, WITH_MASKS)


def list_mask_predictions(
    scored: pd.DataFrame, image_ids: Iterable[str], classes: list[str]
) -> dict[str, Predictions]:
    """By class, for these images in their order: whether it is there, and whether it is marked.

    A class that is there counts as marked where the mask meets it (Dice above 0).
    """
    by_class = {}
    for name in classes:
        rows = scored[scored["target"] == name].set_index("image_id").loc[list(image_ids)]
        is_there = ~rows["empty"].to_numpy(dtype=bool)
        is_marked = (rows["dice"].to_numpy() > 0) == is_there
        by_class[name] = Predictions(is_there.astype(int), is_marked.astype(int))
    return by_class
