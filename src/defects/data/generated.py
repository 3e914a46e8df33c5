"""Where generated data sets are written: whole or not at all, their hidden key elsewhere."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from defects.config import resolve
from defects.config_data import DataConfig
from defects.files import partial, read_json, remove_old_parts, write_json
from defects.messages import UserError
from defects.stamps import differences, join_differences, settings_but

STAMP = ".generated.json"  # in data.root: what was asked for


def generate_if_missing(data: DataConfig, section: str, what: str, generate: Callable[..., None]) -> None:
    """Generate the images with the settings of data.<section> if data.root is missing.

    Raises UserError without a place for the answers, and for a root that was generated with other settings.
    """
    root = resolve(data.root)
    settings = getattr(data, section)
    stamp = {"settings": settings_but(settings, set(), f"data.{section}."), "files": {}}
    if not root.exists():
        if data.answers is None:
            raise UserError(f"data.answers is missing: {what} need a file for their hidden answer key")
        print(f"generating {what} in {root}")
        generate(root, resolve(data.answers), **settings.model_dump())
        write_json(root / STAMP, stamp)
        return
    if (root / STAMP).exists():
        found = differences(read_json(root / STAMP), stamp)
        if found:
            raise UserError(
                f"{root} was generated otherwise ({join_differences(found)}): delete it, or name another "
                "data.root"
            )


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
    remove_old_parts(root.parent)  # of a generation that was killed
    with partial(root) as staging:
        made, key = staging / "data", staging / "key.csv"
        staging.mkdir()
        yield made, key
        shutil.move(key, answers)  # may lie on another disk, where a rename fails
        made.rename(root)
