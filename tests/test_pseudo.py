"""Pseudo-labels: confident and agreed, fold by fold, never beside held-out siblings."""

import numpy as np
import pandas as pd
import pytest
from conftest import write_png
from runs import write_runs

from defects.data.images import read_image
from defects.data.pseudo import agreed
from defects.data.split import load_folds, load_training_rows
from defects.files import write_csv, write_json
from defects.training import inference
from defects.training.run import load_best, run_folder
from defects.training.sides import make_sides, with_pseudo

SURE = {"test_0.png": 0.99, "test_1.png": 0.01, "test_2.png": 0.5, "test_3.png": 0.97, "test_4.png": 0.02}


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset())


def score(config, name="tiny", **changes):
    """Run folders of `name` with test scores: SURE, test_5 normal, `changes` by fold over that."""
    member = config.model_copy(update={"experiment": name})
    write_runs(member, maps=False)
    tables = []
    for fold in "01":
        sure = pd.Series(SURE | {"test_5.png": 0.01} | changes.get(f"fold{fold}", {}))
        table = pd.DataFrame({"image_id": sure.index, "target": "defect", "fold": fold})
        tables.append(table.assign(score=sure.to_numpy(), probability=sure.to_numpy()))
        write_csv(run_folder(member, fold) / "test.csv", tables[-1])
        write_json(run_folder(member, fold) / "test.json", inference._stamp(member, fold))
    write_csv(member.experiment_dir / "test.csv", pd.concat(tables))


def label(run_script, config, *arguments):
    """The written table without the full fit's rows, as {fold: {image: label}}; and its path."""
    path = config.output.parent / "tiny.yaml"
    outcome = run_script("pseudo.py", "--config", path, *arguments)
    assert outcome.code == 0, outcome.stderr
    written = config.dataset_dir / outcome.stdout.split()[-1]
    table = pd.read_csv(written, dtype={"fold": str})
    return {
        fold: dict(rows[["image_id", "label"]].to_numpy()) for fold, rows in table.groupby("fold")
    }, written


def with_file(config, path):
    return config.model_copy(update={"train": config.train.model_copy(update={"pseudo": path})})


def sides_of(config, fold="0"):
    table = load_folds(config)
    return table, make_sides(config, fold, table, load_training_rows(config, fold))


def test_only_images_that_every_member_is_sure_of_are_labelled():
    table = pd.DataFrame(
        {"a": [0.95, 0.99, 0.05, 0.01, 0.5, 0.99], "b": [0.97, 0.94, 0.02, 0.06, 0.5, 0.01]},
        index=list("uvwxyz"),
    )
    found = agreed(table, 0.95, 0.05).set_index("image_id")
    assert found["label"].to_dict() == {"u": 1, "w": 0}
    assert found["agreement"].tolist() == pytest.approx([0.95, 0.95])


def test_a_fold_is_labelled_by_the_models_that_have_not_seen_it(config, run_script):
    score(config, fold0={"test_3.png": 0.03}, fold1={"test_4.png": 0.6})
    score(config, "other", fold1={"test_0.png": 0.9})
    alone, _ = label(run_script, config)
    assert alone["0"] == {"test_0.png": 1, "test_1.png": 0, "test_3.png": 0, "test_4.png": 0, "test_5.png": 0}
    assert alone["1"] == {"test_0.png": 1, "test_1.png": 0, "test_3.png": 1, "test_5.png": 0}
    both, path = label(run_script, config, "--experiments", "tiny", "other")
    assert path.name == "pseudo_tiny+other.csv"
    assert both["1"] == {"test_1.png": 0, "test_3.png": 1, "test_5.png": 0}
    assert "test_3.png" not in both["0"]


def test_no_other_fold_touches_the_labels_of_one(config, run_script):
    score(config)
    before, _ = label(run_script, config)
    score(config, fold1={name: 1 - value for name, value in SURE.items()})
    after, _ = label(run_script, config)
    assert after["0"] == before["0"] and after["1"] != before["1"]


def test_siblings_of_held_out_images_join_the_other_folds_alone(config, run_script):
    root = config.data.root
    folds = load_folds(config).set_index("image_id")["fold"]
    held = folds[folds.index.str.startswith("normal")].index[3]
    picture = read_image(root / "train" / held)
    write_png(root / "test" / "images" / "test_1.png", np.ascontiguousarray(picture[::-1]))
    write_png(root / "test" / "images" / "test_4.png", picture)  # the very same
    score(config)
    found, path = label(run_script, config)
    own, other = folds[held], "1" if folds[held] == "0" else "0"
    assert not {"test_1.png", "test_4.png"} & set(found[own])
    assert {"test_1.png", "test_4.png"} <= set(found[other])
    table = pd.read_csv(path, dtype=str).set_index("image_id")
    assert table.loc["test_4.png", "group"].unique().tolist() == [
        load_folds(config).set_index("image_id").loc[held, "group"]
    ]


def test_rows_join_what_is_learnt_from_and_nothing_else(config, run_script):
    score(config)
    _, path = label(run_script, config)
    config = with_file(config, path)
    inner = config.train.model_copy(update={"inner_holdout": 0.25, "select": "inner"})
    config = config.model_copy(update={"train": inner})
    table, plain = sides_of(config)
    joined = with_pseudo(config, "0", table, plain)
    pd.testing.assert_frame_equal(joined.held, plain.held)
    pd.testing.assert_frame_equal(joined.inner, plain.inner)
    new = joined.fitted[joined.fitted["image_id"].str.startswith("test_")]
    assert dict(new[["image_id", "label"]].to_numpy()) == {
        "test_0.png": 1,
        "test_1.png": 0,
        "test_3.png": 1,
        "test_4.png": 0,
        "test_5.png": 0,
    }
    assert set(plain.fitted["image_id"]) == set(joined.fitted["image_id"]) - set(new["image_id"])
    assert not joined.fitted.duplicated(["image_id", "angle", "flip"]).any()
    # Copies and turns are those of their class, and tell the classes apart no more than before.
    copies = joined.fitted[joined.fitted["label"] == 1].groupby("image_id").size()
    assert abs(copies[copies.index.str.startswith("test_")].mean() - copies.mean()) <= 1
    turns = joined.fitted.groupby("label")["angle"].agg(set)
    assert turns[0] <= turns[1]


def test_siblings_of_the_inner_part_stay_out(config, run_script):
    config = config.model_copy(update={"train": config.train.model_copy(update={"inner_holdout": 0.25})})
    inner = sides_of(config)[1].inner["image_id"]
    held = inner[inner.str.startswith("normal")].iloc[0]
    write_png(
        config.data.root / "test" / "images" / "test_1.png", read_image(config.data.root / "train" / held)
    )
    score(config)
    found, path = label(run_script, config)
    assert "test_1.png" in found["0"]
    joined = with_pseudo(with_file(config, path), "0", *sides_of(config))
    assert "test_4.png" in set(joined.fitted["image_id"]) and "test_1.png" not in set(
        joined.fitted["image_id"]
    )


def test_without_a_sure_image_the_list_is_the_planned_one(config, run_script):
    score(config, **{f"fold{fold}": dict.fromkeys([*SURE, "test_5.png"], 0.5) for fold in "01"})
    found, path = label(run_script, config)
    assert set(found) <= {"full"}
    table, plain = sides_of(config)
    joined = with_pseudo(with_file(config, path), "0", table, plain)
    columns = ["image_id", "angle", "flip", "label", "group"]
    pd.testing.assert_frame_equal(joined.fitted[columns], plain.fitted[columns])


def test_a_run_is_trained_with_the_file_and_refuses_another(config, run_script, fails_with_one_line):
    score(config)
    _, path = label(run_script, config)
    command = ["train.py", "--config", config.output.parent / "tiny.yaml", "--set", f"train.pseudo={path}"]
    command += ["--set", "experiment=second"]
    assert run_script(*command).code == 0
    second = config.model_copy(update={"experiment": "second"})
    oof = pd.read_csv(run_folder(second, "0") / "oof.csv")
    assert not oof["image_id"].str.startswith("test_").any() and len(oof) == 21
    assert load_best(second, "0")["fingerprint"]["files"]["train.pseudo"] is not None
    assert "is finished" in run_script(*command).stdout
    label(run_script, config, "--positive", "0.98", "--name", "tiny")
    assert "train.pseudo has changed" in fails_with_one_line(*command)


def test_files_that_do_not_fit_are_refused(config, run_script, fails_with_one_line):
    score(config)
    _, path = label(run_script, config)
    start = [
        "train.py",
        "--config",
        config.output.parent / "tiny.yaml",
        "--set",
        "experiment=second",
        "--set",
    ]
    assert "run src/pseudo.py first" in fails_with_one_line(*start, "train.pseudo=gone.csv")
    recut = fails_with_one_line(*start, f"train.pseudo={path}", "--set", "split.seed=1")
    assert "folds.csv differ" in recut and "run src/pseudo.py again" in recut
    path.write_text(path.read_text().replace("test_0.png,0,1", "test_0.png,0,0"))
    assert "table differ" in fails_with_one_line(*start, f"train.pseudo={path}")


def test_bad_input_ends_in_one_line(config, config_file, fails_with_one_line):
    path = config.output.parent / "tiny.yaml"
    write_runs(config, maps=False)
    asked = ["pseudo.py", "--config", path]
    assert "run src/infer.py first" in fails_with_one_line(*asked)
    assert "negative < positive" in fails_with_one_line(*asked, "--positive", "0.1", "--negative", "0.2")
    assert "data.classes" in fails_with_one_line(*asked, "--set", "data.classes=[1, 2]")
    write_runs(config.model_copy(update={"experiment": "half"}), folds="0", maps=False)
    member = config.model_copy(update={"experiment": "half"})
    rows = pd.DataFrame(
        {"image_id": list(SURE), "target": "defect", "fold": "0", "score": 0.0, "probability": 0.5}
    )
    write_csv(run_folder(member, "0") / "test.csv", rows)
    write_json(run_folder(member, "0") / "test.json", inference._stamp(member, "0"))
    write_csv(member.experiment_dir / "test.csv", rows)
    assert "half has no test scores of fold 1" in fails_with_one_line(*asked, "--experiments", "half")
