"""From trained folds to a validated submission, and what the answers say of the promise."""

import json

import pandas as pd
import pytest
from conftest import raising, run_at, runs_at, submitted_at

from defects.config_files import load_config
from defects.files import sha256
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


def test_out_of_fold_labels_must_be_those_of_the_images(trained, run_script, fails_with_one_line):
    assert run_script("infer.py", run_at(trained)).code == 0
    oof = output(trained, "tiny", "fold0", "oof.csv")
    table = pd.read_csv(oof)
    table.loc[0, "label"] = 1 - table.loc[0, "label"]
    table.to_csv(oof, index=False)
    message = fails_with_one_line("ensemble.py", run_at(trained))
    assert "1 out-of-fold labels are not those of" in message


def test_inference_scores_every_image_with_every_fold(trained, run_script):
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


def test_ensemble_writes_the_submission_and_what_it_was_made_from(trained, run_script):
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


def test_two_experiments_blend_and_one_of_other_data_is_refused(trained, config_file, run_script):
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


def test_one_trained_fold_is_enough_and_is_named(make_dataset, config_file, run_script):
    path = config_file(make_dataset())
    run_script("train.py", "--config", path)
    outcome = run_script("infer.py", run_at(path))
    assert outcome.code == 0, outcome.stderr
    assert "scoring 6 test images with fold 0\n" in outcome.stdout
    assert "submitted                 expected macro-F1 unknown" in outcome.stdout
    assert "needs two trained folds" in outcome.stdout and "interval" not in outcome.stdout
    run_script("ensemble.py", run_at(path))
    key = answers_file(path, [1, 0, 0, 1, 0, 0])
    evaluated = run_script("evaluate.py", *submitted_at(path), "--set", f"data.answers={key}")
    assert evaluated.code == 0 and "unknown" in evaluated.stdout and "two trained folds" in evaluated.stdout


@pytest.mark.parametrize(("use", "models"), [("full", ["full"]), ("both", ["0", "1", "full"])])
def test_the_full_fit_scores_beside_or_instead_of_the_folds(trained, run_script, use, models):
    refused = run_script("infer.py", run_at(trained), "--use", use)
    assert refused.code == 2 and "run src/train.py --fold full first" in refused.stderr
    assert run_script("train.py", "--config", trained, "--fold", "full").code == 0
    assert run_script("infer.py", run_at(trained), "--use", use).code == 0
    table = pd.read_csv(output(trained, "tiny", "test.csv"), dtype=str)
    assert sorted(table["fold"].unique()) == models


def test_inference_keeps_scored_folds_until_their_model_changes(trained, run_script):
    run_script("infer.py", run_at(trained))
    scored = output(trained, "tiny", "fold1", "test.csv")
    first = scored.stat().st_mtime_ns
    run_script("infer.py", run_at(trained))
    assert scored.stat().st_mtime_ns == first
    scored.write_text("half a ta")  # never by this program, which replaces files whole
    outcome = run_script("infer.py", run_at(trained))
    assert outcome.code == 2 and str(scored) in outcome.stderr


def test_interrupted_inference_leaves_no_scores_of_the_old_models(
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
    joined, own = Run(config).load_test_scores(), pd.read_csv(output(trained, "tiny", "fold0", "test.csv"))
    of_fold = joined[joined["fold"] == "0"].set_index("image_id")["score"]
    assert of_fold.to_dict() == own.set_index("image_id")["score"].to_dict()


def test_evaluation_compares_the_expected_score_with_the_answers(trained, run_script):
    run_script("ensemble.py", run_at(trained))
    key = answers_file(trained, [1, 0, 0, 1, 0, 0, 1, 0, 0])
    outcome = run_script("evaluate.py", *submitted_at(trained), "--set", f"data.answers={key}")
    assert outcome.code == 0, outcome.stderr
    for text in (
        "expected macro-F1 (training share",
        "test macro-F1",
        "at the training share",
        "AUROC",
    ):
        assert text in outcome.stdout
    key = answers_file(trained, [1, 0])
    refused = run_script("evaluate.py", *submitted_at(trained), "--set", f"data.answers={key}")
    assert refused.code == 2 and "the answer key lacks 7" in refused.stderr


def test_answers_are_never_needed_before_the_end(trained, run_script):
    run_script("ensemble.py", run_at(trained))
    outcome = run_script("evaluate.py", *submitted_at(trained))
    assert outcome.code == 2 and "name the answer key" in outcome.stderr


def test_without_test_images_there_is_nothing_to_score(make_dataset, config_file, run_script):
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
def test_submissions_that_would_be_rejected(table, message, tmp_path):
    with pytest.raises(UserError, match=message):
        check_answers(table, ["a", "b"], tmp_path / "submission.csv")
