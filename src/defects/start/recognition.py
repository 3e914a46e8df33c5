"""What a folder of images is: a public data set, sorted folders, images beside annotations, or normal images.

`recognise` reads names of folders and files, and of annotations what they begin with; whether all of it
can be used is for src/prepare.py to say.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defects.data.annotations.annotation_files import find_by_suffix
from defects.data.folder_scan import is_junk, list_categories, list_folders, scan_folder
from defects.data.layouts.mvtec import GOOD_NAMES
from defects.data.mask_matching import split_off_masks
from defects.messages import UserError, shorten_names
from defects.start.annotated import (
    TABLES,
    TEXTS_OF_TOOLS,
    holds_splits_alone,
    list_annotation_files,
    recognise_annotated,
)
from defects.start.contents import (
    Contents,
    Recognised,
    check_has_images,
    check_is_folder,
    only_defects_text,
)
from defects.start.folder_names import names_defect, tell_role

MOST_TABLE_BYTES = 2_000_000  # of a table that may list images, looked into for their names
MVTEC_TEST_LINES = (
    "the labelled test images are learnt from too, since the training images have no defects "
    "(data.use_test_as: test leaves them for a test, as papers do)",
)
COMMUTATOR = re.compile(r"kos\d+")  # a folder of KolektorSDD
THREE_LAYOUTS = (
    "looked for were (1) folders of normal images and of defects, such as good/ and bad/ (and masks/, "
    "test/), (2) train/good and test/<kind>, as in MVTec AD, (3) images beside an export of an annotation "
    "tool (COCO, YOLO, VOC, labelme, Label Studio)"
)


def recognise(folder: Path) -> Recognised:
    """What `folder` holds. Raises UserError, in one line, for what is none or cannot be told."""
    check_is_folder(folder)
    scan = scan_folder(folder)
    check_has_images(scan)
    contents = descend(Contents(folder, scan))
    if tell_role(contents.root) == "abnormal" and contents.own_images and not contents.folders:
        raise UserError(only_defects_text(contents.root))
    recognisers = (
        recognise_public_set,
        recognise_train_and_test,
        recognise_annotated,
        recognise_sorted,
        recognise_masked,
        recognise_normal_alone,
    )
    for recogniser in recognisers:
        recognised = recogniser(contents)
        if recognised is not None:
            return recognised
    names = [f"{path.name}/" for path in contents.folders]
    if contents.own_images:
        names.append(f"{len(contents.own_images)} images")
    raise UserError(f"{folder} is not understood: it holds {shorten_names(names)}; {THREE_LAYOUTS}")


# --- the folder that is meant -------------------------------------------------------------------------------


def descend(contents: Contents) -> Contents:
    """Into the only folder with images, as archives unpack to, where nothing else says what they are."""
    root = contents.root
    while True:
        inner = Contents(root, contents.scan)
        is_only = len(inner.folders) == 1 and not inner.own_images
        if not is_only or tell_role(inner.folders[0]) != "unknown" or list_annotation_files(root):
            return inner
        if is_public_folder(inner):
            return inner
        root = inner.folders[0]


# --- public data sets, as they are downloaded ---------------------------------------------------------------


def is_public_folder(contents: Contents) -> bool:
    names = {path.name for path in contents.folders}
    return "Data" in names or any(name.startswith("MT_") for name in names)


def recognise_public_set(contents: Contents) -> Recognised | None:
    """Sets whose layout has a reader of its own, and folders of several data sets."""
    root = contents.root
    names = {path.name for path in contents.folders}
    if {"defect_images", "normal_images"} <= {path.name for path in list_folders(root / "train")}:
        data: dict[str, Any] = {"source": "defect_normal"}
        if (root / "test" / "sample_submission.csv").is_file():
            data["sample_submission"] = "test/sample_submission.csv"
        return Recognised(root, {"data": data}, ("the layout of the defect/normal competition",))
    if "MT_Free" in names:
        data = {"source": "magnetic_tile", "bad_masks": "drop", "contradictions": "report"}
        split = {"group_pattern": r"^(tile\d+)/"}
        return Recognised(root, {"data": data, "split": split}, ("magnetic tiles, as downloaded",))
    if "NODefect_images" in names:
        split = {"group_pattern": r"_([bg]\d+)_\d+"}
        return Recognised(root, {"data": {"source": "aitex"}, "split": split}, ("AITEX, as downloaded",))
    if (root / "labels.csv").is_file() and (root / "labels.csv").read_bytes()[:7] == b"images/":
        return Recognised(root, {"data": {"source": "elpv"}}, ("ELPV, as downloaded",))
    if (root / "lable").is_dir():
        raise UserError(
            f"{root} is GC10-DET, where every image shows a defect: without normal images only kinds can be "
            "told apart, as configs/data/gc10_det.yaml does"
        )
    if (root / "test_public").is_dir() and (root / "train" / "good").is_dir():
        data = {"source": "mvtec", "use_test_as": "train"}
        split = {"group_pattern": r"^(.+/\d+)"}
        lines = ("MVTec AD 2, as downloaded; numbers in front of names tell scenes", *MVTEC_TEST_LINES)
        return Recognised(root, {"data": data, "split": split}, lines)
    if (root / "Data" / "Images" / "Normal").is_dir() and (root / "Data" / "Images" / "Anomaly").is_dir():
        folders = {"normal": "Data/Images/Normal", "abnormal": "Data/Images/Anomaly"}
        if (root / "Data" / "Masks" / "Anomaly").is_dir():
            folders["masks"] = "Data/Masks/Anomaly"
        return as_folders(contents, folders, "an object of VisA, all of its images to learn from")
    categories = [name for name in list_categories(root) if tell_role(root / name) == "unknown"]
    if categories and not any(contents.of_role(role) for role in ("train", "normal", "abnormal")):
        raise UserError(
            f"{root} holds several data sets ({shorten_names(categories)}): start with one of them, "
            f"{root / categories[0]}"
        )
    return None


# --- train and test -----------------------------------------------------------------------------------------


def recognise_train_and_test(contents: Contents) -> Recognised | None:
    """train/good and test/<kind>, as in MVTec AD, or train/{good,bad} and test."""
    root = contents.root
    train_folders = contents.of_role("train")
    if len(train_folders) != 1 or contents.own_images:
        return None
    train = train_folders[0]
    normal = contents.of_role("normal", train)
    kinds = [path for path in list_folders(train) if contents.has_images(path) and path not in normal]
    kinds = [path for path in kinds if tell_role(path) != "masks"]
    if len(normal) != 1:
        return None
    test = next(iter(contents.of_role("test")), None)
    test_kinds = [] if test is None else [path for path in list_folders(test) if contents.has_images(path)]
    test_kinds = [path for path in test_kinds if tell_role(path) != "masks"]
    is_labelled = test is not None and bool(test_kinds) and not contents.images_in(test)
    is_mvtec_test = is_labelled and test == root / "test"
    if not kinds and is_mvtec_test and train == root / "train" and normal[0].name.casefold() in GOOD_NAMES:
        lines = ("train/good and test/<kind>, as in MVTec AD", *MVTEC_TEST_LINES)
        return Recognised(root, {"data": {"source": "mvtec", "use_test_as": "train"}}, lines)
    validation = contents.of_role("validation")
    unused = [f"{path.name} is not used: folds are made of {train.name}" for path in validation]
    has_same_test = is_labelled and normal[0].name in [path.name for path in test_kinds]
    masks = contents.of_role("masks")
    if has_same_test and not masks:
        settings = {"train": train.name, "test": test.name, "normal": normal[0].name}
        data = {"source": "class_folders", "class_folders": settings}
        lines = [f"a folder for each kind in {train.name} and {test.name}; {normal[0].name} is normal"]
        if not kinds:
            data["use_test_as"] = "train"
            lines.append("the test images are learnt from too, since the training images have no defects")
        return Recognised(root, {"data": data}, (*lines, *unused))
    folders = {"normal": contents.below(normal[0])}
    if kinds:
        folders["abnormal"] = contents.below(kinds[0] if len(kinds) == 1 else train)
        if masks:
            folders["masks"] = contents.below(masks[0])
    if test is not None:
        folders["test"] = contents.below(test)
    line = f"{train.name}/{normal[0].name} is normal"
    if kinds:
        line += f"; defects are in {folders['abnormal']}"
    return as_folders(contents, folders, "; ".join([line, *unused]))


# --- folders of normal images and of defects ----------------------------------------------------------------


def recognise_sorted(contents: Contents) -> Recognised | None:
    """Folders whose names say normal, defect, masks, test; or a folder of normal images among kinds.

    Those of images may lie in a folder such as `images`.
    """
    root = contents.root
    above = root
    images = contents.of_role("images")
    if len(images) == 1 and not contents.of_role("normal") and not contents.own_images:
        above = images[0]
    normal = contents.of_role("normal", above)
    abnormal = contents.of_role("abnormal", above)
    own_images = contents.images_in(above)
    if not normal:
        if abnormal and not (images or contents.of_role("unknown", above) or own_images):
            raise UserError(only_defects_text(abnormal[0]))
        return None
    if len(normal) > 1:
        names = shorten_names((path.name for path in normal), " and ")
        raise UserError(f"{above} holds {names}, all normal by their names: put them into one folder")
    kinds = abnormal + contents.of_role("unknown", above)
    masks = contents.of_role("masks") or contents.of_role("masks", above)
    test = contents.of_role("test") or contents.of_role("test", above)
    others = [path for role in ("images", "train", "validation") for path in contents.of_role(role, above)]
    if own_images or others:
        names = [f"{path.name}/" for path in others]
        names += [f"{len(own_images)} images"] if own_images else []
        raise UserError(
            f"{above} holds {normal[0].name}/ and {shorten_names(names)}: whether these are normal is not "
            "said; put them into good/, bad/ or test/, or elsewhere"
        )
    name = contents.below(normal[0])
    if len(kinds) > 1 and not masks and not test:
        settings = {"train": contents.below(above), "test": None, "normal": normal[0].name}
        line = f"{name} is normal; kinds of defects: {shorten_names(path.name for path in kinds)}"
        return Recognised(root, {"data": {"source": "class_folders", "class_folders": settings}}, (line,))
    folders = {"normal": name}
    if kinds:
        folders["abnormal"] = contents.below(kinds[0] if len(kinds) == 1 else above)
        if masks:
            folders["masks"] = contents.below(masks[0])
    if test:
        folders["test"] = contents.below(test[0])
    line = f"{name} is normal"
    if kinds:
        line += f"; defects are in {shorten_names(contents.below(path) for path in kinds)}"
    return as_folders(contents, folders, line)


def as_folders(contents: Contents, folders: dict[str, str], line: str) -> Recognised:
    """The layout `folders`."""
    lines = [line]
    if "masks" in folders:
        lines.append(f"masks of the defects are in {folders['masks']}")
    if "test" in folders:
        lines.append(f"images to be scored are in {folders['test']}")
    data = {"source": "folders", "folders": folders}
    return Recognised(contents.root, {"data": data}, tuple(lines))


# --- masks among the images, and images alone ---------------------------------------------------------------


def recognise_masked(contents: Contents) -> Recognised | None:
    """Images with their masks beside them, which say what is defective."""
    root = contents.root
    train = next(iter(contents.of_role("train")), None)
    test = next(iter(contents.of_role("test")), None)
    is_whole = train is None and test is None
    if not is_whole and (train is None or contents.own_images):
        return None
    place = root if train is None else train
    if not holds_masks(contents, place):
        return None
    settings = {"train": contents.below(place)}
    lines = ["masks lie beside the images: an image is defective if its mask is"]
    has_test_masks = test is not None and holds_masks(contents, test)
    if test is not None:
        settings["test"] = contents.below(test) if has_test_masks else None
    validation = next(iter(contents.of_role("validation")), None)
    is_complete = test is None or has_test_masks  # an image without a mask would count as normal
    has_both = validation is not None and holds_splits_alone(contents, root)
    if has_both and is_complete and holds_masks(contents, validation):
        settings["train"] = "."
        lines.append(f"{train.name} and {validation.name} are put together: folds are made of them")
    data: dict[str, Any] = {"source": "labelled_by_masks", "labelled_by_masks": settings}
    if any(COMMUTATOR.fullmatch(path.name) for path in contents.folders):
        lines.append("photographs in one folder show one commutator (KolektorSDD)")
        return Recognised(root, {"data": data, "split": {"group_pattern": "(kos\\d+)/"}}, tuple(lines))
    return Recognised(root, {"data": data}, tuple(lines))


def holds_masks(contents: Contents, folder: Path) -> bool:
    """Whether masks lie among the images below `folder`."""
    files = [path for path in contents.scan.images if path.is_relative_to(folder)]
    return bool(split_off_masks(files, str(folder)).masks)


def recognise_normal_alone(contents: Contents) -> Recognised | None:
    """Images without any word of what they show are taken for normal ones; not where words are there."""
    root = contents.root
    test = contents.of_role("test")
    images = [path for path in contents.folders if path not in test]
    if contents.own_images and not images:
        place = root
    elif len(images) == 1 and not contents.own_images and tell_role(images[0]) in ("images", "train"):
        place = images[0]
    else:
        return None
    files = [path for path in contents.scan.images if path.is_relative_to(place)]
    files = [path for path in files if not (test and path.is_relative_to(test[0]))]
    folders_with_images = sorted({path.parent for path in files})
    if len(folders_with_images) > 1 or tell_role(folders_with_images[0]) == "abnormal":
        names = shorten_names(f"{contents.below(path)}/" for path in folders_with_images)
        raise UserError(
            f"{root} holds images in {names}: which of these are normal is not said; put normal images into "
            f"{root / 'good'} and defects into {root / 'bad'}"
        )
    refuse_labels_elsewhere(root, place, files)
    folders = {"normal": contents.below(place)}
    if test:
        folders["test"] = contents.below(test[0])
    return as_folders(
        contents, folders, "no folder and no annotation names a defect: all are taken for normal"
    )


def refuse_labels_elsewhere(root: Path, place: Path, files: Sequence[Path]) -> None:
    """Raises UserError if names of files, or a table beside them, may say which images are defective."""
    named = [path.name for path in files if names_defect(path)]
    if named:
        raise UserError(
            f"{place}: {len(named)} of {len(files)} files are defects by their names "
            f"({shorten_names(named)}): put these into {root / 'bad'} and the others into {root / 'good'}"
        )
    for path in sorted({*root.iterdir(), *place.iterdir()}):
        is_text = path.is_file() and path.suffix.lower() in TABLES | TEXTS_OF_TOOLS
        if is_text and not is_junk(path.name) and lists_any(path, files):
            raise UserError(f"{path} names the images, {unknown_export_text(root)}")
    stems = {path.stem for path in files} | {path.name for path in files}
    for folder in sorted({place, *list_folders(root)}):
        texts = [path for path in find_by_suffix(folder, TABLES | TEXTS_OF_TOOLS) if path.stat().st_size]
        named_alike = [path for path in texts if path.stem in stems]
        if named_alike:
            names = shorten_names(path.name for path in named_alike)
            raise UserError(f"{folder} holds files named like images ({names}), {unknown_export_text(root)}")


def unknown_export_text(root: Path) -> str:
    return (
        "but is no export of an annotation tool that is known: export COCO there, or sort the images by it "
        f"into {root / 'good'} and {root / 'bad'}"
    )


def lists_any(table: Path, files: Sequence[Path]) -> bool:
    with table.open("rb") as stream:
        content = stream.read(MOST_TABLE_BYTES)
    return any(path.name.encode() in content for path in files[:200])
