"""Which images of a data set annotations mean, and what that says of their labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from defects.config_schema import DataConfig
from defects.data.annotations.shapes import AnnotatedImage, Annotations
from defects.data.rle import find_class
from defects.data.user_tables import match_ids, without_image_suffix
from defects.messages import UserError, shorten_names


@dataclass
class Marks:
    """`of_image`: what annotations say of each training image that they name, by image_id.

    Where data.classes names classes, these stand in place of the tool's categories. `categories`: how many
    shapes of each there are, as the tool names them.
    """

    annotations: Annotations
    of_image: dict[str, list[AnnotatedImage]]
    categories: Counter[str] = field(default_factory=Counter)

    def find_categories(self, image_id: str) -> set[str]:
        return {shape.category for entry in self.of_image.get(image_id, []) for shape in entry.shapes}

    def has_shapes(self, image_id: str) -> bool:
        return any(entry.shapes for entry in self.of_image.get(image_id, []))


def label_by_annotations(
    data: DataConfig, tables: dict[str, pd.DataFrame], annotations: Annotations
) -> tuple[dict[str, pd.DataFrame], Marks, list[str]]:
    """The tables by role with what annotations tell, the marks, and notes for the inventory.

    The rows of `annotated` get their labels; those that are unknown are left out. Raises UserError if no
    image is meant at all, for unlisted classes, and for defective images without a mark.
    """
    notes = list(annotations.notes)
    marks = _find_marks(tables, annotations, notes)
    dropped: set[str] = set()
    if data.classes:
        marks, dropped = _with_classes_only(data, marks, notes)
    elif len(marks.categories) > 1:
        names = shorten_names(name or "without name" for name in sorted(marks.categories))
        notes.append(f"the categories {names} count as one, `defect`: data.classes tells them apart")
    labelled = {}
    for role, table in tables.items():
        table = table[~table["image_id"].isin(dropped)].reset_index(drop=True)
        if role == "annotated":
            table = _label_table(table, marks, notes)
        if role == "abnormal":
            _check_marked(data, table, marks, notes)
        if role != "test":
            table = table.assign(kind=_kinds(data, table, marks))
        labelled[role] = table
    return labelled, marks, notes


def _find_marks(tables: dict[str, pd.DataFrame], annotations: Annotations, notes: list[str]) -> Marks:
    """What the annotations say of the training images. Raises UserError if they mean no image at all."""
    path = annotations.path
    order = [role for role in ("annotated", "abnormal", "normal", "test") if role in tables]
    ids = [tables[role]["image_id"].tolist() for role in order]
    of_image, unmatched = match_annotations(annotations, ids)
    if not of_image:
        names = shorten_names(entry.names[-1] for entry in annotations.images)
        if not names:
            reasons = "; ".join(["annotates no image", *notes])
            raise UserError(f"{path} {reasons}: annotate images, and export it again")
        raise UserError(f"{path} names {names}, which is no image here: correct it or data.root")
    if unmatched:
        names = shorten_names(entry.names[-1] for entry in unmatched)
        notes.append(f"{path} has annotations of {len(unmatched)} images that are not here: {names}")
    test_ids = set(tables["test"]["image_id"]) if "test" in tables else set()
    in_test = sorted(test_ids & of_image.keys())
    if in_test:
        names = shorten_names(in_test)
        notes.append(f"{len(in_test)} annotated images are test images: their marks are left out: {names}")
    several = [key for key, entries in of_image.items() if len(entries) > 1]
    if several:
        names = shorten_names(sorted(several))
        notes.append(f"{len(several)} images are named more than once, their marks are united: {names}")
    if not annotations.shapes:
        notes.append(
            f"{path} marks no defect: all images that it names count as normal; if there are marks, export "
            "them with it"
        )
    marks = Marks(annotations, {key: entries for key, entries in of_image.items() if key not in test_ids})
    for entries in marks.of_image.values():
        for entry in entries:
            marks.categories.update(shape.category for shape in entry.shapes)
    return marks


def match_annotations(
    annotations: Annotations, groups: Sequence[Sequence[str]]
) -> tuple[dict[str, list[AnnotatedImage]], list[AnnotatedImage]]:
    """What is said of each image id of `groups`, and annotations that fit none.

    A name that is the whole id counts first, whatever its suffix. Others, such as a file name alone, mean an
    image of the earliest group that has one. Raises UserError for a name that fits several images of a group.
    """
    ids_by_path: dict[str, list[str]] = {}
    for ids in groups:
        for image_id in ids:
            ids_by_path.setdefault(without_image_suffix(image_id).casefold(), []).append(image_id)
    of_image: dict[str, list[AnnotatedImage]] = {}
    waiting = []
    for entry in annotations.images:
        same = [image_id for name in entry.names for image_id in _same_path(name, ids_by_path)]
        if same:
            of_image.setdefault(same[0], []).append(entry)
        else:
            waiting.append(entry)
    most_names = max((len(entry.names) for entry in waiting), default=0)
    for ids in groups:
        for place in range(most_names):
            free_ids = [image_id for image_id in ids if image_id not in of_image]
            names = [entry.names[min(place, len(entry.names) - 1)] for entry in waiting]
            matched = match_ids(names, free_ids, str(annotations.path))
            still_waiting = []
            for name, entry in zip(names, waiting, strict=True):
                if name in matched:
                    of_image.setdefault(matched[name], []).append(entry)
                else:
                    still_waiting.append(entry)
            waiting = still_waiting
    return of_image, waiting


def _same_path(name: str, ids_by_path: dict[str, list[str]]) -> list[str]:
    """Ids that are `name`, or `name` with another suffix or case if there is one alone."""
    candidates = ids_by_path.get(without_image_suffix(name).casefold(), [])
    return [name] if name in candidates else candidates if len(candidates) == 1 else []


def _with_classes_only(data: DataConfig, marks: Marks, notes: list[str]) -> tuple[Marks, set[str]]:
    """Classes in place of categories; and images that have defects of unlisted classes alone.

    Raises UserError for unlisted ones unless data.unlisted_classes drops them.
    """
    path = marks.annotations.path
    classes = {category: find_class(category, data.classes) for category in marks.categories}
    unlisted = sorted(category for category, name in classes.items() if name not in data.classes)
    if unlisted and data.unlisted_classes == "error":
        names = shorten_names(repr(name) for name in unlisted)
        raise UserError(
            f"{path} has the categories {names}, which data.classes ({shorten_names(data.classes)}) lacks: "
            "add them there, or leave them out with data.unlisted_classes=drop"
        )
    of_image = {}
    dropped = set()
    for image_id, entries in marks.of_image.items():
        listed = []
        for entry in entries:
            shapes = [shape for shape in entry.shapes if classes[shape.category] in data.classes]
            shapes = [replace(shape, category=classes[shape.category]) for shape in shapes]
            listed.append(replace(entry, shapes=shapes))
        of_image[image_id] = listed
        if marks.has_shapes(image_id) and not any(entry.shapes for entry in listed):
            dropped.add(image_id)
    if unlisted:
        count = sum(marks.categories[category] for category in unlisted)
        notes.append(
            f"{count} marks of {shorten_names(unlisted)}, which data.classes does not list, are left out, "
            f"and {len(dropped)} images with no other defects"
        )
    absent = [name for name in data.classes if name not in classes.values()]
    if absent:
        notes.append(f"no training image has a defect of class {shorten_names(absent)}")
    return replace(marks, of_image=of_image), dropped


def _label_table(table: pd.DataFrame, marks: Marks, notes: list[str]) -> pd.DataFrame:
    """Images with a mark are defective, others that are named are normal; see Annotations.lists_normal."""
    path = marks.annotations.path
    is_named = table["image_id"].isin(marks.of_image.keys())
    unnamed = table.loc[~is_named, "path"]
    if len(unnamed) and marks.annotations.lists_normal:
        notes.append(
            f"{len(unnamed)} images are not named in {path}, and are left out, since nobody may have looked "
            f"at them: {shorten_names(unnamed)}"
        )
        table = table[is_named].reset_index(drop=True)
    elif len(unnamed):
        notes.append(
            f"{len(unnamed)} images are not named in {path}, and count as normal: {shorten_names(unnamed)}"
        )
    labels = [int(marks.has_shapes(image_id)) for image_id in table["image_id"]]
    return table.assign(label=pd.array(labels, "Int64"))


def _check_marked(data: DataConfig, table: pd.DataFrame, marks: Marks, notes: list[str]) -> None:
    """Raises UserError for abnormal images without a mark, which data.bad_masks=drop allows for one class."""
    has_mark = [marks.has_shapes(image_id) for image_id in table["image_id"]]
    missing = table.loc[[not is_marked for is_marked in has_mark], "path"]
    if missing.empty:
        return
    if data.classes:
        raise UserError(
            f"{marks.annotations.path} marks nothing in {shorten_names(missing)}: annotate or remove them"
        )
    if data.bad_masks == "error":
        raise UserError(
            f"{marks.annotations.path} marks nothing in {shorten_names(missing)}: annotate them, or set "
            "data.bad_masks=drop to do without"
        )
    notes.append(f"{len(missing)} abnormal images have no annotation: {shorten_names(missing)}")


def _kinds(data: DataConfig, table: pd.DataFrame, marks: Marks) -> list[str]:
    """The classes, or the tool's categories if there are several, of each image, joined by `+`."""
    if not data.classes and len(marks.categories) < 2:
        return [""] * len(table)
    kinds = []
    for image_id, label in zip(table["image_id"], table["label"], strict=True):
        names = marks.find_categories(image_id) - {""}
        order = [name for name in data.classes if name in names] if data.classes else sorted(names)
        kinds.append("+".join(order) if label == 1 else "")
    return kinds
