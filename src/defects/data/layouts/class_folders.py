"""A folder for each kind, one of which is normal: train/{ok_front,def_front}, test/{ok_front,def_front}."""

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.folder_scan import list_folders
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_empty_masks,
    attach_masks,
    make_rows,
    open_folders,
    separate_test,
)
from defects.messages import UserError, shorten_names
from defects.settings import Section


class Settings(Section):
    """Folders below data.root; the test images are labelled by their folders too, or there are none."""

    train: str = "train"
    test: str | None = "test"
    normal: str = "good"  # the folder of normal images in each of the two


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root; masks may lie among the images. Test images: see data.use_test_as."""
    root = resolve(data.root)
    settings = data.class_folders
    folders = []
    splits = []
    for split, name in (("train", settings.train), ("test", settings.test)):
        if name is None:
            continue
        kinds = list_folders(root / name)
        if settings.normal not in [path.name for path in kinds]:
            content = shorten_names(path.name for path in kinds) or "no folders"
            raise UserError(
                f"{root / name} lacks the folder {settings.normal} of normal images, and holds {content}: "
                f"correct data.root or data.class_folders.{split}"
            )
        for path in kinds:
            role = "normal" if path.name == settings.normal else "abnormal"
            folders.append(RoleFolder(role, path, f"data.class_folders.{split}", path.name))
            splits.append(split)
    opened = open_folders(folders)
    notes = MaskNotes(root)
    tables = {}
    for split, folder in zip(splits, opened, strict=True):
        label = int(folder.role == "abnormal")
        table = make_rows(data, folder.images, root, split, label, folder.kind if label else "")
        if label:
            table = attach_masks(data, table, folder, None, notes)
        else:
            table = attach_empty_masks(table, folder, None, notes)
        tables.setdefault(split, []).append(table)
    joined = {split: pd.concat(parts, ignore_index=True) for split, parts in tables.items()}
    images, answers = separate_test(joined, data.use_test_as)
    return Listing(images, answers, folders=opened, notes=notes.lines())
