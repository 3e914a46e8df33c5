"""Experiments side by side: means, spreads, seeds, categories, test figures, bad input."""

import numpy as np
import pandas as pd
import pytest
from conftest import defective, run_at, texture, write_png
from runs import write_member, write_runs
from sklearn.metrics import roc_auc_score

from defects.config import load_config, of_category
from defects.data.images import read_image
from defects.evaluation.metrics import macro_f1
from defects.reports.comparison import build_text_table, draw_comparison, summarise_figures
from defects.reports.html import build_markdown_table


@pytest.fixture
def config(make_dataset, make_config):
    return make_config(make_dataset(defects=16, normals=40))


def of(config, name, **changes):
    """The experiment `name`, with settings of train changed."""
    train = config.train.model_copy(update=changes)
    return config.model_copy(update={"experiment": name, "train": train})


def compare(run_script, config, *arguments):
    """The written table, by experiment, and what was printed."""
    outcome = run_script("compare.py", "--output", config.output, *arguments)
    assert outcome.code == 0, outcome.stderr
    return pd.read_csv(config.dataset_dir / "compare.csv", index_col="experiment"), outcome.stdout


def test_comparison_table_holds_means_and_spreads_over_folds(config, run_script):
    first = write_runs(of(config, "first"))
    write_runs(of(config, "second", epochs=7), folds="0", maps=False, seed=1)
    table, printed = compare(run_script, config, "second", "first")
    assert table.index.tolist() == ["second", "first"] and table["folds"].tolist() == [1, 2]
    aurocs = [roc_auc_score(rows["label"].astype(int), rows["score"]) for _, rows in first.groupby("fold")]
    assert table.loc["first", "auroc"] == pytest.approx(np.mean(aurocs))
    assert table.loc["first", "auroc_spread"] == pytest.approx(np.std(aurocs, ddof=1))
    assert table.loc["first", ["fit_seconds", "score_images_per_second"]].tolist() == [10.5, 12.5]
    assert table.loc["first", "aupro"] > 0.6 and table.loc["second"][["aupro", "macro_f1"]].isna().all()
    assert 0 < table.loc["first", "macro_f1_low"] < table.loc["first", "macro_f1"]
    low, high = table.loc["first", ["macro_f1_low", "macro_f1_high"]]
    assert f"{table.loc['first', 'macro_f1']:.3f} ({low:.3f} to {high:.3f})" in printed
    assert f"{np.mean(aurocs):.3f} ± {np.std(aurocs, ddof=1):.3f}" in printed
    html = (config.dataset_dir / "compare.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("first", "second", f"{np.mean(aurocs):.3f}", "CPU, 2 threads"))
    assert "http:" not in html
    assert html.count("src=") == 0
    assert "Speed of scoring" in html[html.index("<svg") : html.index("</svg>")]
    assert (config.dataset_dir / "compare.md").read_text(encoding="utf-8") in printed
    assert np.ptp(read_image(config.dataset_dir / "compare.png")) > 200


def test_comparison_runs_that_differ_in_their_seed_alone_are_one_experiment(config, run_script):
    tables = [write_runs(of(config, "run")), write_runs(of(config, "run_seed1", seed=1), seed=1)]
    tables.append(write_runs(of(config, "run_workers", seed=2, workers=1), seed=3))  # changes no result
    write_runs(of(config, "slower", lr=1e-4), seed=2)
    table, _ = compare(run_script, config)  # all that are trained
    assert table.index.tolist() == ["run", "slower"] and table["seeds"].tolist() == [3, 1]
    folds = [rows for table in tables for _, rows in table.groupby("fold")]
    aurocs = [roc_auc_score(rows["label"].astype(int), rows["score"]) for rows in folds]
    assert table.loc["run", ["auroc", "auroc_spread"]].tolist() == pytest.approx(
        [np.mean(aurocs), np.std(aurocs, ddof=1)]
    )
    assert table.loc["run", "macro_f1_spread"] > 0 and np.isnan(table.loc["slower", "macro_f1_spread"])


def test_comparison_runs_of_versions_with_settings_that_are_gone_are_compared(config, run_script):
    write_runs(config)
    before, _ = compare(run_script, config)
    paths = list(config.output.glob("*/fold*/config.yaml"))
    for path in paths:
        path.write_text(path.read_text().replace("data:\n", "data:\n  fit: squash\n", 1))
    after, _ = compare(run_script, config)
    assert paths and before.equals(after)


def test_comparison_folds_cut_with_another_seed_are_compared_and_left_as_they_are(config, run_script):
    write_runs(config)
    before = (config.dataset_dir / "folds.csv").read_bytes()
    split = config.split.model_copy(update={"seed": 1})
    write_runs(config.model_copy(update={"experiment": "recut", "split": split}))
    recut = (config.dataset_dir / "folds.csv").read_bytes()
    assert recut != before
    table, _ = compare(run_script, config)
    assert table["seeds"].tolist() == [2]
    assert (config.dataset_dir / "folds.csv").read_bytes() == recut


def test_comparison_reduced_and_shipped_settings_are_named(config, run_script):
    path = config.output.parent / "tiny.yaml"
    for name in ("convae", "convae_reduced", "efficientad_m", "patchcore", "segmenter", "segmenter_reduced"):
        loaded = load_config(path, ["train.workers=2", "infer.batch_size=4"], model=name)
        write_runs(loaded.model_copy(update={"experiment": name}), maps=False)
    # The name says nothing: a setting is what it is called only while nothing in it is changed.
    for change in ("train.epochs=3", "data.image_size=[32, 32]", "model.options.width=5"):
        loaded = load_config(path, [change], model="convae_reduced")
        experiment = f"convae_reduced_{change.partition('=')[0]}"
        write_runs(loaded.model_copy(update={"experiment": experiment}), maps=False)
    settings = compare(run_script, config)[0]["setting"]
    assert settings[["convae", "convae_reduced", "efficientad_m", "patchcore"]].tolist() == [
        *("shipped", "reduced", "shipped", "shipped")
    ]
    # Their files name no image size: it is that of the data set, whatever other detectors set it to.
    assert settings[["segmenter", "segmenter_reduced"]].tolist() == ["shipped", "reduced"]
    assert set(settings[settings.index.str.contains("train|data|model")]) == {"own"} and len(settings) == 9


def write_category(root, seed):
    """The MVTec layout: six normal images, a test half with two scratches."""
    for number in range(6):
        write_png(root / "train" / "good" / f"{number}.png", texture(seed + number))
    for number in range(3):
        write_png(root / "test" / "good" / f"{number}.png", texture(seed + 50 + number))
        image, mask = defective(seed + number)
        write_png(root / "test" / "scratch" / f"{number}.png", image)
        write_png(root / "ground_truth" / "scratch" / f"{number}_mask.png", mask)


def test_comparison_categories_have_rows_of_their_own_and_a_mean(tmp_path, config_file, run_script):
    for seed, name in enumerate(["bottle", "cable"]):
        write_category(tmp_path / "mvtec" / name, 100 * seed)
    mvtec = {"name": "mvtec", "source": "mvtec", "sample_submission": None, "use_test_as": "train"}
    path = config_file(tmp_path / "mvtec", data=mvtec, split={"folds": 2, "duplicates": {"enabled": False}})
    for seed, name in enumerate(["bottle", "cable"]):
        write_runs(of_category(load_config(path), name), seed=seed)
    outcome = run_script("compare.py", "--output", tmp_path / "output")
    assert outcome.code == 0, outcome.stderr
    table = pd.read_csv(tmp_path / "output" / "mvtec" / "compare.csv").set_index("category")
    assert table.index.tolist() == ["bottle", "cable", "mean"] and set(table["experiment"]) == {"tiny"}
    for metric in ("auroc", "aupro", "fit_seconds"):
        assert table.loc["mean", metric] == pytest.approx(table[metric].iloc[:2].mean())
    assert "| tiny | mean |" in outcome.stdout
    one = run_script("compare.py", "--output", tmp_path / "output", "tiny_cable")
    assert one.code == 0 and "| tiny | cable |" in one.stdout and "mean" not in one.stdout


def test_comparison_a_mean_needs_every_category():
    rows = [("a", "x", "auroc", 0.5), ("a", "y", "auroc", 0.7), ("a", "x", "aupro", 0.4)]
    values = pd.DataFrame(rows, columns=["experiment", "category", "metric", "value"])
    about = {"detector": "d", "setting": "own", "device": "", "source": "a", "fold": "0"}
    mean = summarise_figures(values.assign(**about)).set_index("category").loc["mean"]
    assert mean["auroc"] == pytest.approx(0.6) and np.isnan(mean["aupro"])
    table = build_text_table(summarise_figures(values.assign(**about)))
    assert build_markdown_table(table).splitlines()[-1] == "| a | mean | d | own | 1 | 0.600 | – |"


def test_comparison_the_key_is_read_with_test_alone(make_dataset, config_file, run_script, tmp_path):
    key = tmp_path / "key.csv"
    path = config_file(make_dataset(tests=9), data={"answers": str(key)})
    assert run_script("train.py", "--config", path, "--fold", "all").code == 0
    assert run_script("infer.py", run_at(path)).code == 0
    assert run_script("compare.py", run_at(path)).code == 0
    refused = run_script("compare.py", run_at(path), "--test")
    assert refused.code == 2 and "name the answer key" in refused.stderr
    key.write_text("ImageId,answer\n" + "".join(f"test_{row}.png,{int(row % 3 == 0)}\n" for row in range(9)))
    assert run_script("compare.py", run_at(path), "--test").code == 0
    table = pd.read_csv(tmp_path / "output" / "tiny_data" / "compare.csv").iloc[0]
    scores = pd.read_csv(tmp_path / "output" / "tiny" / "test.csv")
    labels = (scores["image_id"].str.extract(r"(\d+)")[0].astype(int) % 3 == 0).astype(int)
    each = [roc_auc_score(labels[rows.index], rows["score"]) for _, rows in scores.groupby("fold")]
    assert table["test_model_auroc"] == pytest.approx(np.mean(each))
    assert 0 <= table["test_auroc"] <= 1 and 0 < table["test_macro_f1"] <= 1
    key.write_text("ImageId,answer\ntest_0.png,1\n")
    refused = run_script("compare.py", run_at(path), "--test")
    assert refused.code == 2 and "the answer key lacks 8 of its test images" in refused.stderr


@pytest.mark.parametrize("prior", ["train", "estimated"])
def test_comparison_macro_f1_of_the_test_images_is_that_of_the_submission(
    make_dataset, make_config, run_script, tmp_path, prior
):
    key = tmp_path / "key.csv"
    labels = [int(row % 3 == 0) for row in range(18)]
    rows = [f"test_{row}.png,{label}\n" for row, label in enumerate(labels)]
    key.write_text("ImageId,answer\n" + "".join(rows))
    root = make_dataset(defects=16, normals=60, tests=18)
    settings = ["split.duplicates.enabled=false", f"threshold.prior={prior}", f"data.answers={key}"]
    config = make_config(root, *settings)
    write_member(config, "tiny")
    options = [part for setting in settings for part in ("--set", setting)]
    submitted = run_script("ensemble.py", run_at(tmp_path / "tiny.yaml"), *options)
    assert submitted.code == 0, submitted.stderr
    table, _ = compare(run_script, config, "--test", *options)
    answers = pd.read_csv(config.submissions / "sample_submission.csv", index_col="ImageId")["answer"]
    answers = answers.reindex([f"test_{row}.png" for row in range(18)])
    assert table.loc["tiny", "test_macro_f1"] == pytest.approx(macro_f1(np.array(labels), answers.to_numpy()))


def test_comparison_bad_input_ends_in_one_line(config, fails_with_one_line):
    assert "no data set yet" in fails_with_one_line("compare.py", "--output", config.output)
    write_runs(config)
    asked = ["compare.py", "--output", config.output]
    assert "other holds no trained fold" in fails_with_one_line(*asked, "tiny", "other")
    other = config.data.model_copy(update={"name": "other_data"})
    write_runs(config.model_copy(update={"data": other, "experiment": "foreign"}))
    message = fails_with_one_line(*asked, "tiny", "foreign")
    assert "the runs are trained on tiny_data and other_data" in message or "tiny_data, other_data" in message
    assert "--data" in fails_with_one_line(*asked)
    assert "--data nothing: the runs in" in fails_with_one_line(*asked, "--data", "nothing")
    held = config.experiment_dir / "fold0" / "oof.csv"
    rows = pd.read_csv(held)
    rows.assign(label=1 - rows["label"]).to_csv(held, index=False)
    assert "its out-of-fold images are not those of" in fails_with_one_line(*asked, "tiny")
    for broken in ("model: [", ""):
        (config.experiment_dir / "fold0" / "config.yaml").write_text(broken)
        assert "config.yaml" in fails_with_one_line(*asked, "tiny")


def test_comparison_axis_of_auroc_ends_at_one():
    values = pd.DataFrame({"experiment": ["a", "a"], "metric": "auroc", "value": 1.0, "category": ""})
    summary = pd.DataFrame({"experiment": ["a"], "category": "", "auroc": 1.0})
    assert draw_comparison(values, summary).axes[0].get_xlim()[1] < 1.01
