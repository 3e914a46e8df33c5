"""submissions/ledger.csv: every submission that was sent, with its expected score and the score obtained."""

from pathlib import Path

import pandas as pd

from defects.files import write_csv
from defects.messages import UserError

COLUMNS = [
    "date",  # UTC
    "competition",
    "tag",  # hash of what was sent, also in the description on Kaggle
    "file",
    "sha256",
    "options",  # of `kaggle competitions submit`
    "experiments",
    "metric",  # macro-F1, or Dice for masks; this and the next seven as in the Decision
    "expected_score",
    "interval_low",  # of 90 %
    "interval_high",
    "share",  # of defects that the expected score is for
    "prior",  # train: the out-of-fold images have this share; estimated: the test images, by their scores
    "rule",
    "threshold",
    "ref",  # Kaggle's number
    "status",  # sending: Kaggle was called, and whether it took the file was not learnt yet
    "public_score",
    "private_score",
]


def record(path: Path, row: dict) -> None:
    """Put `row` over the one with its competition and tag, or at the end."""
    table, same = _look_up(path, row)
    known = table[same].iloc[0].to_dict() if same.any() else {}
    merged = pd.DataFrame([known | row], columns=COLUMNS)
    write_csv(path, pd.concat([table[~same], merged], ignore_index=True))


def forget(path: Path, row: dict) -> None:
    """Take out the row with the competition and tag of `row`: it never arrived."""
    table, same = _look_up(path, row)
    write_csv(path, table[~same])


def _look_up(path: Path, row: dict) -> tuple[pd.DataFrame, pd.Series]:
    """The table, and where it has the competition and tag of `row`."""
    table = pd.DataFrame(columns=COLUMNS)
    try:
        if path.exists():
            table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a tag may look like a number
        return table, (table["competition"] == row["competition"]) & (table["tag"] == row["tag"])
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no ledger of this program ({reason}): move it away") from None
