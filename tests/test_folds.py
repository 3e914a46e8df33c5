"""Folds and training lists: leak-free for any grouping, every fold with its share of the rare class."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defects.config_schema import BalanceConfig, SplitConfig
from defects.data import folds
from defects.data.transforms import rotate_flip
from defects.messages import UserError

SYMMETRIES = ["rotations", "dihedral", "flips", "none"]


def labelled(labels):
    return pd.DataFrame({"label": labels}).astype("Int64")


@st.composite
def grouped_images(draw):
    groups = np.array(draw(st.lists(st.integers(0, 30), min_size=10, max_size=120)))
    defect = np.array(draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    return groups, defect


@settings(max_examples=150, deadline=None)
@given(grouped_images(), st.integers(2, 6), st.integers(0, 3))
def test_folds_groups_stay_whole_and_classes_reach_every_fold(images, count, seed):
    groups, defect = images
    fold = folds.assign_folds(groups, folds.class_targets(labelled(defect.astype(int))), count, seed)
    assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
    rarer = defect if defect.sum() <= (~defect).sum() else ~defect
    expected = min(count, len(np.unique(groups[rarer])))
    assert len(np.unique(fold[rarer])) == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 200), st.integers(2, 5), st.integers(0, 9))
def test_without_groups_the_folds_are_even(count, parts, seed):
    labels = pd.Series((np.arange(count) % 7 == 0).astype(int))
    fold = folds.assign_folds(np.arange(count), folds.class_targets(labelled(labels)), parts, seed)
    for label in (0, 1):
        sizes = np.bincount(fold[labels == label], minlength=parts)
        assert sizes.max() - sizes.min() <= 2


def test_folds_depend_on_the_seed_alone():
    targets = folds.class_targets(labelled([0, 1] * 30))
    first, again, other = (folds.assign_folds(np.arange(60), targets, 5, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def planned(images, groups, count=2, **settings):
    """Fold of each image, by folds.plan_folds with `count` folds."""
    images = images.assign(image_id=[f"{number}.png" for number in range(len(images))])
    classes = [name.removeprefix("defect_") for name in images.columns if name.startswith("defect_")]
    return folds.plan_folds(images, np.array(groups), classes, SplitConfig(folds=count, **settings))


def test_too_few_groups_of_defects_for_the_folds():
    images = labelled([1, 1, 1, 1, 1] + [0] * 20)
    groups = np.array([0, 0, 1, 2, 3, *range(4, 24)])  # five defects, but of four objects
    with pytest.raises(
        UserError, match="the defects lie in 4 groups .* for split.folds=5: set split.folds=4"
    ):
        planned(images, groups, 5)
    assert set(planned(images, groups, 4)) == set("0123")
    assert set(planned(labelled([0] * 20), range(20), 5)) == set(
        "01234"
    )  # no defect at all is a case of its own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group_pattern": "(x)"}, r"4 groups \(split.group_pattern\) .* correct split.group_pattern=\(x\)"),
        ({"group_file": "g.csv"}, r"4 groups \(split.group_file\) for split.folds=5.* correct g.csv"),
        ({}, r"4 groups \(split.duplicates, the search .*split.duplicates.enabled=false"),
        ({"duplicates": {"enabled": False}}, "4 groups for split.folds=5: set split.folds=4, or add images"),
    ],
)
def test_folds_a_refusal_names_where_the_groups_come_from(settings, said):
    images = labelled([1, 1, 1, 1, 1] + [0] * 20)
    groups = np.array([0, 0, 1, 2, 3, *range(4, 24)])
    with pytest.raises(UserError, match=said):
        planned(images, groups, 5, **settings)


@pytest.mark.parametrize("labels", [[1, 1, 0], [1, 1], [1, 1, 1]])
def test_fewer_than_two_folds_are_never_suggested(labels):
    with pytest.raises(UserError) as caught:
        planned(labelled(labels), range(len(labels)))
    message = str(caught.value)
    assert (
        "the normal images" in message and "set split.folds" not in message and "need two groups" in message
    )


def test_folds_the_only_defect_is_learnt_from_in_every_fold_and_said_so(capsys):
    fold = planned(labelled([1, 0, 0, 0]), range(4))
    assert fold[0] == folds.TRAINING_ONLY and sorted(fold[1:]) in (["0", "0", "1"], ["0", "1", "1"])
    assert (
        "note: the defects lie in 1 group (0.png): it is learnt from in every fold" in capsys.readouterr().out
    )


def test_folds_the_only_image_of_a_class_is_learnt_from_in_every_fold(capsys):
    fold = planned(with_classes("1", "1", "1", "2", "", ""), range(6))
    assert fold[3] == folds.TRAINING_ONLY and set(fold[:3]) == {"0", "1"}
    assert "note: the images of class 2 lie in 1 group" in capsys.readouterr().out


def test_folds_what_belongs_to_the_only_defect_stays_with_it():
    fold = planned(labelled([1, 0, 0, 0]), [0, 0, 1, 2])
    assert fold[:2].tolist() == 2 * [folds.TRAINING_ONLY] and set(fold[2:]) == {"0", "1"}
    with pytest.raises(UserError, match="the normal images lie in 1 group"):
        planned(labelled([1, 0, 0]), [0, 0, 1])


def test_folds_normal_images_in_the_group_of_the_only_defect_are_not_called_missing():
    with pytest.raises(UserError, match="the normal images lie in no group .* beside those with the defects"):
        planned(labelled([1, 0, 0]), [0, 0, 0], group_pattern="(.)")


def test_folds_notes_about_many_classes_with_one_image_are_few(capsys):
    planned(with_classes(*"12345", "", "", names="12345"), range(7))
    printed = capsys.readouterr().out
    assert printed.count("lie in 1 group") == 3
    assert "the same holds for the images of class 4, the images of class 5" in printed


def test_folds_several_defects_in_one_group_are_kept_together_where_the_user_says_so():
    images, groups = labelled([1, 1, 0, 0]), [0, 0, 1, 2]
    with pytest.raises(UserError, match="the defects lie in 1 group .split.duplicates.*enabled=false"):
        planned(images, groups)  # the search may be wrong
    copies = images.assign(sha256=["a", "a", "b", "c"])
    for stated in (planned(images, groups, group_pattern="(.)"), planned(copies, groups)):
        assert stated[:2].tolist() == 2 * [folds.TRAINING_ONLY]


def with_classes(*kinds, names="123"):
    """Rows of images.csv for the classes `names`; each kind is a text of the classes that an image has."""
    runs = {f"defect_{name}": ["1 1" if name in kind else "" for kind in kinds] for name in names}
    return labelled([int(kind != "") for kind in kinds]).assign(**runs)


def test_folds_with_several_classes_the_rarest_is_shared_out_first():
    """Images of two classes count for both, and whole groups stay together."""
    images = with_classes(*["3"] * 40, *["1"] * 12, *["13"] * 6, *["2", "23", "2", "23", "2"], *[""] * 30)
    groups = np.arange(len(images)) // 2 * 2  # pairs
    groups[58:63] = np.arange(58, 63)
    fold = folds.assign_folds(groups, folds.class_targets(images), 5, 0)
    held = pd.DataFrame(folds.class_targets(images)).groupby(fold).sum()
    assert (held[1] == 1).all()  # class 2 has five images
    assert (held.max() - held.min() <= [2, 0, 5, 4]).all()


def test_a_class_may_be_absent_but_not_too_rare_for_the_folds():
    images = with_classes(*["3"] * 9, "1", "1", "1")
    with pytest.raises(UserError, match="the images of class 1 lie in 3 groups for split.folds=4"):
        planned(images, range(12), 4)
    assert set(planned(images, range(12), 3)) == set("012")


def test_folds_rare_classes_are_turned_as_often_as_a_strip_allows():
    images = with_classes(*["3"] * 40, *["1"] * 8, "2", "23", *[""] * 5)
    images["image_id"] = [str(number) for number in range(len(images))]
    rows = folds.make_training_rows(images, "flips", BalanceConfig(ratio=0.5), 0)
    times = rows["image_id"].value_counts()[images["image_id"]].to_numpy()
    assert times[:40].tolist() == [1] * 40 and times[40:48].tolist() == [3] * 8  # of 41, half are 20.5
    assert times[48:50].tolist() == [4, 4] and times[50:].tolist() == [1] * 5
    assert set(zip(rows["angle"], rows["flip"], strict=True)) <= {
        (angle, flip) for angle in (0.0, 180.0) for flip in ("none", "horizontal")
    }
    assert not rows.duplicated().any()


def images_named(*names):
    return pd.DataFrame({"image_id": names})


def test_folds_group_pattern_names_the_part():
    images = images_named("coil7_a.png", "coil7_b.png", "coil12_a.png")
    groups = folds.find_stated_groups(images, SplitConfig(group_pattern=r"(coil\d+)_"))
    assert groups.tolist() == ["coil7", "coil7", "coil12"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [(r"coil\d+", "parentheses"), (r"(coil", "group_pattern"), (r"(part\d)", "no group for 1 images: a.png")],
)
def test_folds_group_pattern_that_cannot_work(pattern, message):
    with pytest.raises(UserError, match=message):
        folds.find_stated_groups(images_named("a.png"), SplitConfig(group_pattern=pattern))


@pytest.mark.parametrize(
    "text",
    [
        "image_id,group\nnormal/1,A\n2.PNG,B\n",
        "Group;ImageId\r\nA;normal\\1.png\r\nB;2\r\n",
        "image_id,group,\nnormal/1.png,A,\nbad/2.png,B,\nbad/9.png,C,\n",
    ],
)
def test_folds_group_file_as_people_save_it(tmp_path, text):
    path = tmp_path / "groups.csv"
    path.write_text(text, encoding="utf-16")
    images = pd.DataFrame({"image_id": ["normal/1.png", "bad/2.png"]})
    assert folds.find_stated_groups(images, SplitConfig(group_file=path)).tolist() == ["A", "B"]


def test_folds_group_file_with_names_that_are_not_clear(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("image_id,group\n1.png,A\n")
    images = pd.DataFrame({"image_id": ["normal/1.png", "bad/1.png"]})
    with pytest.raises(UserError, match=r"1\.png may mean normal/1\.png or bad/1\.png"):
        folds.find_stated_groups(images, SplitConfig(group_file=path))


def test_folds_group_file_takes_any_names_and_must_be_complete(tmp_path):
    path = tmp_path / "coils.csv"
    path.write_text("image_id,group\na.png,7\nb.png,x\n", encoding="utf-8")
    split = SplitConfig(group_file=path)
    assert folds.find_stated_groups(images_named("b.png", "a.png"), split).tolist() == ["x", "7"]
    with pytest.raises(UserError, match="no group for 1 images: c.png"):
        folds.find_stated_groups(images_named("a.png", "c.png"), split)


def test_folds_inner_holdout_keeps_groups_whole_and_holds_both_classes():
    table = pd.DataFrame({"group": np.arange(200) // 2, "label": [1] * 20 + [0] * 180})
    inner = folds.inner_holdout(table, 0.1, 0)
    assert 15 <= inner.sum() <= 25 and table["label"][inner].sum() == 2
    assert (pd.Series(inner).groupby(table["group"]).nunique() == 1).all()
    assert not folds.inner_holdout(table, 0.0, 0).any()


@pytest.mark.parametrize("normal", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("defects", [0, 1, 2, 3])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_folds_of_few_images_a_normal_one_is_kept_unseen_and_something_of_a_class_is_left(
    normal, defects, fraction
):
    table = pd.DataFrame({"group": np.arange(normal + defects), "label": [1] * defects + [0] * normal})
    inner = folds.inner_holdout(table, fraction, 0)
    kept, left = table["label"][inner], table["label"][~inner]
    assert (kept == 0).any() and (left == 0).any()
    assert (left == 1).any() == (defects > 0)


def test_folds_nothing_is_kept_unseen_of_a_single_group_of_normal_images():
    table = pd.DataFrame({"group": [0, 0, 1], "label": [0, 0, 1]})
    assert not folds.inner_holdout(table, 0.3, 0).any()


@pytest.mark.parametrize("symmetries", SYMMETRIES)
@settings(max_examples=40, deadline=None)
@given(copies=st.integers(1, 200))
def test_folds_members_are_distinct_label_preserving_and_as_many_as_there_are(symmetries, copies):
    found = folds.spread_transforms(symmetries, copies, 10.0)
    limit = {"rotations": copies, "dihedral": 8, "flips": 4, "none": 1}[symmetries]
    assert len(set(found)) == len(found) == min(copies, limit)
    allowed = {"dihedral": 90.0, "flips": 180.0, "none": 360.0}.get(symmetries)
    assert allowed is None or all(angle % allowed == 0 for angle, _ in found)
    assert (0.0, "none") in found


def test_folds_the_72_members_at_ten_degrees_are_72_different_pictures():
    image = np.random.default_rng(0).integers(0, 255, (33, 33, 3), dtype=np.uint8)
    pictures = {
        rotate_flip(image, *member).tobytes() for member in folds.spread_transforms("rotations", 72, 10.0)
    }
    assert len(pictures) == 72
    assert np.ascontiguousarray(image[::-1]).tobytes() in pictures  # the vertical flip is among them


def test_folds_few_copies_spread_over_the_circle_and_both_flips():
    found = folds.spread_transforms("rotations", 8, 10.0)
    assert [flip for _, flip in found].count("horizontal") == 4
    gaps = np.diff(sorted(angle for angle, _ in found) + [360.0])
    assert gaps.max() <= 50


def originals(defects, normals):
    names = [f"d{index}" for index in range(defects)] + [f"n{index}" for index in range(normals)]
    return pd.DataFrame({"image_id": names, "label": [1] * defects + [0] * normals})


def class_counts(rows):
    rare = rows["image_id"].str.startswith("d")
    return int(rare.sum()), int((~rare).sum())


@pytest.mark.parametrize(("defects", "normals", "ratio"), [(24, 442, 0.5), (3, 1000, 1.0), (40, 50, 0.5)])
def test_folds_oversampling_reaches_the_ratio_with_distinct_rows(defects, normals, ratio):
    plan = BalanceConfig(ratio=ratio)
    rows = folds.make_training_rows(originals(defects, normals), "rotations", plan, 0)
    rare, common = class_counts(rows)
    assert common == normals and rare == max(defects, round(ratio * normals))
    rare_rows = rows[rows["image_id"].str.startswith("d")]
    assert not rare_rows.duplicated().any()
    assert set(rows["image_id"]) == set(originals(defects, normals)["image_id"])


def test_folds_normal_images_take_the_same_transforms_in_the_same_proportion():
    rows = folds.make_training_rows(originals(24, 480), "rotations", BalanceConfig(), 0)
    rare = rows["image_id"].str.startswith("d")
    shares = [rows[side].groupby(["angle", "flip"]).size() / side.sum() for side in (rare, ~rare)]
    assert shares[0].index.equals(shares[1].index)
    assert (shares[0] - shares[1]).abs().max() < 0.005


def test_folds_without_balancing_nothing_is_copied():
    rows = folds.make_training_rows(originals(10, 100), "rotations", BalanceConfig(method="none"), 0)
    assert class_counts(rows) == (10, 100)
    assert (rows["angle"] == 0).all() and (rows["flip"] == "none").all()


def test_folds_normal_images_alone_stay_as_they_are():
    rows = folds.make_training_rows(originals(0, 20), "rotations", BalanceConfig(), 0)
    assert class_counts(rows) == (0, 20) and (rows["angle"] == 0).all()
