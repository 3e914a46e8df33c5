"""ELPV as it is downloaded, images/ and labels.csv, or brought into the defect/normal layout.

https://github.com/zae-bayern/elpv-dataset. A row of labels.csv is `images/cell0001.png  1.0  mono`: image,
probability of a defect (0, 1/3, 2/3 or 1), kind of cell.
"""

from pathlib import Path

import pandas as pd

from defects.config_schema import DataConfig, resolve
from defects.data.layouts import defect_normal
from defects.data.listing import Listing, MaskNotes, RoleFolder, leave_out_masks, make_rows, open_folders
from defects.data.user_tables import match_ids
from defects.messages import UserError, shorten_names

LABELS_FILE = "labels.csv"
REPOSITORY_FOLDER = "src/elpv_dataset/data"  # where the images lie in a clone of the repository
DEFECTIVE_FROM = 0.5  # probability, as in Deitsch et al. 2019


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root; `kind` of a defect is that of the cell, mono or poly.

    Raises UserError for rows that cannot be read, and for images that labels.csv does not list.
    """
    root = resolve(data.root)
    if (root / "train").is_dir():
        return defect_normal.list_data(data)
    folder = root
    if not (root / LABELS_FILE).is_file() and (root / REPOSITORY_FOLDER / LABELS_FILE).is_file():
        folder = root / REPOSITORY_FOLDER
    opened = open_folders([RoleFolder("annotated", folder / "images", "images")])
    mask_notes = MaskNotes(root)
    leave_out_masks(opened[0], mask_notes)
    table = make_rows(data, opened[0].images, root, "train", None)
    labels_file = folder / LABELS_FILE
    labels = _read_labels(labels_file)
    matched = match_ids(labels.index, table["image_id"], str(labels_file))
    labels_of = labels.rename(index=matched)
    unlisted = table.loc[~table["image_id"].isin(labels_of.index), "image_id"]
    if len(unlisted):
        raise UserError(f"{labels_file} does not list {shorten_names(unlisted)}: copy the whole file")
    notes = mask_notes.lines()
    missing = sorted(set(labels.index) - matched.keys())
    if missing:
        notes.append(f"{len(missing)} images of {LABELS_FILE} are not here: {shorten_names(missing)}")
    rows = labels_of.loc[table["image_id"]]
    is_defective = (rows["probability"] >= DEFECTIVE_FROM).to_numpy()
    is_doubtful = ~rows["probability"].isin([0.0, 1.0]).to_numpy()
    if is_doubtful.any():
        notes.append(
            f"{int(is_doubtful.sum())} cells are neither surely intact nor surely defective, and count as "
            f"defective from a probability of {DEFECTIVE_FROM} on"
        )
    kinds = rows["kind"].where(is_defective, "").to_numpy()
    images = table.assign(label=pd.array(is_defective.astype(int), "Int64"), kind=kinds)
    return Listing(images, folders=opened, notes=notes)


def _read_labels(path: Path) -> pd.DataFrame:
    """`probability` and `kind` by image."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: put the file there, or change data.root") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from None
    rows = {}
    for number, line in enumerate(text.splitlines(), start=1):
        values = line.replace(",", " ").split()
        if not values:
            continue
        try:
            image, probability, kind = values
            rows[image] = (float(probability), kind)
        except ValueError:
            raise UserError(
                f"{path}: line {number} is {line.strip()[:60]!r}; expected image, probability, kind of cell"
            ) from None
        if not 0 <= rows[image][0] <= 1:
            raise UserError(f"{path}: line {number} has the probability {probability}: write 0 to 1")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["probability", "kind"])
