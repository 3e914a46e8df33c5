"""src/learning_curve.py on a tiny data set."""

import numpy as np

from defects.evaluation.fewer_defects import FILE, load_learning_curve


def test_learning_curve_is_written_beside_the_data(make_dataset, make_config, run_script, tmp_path):
    config = make_config(make_dataset(defects=12, normals=24))
    outcome = run_script("learning_curve.py", "--config", tmp_path / "tiny.yaml", "--draws", 2)
    assert outcome.code == 0, outcome.stderr
    curve = load_learning_curve(config)
    assert [row["defects"] for row in curve["summary"]] == [5, 10, 12]
    assert np.isfinite([row["auroc_mean"] for row in curve["summary"]]).all()
    assert f"wrote {config.dataset_dir / FILE}" in outcome.stdout


def test_learning_curve_without_enough_defects_ends_in_one_line(
    make_dataset, make_config, fails_with_one_line, tmp_path
):
    make_config(make_dataset(defects=3, normals=24))
    message = fails_with_one_line("learning_curve.py", "--config", tmp_path / "tiny.yaml")
    assert "needs defects of 4 groups or more: there are 3 of 3" in message
