"""GC10-DET as it is downloaded: folders 1 to 10 of images, `lable` of Pascal VOC boxes.

https://github.com/lvxiaoming2019/GC10-DET-Metallic-Surface-Defect-Datasets. Some file names stand in several
folders, and a box names its image by the file name alone: of equal pictures one is taken, different ones are
left out.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from defects.config_schema import DataConfig, resolve
from defects.data.annotations import load_annotations
from defects.data.annotations.matching import label_by_annotations
from defects.data.annotations.shapes import Annotations
from defects.data.folder_scan import list_folders
from defects.data.listing import Listing, MaskNotes, RoleFolder, leave_out_masks, make_rows, open_folders
from defects.files import sha256
from defects.messages import UserError, shorten_names

MISSPELT = {"10_yaozhed": "10_yaozhe"}  # of one class, in some of the files


def list_data(data: DataConfig) -> Listing:
    """Ids are paths below data.root. All images are defective: data.classes tells the kinds apart."""
    root = resolve(data.root)
    if data.annotations is None:
        raise UserError("data.annotations is empty: name the folder of XML files, lable as it is downloaded")
    image_folders = [path for path in list_folders(root) if path.name.isdecimal()]
    if not image_folders:
        raise UserError(
            f"{root} lacks the folders 1 to 10 of images: unpack the data set there, or change data.root"
        )
    opened = open_folders([RoleFolder("annotated", path, path.name) for path in image_folders])
    mask_notes = MaskNotes(root)
    paths = []
    for folder in opened:
        leave_out_masks(folder, mask_notes)
        paths += folder.images
    notes = mask_notes.lines()
    table = make_rows(data, _without_repeated_names(paths, notes), root, "train", None)
    annotations = _correct_names(load_annotations(root / data.annotations.expanduser(), "voc"))
    tables, marks, annotation_notes = label_by_annotations(data, {"annotated": table}, annotations)
    return Listing(tables["annotated"], marks=marks, folders=opened, notes=notes + annotation_notes)


def _without_repeated_names(paths: list[Path], notes: list[str]) -> list[Path]:
    """The images that a file name means without doubt; what is left out goes to `notes`."""
    same_name = defaultdict(list)
    for path in paths:
        same_name[path.stem].append(path)
    remaining = []
    copies = []
    unclear = []
    for group in same_name.values():
        if len({sha256(path) for path in group} if len(group) > 1 else group) == 1:
            remaining.append(group[0])
            copies += group[1:]
        else:
            unclear += group
    for files, what in (
        (copies, "copies"),
        (unclear, "different pictures of one name, whose boxes are unclear,"),
    ):
        if files:
            names = shorten_names(f"{path.parent.name}/{path.name}" for path in files)
            notes.append(f"{len(files)} {what} are left out: {names}")
    return remaining


def _correct_names(annotations: Annotations) -> Annotations:
    images = []
    for image in annotations.images:
        shapes = []
        for shape in image.shapes:
            shapes.append(replace(shape, category=MISSPELT.get(shape.category, shape.category)))
        images.append(replace(image, shapes=shapes))
    return replace(annotations, images=images)
