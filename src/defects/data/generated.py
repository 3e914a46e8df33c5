"""Where generated data sets are written: whole or not at all, their hidden key elsewhere."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from defects.config_schema import DataConfig, resolve
from defects.files import partial, read_json, remove_old_parts, write_json
from defects.messages import UserError
from defects.settings import Section
from defects.stamps import differences, join_differences, settings_but

STAMP = ".generated.json"  # in data.root: the settings


def generate_if_missing(data: DataConfig, what: str, generate: Callable[[Path, Path, Section], None]) -> None:
    """Generate the images with the settings of the layout if data.root is missing.

    `generate` writes to data.root and data.answers. Raises UserError without a place for the answers, and for
    a root that was generated with other settings.
    """
    root = resolve(data.root)
    settings = getattr(data, data.source)
    stamp = {"settings": settings_but(settings, set(), f"data.{data.source}."), "files": {}}
    if not root.exists():
        if data.answers is None:
            raise UserError(f"data.answers is missing: {what} need a file for their hidden answer key")
        print(f"generating {what} in {root}")
        generate(root, resolve(data.answers), settings)
        write_json(root / STAMP, stamp)
    elif (root / STAMP).exists():
        changes = differences(read_json(root / STAMP), stamp)
        if changes:
            raise UserError(
                f"{root} was generated otherwise ({join_differences(changes)}): delete it, or name another "
                "data.root"
            )


@contextmanager
def new_data_set(root: Path, answers: Path) -> Iterator[tuple[Path, Path]]:
    """Paths to write the data and the key to; they become `root` and `answers` at the very end.

    So `root` is either absent or complete, and where it is, so is the key. Raises UserError if `root` exists,
    or would hold the key.
    """
    root = root.absolute()
    answers = answers.absolute()
    if root.exists():
        raise UserError(f"{root} already exists: delete it to generate the data again")
    if root in answers.parents:
        raise UserError(f"{answers} lies inside the data folder {root}: keep the hidden key outside it")
    answers.parent.mkdir(parents=True, exist_ok=True)
    remove_old_parts(root.parent)  # of a generation that was killed
    with partial(root) as staging:
        data_folder = staging / "data"
        key_file = staging / "key.csv"
        staging.mkdir()
        yield data_folder, key_file
        shutil.move(key_file, answers)  # may lie on another disk, where a rename fails
        data_folder.rename(root)
