"""The page about an ensemble's errors: what it finds, what it can do without, how it refuses bad input."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from runs import runs_of, write_runs
from scipy.special import expit

from defects.config_schema import ThresholdConfig
from defects.evaluation.display_scales import AT_THRESHOLD, format_defect_score
from defects.evaluation.metrics import macro_f1, rank_metrics
from defects.evaluation.mistakes import (
    count_detected_by_kind,
    find_doubtful_labels,
    measure_disagreement,
    measure_margins,
)
from defects.files import write_csv, write_json
from defects.reports.error_report import build_error_report, draw_member_card, load_ensemble_tables
from defects.runs import Run
from defects.stages import ensure_tables
from defects.submission.build import blend_runs, load_scores

NORMAL_ONLY = ["data.source=folders", "data.folders={normal: train/normal_images}"]
NAMES = ["tiny", "other", "third"]


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=16, normals=40))


def member(config, name):
    return config.model_copy(update={"experiment": name})


def write_members(config, names=NAMES, **planted):
    """Runs whose scores tell the classes well apart (normal -2, defects 2, each +-0.5), but for `planted`.

    planted: image name -> score of every member, or a list of theirs.
    """
    for number, name in enumerate(names):
        write_runs(member(config, name), maps=number < 2, seed=number)
        rng = np.random.default_rng(number)
        for path in member(config, name).experiment_dir.glob("fold*/oof.csv"):
            oof = pd.read_csv(path)
            score = 4.0 * oof["label"] - 2
            for _, rows in score.groupby(oof["label"]):
                score[rows.index] += rng.permutation(np.linspace(-0.5, 0.5, len(rows)))
            for image, value in planted.items():
                chosen = oof["image_id"].str.endswith(f"/{image}.png")
                score = score.mask(chosen, value[number] if isinstance(value, list) else value)
            write_csv(path, oof.assign(score=score, probability=expit(score)))


def stems(ids):
    return [image_id.rsplit("/")[-1].removesuffix(".png") for image_id in ids]


def errors(run_script, config, *arguments):
    outcome = run_script("errors.py", "--output", config.output, *arguments)
    assert outcome.code == 0, outcome.stderr
    folder = config.dataset_dir / "errors"
    return (folder / "errors.html").read_text(encoding="utf-8"), pd.read_csv(folder / "errors.csv")


def test_error_report_mistakes_disagreements_and_doubtful_labels_are_listed(config):
    write_members(config, normal_5=4.0, defect_3=-4.0, normal_7=[5.0, -3.0, -3.0], defect_9=[1.0, -2.0, -2.0])
    tables = load_ensemble_tables(runs_of(config, *NAMES), ensure_tables(config))
    assert stems(tables.list_mistakes(0))[0] == "normal_5"
    assert stems(tables.list_mistakes(1)) == ["defect_3", "defect_9"]
    assert stems(tables.list_disagreements()) == ["normal_7", "defect_9"]
    assert sorted(stems(tables.list_doubtful_labels())) == ["defect_3", "normal_5"]


def test_error_report_script_writes_one_page_and_a_table_of_all_images(config, run_script):
    write_members(config, normal_5=4.0, normal_7=[5.0, -3.0, -3.0])
    html, table = errors(run_script, config, *NAMES)
    sources = re.findall('src="([^"]*)"', html)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|<script src|<link|@import", html)
    for title in ("Missed defects", "False alarms", "Where members disagree", "Doubtful labels"):
        assert f"<h2>{title}</h2>" in html
    assert html.count("<h3>1 of 1 images</h3>") == 3
    assert "1 of 40" in html
    assert len(table) == 56
    assert table["image_id"][0].endswith("normal_5.png")
    assert table["suspected"].sum() == 1 == table["suspected"][0]
    assert ((table["defect_score"] >= AT_THRESHOLD) == (table["predicted"] == 1)).all()
    assert all(f"probability_{name}" in table for name in NAMES)


def test_error_report_runs_of_a_submission_are_found_by_it(config, run_script):
    write_members(config)
    submission = config.submissions / "sample_submission.csv"
    places = {name: str(config.output_dir / name) for name in ("other", "third")}
    settings = config.model_dump(mode="json", include={"threshold", "ensemble"})
    write_json(submission.with_suffix(".json"), {"runs": places, "settings": settings})
    assert "other, third: 56" in errors(run_script, config, "--submission", submission)[0]
    html, _ = errors(run_script, config, "--submission", submission, "tiny")
    assert "tiny: 56" in html and "needs two runs" in html and "blend</th>" not in html


def test_error_report_blend_is_that_of_the_submission(config, monkeypatch, run_script):
    write_members(config, normal_5=4.0, defect_3=-4.0)
    folds = [{"image_id": f"images/test_{i}.png", "fold": fold} for i in range(6) for fold in "01"]
    scored = pd.DataFrame(folds).assign(target="defect", score=0.1, probability=np.linspace(0.1, 0.9, 12))
    monkeypatch.setattr(Run, "load_test_scores", lambda *_: scored)
    for name in NAMES:
        write_csv(member(config, name).experiment_dir / "test.csv", scored)
    runs, tables = runs_of(config, *NAMES), ensure_tables(config)
    expected = blend_runs(runs, tables, load_scores(runs, tables))[0]["estimate"]
    found = load_ensemble_tables(runs_of(config, *NAMES), ensure_tables(config))
    labels = found.images["label"].to_numpy(dtype=int)
    assert macro_f1(labels, found.blend.predicted) == expected["nested_macro_f1"]
    assert rank_metrics(labels, found.blend.scores)["auroc"] == expected["auroc"]
    html, _ = errors(run_script, config, *NAMES)
    assert f"{expected['nested_macro_f1']:.3f}" in html


def test_error_report_a_card_has_the_image_and_every_member(config):
    write_members(config, normal_5=[4.0, 4.0, -4.0])
    tables = load_ensemble_tables(runs_of(config, *NAMES), ensure_tables(config))
    row = tables.images.loc[tables.list_mistakes(0)].reset_index().to_dict("records")[0]
    card = draw_member_card(config.data, tables, row)
    texts = {}
    for member in (tables.blend, *tables.members):
        texts[member.name] = f"{member.name} {format_defect_score(member.defect_scores[row['image_id']])}"
    assert card.title == "normal_5.png"
    # The image and two heat maps; the third member has no maps, and leaves no hole.
    assert [picture.caption for picture in card.pictures] == ["normal", texts["tiny"], texts["other"]]
    assert [picture.is_wrong for picture in card.pictures] == [False, True, True]
    facts = {fact.text: fact.is_wrong for fact in card.facts}
    assert facts == {f"{texts['blend']}, fold {row['fold']}": True, texts["third"]: False}


def test_error_report_defect_scores_of_members_agree_with_their_decisions(config):
    write_members(config, normal_5=4.0, defect_3=-4.0)
    tables = load_ensemble_tables(runs_of(config, *NAMES), ensure_tables(config))
    for member in (tables.blend, *tables.members):
        assert ((member.defect_scores >= AT_THRESHOLD) == member.predicted).all()
        assert 0 < member.defect_scores.min() < AT_THRESHOLD < member.defect_scores.max() < 100


def test_error_report_without_defects_the_page_says_what_is_missing(make_dataset, make_config):
    config = make_config(make_dataset(defects=1), *NORMAL_ONLY, "data.sample_submission=null")
    write_members(config, normal_5=[4.0, 4.0, -2.5])
    html = build_error_report(config, load_ensemble_tables(runs_of(config, *NAMES), ensure_tables(config)))
    assert "no defective images out of fold" in html and "there is only one of the two" in html
    assert "does not tell kinds" in html
    assert len(re.findall(r"<h3>\d+ of \d+ images</h3>", html)) == 2  # false alarms, disagreement


def test_error_report_a_single_fold_is_said_to_be_optimistic(config):
    write_runs(config, folds="0")
    html = build_error_report(config, load_ensemble_tables(runs_of(config, "tiny"), ensure_tables(config)))
    assert "which is optimistic" in html


def test_error_report_thresholds_of_the_other_folds_decide():
    images = pd.DataFrame({"label": [0, 0, 1, 1] * 2, "fold": list("00001111")})
    scores = pd.DataFrame({"a": [0.0, 1, 2, 3, 10, 11, 12, 13]})
    margins = measure_margins(images, scores, ThresholdConfig())["a"]
    assert (margins >= 0).tolist() == [False] * 4 + [True] * 4  # their own thresholds would make no mistake
    assert margins.tolist() == [-11.5, -10.5, -9.5, -8.5, 8.5, 9.5, 10.5, 11.5]


def test_error_report_kinds_come_from_the_listing_or_from_the_classes():
    images = pd.DataFrame({"label": [1, 1, 1, 0], "kind": ["dent", "dent", "hole", "good"]})
    called = pd.DataFrame({"a": [True, False, False, True], "b": [True, True, True, False]})
    found = count_detected_by_kind(images, called)
    assert found.to_dict("index") == {
        "dent": {"defects": 2, "a": 1, "b": 2},
        "hole": {"defects": 1, "a": 0, "b": 1},
    }
    classes = images.assign(kind="", defect_1=["1 2", "1 2", "", ""], defect_2=["3 1", "", "3 1", ""])
    found = count_detected_by_kind(classes, called)
    assert found.to_dict("index") == {
        "1": {"defects": 2, "a": 1, "b": 2},
        "2": {"defects": 2, "a": 1, "b": 2},
    }
    assert count_detected_by_kind(images.assign(kind=""), called).empty


def test_error_report_a_label_is_suspected_only_where_all_members_are_sure():
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 4 == 0).astype(int)
    scores = 4.0 * labels[:, None] - 2 + rng.normal(size=(200, 2))
    scores[[1, 4]] = [[3, 3], [-4, -4]]  # a normal image that looks defective, a defect that looks normal
    scores[2] = [5, -1]  # one member has doubts
    assert set(np.flatnonzero(find_doubtful_labels(labels, scores))) == {1, 4}
    assert not find_doubtful_labels(np.zeros(200), scores).any()


def test_error_report_disagreement_is_about_decisions_and_not_about_scales():
    scores = pd.DataFrame({"a": [0.0, 3.0, 2.0], "b": [-3.0, -3.0, 1.0]}, index=list("xyz"))
    called = pd.DataFrame({"a": [True, True, True], "b": [True, False, False]}, index=list("xyz"))
    assert measure_disagreement(scores, called).index.tolist() == ["y", "z"]


def test_error_report_bad_input_ends_in_one_line(config, fails_with_one_line):
    asked = ["errors.py", "--output", config.output]
    assert "run src/train.py first" in fails_with_one_line(*asked, "tiny")
    write_members(config, ["tiny", "other"])
    shutil.rmtree(member(config, "other").experiment_dir / "fold1")
    message = fails_with_one_line(*asked, "tiny", "other")
    assert "tiny and other scored different images" in message
    assert not (config.dataset_dir / "errors").exists()
    (config.submissions).mkdir(exist_ok=True)
    (config.submissions / "sample_submission.json").write_text("{", encoding="utf-8")
    submission = ["--submission", config.submissions / "sample_submission.csv"]
    assert "sample_submission.json is not valid JSON" in fails_with_one_line(*asked, *submission)
