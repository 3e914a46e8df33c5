"""First stage: index every image once, refuse broken input before anything is trained on it."""

import hashlib
from functools import partial
from pathlib import Path

import pandas as pd

from defects.config import Config, resolve
from defects.config_data import DataConfig
from defects.data.images import read_image
from defects.data.labels import class_columns
from defects.data.many import in_threads
from defects.data.mask_files import read_mask
from defects.data.rle_table import check_runs, read_rle_table, table_form
from defects.data.sources import list_data
from defects.errors import UserError
from defects.files import locked, read_csv, read_json, same_text, write_csv, write_json
from defects.writing import sha256

IMAGE_COLUMNS = ["image_id", "path", "split", "label", "mask_path", "kind", "width", "height", "sha256"]


def prepare(config: Config) -> pd.DataFrame:
    """Write images.csv (IMAGE_COLUMNS, sorted by image_id) and, where the source has one, answers.csv.

    Where data.classes names classes, images.csv holds their run-length masks too (`class_columns`). Raises
    UserError naming every file that cannot be used.
    """
    with locked(config.dataset_dir, wait=True):
        return _prepare(config)


def _prepare(config: Config) -> pd.DataFrame:
    data, folder = config.data, config.dataset_dir
    listing = list_data(data)
    images = _examine(data, listing.images)
    _check_ids(images)
    _check_contradictions(data, images)
    if listing.runs is not None:
        check_runs(listing.runs, image_sizes(images), listing.runs_file)
    if data.sample_submission and (images["split"] == "test").any():
        sample_ids(data, images)
    columns = IMAGE_COLUMNS + class_columns(data.classes)
    images = images.sort_values("image_id", ignore_index=True)[columns]
    # Gone first, written last: after an interruption, load_images prepares again instead of mixing tables.
    (folder / "prepare.json").unlink(missing_ok=True)
    write_csv(folder / "images.csv", images)
    if listing.answers is not None:
        write_csv(folder / "answers.csv", listing.answers)
    write_json(folder / "prepare.json", _settings(data))
    return images


def load_images(config: Config) -> pd.DataFrame:
    """images.csv; prepared first, and said so, when it is missing or made with other data settings."""
    path = config.dataset_dir / "images.csv"
    with locked(config.dataset_dir, wait=True):  # two folds may start at once on a fresh clone
        if not path.exists() or read_json(config.dataset_dir / "prepare.json") != _settings(config.data):
            print(f"{path} is missing or was made with other settings: preparing the data first")
            _prepare(config)
    images = read_csv(path, IMAGE_COLUMNS + class_columns(config.data.classes), "src/prepare.py")
    return images.astype({"label": "Int64"})


def image_sizes(images: pd.DataFrame) -> pd.Series:
    """(height, width) by image_id of rows of images.csv."""
    return images.set_index("image_id")[["height", "width"]].apply(tuple, axis=1)


def training_sha256(config: Config) -> str:
    """Of the training rows of images.csv: folds and weights do not depend on the test images."""
    images = read_csv(config.dataset_dir / "images.csv", IMAGE_COLUMNS, "src/prepare.py")
    rows = images[images["split"] == "train"].astype({"label": "Int64"})
    return hashlib.sha256(rows.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def sample_ids(data: DataConfig, images: pd.DataFrame) -> pd.Series:
    """The sample's own spelling of its ids, in its order, indexed by image_id.

    Raises UserError if they are not exactly the test images.
    """
    path = resolve(data.root) / data.sample_submission
    if not path.is_file():
        raise UserError(f"{path} does not exist: put the sample there, or change data.sample_submission")
    ids = _sample_images(path, data.classes) if data.classes else _sample_answers(path)
    on_disk = set(images.loc[images["split"] == "test", "image_id"])
    for missing, text in (
        (set(ids.index) - on_disk, "are not on disk"),
        (on_disk - set(ids.index), "are not listed in it"),
    ):
        if missing:
            raise UserError(f"{path}: {len(missing)} test images {text}: {', '.join(sorted(missing))}")
    return ids


def _sample_answers(path: Path) -> pd.Series:
    sample = read_csv(path, [], "the competition's archive")
    if list(sample.columns) != ["ImageId", "answer"]:
        raise UserError(f"{path} has the columns {', '.join(sample.columns)}; expected ImageId, answer")
    ids = sample["ImageId"].map(same_text)
    repeated = sorted(set(ids[ids.duplicated()]))
    if repeated:
        raise UserError(f"{path} lists some ids twice: {', '.join(repeated)}; remove the repeated rows")
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


def _settings(data: DataConfig) -> dict:
    """What images.csv depends on; a change of these means preparing again."""
    later = {
        "name",
        "image_size",
        "fit",
        "symmetries",
        "answers",
        "external_data",
        "pretrained_is_external",
        "kaggle",
    }
    return data.model_dump(mode="json", exclude=later)


def _examine(data: DataConfig, images: pd.DataFrame) -> pd.DataFrame:
    """Decode every image and mask: adds width, height (pixels), sha256; collects all broken files."""
    root = resolve(data.root)
    examine = partial(_examine_one, data, root)
    # Decoding and hashing run freely.
    facts = in_threads(examine, images["path"], images["mask_path"], text="reading images")
    facts = pd.DataFrame(facts, columns=["width", "height", "sha256", "mask_path", "problem"])
    problems = [text for text in facts["problem"] if text]
    if problems:
        raise UserError(f"{len(problems)} of {len(images)} images cannot be used: {'; '.join(problems)}")
    return images.assign(**facts.drop(columns="problem"))


def _examine_one(data: DataConfig, root: Path, path: str, mask_path: str) -> tuple[int, int, str, str, str]:
    try:
        height, width = read_image(root / path).shape[:2]
        mask_path = _usable_mask(data, root, mask_path, (height, width))
        return width, height, sha256(root / path), mask_path, ""
    except UserError as error:
        return 0, 0, "", "", str(error)


def _usable_mask(data: DataConfig, root: Path, mask_path: str, size: tuple[int, int]) -> str:
    if not mask_path:
        return ""
    mask = read_mask(root / mask_path)
    if mask.shape == size and mask.any():
        return mask_path
    if data.bad_masks == "drop":
        return ""
    wrong = (
        "marks no pixel"
        if mask.shape == size
        else f"is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}"
    )
    raise UserError(f"{root / mask_path} {wrong}: correct it, or set data.bad_masks=drop")


def _check_ids(images: pd.DataFrame) -> None:
    repeated = images.loc[images["image_id"].duplicated(), "image_id"]
    if len(repeated):
        raise UserError(f"some image ids occur twice: {', '.join(sorted(repeated))}; rename one file of each")


def _check_contradictions(data: DataConfig, images: pd.DataFrame) -> None:
    """The same file content filed under both classes."""
    labelled = images[images["label"].notna()]
    both = labelled.groupby("sha256").filter(lambda same: same["label"].nunique() > 1)
    if both.empty:
        return
    pairs = "; ".join(" = ".join(same["path"]) for _, same in both.groupby("sha256"))
    if data.contradictions == "error":
        raise UserError(
            f"the same picture is in both classes: {pairs}; remove one, or set data.contradictions=report"
        )
    print(f"note: the same picture is in both classes: {pairs}")
