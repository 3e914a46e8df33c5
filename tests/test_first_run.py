"""start.py from a folder to an answer: interrupted, corrected, short of time, given what cannot be used."""

import contextlib
import io
import json
import time
from functools import partial

import pandas as pd
import pytest
from conftest import texture, write_png

from defects.config import load_config
from defects.files import sha256
from defects.messages import UserError
from defects.runs import Run
from defects.start import first_run
from defects.start.first_run import State, begin_run, count_images, describe_data, make_plan, start, train_all
from defects.start.planning import Counts, Plan, Speed

FAST = Speed(forward=0.01, training=0.01, reading=0.001)
NORMAL = 12


def write_images(folder, count, first=0):
    for number in range(first, first + count):
        write_png(folder / f"{number:03}.png", texture(number, 64))


def print_of(work):
    """What `work()` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        work()
    return printed.getvalue()


class Started:
    """A folder of normal images, and the command on it with the smallest network."""

    def __init__(self, folder):
        self.folder = folder / "My Parts"
        self.data_files = folder / "configs"
        self.output = folder / "output"
        write_images(self.folder / "good", NORMAL)
        self.overrides = [
            f"output={self.output}",
            "model.backbone={name: test_efficientnet, weights: none}",
        ]
        self.data_file = self.data_files / "my_parts.yaml"
        self.run = self.output / "my_parts_patchcore_reduced"

    def start(self):
        return print_of(partial(start, self.folder, None, None, self.overrides, self.data_files))

    @property
    def state(self):
        return State.read(self.output / "my_parts" / "start.json")


@pytest.fixture(scope="module")
def quick():
    """A known speed, and exports of one kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_run, "EXPORT_FORMATS", ["torch"])
        patch.setattr(first_run, "measure_speed", lambda config, files: FAST)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    """The command, interrupted after the first fold, then run again; and what it printed."""
    started = Started(tmp_path_factory.mktemp("start"))
    train_fold = first_run.train_fold

    def interrupted_train_fold(config, fold, folds):
        if fold == "1":
            raise KeyboardInterrupt
        train_fold(config, fold, folds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first_run, "train_fold", interrupted_train_fold)
        with pytest.raises(KeyboardInterrupt):
            started.start()
    started.first_fold = sha256(started.run / "fold0" / "best.pt")
    started.plan = started.state.plan
    started.text = started.start()
    return started


def test_start_goes_on_after_an_interruption(finished):
    assert "fold0 is finished" in finished.text
    assert sha256(finished.run / "fold0" / "best.pt") == finished.first_fold
    assert finished.state.plan == finished.plan


def test_start_of_normal_images_claims_false_alarms(finished):
    assert "plan        1 detector, 5 folds, images scaled to 64x64" in finished.text
    assert "expected macro-F1         unknown: there are no defects" in finished.text
    assert "of normal parts are rejected; nothing is known of escapes" in finished.text
    assert (finished.run / "report" / "report.html").is_file()
    meta = json.loads((finished.run / "full" / "export" / "model.json").read_text())
    assert meta["claims"]["false_alarm"]["images"] == NORMAL


def test_start_takes_a_persons_correction(finished, monkeypatch, capsys):
    text = finished.data_file.read_text().replace("symmetries: dihedral", "symmetries: none")
    finished.data_file.write_text(text)
    trained = []

    def stopped_train_fold(config, fold, folds):
        trained.append(config.data.symmetries)
        raise KeyboardInterrupt

    monkeypatch.setattr(first_run, "train_fold", stopped_train_fold)
    with pytest.raises(KeyboardInterrupt):
        start(finished.folder, None, None, finished.overrides, finished.data_files)
    printed = capsys.readouterr().out
    assert f"as {finished.data_file} says" in printed
    assert "my_parts_patchcore_reduced is of an earlier plan: trained anew" in printed
    assert finished.data_file.read_text() == text
    assert trained == ["none"]


def test_start_refuses_classes(tmp_path):
    folder = tmp_path / "parts"
    write_images(folder / "good", 2)
    (tmp_path / "parts.yaml").write_text(
        f"data: {{source: folders, root: {folder}, classes: [dent], image_size: [64, 64]}}"
    )
    with pytest.raises(UserError, match="has data.classes, .* train the classes: python src/train.py"):
        start(folder, None, None, [f"output={tmp_path / 'output'}"], tmp_path)


def test_describe_data_follows_the_folder_until_a_person_edits(tmp_path):
    path = tmp_path / "parts.yaml"
    folder = tmp_path / "parts"
    write_images(folder / "good", 2)
    state = State(tmp_path / "start.json")
    assert describe_data(folder, path, state)
    assert "normal: good" in path.read_text()
    write_images(folder / "bad", 2)
    assert describe_data(folder, path, State.read(state.path))
    assert "abnormal: bad" in path.read_text()
    edited = path.read_text() + "# mine\n"
    path.write_text(edited)
    write_images(folder / "test", 2)
    assert not describe_data(folder, path, State.read(state.path))
    assert path.read_text() == edited


def test_begin_run_leaves_what_a_person_trained(tmp_path):
    config = load_config(None, [f"output={tmp_path}"], "mine", "patchcore_reduced")
    run = Run(config)
    (config.dataset_dir).mkdir()
    (config.dataset_dir / "images.csv").write_text(
        "image_id,path,split,label,mask_path,kind,width,height,sha256\n"
    )
    kept = run.folder / "fold0" / "best.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    state = State(tmp_path / "start.json")
    begin_run(run, state)
    assert kept.exists() and not state.runs
    state.runs[run.name] = "of an earlier plan"
    begin_run(run, state)
    assert not kept.exists()


def test_make_plan_begins_with_the_size_of_the_images(tmp_path, monkeypatch):
    """Not with that of an earlier plan, in the data file."""
    root = tmp_path / "parts"
    for number in range(2):
        write_png(root / "good" / f"{number}.png", texture(number, 160))
    path = tmp_path / "parts.yaml"
    path.write_text("data: {name: parts, source: folders, folders: {normal: good}, image_size: [64, 64]}")
    images = pd.DataFrame({"split": "train", "path": ["good/0.png", "good/1.png"]})
    monkeypatch.setattr(first_run, "measure_speed", lambda config, files: FAST)
    monkeypatch.setattr(first_run, "fit_folds", lambda load, images, most: 2)

    def load(model, more):
        return load_config(None, [f"data.root={root}", *more], str(path), model)

    sizes = []
    for is_free in (True, False):
        plan = make_plan(load, ["patchcore_reduced"], Counts(2, 0, 0), images, is_free, 1000.0)
        sizes.append(plan.image_size)
    assert sizes == [(160, 160), (64, 64)]


def test_train_all_leaves_out_what_takes_too_long(tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(first_run, "begin_run", lambda run, state: None)
    monkeypatch.setattr(
        first_run, "train_fold", lambda config, fold, folds: trained.append(config.model.name)
    )
    seconds = {"patch_head": 100.0, "patchcore_reduced": 1.0, "end": 10.0}
    plan = Plan({"patch_head": (), "patchcore_reduced": ()}, 5, (64, 64), seconds)

    def load(model, settings):
        return load_config(None, [f"output={tmp_path}", *settings], "mine", model)

    class Tables:
        folds = None

    runs = train_all(load, Tables, State(tmp_path / "start.json", plan=plan), time.monotonic() + 50)
    assert [run.name for run in runs] == ["mine_patchcore_reduced"]
    assert trained == ["patchcore"] * 5
    assert "patch_head is left out" in capsys.readouterr().out


def test_start_refuses_too_few_normal_images(tmp_path, quick):
    folder = tmp_path / "few"
    write_images(folder / "good", 9)
    overrides = [f"output={tmp_path / 'output'}"]
    with pytest.raises(UserError, match="9 normal images to learn from: 10 are the fewest"):
        start(folder, None, None, overrides, tmp_path / "configs")


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "soon"])
def test_start_refuses_minutes_that_are_none(run_script, tmp_path, minutes):
    outcome = run_script("start.py", tmp_path, f"--minutes={minutes}")
    assert outcome.code == 2
    assert "is no number of minutes above 0" in outcome.stderr


def test_start_of_no_folder_ends_in_one_line(fails_with_one_line, tmp_path):
    assert "does not exist" in fails_with_one_line("start.py", tmp_path / "missing")


def test_count_images_says_that_the_annotations_name_no_normal_image(tmp_path):
    root = tmp_path / "parts"
    path = tmp_path / "parts.yaml"
    path.write_text("data: {name: parts, source: folders, annotations: a.json, image_size: [64, 64]}")
    config = load_config(None, [f"data.root={root}"], str(path), "patchcore_reduced")
    images = pd.DataFrame({"split": ["train"], "label": [1]})
    with pytest.raises(UserError, match=f"name no normal image.* put normal images into {root / 'good'}"):
        count_images(config, images)
