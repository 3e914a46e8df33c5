"""Images beside, or below, what an annotation tool wrote: which files, of which images."""

from pathlib import Path

from defects.data.annotations import FORMATS, recognise_formats, voc, yolo
from defects.data.annotations.annotation_files import find_by_suffix
from defects.data.annotations.rle_csv import FORMS
from defects.data.folder_scan import is_junk, list_folders
from defects.data.images import read_content
from defects.data.user_tables import read_user_table
from defects.messages import UserError, shorten_names
from defects.start.contents import Contents, Recognised
from defects.start.folder_names import tell_role

TABLES = {".csv", ".tsv"}
TEXTS_OF_TOOLS = {".json", ".xml", ".txt"}
NAMES_OF_CLASSES = {"labelmap.txt", *yolo.NAME_FILES, *voc.NAME_FILES}


def recognise_annotated(contents: Contents) -> Recognised | None:
    """Images beside, or above, what an annotation tool wrote."""
    root = contents.root
    test = find_test_images(contents)
    train = next(iter(contents.of_role("train")), None)
    places = [root]
    if train is not None:
        places.insert(0, train)
    for place in places:
        source = find_annotations(contents, place)
        if source is None:
            continue
        path, format = source
        normal = contents.of_role("normal", place)
        abnormal = contents.of_role("abnormal", place)
        folders: dict[str, str | None] = {"normal": None}
        if normal:
            folders["normal"] = contents.below(normal[0])
        if abnormal:
            folders["abnormal"] = contents.below(abnormal[0])
        images = find_annotated_images(contents, place)
        lines = []
        if images is not None and not abnormal and images not in normal:
            joined = None if normal else join_validation(contents, images, path, format)
            if joined is not None:
                images, path = joined
                lines.append("training and validation images are put together: folds are made of them")
            folders["images"] = contents.below(images)
        if not {"images", "abnormal"} & folders.keys() or (abnormal and not normal):
            return None
        if test is not None and test != images:
            folders["test"] = contents.below(test)
        data = {"source": "folders", "folders": folders, "annotations": contents.below(path)}
        lines.insert(0, describe_annotations(contents, path, images, format))
        if is_severstal(contents):
            lines.append(
                "defective and normal images are told apart; for masks of the four classes, as the Severstal "
                "competition has them: configs/data/severstal.yaml"
            )
        return Recognised(root, {"data": data}, tuple(lines))
    return None


def describe_annotations(contents: Contents, path: Path, images: Path | None, format: str) -> str:
    """Their format and their place."""
    name = FORMATS[format].NAME
    if path == images and contents.images_in(path):
        return f"{name} annotations beside the images"
    if path == contents.root:
        return f"{name} annotations in several folders"
    return f"{name} annotations in {contents.below(path)}"


def is_severstal(contents: Contents) -> bool:
    """Whether the files have the names of the Severstal competition on Kaggle."""
    root = contents.root
    has_tables = (root / "train.csv").is_file() and (root / "sample_submission.csv").is_file()
    return has_tables and (root / "train_images").is_dir()


# --- training and validation images -------------------------------------------------------------------------


def join_validation(contents: Contents, images: Path, path: Path, format: str) -> tuple[Path, Path] | None:
    """The folder above training and validation images, and the annotations of both.

    `images` and `path` are those of training alone. None where no other images are annotated.
    """
    train = next((folder for folder in (images, images.parent) if tell_role(folder) == "train"), None)
    if train is None or train == contents.root or not holds_splits_alone(contents, train.parent):
        return None
    above = train.parent
    if format == "yolo":
        joined = contents.root  # its files are matched by their paths, of which `labels` is one part
    elif path.is_relative_to(train):
        joined = above
    elif path.is_file() or tell_role(path) == "train":
        joined = path.parent
    else:
        joined = path
    texts = find_by_suffix(joined, TEXTS_OF_TOOLS)
    has_validation = any(is_of_validation(file, joined) for file in texts)
    if not has_validation or recognise_formats(joined) != [format]:
        return None
    return above, joined


def holds_splits_alone(contents: Contents, folder: Path) -> bool:
    """Whether the images of `folder` lie in folders of training, validation and perhaps test images."""
    roles = {tell_role(path) for path in list_folders(folder) if contents.has_images(path)}
    has_both = {"train", "validation"} <= roles
    return has_both and roles <= {"train", "validation", "test"} and not contents.images_in(folder)


def is_of_validation(file: Path, folder: Path) -> bool:
    """By a folder between the two, or by a word of the name, as in instances_val2017.json."""
    words = [*file.relative_to(folder).parts[:-1], *file.stem.split("_")]
    return any(tell_role(Path(word)) == "validation" for word in words)


# --- files of annotations -----------------------------------------------------------------------------------


def find_annotations(contents: Contents, place: Path) -> tuple[Path, str] | None:
    """The file or folder of annotations in `place`, and its format.

    Raises UserError for several formats, and for files that begin as annotations and are broken.
    """
    files = list_annotation_files(place)
    if len(files) > 1:
        training = [file for file in files if "train" in file.stem.casefold()]
        files = training or files
    if len(files) == 1:
        return files[0], recognise_formats(files[0])[0]
    if files:
        is_one_by_image = {file.stem for file in files} & {path.stem for path in contents.images_in(place)}
        if not is_one_by_image:
            names = shorten_names(file.name for file in files)
            raise UserError(
                f"{place} holds several exports of annotations ({names}): leave one of them there"
            )
    folders = [place]
    for path in list_folders(place):
        if tell_role(path) in ("annotations", "masks", "images", "train"):
            folders.insert(-1, path)
    for folder in folders:
        inner = [path for path in list_folders(folder) if tell_role(path) == "train"]
        for candidate in (*inner, folder):
            has_texts = holds_texts(candidate, is_deep=candidate != place)
            if not has_texts and not holds_label_images(candidate):
                continue
            formats = recognise_formats(candidate)
            # Any folder of PNG files might be one of label images.
            is_guess = formats == ["voc"] and not find_by_suffix(candidate, {".xml"})
            if is_guess and not holds_label_images(candidate):
                continue
            if len(formats) > 1:
                raise UserError(
                    f"{candidate} holds annotations of several formats ({', '.join(formats)}): leave those "
                    "of one there"
                )
            if formats:
                return candidate, formats[0]
    return None


def list_annotation_files(folder: Path) -> list[Path]:
    """The files directly in `folder` that hold annotations of all images: JSON, or a table of runs."""
    files = []
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if is_junk(path.name) or not path.is_file():
            continue
        is_table = suffix in TABLES and is_table_of_runs(path)
        if is_table or (suffix == ".json" and recognise_formats(path)):
            files.append(path)
    return files


def is_table_of_runs(path: Path) -> bool:
    columns = sorted({name for form in FORMS for name in form})
    try:
        table = read_user_table(path, columns)
    except UserError:
        return False
    return set(table.columns) in [set(form) for form in FORMS] and table["EncodedPixels"].ne("").any()


def holds_texts(folder: Path, is_deep: bool) -> bool:
    """Whether files of annotation tools lie in `folder`, or below it if `is_deep`."""
    for path in folder.rglob("*") if is_deep else folder.iterdir():
        is_text = path.suffix.lower() in TEXTS_OF_TOOLS and not is_junk(path.name)
        if is_text and path.name.lower() not in NAMES_OF_CLASSES:
            return True
    return False


def holds_label_images(folder: Path) -> bool:
    """Whether it is a folder of label images, with a palette or with names of their classes beside it.

    Other pictures in a folder of such a name are masks.
    """
    if not voc.is_label_folder(folder):
        return False
    if any((place / name).is_file() for place in (folder, folder.parent) for name in NAMES_OF_CLASSES):
        return True
    files = find_by_suffix(folder, {".png"})
    try:
        return bool(files) and read_content(files[0])[1].channels == "palette"
    except UserError:
        return True  # reading all of them says what is wrong


def find_annotated_images(contents: Contents, place: Path) -> Path | None:
    """The folder of the images that annotations in `place` are about."""
    if contents.images_in(place):
        return place
    inside = [path for path in list_folders(place) if contents.has_images(path)]
    for role in ("images", "train", "unknown"):
        fitting = [path for path in inside if tell_role(path) == role]
        if len(fitting) == 1:
            inner = contents.of_role("train", fitting[0]) or contents.of_role("images", fitting[0])
            return inner[0] if inner else fitting[0]
    return None


def find_test_images(contents: Contents) -> Path | None:
    """test, test/images or images/test."""
    for folder in (contents.root, *contents.of_role("images")):
        for test in contents.of_role("test", folder):
            inner = contents.of_role("images", test)
            return inner[0] if inner else test
    return None
