"""The answer key of the test images, read by src/evaluate.py and `src/compare.py --test` alone."""

import pandas as pd

from defects.config import Config, resolve
from defects.data.rle_table import read_rle_table
from defects.errors import UserError
from defects.files import read_csv, same_text


def load_answers(config: Config) -> pd.DataFrame:
    """image_id, label, mask_path ("" where unknown), from data.answers or the source's own key.

    A key with masks of several classes tells whether there is any defect. Raises UserError when there is no
    key, or one without ids and labels.
    """
    path = resolve(config.data.answers) if config.data.answers else config.dataset_dir / "answers.csv"
    if not path.exists():
        raise UserError(f"{path} does not exist: name the answer key with --set data.answers=FILE")
    if config.data.classes:
        runs = read_rle_table(path, config.data.classes)
        label = (runs["runs"] != "").groupby(runs["image_id"]).any().astype(int)
        return label.rename("label").reset_index().assign(mask_path="")
    table = read_csv(path, [], "the data set's source").rename(
        columns={"ImageId": "image_id", "answer": "label"}
    )
    if not {"image_id", "label"} <= set(table.columns):
        raise UserError(f"{path} has the columns {', '.join(table.columns)}; expected ImageId, answer")
    masks = table.get("mask_path", pd.Series("", table.index))
    return table[["image_id", "label"]].assign(image_id=table["image_id"].map(same_text), mask_path=masks)
