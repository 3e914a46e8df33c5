"""submissions/ledger.csv: every submission that was sent, with what was promised and what came of it."""

from pathlib import Path

import pandas as pd

from defects.errors import UserError
from defects.files import write_csv

COLUMNS = [
    "date",  # UTC
    "competition",
    "tag",  # hash of what was sent, also in the description on Kaggle
    "file",
    "sha256",
    "notebook",  # owner/slug/version
    "experiments",
    "nested_macro_f1",
    "interval_low",
    "interval_high",
    "threshold",
    "ref",  # Kaggle's number
    "status",  # sending: Kaggle was called, and whether it took the file was not learnt yet
    "public_score",
    "private_score",
]


def record(path: Path, row: dict) -> None:
    """Put `row` in place of the one with its competition and tag, or at the end."""
    others = _without(path, row)
    write_csv(path, pd.concat([others, pd.DataFrame([row], columns=COLUMNS)], ignore_index=True))


def forget(path: Path, row: dict) -> None:
    """Take out the row with the competition and tag of `row`: it never arrived."""
    write_csv(path, _without(path, row))


def _without(path: Path, row: dict) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a tag may look like a number
        same = (table["competition"] == row["competition"]) & (table["tag"] == row["tag"])
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no ledger of this program ({reason}): move it away") from None
    return table[~same]
