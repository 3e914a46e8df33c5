"""src/ensemble.py on run folders with known scores: JSON, printout, evaluation, bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from runs import write_member, write_runs

from defects.config import load_config
from defects.evaluation.estimate import estimate
from defects.evaluation.scales import compute_run_scores, join_images
from defects.files import write_csv
from defects.messages import UserError
from defects.runs import Run
from defects.stages import ensure_tables

TESTS = 18  # images; so few are not compared with the training images, which takes time


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=16, normals=60, tests=TESTS), "split.duplicates.enabled=false")


def options(config, *names):
    return ["--output", config.output, *(names or ["tiny"])]


def submitted(config):
    return ["--submission", config.submissions / "sample_submission.csv"]


def blend(run_script, config, *names, settings=()):
    """The JSON beside the submission, and what was printed."""
    more = [part for each in settings for part in ("--set", each)]
    outcome = run_script("ensemble.py", *options(config, *names), *more)
    assert outcome.code == 0, outcome.stderr
    file = config.submissions / "sample_submission.json"
    return json.loads(file.read_text(encoding="utf-8")), outcome.stdout


def test_ensemble_a_single_experiment_keeps_its_scores_and_threshold(config, run_script):
    run = write_member(config, "tiny")
    summary, printed = blend(run_script, config, "tiny")
    oof, test = Run(run).load_oof(ensure_tables(run).folds), Run(run).load_test_scores()
    held, new = compute_run_scores(oof, test)
    alone = estimate(oof.assign(score=held.to_numpy()))
    figures = {name: value for name, value in alone.items() if name not in ("threshold", "score_threshold")}
    assert summary["estimate"] == json.loads(json.dumps(figures))
    assert summary["decision"]["threshold"] == alone["threshold"] and summary["weights"] == {"tiny": 1.0}
    written = pd.read_csv(config.submissions / "sample_submission.scores.csv", index_col="image_id")
    assert written["score"].to_dict() == pytest.approx(new.to_dict())
    answers = pd.read_csv(config.submissions / "sample_submission.csv", index_col="ImageId")["answer"]
    assert (answers == (new >= alone["score_threshold"]).astype(int).reindex(answers.index)).all()
    assert "blended" not in printed and "of each fold" in printed


def test_ensemble_training_and_test_images_are_compared(make_dataset, make_config, run_script):
    root = make_dataset(defects=16, normals=60, tests=30)
    config = make_config(root, "split.duplicates.enabled=false")
    write_member(config, "tiny")
    summary, printed = blend(run_script, config, "tiny")
    assert summary["adversarial"]["test"] == 30 and 0 < summary["adversarial"]["auroc"] < 1
    assert "76 training against 30 test images: AUROC" in printed


def test_ensemble_several_are_joined_and_every_method_is_told_with_its_nested_estimate(config, run_script):
    for seed, name in enumerate(["one", "other"]):
        write_member(config, name, seed=seed, lr=1e-3 / (seed + 1))
    table = pd.read_csv(config.experiment_dir.parent / "other" / "test.csv")
    write_csv(config.experiment_dir.parent / "other" / "test.csv", table.sample(frac=1, random_state=0))
    summary, printed = blend(run_script, config, "one", "other")
    methods, found = summary["ensemble"]["methods"], summary["estimate"]
    assert list(methods) == ["mean", "stack"] and summary["ensemble"]["scale"] == "calibration"
    for row in methods.values():
        assert row["optimism"] == pytest.approx(row["naive"] - row["nested"])
        assert sum(row["weights"].values()) == pytest.approx(1)
    assert summary["weights"] == methods[summary["ensemble"]["method"]]["weights"]
    low, high = found["interval_90"]
    assert low <= found["nested_macro_f1"] <= high and set(found["fold_macro_f1"]) == {"0", "1"}
    assert found["macro_f1"] == pytest.approx(methods[summary["ensemble"]["method"]]["naive"])
    for text in ("blended                   one, other", "optimism", "stack", "share of defects"):
        assert text in printed
    before = (config.submissions / "sample_submission.csv").read_bytes()
    blend(run_script, config, "one", "other")
    assert (config.submissions / "sample_submission.csv").read_bytes() == before


def test_ensemble_seeds_among_the_members_and_beside_them_are_told_with_their_spread(config, run_script):
    write_member(config, "run", seed=0)
    write_member(config, "slower", seed=2, lr=1e-4)
    train = config.train.model_copy(update={"seed": 1})
    write_runs(config.model_copy(update={"experiment": "run_1", "train": train}), seed=1)
    summary, printed = blend(run_script, config, "run", "slower", settings=["ensemble.method=mean"])
    (seeds,) = summary["seeds"]
    assert set(seeds["nested_macro_f1"]) == {"run", "run_1"}
    assert seeds["spread"] == pytest.approx(np.std(list(seeds["nested_macro_f1"].values()), ddof=1))
    assert "of each seed" in printed and "(run, run_1)" in printed
    (config.experiment_dir.parent / "run_1" / "fold0" / "config.yaml").write_text("nothing: [")
    assert blend(run_script, config, "run")[0]["seeds"] == []  # one that only stands beside does not matter


@pytest.mark.parametrize("prior", ["train", "estimated"])
def test_ensemble_both_decisions_are_shown_and_the_configured_one_is_submitted(config, run_script, prior):
    write_member(config, "tiny")
    summary, printed = blend(run_script, config, settings=[f"threshold.prior={prior}"])
    decisions = summary["decisions"]
    assert summary["prior"]["doubt"] is None and "estimated (EM)" in printed
    assert decisions["estimated"]["share"] > decisions["train"]["share"]
    assert summary["decision"] == decisions[prior]
    answers = pd.read_csv(config.submissions / "sample_submission.csv")["answer"]
    assert decisions[prior]["predicted_defective"] == answers.sum()
    expected = summary["estimate"]["nested_macro_f1"]
    assert decisions["train"]["expected_score"] == pytest.approx(expected)
    key = config.output.parent / "key.csv"
    rows = "".join(f"test_{index}.png,{int(index % 3 == 0)}\n" for index in range(TESTS))
    key.write_text("ImageId,answer\n" + rows)
    outcome = run_script("evaluate.py", *submitted(config), "--set", f"data.answers={key}")
    assert outcome.code == 0, outcome.stderr
    shown = dict(line.rsplit(maxsplit=1) for line in outcome.stdout.splitlines() if "   " in line)
    names = {"train": "training share", "estimated": "estimated share"}
    for name in {"train", prior}:
        title = f"expected macro-F1 ({names[name]}, {decisions[name]['share']:.1%})"
        assert shown[title] == f"{decisions[name]['expected_score']:.4f}"
    title = f"  by the threshold for the {names[prior]} ({decisions[prior]['share']:.1%})"
    assert shown["test macro-F1"] == shown[title]


def without_decisions(summary):
    del summary["decisions"]


def with_an_old_field(summary):
    summary["decision"]["called_defective"] = summary["decision"].pop("predicted_defective")


@pytest.mark.parametrize("make_old", [without_decisions, with_an_old_field])
def test_ensemble_submission_of_an_older_version_is_named(config, run_script, fails_with_one_line, make_old):
    write_member(config, "tiny")
    blend(run_script, config)
    file = config.submissions / "sample_submission.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    make_old(summary)
    file.write_text(json.dumps(summary), encoding="utf-8")
    key = config.output.parent / "key.csv"
    key.write_text("ImageId,answer\n" + "".join(f"test_{index}.png,1\n" for index in range(TESTS)))
    message = fails_with_one_line("evaluate.py", *submitted(config), "--set", f"data.answers={key}")
    assert "sample_submission.json is not whole, or of an older version" in message


def test_ensemble_training_share_is_submitted_where_the_estimate_is_doubted(config, run_script):
    run = write_member(config, "tiny")
    for path in run.experiment_dir.glob("**/test.csv"):
        edit(path, of("probability", 1e-9))  # no test image looks defective
    summary, printed = blend(run_script, config, settings=["threshold.prior=estimated"])
    assert summary["decision"] == summary["decisions"]["train"]
    assert "not to be trusted" in printed and "submitted                 expected macro-F1" in printed


def test_ensemble_evaluate_without_a_submission_says_what_makes_one(config, fails_with_one_line):
    message = fails_with_one_line("evaluate.py", *submitted(config))
    assert "sample_submission.json does not exist: src/ensemble.py RUN makes a submission" in message


def test_ensemble_submission_of_one_fold_says_how_to_get_the_expected_score(config, run_script):
    write_member(config, "tiny", folds="0")
    summary, printed = blend(run_script, config)
    assert summary["decision"]["expected_score"] is None
    assert "expected macro-F1 unknown" in printed and "src/train.py --fold all" in printed


def test_ensemble_evaluate_refuses_scores_of_another_blend(config, run_script, fails_with_one_line):
    """As after a kill between the submission's files: the new scores stood beside the old answers."""
    write_member(config, "tiny")
    blend(run_script, config)
    path = config.submissions / "sample_submission.scores.csv"
    table = pd.read_csv(path)
    table.assign(score=table["score"] + 1).to_csv(path, index=False)
    message = fails_with_one_line("evaluate.py", *submitted(config))
    assert "sample_submission.scores.csv is not the file that the JSON" in message


def test_ensemble_weights_by_hand_name_the_members_themselves(config, run_script):
    for seed, name in enumerate(["one", "other"]):
        write_member(config, name, seed=seed)
    summary, printed = blend(
        run_script, config, "one", "other", settings=["ensemble.weights={one: 3, other: 1}"]
    )
    assert summary["weights"] == {"one": 0.75, "other": 0.25} and "given, as configured" in printed


def test_ensemble_without_defects_members_are_blended_by_rank_and_no_score_is_expected(
    make_dataset, config_file, run_script
):
    folders = {"normal": "train/normal_images", "abnormal": None, "test": "test/images"}
    path = config_file(
        make_dataset(normals=40, tests=TESTS),
        data={"source": "folders", "folders": folders, "sample_submission": None},
        split={"duplicates": {"enabled": False}},
    )
    config = load_config(path)
    for seed, name in enumerate(["one", "other"]):
        write_member(config, name, seed=seed)
    summary, printed = blend(run_script, config, "one", "other", settings=["threshold.prior=estimated"])
    assert summary["ensemble"]["scale"] == "rank" and list(summary["ensemble"]["methods"]) == ["mean"]
    decision = summary["decision"]
    assert (decision["rule"], decision["prior"], decision["share"]) == ("expected_fpr", "train", 0)
    assert decision["expected_score"] is None and decision["interval_90"] is None
    assert summary["estimate"]["false_rejection"] == pytest.approx(0.05)
    assert "unknown: no defects" in printed and "normal images rejected" in printed
    assert "not estimated: one class only" in printed


def edit(path, change):
    table = pd.read_csv(path)
    change(table)
    write_csv(path, table)


def of(column, value, rows=slice(None)):
    """A change of a table: `value` in these rows of `column`."""

    def change(table):
        table[column] = table[column].astype(object)
        table.loc[rows, column] = value

    return change


@pytest.mark.parametrize(
    ("file", "change", "messages"),
    [
        ("fold*/oof.csv", of("probability", 0.5), ["other: all out-of-fold scores are the same"]),
        ("fold*/oof.csv", of("probability", np.nan, slice(3)), ["other: 8 out-of-fold probabilities"]),
        ("test.csv", of("probability", np.inf, slice(1)), ["other: 2 test probabilities", "infer.py"]),
        (
            "fold1/oof.csv",
            of("label", 0, slice(0, 0)),
            ["other: 1 out-of-fold labels are not those of"],
        ),
        (
            "fold1/oof.csv",
            of("image_id", "elsewhere.png", slice(0, 0)),
            ["other: its out-of-fold images", "2 differ"],
        ),
    ],
)
def test_ensemble_members_that_nothing_can_be_made_of(config, fails_with_one_line, file, change, messages):
    for seed, name in enumerate(["one", "other"]):
        write_member(config, name, seed=seed)
    for path in (config.experiment_dir.parent / "other").glob(file):
        edit(path, change)
    message = fails_with_one_line("ensemble.py", *options(config, "one", "other"))
    assert all(text in message for text in messages), message
    assert not config.submissions.exists()


def test_ensemble_members_of_other_folds_or_other_data_are_named(config, fails_with_one_line):
    write_member(config, "one")
    write_member(config, "other", folds="0", seed=1)
    message = fails_with_one_line("ensemble.py", *options(config, "one", "other"))
    assert "one and other scored different images" in message
    kept = config.experiment_dir.parent / "other" / "fold0" / "config.yaml"
    values = yaml.safe_load(kept.read_text())
    kept.write_text(yaml.safe_dump(values | {"data": values["data"] | {"name": "elsewhere"}}))
    message = fails_with_one_line("ensemble.py", *options(config, "one", "other"))
    assert "other was trained on elsewhere, one on tiny_data" in message


def test_ensemble_a_fold_of_one_class_is_named():
    oof = pd.DataFrame({"image_id": list("abcd"), "label": [0, 0, 0, 1], "fold": list("0011"), "group": "a"})
    with pytest.raises(UserError, match="fold 0 of tiny holds no defective image"):
        join_images({"tiny": oof})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{one: 0, other: 0}", "sum to zero"),
        ("{one: -1, other: 1}", "ensemble.weights.one"),
        ("{one: 1, third: 1}", "ensemble.weights names one, third, but one, other are blended"),
    ],
)
def test_ensemble_weights_that_cannot_be_meant(config, fails_with_one_line, weights, message):
    for seed, name in enumerate(["one", "other"]):
        write_member(config, name, seed=seed)
    setting = ["--set", f"ensemble.weights={weights}"]
    assert message in fails_with_one_line("ensemble.py", *options(config, "one", "other"), *setting)
