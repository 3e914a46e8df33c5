"""First stage: index every image once, refuse broken input before anything is trained on it."""

import hashlib
from functools import lru_cache
from pathlib import Path

import pandas as pd

from defects.config_schema import Config, DataConfig, resolve
from defects.data.annotations import annotations_sha256
from defects.data.annotations.marking import mark_images
from defects.data.examination import Examination, examine_files
from defects.data.inventory import print_inventory, take_inventory
from defects.data.labels import RUNS, class_columns
from defects.data.layouts import list_data
from defects.data.listing import Listing
from defects.data.rle import check_runs, read_rle_table, table_form
from defects.data.roi_check import check_roi
from defects.data.user_tables import match_ids, read_user_table
from defects.files import locked, read_csv, read_json, same_text, write_bytes, write_csv, write_json
from defects.messages import SHOWN_NAMES, UserError, shorten_names
from defects.stamps import (
    Stamp,
    content_of,
    differences,
    file_contents,
    join_differences,
    settings_but,
)

LISTED_PROBLEMS = 20  # lines on the console about files that cannot be used; all of them go to a file
IMAGE_COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind", "width", "height", "sha256"]
# Data settings that images.csv does not depend on.
NOT_THE_INDEX = {
    "data.name",
    "data.category",
    "data.image_size",
    "data.symmetries",
    "data.answers",
    "data.external_data",
    "data.pretrained_is_external",
    "data.kaggle",
    "data.pixel_size_mm",
}


def prepare(config: Config) -> pd.DataFrame:
    """Write images.csv (IMAGE_COLUMNS, sorted by image_id) and, where the source has one, answers.csv.

    Where data.classes names classes, images.csv holds their run-length masks too (`class_columns`); with
    annotations and without classes one of all defects (RUNS). Raises UserError naming every file that cannot
    be used.
    """
    with locked(config.dataset_dir, wait=True):
        return prepare_locked(config)


def prepare_locked(config: Config) -> pd.DataFrame:
    """As `prepare`, for a caller that holds the lock of the data set's folder."""
    data = config.data
    folder = config.dataset_dir
    listing = list_data(data)
    _refuse_output_inside(config, listing)
    _check_ids(listing.images)
    examination = examine_files(data, _with_answers(listing))
    images, answers = _separate_answers(listing, examination.images)
    _refuse_unusable(config, examination)
    _check_contradictions(data, images, examination)
    if listing.runs is not None:
        check_runs(listing.runs, image_sizes(images), listing.runs_file)
    if data.sample_submission and (images["split"] == "test").any():
        sample_ids(data, images)
    columns = IMAGE_COLUMNS + class_columns(data.classes)
    mark_facts = None
    if listing.marks is not None:
        images, mark_facts = mark_images(data, images, listing.marks)
        columns += [] if data.classes else [RUNS]
    images = images.sort_values("image_id", ignore_index=True)[columns]
    notes = listing.notes + check_roi(data, images)
    inventory = take_inventory(data, images, listing.folders, notes, examination, mark_facts)
    # Gone first, written last: after an interruption, load_images prepares again instead of mixing tables.
    (folder / "prepare.json").unlink(missing_ok=True)
    write_csv(folder / "images.csv", images)
    if answers is not None:
        write_csv(folder / "answers.csv", answers)
    write_json(folder / "inventory.json", inventory)
    write_json(folder / "prepare.json", _stamp(data))
    print_inventory(inventory)
    return images


def load_images(config: Config) -> pd.DataFrame:
    """images.csv. Raises UserError when it is missing or made with other data settings."""
    path = config.dataset_dir / "images.csv"
    problem = find_index_problem(config)
    if problem is not None:
        raise UserError(f"{path} {problem}: run src/prepare.py")
    images = read_csv(path, IMAGE_COLUMNS + class_columns(config.data.classes), "src/prepare.py")
    return images.astype({"label": "Int64"})


def find_index_problem(config: Config) -> str | None:
    """Why images.csv cannot be used as it is; None if it can."""
    if not (config.dataset_dir / "images.csv").exists():
        return "is missing"
    changes = differences(read_json(config.dataset_dir / "prepare.json"), _stamp(config.data))
    return f"was made otherwise ({join_differences(changes)})" if changes else None


def image_sizes(images: pd.DataFrame) -> pd.Series:
    """(height, width) by image_id of rows of images.csv."""
    return images.set_index("image_id")[["height", "width"]].apply(tuple, axis=1)


def training_sha256(config: Config) -> str:
    """Of the training rows of images.csv: folds and weights do not depend on the test images."""
    path = config.dataset_dir / "images.csv"
    return _training_sha256(path, content_of(path))


@lru_cache(maxsize=4)  # every fold and every checkpoint needs it
def _training_sha256(path: Path, content: str | None) -> str:
    """Of images.csv with this `content`, a sha256."""
    images = read_csv(path, IMAGE_COLUMNS, "src/prepare.py")
    rows = images[images["split"] == "train"].astype({"label": "Int64"})
    return hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def sample_ids(data: DataConfig, images: pd.DataFrame) -> pd.Series:
    """The sample's own spelling of its ids, in its order, indexed by image_id.

    Raises UserError if they are not exactly the test images.
    """
    path = resolve(data.root) / data.sample_submission
    if not path.is_file():
        raise UserError(f"{path} does not exist: put the sample there, or change data.sample_submission")
    sample = _sample_images(path, data.classes) if data.classes else _sample_answers(path)
    test_ids = images.loc[images["split"] == "test", "image_id"]
    matched = match_ids(sample.index, test_ids, str(path))
    ids = sample.set_axis([matched.get(name, name) for name in sample.index])
    for missing, text in (
        (set(ids.index) - set(test_ids), "are not on disk"),
        (set(test_ids) - set(ids.index), "are not listed in it"),
    ):
        if missing:
            raise UserError(f"{path}: {len(missing)} test images {text}: {shorten_names(sorted(missing))}")
    return ids


def _sample_answers(path: Path) -> pd.Series:
    """The ids of a sample with one answer for each image, indexed by their plain text."""
    sample = read_user_table(path, [], is_exact=True)
    if list(sample.columns) != ["ImageId", "answer"]:
        raise UserError(f"{path} has the columns {shorten_names(sample.columns)}; expected ImageId, answer")
    ids = sample["ImageId"].map(same_text)
    repeated = sorted(set(ids[ids.duplicated()]))
    if repeated:
        raise UserError(f"{path} lists some ids twice: {shorten_names(repeated)}; remove the repeated rows")
    return sample["ImageId"].set_axis(ids)


def _sample_images(path: Path, classes: list[str]) -> pd.Series:
    """The images of a sample with several classes; in its older form every class has a row of its own."""
    sample = read_rle_table(path, classes)
    count = sample.groupby("image_id")["target"].nunique()
    if table_form(path) == "joined" and (count < len(classes)).any():
        first = sample.loc[sample["image_id"].map(count) < len(classes), "image_id"].iloc[0]
        raise UserError(f"{path}: {first} has {count[first]} rows for {len(classes)} classes: add the others")
    ids = sample["image_id"].drop_duplicates()
    return ids.set_axis(ids)


def _stamp(data: DataConfig) -> Stamp:
    """What images.csv depends on; a change of these means preparing again."""
    files = {}
    if data.annotations is not None:
        path = resolve(data.root) / data.annotations.expanduser()
        files["data.annotations"] = annotations_sha256(path)
    settings = settings_but(data, NOT_THE_INDEX, "data.")
    return {"settings": settings, "files": files | file_contents(settings, data.root)}


def _refuse_output_inside(config: Config, listing: Listing) -> None:
    """Raises UserError if pictures of reports would be taken for images of the data set."""
    for setting, name in (("output", config.output), ("submissions", config.submissions)):
        written = resolve(name).resolve()
        for folder in listing.folders:
            if written.is_relative_to(folder.path.resolve()):
                raise UserError(
                    f"{setting}={name} lies inside {folder}: write to a folder outside the images"
                )


def _with_answers(listing: Listing) -> pd.DataFrame:
    """The listed images, those with an answer key with their labels and masks: these are examined as well."""
    if listing.answers is None:
        return listing.images
    answers = listing.answers.set_index("image_id")
    images = listing.images.set_index("image_id")
    images.loc[answers.index, ["label", "mask_path"]] = answers[["label", "mask_path"]]
    return images.reset_index()


def _separate_answers(listing: Listing, examined: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Rows of images.csv, and those of answers.csv: labels and masks of test images stand there alone."""
    if listing.answers is None:
        return examined, None
    masks = examined.set_index("image_id")["mask_path"]
    answers = listing.answers.assign(mask_path=listing.answers["image_id"].map(masks))
    has_answer = examined["image_id"].isin(answers["image_id"])
    mask_paths = examined["mask_path"].where(~has_answer, "")
    images = examined.assign(label=listing.images["label"], mask_path=mask_paths)
    return images, answers


def _refuse_unusable(config: Config, examination: Examination) -> None:
    """Raises UserError for files that cannot be used, after listing all of them."""
    problems = examination.problems
    if not problems:
        return
    text = shorten_names(problems, "; ")
    if len(problems) > SHOWN_NAMES:
        for problem in problems[:LISTED_PROBLEMS]:
            print(problem)
        path = config.dataset_dir / "unusable.txt"
        write_bytes(path, "".join(f"{problem}\n" for problem in problems).encode())
        text += f"; all are listed in {path}"
    raise UserError(f"{len(problems)} of {len(examination.images)} images cannot be used: {text}")


def _check_ids(images: pd.DataFrame) -> None:
    repeated = images[images["image_id"].duplicated(keep=False)]
    if len(repeated):
        count = repeated["image_id"].nunique()
        first = repeated["image_id"].iloc[0]
        paths = repeated.loc[repeated["image_id"] == first, "path"]
        # In ASCII: the letters of two names may differ although they look the same.
        files = " and ".join(ascii(path) for path in paths)
        raise UserError(f"{count} image ids occur twice: {first} is {files}; rename one file of each")


def _check_contradictions(data: DataConfig, images: pd.DataFrame, examination: Examination) -> None:
    """The same file content filed under both classes, and normal images in which a mask marks something."""
    labelled = images[images["label"].notna()]
    copies = []
    for _, same in labelled.groupby("sha256"):
        if same["label"].nunique() > 1:
            copies.append(" = ".join(same["path"]))
    contradictions = []
    if copies:
        contradictions.append(f"the same picture is in both classes: {shorten_names(copies, '; ')}")
    if examination.contradictions:
        contradictions.append(shorten_names(examination.contradictions, "; "))
    if not contradictions:
        return
    text = "; ".join(contradictions)
    if data.contradictions == "error":
        raise UserError(f"{text}; remove one, or set data.contradictions=report")
    print(f"note: {text}")
