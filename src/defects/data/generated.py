"""Where generated data sets are written: whole or not at all, their hidden key elsewhere."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from defects.errors import UserError
from defects.writing import partial


@contextmanager
def new_data_set(root: Path, answers: Path) -> Iterator[tuple[Path, Path]]:
    """Paths to write the data and the key to; they become `root` and `answers` at the very end.

    So `root` is either absent or complete, and where it is, so is the key. Raises UserError if `root` exists,
    or would hold the key.
    """
    root, answers = root.absolute(), answers.absolute()
    if root.exists():
        raise UserError(f"{root} already exists: delete it to generate the data again")
    if root in answers.parents:
        raise UserError(f"{answers} lies inside the data folder {root}: keep the hidden key outside it")
    answers.parent.mkdir(parents=True, exist_ok=True)
    with partial(root) as staging:
        made, key = staging / "data", staging / "key.csv"
        staging.mkdir()
        yield made, key
        shutil.move(key, answers)  # may lie on another disk, where a rename fails
        made.rename(root)
