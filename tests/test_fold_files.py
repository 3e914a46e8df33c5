"""src/split.py and its files: what it writes, prints and notices."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import defective, texture, write_png

from defects.data.duplicates import SiblingSearch
from defects.data.fold_files import CLOSEST_APART, describe_search, load_search, write_search
from defects.stages import ensure_tables


def search_of(kind: str) -> SiblingSearch:
    """A search that joined the first of 20 pairs."""
    compared = pd.DataFrame(
        {"i": 0, "j": range(1, 21), "correlation": np.linspace(0.995, 0.1, 20), "flip": "none"}
    )
    return SiblingSearch(compared[:1], 0.97, 0.91, kind, compared, np.linspace(0, 0.9, 50))


@pytest.mark.parametrize(
    ("kind", "stricter", "words"),
    [
        ("apart", None, ["pairs above 0.970 are taken for one object", "correlate up to 0.910"]),
        ("alike", None, ["the images look alike", "split.group_file or split.group_pattern"]),
        ("few", None, ["too few images to tell", "split.group_file or split.group_pattern"]),
        ("apart", 0.995, ["too few for split.folds=2: only pairs above\n      0.9950 are kept together"]),
    ],
)
def test_fold_files_lines_name_the_threshold_and_the_setting(
    make_dataset, make_config, kind, stricter, words
):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of(kind), stricter)
    text = "\n".join(describe_search(config))
    assert all(part in text for part in words), text


def test_fold_files_closest_pairs_apart_are_kept_and_joined_ones_are_not(make_dataset, make_config):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of("alike"), None)
    search = load_search(config)
    assert [pair[1] for pair in search["closest_apart"]] == [f"{k}.png" for k in range(2, 2 + CLOSEST_APART)]
    assert sum(search["compared"]) == 20 and sum(search["different"]) == 50


def test_fold_files_nothing_is_kept_of_a_search_that_is_switched_off(make_dataset, make_config):
    config = make_config(make_dataset(defects=1, normals=1))
    config.dataset_dir.mkdir(parents=True)
    write_search(config, np.array([f"{k}.png" for k in range(21)]), search_of("alike"), None)
    write_search(config, np.array([]), None, None)
    assert load_search(config) is None
    assert "enabled=false" in describe_search(config)[0]


@pytest.fixture
def dataset(make_dataset):
    """A tiny set with an exact copy, a darker photograph of a normal object, and a contradicting one."""
    root = make_dataset(defects=12, normals=30, size=96)
    normal = root / "train" / "normal_images"
    write_png(normal / "copy.png", texture(1003, 96))
    write_png(normal / "darker.png", (texture(1005, 96) * 0.6).astype("uint8"))
    write_png(normal / "contradicting.png", (defective(4, 96)[0] * 0.7).astype("uint8"))
    return root


def test_split_siblings_share_a_fold_and_contradictions_are_named(dataset, config_file, run_script):
    path = config_file(dataset)
    outcome = run_script("split.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    assert "45 images in 42 groups" in outcome.stdout and "1 exact copies" in outcome.stdout
    assert "defect_images/defect_4.png looks the same as normal_images/contradicting.png" in outcome.stdout
    assert "1:2.0" in outcome.stdout
    folder = path.parent / "output" / "tiny_data"
    folds = pd.read_csv(folder / "folds.csv").set_index("image_id")
    for one, other in (("normal_3", "copy"), ("normal_5", "darker")):
        pair = folds.loc[[f"normal_images/{one}.png", f"normal_images/{other}.png"]]
        assert pair["group"].nunique() == pair["fold"].nunique() == 1
    lists = sorted(file.name for file in folder.glob("train_*.csv"))
    assert lists == ["train_fold0.csv", "train_fold1.csv", "train_full.csv"]
    for fold in (0, 1):
        rows = pd.read_csv(folder / f"train_fold{fold}.csv")
        assert (folds.loc[rows["image_id"], "fold"] != fold).all()


def test_split_what_the_search_joins_never_leaves_too_few_groups(make_dataset, config_file, run_script):
    """All defects are darker photographs of one object: kept together they could not be held out."""
    root = make_dataset(defects=4, normals=30, size=96)
    object_with_defect, _ = defective(0, 96)
    for number, gain in enumerate((1.0, 0.9, 0.8, 0.7)):
        darker = (object_with_defect * gain).astype("uint8")
        write_png(root / "train" / "defect_images" / f"defect_{number}.png", darker)
    outcome = run_script("split.py", "--config", config_file(root, split={"folds": 4}))
    assert outcome.code == 0, outcome.stderr
    assert "would be too few for split.folds=4: only pairs above" in outcome.stdout
    assert "pairs that look the same are in different groups" in outcome.stdout


def test_split_exact_copies_stay_together_whatever_the_folds_need(make_dataset, config_file, run_script):
    root = make_dataset(defects=4, normals=30, size=96)
    folder = root / "train" / "defect_images"
    for number in range(1, 4):
        shutil.copy(folder / "defect_0.png", folder / f"defect_{number}.png")
    path = config_file(root, split={"folds": 4})
    outcome = run_script("split.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    folds = pd.read_csv(path.parent / "output" / "tiny_data" / "folds.csv")
    is_defect = folds["image_id"].str.contains("defect")
    assert folds.loc[is_defect, "group"].nunique() == 1
    assert folds.loc[is_defect, "fold"].nunique() == 1


def test_split_photographs_of_one_part_are_split_and_a_note_names_the_setting(
    make_dataset, config_file, run_script
):
    root = make_dataset(defects=6, normals=24, size=96)
    images = sorted((root / "train").glob("*_images/*.png"))
    for number, path in enumerate(images):
        picture = np.uint8(100 + 0.1 * texture(number, 96))
        cv2.rectangle(picture, (20, 25), (70, 75), 40, -1)
        cv2.circle(picture, (60, 35), 12, 200, 3)
        write_png(path, picture)
    outcome = run_script("split.py", "--config", config_file(root, split={"folds": 3}))
    assert outcome.code == 0, outcome.stderr
    assert "30 images in 30 groups" in outcome.stdout
    assert "the images look alike" in outcome.stdout
    assert "split.group_file or split.group_pattern" in outcome.stdout


def test_split_groups_of_the_user_take_precedence_and_copies_across_them_are_told(
    dataset, config_file, run_script
):
    path = config_file(dataset, split={"folds": 2, "group_pattern": r"([^/]+)\.png$"})
    outcome = run_script("split.py", "--config", path)
    assert "45 images in 45 groups" in outcome.stdout
    assert "3 pairs that look the same are in different groups of your own list" in outcome.stdout


def test_split_fewer_folds_leave_no_list_of_the_old_ones(dataset, config_file, run_script):
    run_script("split.py", "--config", config_file(dataset, split={"folds": 4}))
    path = config_file(dataset, split={"folds": 2})
    outcome = run_script("train.py", "--config", path, "--fold", "3")
    assert outcome.code == 2 and "the folds are 0 to 1 and full" in outcome.stderr
    assert "splitting first" in outcome.stdout


def test_split_a_changed_group_file_means_splitting_again(dataset, config_file, make_config, tmp_path):
    ids = [
        f"{kind}_images/{name.name}"
        for kind in ("defect", "normal")
        for name in sorted((dataset / "train" / f"{kind}_images").iterdir())
    ]
    groups = tmp_path / "groups.csv"
    for size in (1, 2):
        rows = [f"{name},g{index // size:02}\n" for index, name in enumerate(ids)]
        groups.write_text("image_id,group\n" + "".join(rows))
        config = make_config(dataset, f"split.group_file={groups}")
        assert ensure_tables(config).folds["group"].nunique() == -(-len(ids) // size)
