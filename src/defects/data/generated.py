"""Where generated data sets are written: whole or not at all, their hidden key elsewhere."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from defects.errors import UserError


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
    root.parent.mkdir(parents=True, exist_ok=True)
    answers.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as staging:
        made, key = Path(staging) / "data", Path(staging) / "key.csv"
        yield made, key
        shutil.move(key, answers)  # may lie on another disk, where a rename fails
        made.rename(root)
