"""The whole way from images to a submission, also with a handful of images."""

import json

import pandas as pd
import pytest
from conftest import options_for, raising, run_at, runs_at, submitted_at, write_config, write_dataset

from defects.config import load_config
from defects.evaluation.claim_records import Claims
from defects.files import read_csv, sha256
from defects.messages import UserError
from defects.runs import Run
from defects.submission.build import check_answers
from defects.training import checkpoint, scoring


@pytest.fixture
def trained(make_dataset, config_file, run_script):
    """Config of a tiny data set whose two folds are trained and whose sample is in no sorted order."""
    root = make_dataset(defects=12, normals=30, tests=9)
    names = [f"test_{index}.png" for index in (4, 0, 8, 1, 2, 7, 3, 6, 5)]
    rows = "".join(f"{name},0\n" for name in names)
    (root / "test" / "sample_submission.csv").write_text("ImageId,answer\n" + rows)
    path = config_file(root, train={"epochs": 2})
    assert run_script("train.py", "--config", path, "--fold", "all").code == 0
    return path


def output(path, *parts):
    return path.parent.joinpath("output", *parts)


def answers_file(path, labels):
    key = path.parent / "answers.csv"
    rows = "".join(f"test_{index}.png,{label}\n" for index, label in enumerate(labels))
    key.write_text("ImageId,answer\n" + rows)
    return key


def test_pipeline_out_of_fold_labels_must_be_those_of_the_images(trained, run_script, fails_with_one_line):
    assert run_script("infer.py", run_at(trained)).code == 0
    oof = output(trained, "tiny", "fold0", "oof.csv")
    table = pd.read_csv(oof)
    table.loc[0, "label"] = 1 - table.loc[0, "label"]
    table.to_csv(oof, index=False)
    message = fails_with_one_line("ensemble.py", run_at(trained))
    assert "1 out-of-fold labels are not those of" in message


def test_pipeline_inference_scores_every_image_with_every_fold(trained, run_script):
    outcome = run_script("infer.py", run_at(trained))
    assert outcome.code == 0, outcome.stderr
    assert "scoring 9 test images with fold 0, fold 1" in outcome.stdout
    table = pd.read_csv(output(trained, "tiny", "test.csv"))
    assert list(table.columns) == ["image_id", "target", "fold", "score", "probability"]
    assert len(table) == 18 and not table.duplicated(["image_id", "fold"]).any()
    submission = pd.read_csv(trained.parent / "submissions" / "tiny.csv")
    sample = pd.read_csv(trained.parent / "data" / "test" / "sample_submission.csv")
    assert submission["ImageId"].tolist() == sample["ImageId"].tolist()
    assert submission["answer"].isin([0, 1]).all()


def test_pipeline_ensemble_writes_the_submission_and_what_it_was_made_from(trained, run_script):
    outcome = run_script("ensemble.py", run_at(trained))
    assert outcome.code == 0, outcome.stderr
    assert "scoring the test images first" in outcome.stdout and "expected macro-F1" in outcome.stdout
    summary = json.loads((trained.parent / "submissions" / "sample_submission.json").read_text())
    assert summary["weights"] == {"tiny": 1.0} and summary["estimate"]["folds"] == ["0", "1"]
    inputs = {name.rsplit("/", 1)[-1]: digest for name, digest in summary["inputs"].items()}
    assert inputs["test.csv"] == sha256(output(trained, "tiny", "test.csv"))
    decision = summary["decision"]
    low, high = decision["interval_90"]
    assert 0 <= low <= decision["expected_score"] <= high <= 1
    claims = Claims.from_json(summary["claims"][decision["prior"]])
    assert claims.escape.images == 12
    assert f"may be claimed            {claims.sentence}" in outcome.stdout.splitlines()


def test_pipeline_two_experiments_blend_and_one_of_other_data_is_refused(trained, config_file, run_script):
    run_script("infer.py", run_at(trained))
    other = ["--config", trained, "--set", "experiment=other", "--set", "train.seed=1"]
    assert run_script("train.py", *other, "--fold", "all").code == 0
    assert run_script("infer.py", run_at(trained, "other")).code == 0
    blended = run_script("ensemble.py", *runs_at(trained, "tiny", "other"))
    assert blended.code == 0, blended.stderr
    partly = pd.read_csv(output(trained, "other", "test.csv")).query("image_id != 'test_3.png'")
    partly.to_csv(output(trained, "other", "test.csv"), index=False)
    refused = run_script("ensemble.py", *runs_at(trained, "tiny", "other"))
    assert (
        refused.code == 2
        and "tiny and other scored different images (1, such as test_3.png)" in refused.stderr
    )
    missing = run_script("ensemble.py", *runs_at(trained, "tiny", "nothing"))
    assert missing.code == 2 and "nothing holds no trained fold" in missing.stderr


def test_pipeline_one_trained_fold_is_enough_and_is_named(make_dataset, config_file, run_script):
    path = config_file(make_dataset())
    run_script("train.py", "--config", path)
    outcome = run_script("infer.py", run_at(path))
    assert outcome.code == 0, outcome.stderr
    assert "scoring 6 test images with fold 0\n" in outcome.stdout
    assert "submitted                 expected macro-F1 unknown" in outcome.stdout
    assert "needs two trained folds" in outcome.stdout and "interval" not in outcome.stdout
    assert "nothing is claimed: only one fold is trained" in outcome.stdout
    run_script("ensemble.py", run_at(path))
    key = answers_file(path, [1, 0, 0, 1, 0, 0])
    evaluated = run_script("evaluate.py", *submitted_at(path), "--set", f"data.answers={key}")
    assert evaluated.code == 0 and "unknown" in evaluated.stdout and "two trained folds" in evaluated.stdout


@pytest.mark.parametrize(("use", "models"), [("full", ["full"]), ("both", ["0", "1", "full"])])
def test_pipeline_the_full_fit_scores_beside_or_instead_of_the_folds(trained, run_script, use, models):
    refused = run_script("infer.py", run_at(trained), "--use", use)
    assert refused.code == 2 and "run src/train.py --fold full first" in refused.stderr
    assert run_script("train.py", "--config", trained, "--fold", "full").code == 0
    assert run_script("infer.py", run_at(trained), "--use", use).code == 0
    table = pd.read_csv(output(trained, "tiny", "test.csv"), dtype=str)
    assert sorted(table["fold"].unique()) == models


def test_pipeline_inference_keeps_scored_folds_until_their_model_changes(trained, run_script):
    run_script("infer.py", run_at(trained))
    scored = output(trained, "tiny", "fold1", "test.csv")
    first = scored.stat().st_mtime_ns
    run_script("infer.py", run_at(trained))
    assert scored.stat().st_mtime_ns == first
    scored.write_text("half a ta")  # never by this program, which replaces files whole
    outcome = run_script("infer.py", run_at(trained))
    assert outcome.code == 2 and str(scored) in outcome.stderr


def test_pipeline_interrupted_inference_leaves_no_scores_of_the_old_models(
    trained, run_script, fails_with_one_line, monkeypatch
):
    """The folds' scores were those of the new model already, the joined table that of the old one."""
    assert run_script("infer.py", run_at(trained)).code == 0
    best = output(trained, "tiny", "fold0", "best.pt")
    content = checkpoint.load(best)
    content["detector"]["network.classifier.bias"] += 1
    checkpoint.save(best, content)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_csv", raising(KeyboardInterrupt()))
        assert run_script("infer.py", run_at(trained)).code == 130
    config = load_config(trained)
    with pytest.raises(UserError, match=r"test\.csv does not exist: run src/infer\.py"):
        Run(config).load_test_scores()
    assert run_script("infer.py", run_at(trained)).code == 0
    joined = Run(config).load_test_scores()
    own = read_csv(output(trained, "tiny", "fold0", "test.csv"), ["image_id", "score"], "src/infer.py")
    of_fold = joined[joined["fold"] == "0"].set_index("image_id")["score"]
    assert of_fold.to_dict() == own.set_index("image_id")["score"].to_dict()


def test_pipeline_evaluation_compares_the_expected_score_with_the_answers(trained, run_script):
    run_script("ensemble.py", run_at(trained))
    key = answers_file(trained, [1, 0, 0, 1, 0, 0, 1, 0, 0])
    outcome = run_script("evaluate.py", *submitted_at(trained), "--set", f"data.answers={key}")
    assert outcome.code == 0, outcome.stderr
    for text in (
        "expected macro-F1 (training share",
        "test macro-F1",
        "at the training share",
        "AUROC",
        "test defects that escaped, at most",
    ):
        assert text in outcome.stdout
    key = answers_file(trained, [1, 0])
    refused = run_script("evaluate.py", *submitted_at(trained), "--set", f"data.answers={key}")
    assert refused.code == 2 and "the answer key lacks 7" in refused.stderr


def test_pipeline_answers_are_never_needed_before_the_end(trained, run_script):
    run_script("ensemble.py", run_at(trained))
    outcome = run_script("evaluate.py", *submitted_at(trained))
    assert outcome.code == 2 and "name the answer key" in outcome.stderr


def test_pipeline_without_test_images_there_is_nothing_to_score(make_dataset, config_file, run_script):
    path = config_file(
        make_dataset(),
        data={
            "source": "folders",
            "folders": {"normal": "train/normal_images", "abnormal": "train/defect_images"},
            "sample_submission": None,
        },
    )
    assert run_script("train.py", "--config", path).code == 0
    outcome = run_script("infer.py", run_at(path))
    assert outcome.code == 2 and "lists no test images" in outcome.stderr


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"image": ["a", "b"], "answer": [0, 1]}), "its columns are image, answer"),
        (pd.DataFrame({"ImageId": ["b", "a"], "answer": [0, 1]}), "order"),
        (pd.DataFrame({"ImageId": ["a"], "answer": [0]}), r"missing \['b'\]"),
        (
            pd.DataFrame({"ImageId": ["a", "b"], "answer": [0, 0.5]}),
            "not 0 or 1, that of b first",
        ),
        (pd.DataFrame({"ImageId": ["a", "b"], "answer": [0, None]}), "answers are not 0 or 1"),
    ],
)
def test_pipeline_submissions_that_would_be_rejected(table, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_answers(table, ["a", "b"], tmp_path / "submission.csv")


STAGES = [
    ("train.py", "--fold", "all"),
    ("infer.py",),
    ("ensemble.py",),
    ("report.py",),
    ("errors.py",),
    ("compare.py",),
]


BANK = {
    "model": {"name": "patchcore", "backbone": {"name": "test_resnet", "weights": "none"}},
    "train": {"inner_holdout": 0.1},
    "infer": {"tta": False},
    "split": {"folds": 2, "duplicates": {"enabled": False}},
}


def test_pipeline_one_defect_goes_the_whole_way(tmp_path, run_script):
    root = write_dataset(tmp_path / "data", defects=1, normals=6, tests=4)
    path = write_config(tmp_path, root, split=BANK["split"])
    said = ""
    for script, *options in STAGES:
        outcome = run_script(script, *options_for(script, path), *options)
        assert outcome.code == 0, outcome.stderr
        said += outcome.stdout
    assert "note: the defects lie in 1 group" in said
    assert "no defects among the out-of-fold images" in said
    folds = pd.read_csv(tmp_path / "output" / "tiny_data" / "folds.csv", dtype=str)
    assert folds.loc[folds["image_id"].str.contains("defect"), "fold"].tolist() == ["train"]
    oof = pd.concat(pd.read_csv(found) for found in (tmp_path / "output" / "tiny").glob("fold*/oof.csv"))
    assert len(oof) == 6 and (oof["label"] == 0).all()


@pytest.mark.parametrize("defects", [0, 1, 2])
def test_pipeline_few_normal_images_calibrate_a_detector_that_never_sees_defects(
    tmp_path, run_script, defects
):
    root = write_dataset(tmp_path / "data", defects=max(defects, 1), normals=12, tests=0)
    data = {"source": "folders", "sample_submission": None}
    data["folders"] = {"normal": "train/normal_images", "abnormal": None, "masks": None, "test": None}
    if defects:
        data["folders"]["abnormal"] = "train/defect_images"
    path = write_config(tmp_path, root, data=data, **BANK)
    outcome = run_script("train.py", "--config", path, "--fold", "0")
    assert outcome.code == 0, outcome.stderr


def test_pipeline_too_few_normal_images_to_calibrate_are_counted(tmp_path, fails_with_one_line):
    path = write_config(tmp_path, write_dataset(tmp_path / "data", defects=2, normals=2, tests=0), **BANK)
    command = ["train.py", "--config", path, "--set", "data.sample_submission=null"]
    message = fails_with_one_line(*command)
    assert "train.inner_holdout=0.1 keeps none of 1 (in 1 group)" in message
    assert "add normal images" in message and "set it" not in message
    unset = fails_with_one_line(*command, "--set", "train.inner_holdout=0")
    assert "train.inner_holdout=0 keeps none of 1" in unset and "set it, such as to 0.1" in unset


def test_pipeline_an_epoch_cannot_be_chosen_by_no_image(tmp_path, run_script, fails_with_one_line):
    root = write_dataset(tmp_path / "data", defects=2, normals=6, tests=0)
    select = {"train": {"select": "inner", "inner_holdout": 0.2}, "data": {"sample_submission": None}}
    path = write_config(tmp_path, root, split=BANK["split"], **select)
    assert "the epoch is chosen by the loss" in run_script("train.py", "--config", path).stdout
    few = write_dataset(tmp_path / "few", defects=2, normals=2, tests=0)
    path = write_config(tmp_path, few, "few", split=BANK["split"], **select)
    message = fails_with_one_line("train.py", "--config", path, "--set", "data.name=few_data")
    assert "train.inner_holdout=0.2 keeps none of 2 images" in message and "train.select=last" in message
