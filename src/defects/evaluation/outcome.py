"""The answer key of the test images, and what a submission scores by it.

Read by src/evaluate.py and `src/compare.py --test` alone.
"""

import pandas as pd

from defects.config_schema import Config, resolve
from defects.data.rle import read_annotations
from defects.data.user_tables import match_ids, read_user_table
from defects.evaluation.metrics import macro_f1, rank_metrics, share_weights
from defects.evaluation.thresholds import best_threshold
from defects.files import same_text
from defects.messages import UserError, shorten_names

ANSWER_COLUMNS = ["image_id", "label", "mask_path"]


def load_answers(config: Config, images: pd.DataFrame) -> pd.DataFrame:
    """image_id, label, mask_path ("" where unknown), from data.answers or the source's own key.

    `images` is images.csv. A key with masks of several classes tells whether there is any defect. Raises
    UserError when there is no key, or one without ids and labels.
    """
    path = resolve(config.data.answers) if config.data.answers else config.dataset_dir / "answers.csv"
    if not path.exists():
        raise UserError(f"{path} does not exist: name the answer key with --set data.answers=FILE")
    test_ids = set(images.loc[images["split"] == "test", "image_id"])
    if config.data.classes:
        runs = read_annotations(path, config.data.classes, test_ids, config.data.unlisted_classes)
        label = (runs["runs"] != "").groupby(runs["image_id"]).any().astype(int)
        return label.rename("label").reset_index().assign(mask_path="")
    table = read_user_table(path, ["ImageId", "answer", *ANSWER_COLUMNS])
    columns = shorten_names(table.columns)
    table = table.rename(columns={"ImageId": "image_id", "answer": "label"})
    if not {"image_id", "label"} <= set(table.columns):
        raise UserError(f"{path} has the columns {columns}; expected ImageId, answer")
    label = pd.to_numeric(table["label"], errors="coerce")
    wrong = ~label.isin([0, 1])
    if wrong.any():
        row = wrong.idxmax()
        answer = table["label"][row]
        raise UserError(f"{path}: row {row + 2}: the answer {answer!r} is neither 0 nor 1: correct it")
    ids = table["image_id"].map(same_text)
    matched = match_ids(ids, test_ids, str(path))
    masks = table.get("mask_path", pd.Series("", table.index))
    ids = ids.map(lambda name: matched.get(name, name))
    answers = pd.DataFrame({"image_id": ids, "label": label.astype(int), "mask_path": masks})
    answers = answers.drop_duplicates(ignore_index=True)
    repeated = answers.loc[answers["image_id"].duplicated(), "image_id"]
    if len(repeated):
        raise UserError(
            f"{path} gives several answers for {shorten_names(repeated.unique())}: keep one of each"
        )
    return answers


def outcome(table: pd.DataFrame, training_share: float) -> dict[str, float | None]:
    """Figures of `table` (label, answer, score), one row per test image.

    macro-F1 depends on the share of defects, so it is also given with the test images weighted to
    `training_share`: only that one compares with the out-of-fold estimate. None without training defects.
    """
    labels = table["label"].to_numpy(dtype=int)
    answers = table["answer"].to_numpy(dtype=int)
    scores = table["score"].to_numpy()
    weights = share_weights(labels, training_share)
    return {
        "macro_f1": macro_f1(labels, answers),
        "macro_f1_at_training_share": macro_f1(labels, answers, weights) if training_share else None,
        "macro_f1_best_threshold": best_threshold(labels, scores)[1],
        **rank_metrics(labels, scores),
        "defect_share": float(labels.mean()),
        "training_share": training_share,
    }
