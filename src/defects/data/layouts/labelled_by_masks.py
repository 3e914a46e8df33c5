"""Folders of images with masks among them or in a sub-folder: an image is defective if a mask marks a pixel.

KolektorSDD: kos01/Part0.jpg with Part0_label.bmp, and KolektorSDD2: train/10000.png with 10000_GT.png, where
normal images have black masks; DAGM 2007: Class1/Train/0576.PNG with Train/Label/0576_label.PNG, where they
have none.
"""

from pathlib import Path

from defects.config_schema import DataConfig, resolve
from defects.data.bounded_memory import in_threads
from defects.data.folder_scan import list_categories
from defects.data.labels import split_masks
from defects.data.listing import (
    Listing,
    MaskNotes,
    RoleFolder,
    attach_empty_masks,
    make_rows,
    open_folders,
    separate_test,
)
from defects.data.mask_files import read_mask
from defects.messages import UserError, shorten_names
from defects.settings import Section

COPY_MARK = "(copy)"  # KolektorSDD2 holds one image twice, with its mask


class Settings(Section):
    """Folders below data.root; `.` is data.root itself. The test images are labelled, or there are none."""

    train: str = "train"
    test: str | None = None


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root. Test images are labelled: see data.use_test_as."""
    root = resolve(data.root)
    settings = data.labelled_by_masks
    names = {"train": settings.train, "test": settings.test}
    categories = list_categories(root)
    if categories and not (root / settings.train).is_dir():
        raise UserError(
            f"{root} holds several categories: name one with --category ({shorten_names(categories)})"
        )
    folders = []
    splits = []
    for split, name in names.items():
        if name is not None:
            folders.append(RoleFolder("annotated", root / name, f"data.labelled_by_masks.{split}"))
            splits.append(split)
    opened = open_folders(folders)
    notes = MaskNotes(root)
    tables = {}
    copies = []
    for split, folder in zip(splits, opened, strict=True):
        table = make_rows(data, folder.images, root, split, None)
        table = attach_empty_masks(table, folder, None, notes)
        is_copy = table["path"].str.contains(COPY_MARK, regex=False)
        copies += table.loc[is_copy, "path"].tolist()
        tables[split] = table[~is_copy].reset_index(drop=True)
    lines = _describe_masks(notes, root)
    if copies:
        lines.append(f"{len(copies)} files are named as copies, and are left out: {shorten_names(copies)}")
    for split, table in tables.items():
        is_marked = list(
            in_threads(_marks_any, [root] * len(table), table["mask_path"], text="reading masks")
        )
        mask_paths = [
            path if marked else "" for path, marked in zip(table["mask_path"], is_marked, strict=True)
        ]
        labelled = table.assign(label=is_marked, mask_path=mask_paths)
        tables[split] = labelled.astype({"label": "Int64"})
    if not any(table["label"].eq(1).any() for table in tables.values()):
        raise UserError(f"{root}: no mask marks anything: put the masks beside their images")
    images, answers = separate_test(tables, data.use_test_as)
    return Listing(images, answers, folders=opened, notes=lines)


def _describe_masks(notes: MaskNotes, root: Path) -> list[str]:
    """That masks lie among the images is meant so, and no news."""
    return MaskNotes(root, unmatched=notes.unmatched, united=notes.united).lines()


def _marks_any(root: Path, mask_path: str) -> bool:
    return any(bool(read_mask(root / path).any()) for path in split_masks(mask_path)[0])
