"""Scoring runs: maps, windows, shards of test images."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from conftest import copy_runs, raising, run_at, run_once, texture, write_config, write_dataset, write_png
from torch import nn
from torch.utils.data import DataLoader

from defects.config import load_config
from defects.config_schema import InferConfig
from defects.data.datasets import DeviceBatches, ImageDataset, to_device
from defects.data.fold_files import load_training_rows
from defects.data.images import windows
from defects.data.index import prepare
from defects.data.labels import Labels
from defects.data.transforms import DIHEDRAL, turn, turn_back
from defects.files import array_archive, read_json, write_json
from defects.messages import UserError
from defects.models import build_detector
from defects.models.statistics import exact_quantile
from defects.runs import Run
from defects.stages import ensure_tables
from defects.training import checkpoint, scoring
from defects.training.checkpoint import load_detector
from defects.training.fold import divide_images, train_fold
from defects.training.scoring import Scorer, score_batches, score_table


class Brightness(nn.Module):
    """The map is the image itself; the score its left-most column, which TTA must average."""

    def forward(self, images):
        grey = images.mean(dim=1, keepdim=True)
        return grey[..., 0].mean(dim=2), grey


def scored(size, infer, symmetries="dihedral"):
    images = torch.zeros(3, *size, 3, dtype=torch.uint8)
    images[:, 1, 2] = 255
    items = [{"image": image, "row": row} for row, image in enumerate(images)]
    loader = DataLoader(items, 2)
    return list(score_batches(Scorer(Brightness(), infer, symmetries), loader, Accelerator(cpu=True)))


@pytest.mark.parametrize("symmetries", list(DIHEDRAL))
def test_maps_turning_back_undoes_a_turn(symmetries):
    images = torch.rand(2, 3, 4, 6)
    for member in DIHEDRAL[symmetries]:
        assert torch.equal(turn_back(turn(images, *member), *member), images)


@pytest.mark.parametrize("tta", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (16, 4)])
def test_maps_a_spot_stays_in_its_place_under_tta(size, tta):
    batches = scored(size, InferConfig(tta=tta, map_size=64))
    maps = torch.cat([maps for _, _, maps in batches])
    assert maps.shape == (3, 1, *size)
    expected = torch.zeros(*size)
    expected[1, 2] = 1
    assert torch.allclose(maps[:, 0], expected.expand(3, -1, -1))
    assert torch.cat([rows for rows, _, _ in batches]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("window", [(4, 4), (5, 16), (3, 7), (100, 100)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (16, 4), (9, 31)])
def test_maps_windows_cover_the_image_and_the_highest_score_counts(size, window):
    batches = scored(size, InferConfig(tta=False, map_size=64, window=window))
    maps = torch.cat([maps for _, _, maps in batches])
    assert maps.shape == (3, 1, *size)
    expected = torch.zeros(*size)
    expected[1, 2] = 1
    assert torch.allclose(maps[:, 0], expected.expand(3, -1, -1))
    plain = torch.cat([score for _, score, _ in scored(size, InferConfig(tta=False))])
    assert (torch.cat([score for _, score, _ in batches]) >= plain).all()


def test_maps_are_kept_at_the_configured_size_by_averaging():
    maps = scored((8, 16), InferConfig(tta=False, map_size=4))[0][2]
    assert maps.shape == (2, 1, 2, 4)
    assert maps[0, 0].flatten().tolist() == pytest.approx([1 / 16] + [0] * 7)


def test_maps_archives_are_whole_or_not_there_and_equal_for_equal_content(tmp_path):
    for name in ("a.npz", "b.npz"):
        with array_archive(tmp_path / name) as add:
            add("defect_images/é 1.png", np.arange(6, dtype=np.float16).reshape(2, 3))
            add("x", np.zeros(1))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.load(tmp_path / "a.npz")["defect_images/é 1.png"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ZeroDivisionError), array_archive(tmp_path / "broken.npz") as add:
        add("x", np.zeros(1))
        raise ZeroDivisionError
    with array_archive(tmp_path / "empty.npz"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("steps", [[], [{"name": "HorizontalFlip", "p": 1.0}]])
@pytest.mark.parametrize(("angle", "flip"), [(0.0, "none"), (90.0, "horizontal"), (180.0, "none")])
def test_maps_masks_turn_with_their_image(tmp_path, steps, angle, flip):
    image = np.zeros((16, 16), np.uint8)
    image[2:6, 8:15] = 255
    write_png(tmp_path / "image.png", image)
    write_png(tmp_path / "mask.png", image)
    rows = pd.DataFrame(
        {
            "path": ["image.png"] * 3,
            "label": [1, 1, 0],
            "mask_path": ["mask.png", "", ""],
            "angle": angle,
            "flip": flip,
        }
    )
    dataset = ImageDataset(rows, tmp_path, (16, 16), steps, 0, Labels(masks=True))
    batch = to_device(next(iter(DataLoader(dataset, 3))), torch.device("cpu"))
    assert batch["masked"].flatten().tolist() == [1, 0, 1]  # a defect without a mask file, a normal image
    assert torch.equal(batch["mask"][0, 0], batch["image"][0, 0])
    assert not batch["mask"][1:].any()


NETWORK = "model.backbone={name: test_resnet, weights: none}"


SETS = ["data.image_size=[64, 96]", "infer.window=[40, 48]", "infer.tta=false", "train.inner_holdout=0.3"]


CROP = "augment=[{name: RandomCrop, height: 40, width: 48}]"


DETECTORS = {
    "patchcore": [NETWORK, "model.options.max_bank=50"],
    "dfr": [NETWORK, "model.options.layers=[layer1, layer2]", CROP],
    "convae": ["model.backbone=null", "model.options={width: 4, error: l2}", CROP],
}


@pytest.fixture
def configured(make_dataset, make_config):
    """configured(name, *overrides) -> config of a detector that is scored in windows."""

    def make(name, *overrides):
        sets = [*SETS, f"model.name={name}", *DETECTORS[name], *overrides]
        return make_config(make_dataset(defects=4, normals=16, tests=0), "data.sample_submission=null", *sets)

    return make


def sides_of(config):
    sides = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    return sides.suited_to(build_detector(config, pretrained=False), config)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_windows_the_threshold_is_that_of_images_scored_in_windows(configured, name):
    config = configured(name, "threshold.fpr=0.5")
    train_fold(config, "0", ensure_tables(config).folds)
    detector, normal = load_detector(Run(config), "0"), sides_of(config).inner_normal
    maps = Run(config).fold_folder("0") / "calibrated.npz"
    table = score_table(detector, config, normal, "0", Accelerator(cpu=True), maps)
    scores = torch.tensor(table["score"].to_numpy())
    assert len(scores) > 2 and len(scores.unique()) == len(scores)
    assert detector.cut.item() == pytest.approx(exact_quantile(scores, 0.5).item(), rel=1e-4)
    assert {each.shape for each in np.load(maps).values()} == {(43, 64)}


def test_windows_a_bank_knows_the_windows_of_its_own_images(configured):
    """At the scale, and with the borders, at which they are scored."""
    config = configured("patchcore", "model.options={ratio: 1.0, max_bank: null, neighbours: 0}")
    detector, rows = build_detector(config).eval(), sides_of(config).originals
    batches = DeviceBatches(config, rows, torch.device("cpu"), in_windows=True)
    assert batches.images == 6 * len(rows) and len(list(batches)) == len(batches) == 6
    with torch.no_grad():
        detector.prepare(batches)
    maps = config.experiment_dir / "known.npz"
    for size, known in ((config.infer.window, True), ((40, 96), False)):
        changed = config.model_copy(update={"infer": config.infer.model_copy(update={"window": size})})
        table = score_table(detector, changed, rows, "0", Accelerator(cpu=True), maps)
        assert (table["score"] < 1e-3).all() == known


def test_windows_masks_are_cut_like_their_images(configured):
    config = configured("patchcore")
    rows = ensure_tables(config).folds.query("label == 1")
    labels = Labels(masks=True)
    (whole,) = DeviceBatches(config, rows, torch.device("cpu"), labels)
    parts = list(DeviceBatches(config, rows, torch.device("cpu"), labels, in_windows=True))
    for place, part in zip(windows((64, 96), (40, 48)), parts, strict=True):
        for name in ("image", "mask"):
            assert torch.equal(part[name], whole[name][..., *place])
        assert torch.equal(part["label"], whole["label"])


@pytest.mark.parametrize("name", ["dfr", "convae"])
@pytest.mark.parametrize("augment", ["[]", "[{name: RandomCrop, height: 40, width: 40}]"])
def test_windows_without_crops_of_their_size(configured, name, augment):
    config = configured(name, f"augment={augment}")
    with pytest.raises(
        UserError, match=r"window=\[40, 48\]: .* add {name: RandomCrop, height: 40, width: 48}"
    ):
        train_fold(config, "0", ensure_tables(config).folds)
    assert not (Run(config).fold_folder("0") / "last.pt").exists()


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
def scored_counts(monkeypatch):
    """How many images each call of the detector's scoring is given."""
    sizes, score = [], scoring.score_table

    def counting(detector, config, rows, *arguments):
        sizes.append(len(rows))
        return score(detector, config, rows, *arguments)

    monkeypatch.setattr(scoring, "score_table", counting)
    return sizes


@pytest.fixture
def interrupted(trained, run_script, scored_counts, monkeypatch):
    """The trained config after a run that ended while its third shard was being scored."""
    counting = scoring.score_table

    def ending(*arguments):
        if len(scored_counts) == 2:
            raise KeyboardInterrupt
        return counting(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_table", ending)
        assert run_script("infer.py", run_at(trained), *SHARDED).code != 0
    assert [path.name for path in shard_tables(trained)] == ["00000.csv", "00001.csv"]
    assert not (run_folder(trained) / "test.csv").exists()
    scored_counts.clear()
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
def test_scoring_score_test_writes_the_same_files_with_any_shards(
    trained, run_script, scored_counts, shard, sizes
):
    outcome = run_script("infer.py", run_at(trained), "--set", f"infer.shard={shard}", *SHARDED[2:])
    assert outcome.code == 0, outcome.stderr
    assert scored_counts == sizes
    sharded = results(trained)
    assert len(np.load(run_folder(trained) / "test_maps.npz").files) == 11
    assert sharded == in_one_go(trained, run_script)


def test_scoring_score_test_interrupted_scores_only_the_remaining_shards(
    interrupted, run_script, scored_counts
):
    outcome = run_script("infer.py", run_at(interrupted), *SHARDED)
    assert outcome.code == 0, outcome.stderr
    assert scored_counts == [3]
    assert "11 of 11 images are scored" in outcome.stdout
    assert results(interrupted) == in_one_go(interrupted, run_script)


def test_scoring_score_test_stopped_while_joining_scores_nothing_again(
    interrupted, run_script, scored_counts, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "join_archives", raising(KeyboardInterrupt()))
        assert run_script("infer.py", run_at(interrupted), *SHARDED).code != 0
    scored_counts.clear()
    assert run_script("infer.py", run_at(interrupted), *SHARDED).code == 0
    assert scored_counts == []
    assert results(interrupted) == in_one_go(interrupted, run_script)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: whole.replace(b"PK", b"??")])
def test_scoring_score_test_names_a_damaged_shard(interrupted, run_script, fails_with_one_line, damage):
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
def test_scoring_score_test_uses_no_shards_made_from_something_else(
    interrupted, run_script, scored_counts, change, settings, sizes
):
    if change:
        change(interrupted)
    flags = [part for setting in settings for part in ("--set", setting)]
    assert run_script("infer.py", run_at(interrupted), *SHARDED, *flags).code == 0
    assert scored_counts == sizes
    mixed = results(interrupted)
    (run_folder(interrupted) / "test.json").unlink()
    assert (
        run_script("infer.py", run_at(interrupted), *SHARDED[2:], *flags, "--set", "infer.shard=99").code == 0
    )
    assert mixed == results(interrupted)


def test_scoring_score_test_makes_maps_of_another_size_and_says_so(trained, run_script, scored_counts):
    command = ["infer.py", run_at(trained)]
    assert "scored again" not in run_script(*command).stdout
    assert scored_counts == [11]
    outcome = run_script(*command, "--set", "infer.map_size=1")
    assert "fold 0 is scored again (infer.map_size=64 then, 1 now)" in outcome.stdout
    assert run_script(*command, "--set", "infer.map_size=1", "--set", "infer.batch_size=5").code == 0
    assert scored_counts == [11, 11]  # the size of batches changes no score


def test_scoring_score_test_replaces_scores_of_an_earlier_version(trained, run_script, scored_counts):
    assert run_script("infer.py", run_at(trained)).code == 0
    stamp = read_json(run_folder(trained) / "test.json")
    write_json(run_folder(trained) / "test.json", stamp["files"])  # as it was kept
    outcome = run_script("infer.py", run_at(trained))
    assert "fold 0 is scored again (it was written by an earlier version" in outcome.stdout
    assert scored_counts == [11, 11]


def test_scoring_train_fold_makes_maps_of_another_size_without_training(trained, run_script):
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


def test_scoring_check_fingerprint_refuses_a_checkpoint_of_an_earlier_version(trained, fails_with_one_line):
    path = run_folder(trained) / "best.pt"
    checkpoint.save(path, checkpoint.load(path) | {"fingerprint": {"train": {"lr": 1e-3}, "fold": "0"}})
    for command in (["train.py", "--config", trained], ["infer.py", run_at(trained)]):
        message = fails_with_one_line(*command)
        assert "written by an earlier version of this program" in message and "--restart" in message
