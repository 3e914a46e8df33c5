"""Test images scored shard by shard: nothing changes but what an interruption costs."""

import shutil

import numpy as np
import pytest
from conftest import copy_runs, raising, run_at, run_once, texture, write_config, write_dataset, write_png

from defects.config_files import load_config
from defects.data.index import prepare
from defects.files import read_json, write_json
from defects.training import checkpoint, scoring

SHARDED = ["--set", "infer.shard=3", "--set", "infer.batch_size=2"]  # 11 images: shards of 4, 4 and 3


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Folder of a classifier with maps, one of its folds trained, and 11 test images."""
    folder = tmp_path_factory.mktemp("shards")
    path = write_config(
        folder,
        write_dataset(folder / "data", defects=6, normals=10, tests=11),
        model={"backbone": {"name": "test_efficientnet", "weights": "none"}, "options": {"map_loss": 0.5}},
        data={"sample_submission": None},
        infer={"tta": False},
    )
    run_once("train.py", "--config", path)
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """Config in a copy of that folder."""
    copy_runs(trained_once, tmp_path)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def scored(monkeypatch):
    """How many images each call of the detector's scoring is given."""
    sizes, score = [], scoring.score_table

    def counting(detector, config, rows, *arguments):
        sizes.append(len(rows))
        return score(detector, config, rows, *arguments)

    monkeypatch.setattr(scoring, "score_table", counting)
    return sizes


@pytest.fixture
def interrupted(trained, run_script, scored, monkeypatch):
    """The trained config after a run that ended while its third shard was being scored."""
    counting = scoring.score_table

    def ending(*arguments):
        if len(scored) == 2:
            raise KeyboardInterrupt
        return counting(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_table", ending)
        assert run_script("infer.py", run_at(trained), *SHARDED).code != 0
    assert [path.name for path in shard_tables(trained)] == ["00000.csv", "00001.csv"]
    assert not (run_folder(trained) / "test.csv").exists()
    scored.clear()
    return trained


def run_folder(path):
    return path.parent / "output" / "tiny" / "fold0"


def shard_tables(path):
    return sorted((run_folder(path) / "test_shards").glob("*.csv"))


def results(path):
    """Every file that inference leaves, by name."""
    folder = run_folder(path)
    assert not (folder / "test_shards").exists()
    submissions = [each for each in (path.parent / "submissions").iterdir() if each.suffix == ".csv"]
    files = [folder / "test.csv", folder / "test_maps.npz", folder.parent / "test.csv", *submissions]
    return {each.name: each.read_bytes() for each in files}


def in_one_go(path, run_script):
    """What inference leaves that starts anew and knows one shard."""
    (run_folder(path) / "test.json").unlink(missing_ok=True)
    assert run_script("infer.py", run_at(path), "--set", "infer.batch_size=2").code == 0
    return results(path)


@pytest.mark.parametrize(("shard", "sizes"), [(4, [4, 4, 3]), (10, [10, 1]), (11, [11])])
def test_score_test_writes_the_same_files_with_any_shards(trained, run_script, scored, shard, sizes):
    outcome = run_script("infer.py", run_at(trained), "--set", f"infer.shard={shard}", *SHARDED[2:])
    assert outcome.code == 0, outcome.stderr
    assert scored == sizes
    sharded = results(trained)
    assert len(np.load(run_folder(trained) / "test_maps.npz").files) == 11
    assert sharded == in_one_go(trained, run_script)


def test_score_test_interrupted_scores_only_the_remaining_shards(interrupted, run_script, scored):
    outcome = run_script("infer.py", run_at(interrupted), *SHARDED)
    assert outcome.code == 0, outcome.stderr
    assert scored == [3]
    assert "11 of 11 images are scored" in outcome.stdout
    assert results(interrupted) == in_one_go(interrupted, run_script)


def test_score_test_stopped_while_joining_scores_nothing_again(interrupted, run_script, scored, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "join_archives", raising(KeyboardInterrupt()))
        assert run_script("infer.py", run_at(interrupted), *SHARDED).code != 0
    scored.clear()
    assert run_script("infer.py", run_at(interrupted), *SHARDED).code == 0
    assert scored == []
    assert results(interrupted) == in_one_go(interrupted, run_script)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: whole.replace(b"PK", b"??")])
def test_score_test_names_a_damaged_shard(interrupted, run_script, fails_with_one_line, damage):
    path = run_folder(interrupted) / "test_shards" / "00001.npz"
    path.write_bytes(damage(path.read_bytes()))
    message = fails_with_one_line("infer.py", run_at(interrupted), *SHARDED)
    assert f"{path} is damaged: delete {path.parent}" in message
    shutil.rmtree(path.parent)
    assert run_script("infer.py", run_at(interrupted), *SHARDED).code == 0
    assert len(np.load(run_folder(interrupted) / "test_maps.npz").files) == 11


def other_weights(path):
    best = run_folder(path) / "best.pt"
    content = checkpoint.load(best)
    for value in content["detector"].values():
        value *= 2
    checkpoint.save(best, content)


def another_image(path):
    write_png(path.parent / "data" / "test" / "images" / "added.png", texture(7))
    prepare(load_config(path))


@pytest.mark.parametrize(
    ("change", "settings", "sizes"),
    [
        (other_weights, [], [4, 4, 3]),
        (another_image, [], [4, 4, 4]),
        (None, ["infer.shard=5"], [6, 5]),
        (None, ["infer.map_size=1"], [4, 4, 3]),
        (None, [], [3]),
    ],
)
def test_score_test_uses_no_shards_made_from_something_else(
    interrupted, run_script, scored, change, settings, sizes
):
    if change:
        change(interrupted)
    flags = [part for setting in settings for part in ("--set", setting)]
    assert run_script("infer.py", run_at(interrupted), *SHARDED, *flags).code == 0
    assert scored == sizes
    mixed = results(interrupted)
    (run_folder(interrupted) / "test.json").unlink()
    assert (
        run_script("infer.py", run_at(interrupted), *SHARDED[2:], *flags, "--set", "infer.shard=99").code == 0
    )
    assert mixed == results(interrupted)


def test_score_test_makes_maps_of_another_size_and_says_so(trained, run_script, scored):
    command = ["infer.py", run_at(trained)]
    assert "scored again" not in run_script(*command).stdout
    assert scored == [11]
    outcome = run_script(*command, "--set", "infer.map_size=1")
    assert "fold 0 is scored again (infer.map_size=64 then, 1 now)" in outcome.stdout
    assert run_script(*command, "--set", "infer.map_size=1", "--set", "infer.batch_size=5").code == 0
    assert scored == [11, 11]  # the size of batches changes no score


def test_score_test_replaces_scores_of_an_earlier_version(trained, run_script, scored):
    assert run_script("infer.py", run_at(trained)).code == 0
    stamp = read_json(run_folder(trained) / "test.json")
    write_json(run_folder(trained) / "test.json", stamp["files"])  # as it was kept
    outcome = run_script("infer.py", run_at(trained))
    assert "fold 0 is scored again (it was written by an earlier version" in outcome.stdout
    assert scored == [11, 11]


def test_train_fold_makes_maps_of_another_size_without_training(trained, run_script):
    command = ["train.py", "--config", trained, "--set", "infer.map_size=1"]
    before = checkpoint.load(run_folder(trained) / "best.pt")
    outcome = run_script(*command)
    assert "only scored again (infer.map_size=64 then, 1 now)" in outcome.stdout, outcome.stderr
    after = checkpoint.load(run_folder(trained) / "best.pt")
    assert after["fingerprint"]["settings"]["infer.map_size"] == 1
    for name, weights in before["detector"].items():
        assert weights.equal(after["detector"][name])
    assert load_config(run_folder(trained) / "config.yaml").infer.map_size == 1
    assert "is finished" in run_script(*command).stdout


def test_check_fingerprint_refuses_a_checkpoint_of_an_earlier_version(trained, fails_with_one_line):
    path = run_folder(trained) / "best.pt"
    checkpoint.save(path, checkpoint.load(path) | {"fingerprint": {"train": {"lr": 1e-3}, "fold": "0"}})
    for command in (["train.py", "--config", trained], ["infer.py", run_at(trained)]):
        message = fails_with_one_line(*command)
        assert "written by an earlier version of this program" in message and "--restart" in message
