"""Images beside, or below, what an annotation tool wrote: which files, of which images."""

from pathlib import Path

from defects.data.annotations import recognise_formats
from defects.data.annotations.rle_csv import FORMS
from defects.data.folder_scan import is_junk, list_folders
from defects.data.user_tables import read_user_table
from defects.messages import UserError, shorten_names
from defects.start.contents import Contents, Recognised
from defects.start.folder_names import tell_role

TABLES = {".csv", ".tsv"}
TEXTS_OF_TOOLS = {".json", ".xml", ".txt"}


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
        if images is not None and not abnormal and images not in normal:
            folders["images"] = contents.below(images)
        if not {"images", "abnormal"} & folders.keys() or (abnormal and not normal):
            return None
        if test is not None and test != images:
            folders["test"] = contents.below(test)
        data = {"source": "folders", "folders": folders, "annotations": contents.below(path)}
        where = "beside the images" if path == images else contents.below(path)
        return Recognised(root, {"data": data}, (f"annotations ({format}): {where}",))
    return None


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
            if not holds_texts(candidate, is_deep=candidate != place):
                continue
            formats = recognise_formats(candidate)
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
    files = folder.rglob("*") if is_deep else folder.iterdir()
    return any(path.suffix.lower() in TEXTS_OF_TOOLS and not is_junk(path.name) for path in files)


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
