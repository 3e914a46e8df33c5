"""The leak study: its cells differ in the leak alone, and what stands in the file is not trained again."""

import json
import runpy

import numpy as np
import pytest
from conftest import texture

from defects.config_schema import ROOT
from defects.stages import ensure_tables


@pytest.fixture(scope="module")
def study():
    return runpy.run_path(str(ROOT / "benchmarks" / "leak.py"))


def test_copies_leak_where_they_are_split_at_random_and_nowhere_else(study, make_dataset, make_config):
    table = ensure_tables(make_config(make_dataset())).folds
    for fill in study["FILLS"]:
        rows = study["make_copies"](table, fill, 0)
        assert rows.groupby("label").size().to_dict() == {0: 30, 1: 12 * 12}
        turned = rows[(rows["label"] == 0) & (rows["angle"] != 0)]
        assert len(turned) == 0 if fill == "black" else len(turned) > 15
        parts = {split: study["divide"](rows, split, 0) for split in study["SPLITS"]}
        for learnt, validating in parts.values():
            assert len(learnt) + len(validating) == len(rows) and 0.2 < len(validating) / len(rows) < 0.4
        shared = {split: set(one["group"]) & set(other["group"]) for split, (one, other) in parts.items()}
        assert shared["random"] and not shared["group"]


def test_leak_black_corners_are_black(study):
    image = np.repeat(texture(0)[..., None], 3, axis=2)
    assert np.array_equal(study["rotate_black"](image, 0.0), image)
    turned = study["rotate_black"](image, 30.0)
    assert turned.shape == image.shape and (turned[0, 0] == 0).all() and turned[16, 16].all()


def test_leak_cells_are_written_once_and_told_in_a_table(make_dataset, config_file, run_script, tmp_path):
    key = tmp_path / "key.csv"
    key.write_text("ImageId,answer\n" + "".join(f"test_{row}.png,{int(row % 3 == 0)}\n" for row in range(6)))
    path = config_file(make_dataset(normals=60), data={"answers": str(key)})
    command = ["../benchmarks/leak.py", "--config", path, "--seeds", "1"]
    outcome = run_script(*command)
    assert outcome.code == 0, outcome.stderr
    file = tmp_path / "output" / "tiny_data" / "leak.jsonl"
    cells = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({(cell["split"], cell["fill"]) for cell in cells}) == len(cells) == 4
    for cell in cells:
        figures = [cell[name] for name in ("validation_macro_f1", "macro_f1", "auroc")]
        assert all(0 <= value <= 1 for value in figures)
        assert f"| {cell['split']} / {cell['fill']} | 1 | {figures[0]:.3f} | " in outcome.stdout
    again = run_script(*command)
    assert again.code == 0 and "epoch" not in again.stdout
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == [
        line for line in outcome.stdout.splitlines() if line.startswith("|")
    ]


def test_leak_without_answers_it_says_so(make_dataset, config_file, fails_with_one_line):
    command = ["../benchmarks/leak.py", "--config", config_file(make_dataset())]
    assert "name the answer key" in fails_with_one_line(*command)
