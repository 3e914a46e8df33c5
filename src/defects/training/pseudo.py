"""Pseudo-labels from test scores of trained experiments; data/pseudo.py says what keeps them leak-free."""

import pandas as pd
from scipy.special import expit

from defects.config import Config
from defects.data.pseudo import agreed, refuse_classes, without_siblings
from defects.data.split import FULL, fold_names
from defects.errors import UserError
from defects.scoring.blending import experiment_scores
from defects.training.inference import load_test
from defects.training.run import load_oof


def pseudo_labels(members: list[Config], positive: float, negative: float) -> pd.DataFrame:
    """image_id, fold, label, agreement, group of the test images that all members are sure of.

    Every member answers `positive` or more, or all answer `negative` or less: for fold k by its model of fold
    k alone, for the full fit, which promises nothing, by the average of its folds. Raises UserError unless
    each member is trained and scored on all folds.
    """
    refuse_classes(members[0])
    scored = [_probabilities(member) for member in members]
    folds = [agreed(pd.concat(columns, axis=1), positive, negative) for columns in zip(*scored, strict=True)]
    names = fold_names(members[0])
    table = pd.concat([part.assign(fold=fold) for fold, part in zip(names, folds, strict=True)])
    return without_siblings(members[0], table.reset_index(drop=True))


def _probabilities(member: Config) -> list[pd.Series]:
    """By image_id: of the model of each fold, in order, and last of all of their average."""
    oof, test = load_oof(member), load_test(member)
    wanted = fold_names(member)[:-1]
    missing = sorted(set(wanted) - set(test["fold"]))
    if missing:
        raise UserError(
            f"{member.experiment} has no test scores of fold {', '.join(missing)}: run src/train.py "
            "--fold all and src/infer.py first"
        )
    test = test[test["fold"] != FULL]
    # A model's own probability: the scale common to all folds would be made from the others too.
    single = test.pivot(index="image_id", columns="fold", values="probability")
    return [*(single[fold] for fold in wanted), expit(experiment_scores(oof, test)[1])]
