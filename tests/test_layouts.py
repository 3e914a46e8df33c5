"""Layouts: which images, labels and masks each lists."""

import re

import pytest
from conftest import write_pictures
from listings import listing_data, listing_error

from defects.config import load_config
from defects.config_schema import ROOT
from defects.data import layouts
from defects.data.layouts import demo, list_data
from defects.messages import UserError


def _rows(listing, *columns: str) -> list[tuple]:
    """Sorted rows of the columns, missing labels as None."""
    table = listing.images[list(columns)].astype(object)
    return sorted(table.where(table.notna(), None).itertuples(index=False, name=None), key=str)


def test_layout_defect_normal(make_dataset):
    listing = list_data(listing_data(make_dataset(defects=2, normals=1, tests=1), "defect_normal"))
    assert listing.answers is None
    assert _rows(listing, "image_id", "path", "split", "label", "mask_path") == [
        (
            f"defect_images/defect_{i}.png",
            f"train/defect_images/defect_{i}.png",
            "train",
            1,
            f"train/defect_masks/defect_{i}.png",
        )
        for i in range(2)
    ] + [
        ("normal_images/normal_0.png", "train/normal_images/normal_0.png", "train", 0, ""),
        ("test_0.png", "test/images/test_0.png", "test", None, ""),
    ]


def test_layout_defect_normal_without_masks_and_test_images(make_dataset):
    root = make_dataset(defects=2, normals=3, tests=0)
    (root / "train/defect_masks").rename(root / "unused")
    listing = list_data(listing_data(root, "defect_normal"))
    assert listing.images["split"].tolist() == ["train"] * 5
    assert (listing.images["mask_path"] == "").all()


@pytest.mark.parametrize(
    "folder", ["train/defect_images", "train/normal_images", "train/defect_masks", "test/images"]
)
def test_layout_defect_normal_names_an_empty_folder(make_dataset, folder):
    root = make_dataset(defects=2, normals=2, tests=1)
    for path in (root / folder).iterdir():
        path.unlink()
    assert str(root / folder) in listing_error(listing_data(root, "defect_normal"))


@pytest.mark.parametrize("folder", ["train/defect_images", "train/normal_images"])
def test_layout_defect_normal_names_a_missing_folder(make_dataset, folder):
    root = make_dataset(defects=2, normals=2, tests=1)
    (root / folder).rename(root / "elsewhere")
    message = listing_error(listing_data(root, "defect_normal"))
    assert str(root / folder) in message
    assert "data.root" in message


def test_layout_masks_may_have_another_suffix_and_another_spelling(make_dataset):
    root = make_dataset(defects=1, normals=1, tests=0)
    (root / "train/defect_images/defect_0.png").rename(root / "train/defect_images/Stu\u0308ck 1.png")
    (root / "train/defect_masks/defect_0.png").rename(root / "train/defect_masks/Stück 1.bmp")
    listing = list_data(listing_data(root, "defect_normal"))
    assert listing.images["mask_path"].tolist() == ["", "train/defect_masks/Stück 1.bmp"]
    assert listing.images["image_id"].tolist()[1] == "defect_images/Stück 1.png"
    assert (root / listing.images["path"].iloc[1]).exists()


def test_layout_every_image_without_a_mask_is_named_or_kept_without(make_dataset):
    root = make_dataset(defects=4, normals=1, tests=0)
    for i in (1, 3):
        (root / f"train/defect_masks/defect_{i}.png").unlink()
    message = listing_error(listing_data(root, "defect_normal"))
    assert "defect_1.png" in message
    assert "defect_3.png" in message
    assert "defect_0.png" not in message
    dropped = list_data(listing_data(root, "defect_normal", bad_masks="drop")).images
    assert (dropped["mask_path"] != "").tolist() == [False, True, False, True, False]


MVTEC_TEST = [
    ("test/broken_large/000.png", 1, "broken_large", "ground_truth/broken_large/000_mask.png"),
    ("test/broken_large/001.png", 1, "broken_large", "ground_truth/broken_large/001_mask.png"),
    ("test/contamination/000.png", 1, "contamination", "ground_truth/contamination/000_mask.png"),
    ("test/good/000.png", 0, "good", ""),
]


def test_layout_mvtec_keeps_the_labels_of_its_test_images_apart(mvtec):
    listing = list_data(listing_data(mvtec, "mvtec"))
    test = listing.images[listing.images["split"] == "test"]
    assert sorted(test["image_id"]) == [row[0] for row in MVTEC_TEST]
    assert test["label"].isna().all()
    assert (test[["mask_path", "kind"]] == "").all(axis=None)
    answers = listing.answers[["image_id", "label", "kind", "mask_path"]]
    assert sorted(answers.itertuples(index=False, name=None)) == MVTEC_TEST
    train = listing.images[listing.images["split"] == "train"]
    assert train["image_id"].tolist() == ["train/good/000.png", "train/good/001.png"]
    assert train["label"].tolist() == [0, 0]


def test_layout_mvtec_test_images_may_join_the_training_side(mvtec):
    listing = list_data(listing_data(mvtec, "mvtec", use_test_as="train"))
    assert listing.answers is None
    assert set(listing.images["split"]) == {"train"}
    assert _rows(listing, "image_id", "label", "kind", "mask_path")[:4] == MVTEC_TEST


@pytest.mark.parametrize("name", ["ok", "OK", "Good", "normal"])
def test_layout_mvtec_with_another_name_for_good(mvtec, name):
    for split in ("train", "test"):
        (mvtec / split / "good").rename(mvtec / split / name)
    listing = list_data(listing_data(mvtec, "mvtec"))
    labels = listing.answers.set_index("image_id")["label"]
    assert labels[f"test/{name}/000.png"] == 0
    assert labels.sum() == 3
    assert (listing.images["split"] == "train").sum() == 2


def test_layout_mvtec_with_two_folders_of_normal_training_images_is_refused(mvtec):
    write_pictures(mvtec, "train/OK/000.png")
    message = listing_error(listing_data(mvtec, "mvtec"))
    assert "train/OK" in message and "train/good" in message


def test_layout_mvtec_masks_of_a_kind_whose_letters_differ_in_case(mvtec):
    (mvtec / "ground_truth/contamination").rename(mvtec / "ground_truth/Contamination")
    masks = list_data(listing_data(mvtec, "mvtec")).answers.set_index("image_id")["mask_path"]
    assert masks["test/contamination/000.png"] == "ground_truth/Contamination/000_mask.png"


def test_layout_mvtec_without_masks(mvtec):
    (mvtec / "ground_truth").rename(mvtec / "elsewhere")
    listing = list_data(listing_data(mvtec, "mvtec"))
    assert (listing.answers["mask_path"] == "").all()


def test_layout_mvtec_ignores_files_and_hidden_folders_among_the_kinds(mvtec):
    (mvtec / "test" / "readme.txt").touch()
    (mvtec / "test" / ".ipynb_checkpoints").mkdir()
    assert len(list_data(listing_data(mvtec, "mvtec")).answers) == 4


def test_layout_mvtec_names_what_is_missing(mvtec):
    (mvtec / "ground_truth/broken_large/001_mask.png").unlink()
    assert "test/broken_large/001.png" in listing_error(listing_data(mvtec, "mvtec"))
    (mvtec / "test").rename(mvtec / "elsewhere")
    assert str(mvtec / "test") in listing_error(listing_data(mvtec, "mvtec"))
    (mvtec / "train").rename(mvtec / "elsewhere2")
    assert str(mvtec / "train" / "good") in listing_error(listing_data(mvtec, "mvtec"))


NORMAL = [("normal/1.png", "train", 0, ""), ("normal/line 2/1.png", "train", 0, "")]


def _abnormal(first: str, second: str) -> list[tuple]:
    return [("bad/a.png", "train", 1, first), ("bad/line 2/a.png", "train", 1, second)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, NORMAL),
        ({"abnormal": "bad"}, _abnormal("", "") + NORMAL),
        (
            {"abnormal": "bad", "masks": "masks"},
            _abnormal("masks/a_mask.png", "masks/line 2/a.png") + NORMAL,
        ),
        ({"test": "new"}, [("new/x.png", "test", None, ""), *NORMAL]),
    ],
    ids=["normal only", "abnormal", "masks", "test"],
)
def test_layout_folders(folders, names, expected):
    listing = list_data(listing_data(folders, "folders", folders={"normal": "normal", **names}))
    assert listing.answers is None
    assert _rows(listing, "image_id", "split", "label", "mask_path") == sorted(expected, key=str)


def test_layout_folders_outside_the_root(folders, tmp_path):
    write_pictures(tmp_path / "elsewhere" / "good", "1.png")
    for name in ("../elsewhere/good", str(tmp_path / "elsewhere" / "good")):
        listing = list_data(listing_data(folders, "folders", folders={"normal": name, "abnormal": "bad"}))
        assert set(listing.images["image_id"]) == {"good/1.png", "bad/a.png", "bad/line 2/a.png"}
        assert all((folders / path).exists() for path in listing.images["path"])


@pytest.mark.parametrize("key", ["normal", "abnormal", "masks", "test"])
def test_layout_folders_that_do_not_exist_are_named(folders, key):
    names = {"normal": "normal", "abnormal": "bad", "masks": "masks", "test": "new"} | {key: "nowhere"}
    assert str(folders / "nowhere") in listing_error(listing_data(folders, "folders", folders=names))


def test_layout_demo_is_generated_once(tmp_path, monkeypatch, capsys):
    counts = {"normal": 3, "defect": 2, "test": 4}
    data = listing_data(tmp_path / "demo", "demo", answers=tmp_path / "key.csv", demo=counts)
    first = list_data(data)
    assert "generating the demo images" in capsys.readouterr().out
    assert first.images.groupby(["split", "label"], dropna=False).size().tolist() == [4, 3, 2]
    assert first.images["mask_path"].ne("").sum() == 2
    monkeypatch.setattr(demo, "generate_demo", None)
    assert list_data(data).images.equals(first.images)


def test_layout_a_demo_that_was_generated_with_other_settings_is_refused(tmp_path):
    counts = {"normal": 3, "defect": 2, "test": 4}
    list_data(listing_data(tmp_path / "demo", "demo", answers=tmp_path / "key.csv", demo=counts))
    data = listing_data(tmp_path / "demo", "demo", answers=tmp_path / "key.csv", demo=counts | {"seed": 1})
    assert "generated otherwise (data.demo.seed=0 then, 1 now)" in listing_error(data)


def test_layout_demo_needs_a_place_for_its_answers(tmp_path):
    assert "data.answers" in listing_error(listing_data(tmp_path / "demo", "demo"))


def test_layout_a_layout_is_one_file_as_the_documentation_says(tmp_path, monkeypatch):
    page = (ROOT / "docs/developing.md").read_text(encoding="utf-8").partition("## A new layout")[2]
    module, settings = re.findall(r"^```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:2]
    (tmp_path / "parts.py").write_text(module)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path)])
    (tmp_path / "valves.yaml").write_text(settings)
    write_pictures(tmp_path, "valve_ok/1.png", "valve_ok/2.png", "valve_bad/1.png")
    data = load_config(None, [f"data.root={tmp_path}"], str(tmp_path / "valves.yaml"), needs_model=False).data
    listing = list_data(data)
    assert _rows(listing, "image_id", "label") == [
        ("valve_bad/1.png", 1),
        ("valve_ok/1.png", 0),
        ("valve_ok/2.png", 0),
    ]
    with pytest.raises(UserError, match="did you mean data.parts.prefix"):
        load_config(None, ["data.parts.prefixes=x"], str(tmp_path / "valves.yaml"), needs_model=False)
