"""What may be claimed of submitted masks, from their out-of-fold Dice."""

import pandas as pd

from defects.config_schema import Config
from defects.data.fold_files import read_grouping
from defects.evaluation.acceptance import Predictions, state_claims
from defects.evaluation.adversarial import stored_comparison
from defects.evaluation.claims import Claims

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
        is_marked = (scored["dice"] > 0) != scored["empty"]
        pairs = scored.assign(is_marked=is_marked, is_there=~scored["empty"].astype(bool))
        marked = pairs.pivot(index="image_id", columns="target", values="is_marked")
        there = pairs.pivot(index="image_id", columns="target", values="is_there")
        images = of_images.loc[marked.index]
        nested = marked.any(axis=1).to_numpy(dtype=int)
        for name in config.data.classes:
            by_class[name] = Predictions(there[name].to_numpy(dtype=int), marked[name].to_numpy(dtype=int))
    rows = images.rename_axis("image_id").reset_index()
    grouping = read_grouping(config)
    comparison = stored_comparison(config)
    return state_claims(config.claims, rows, nested, grouping, comparison, by_class, WITH_MASKS)
