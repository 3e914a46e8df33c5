"""Training as a user meets it: run folders, resuming, selection, refusals."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import timm
import torch
from conftest import run_at
from filelock import FileLock
from forked import Script

from defects.config_schema import ROOT
from defects.data.fold_files import load_training_rows
from defects.data.folds import inner_holdout
from defects.messages import UserError
from defects.models import build_detector
from defects.models.classifier import Classifier
from defects.stages import ensure_tables
from defects.training import checkpoint, fold, loop
from defects.training.fold import divide_images
from defects.training.loop import Trainer

FILES = ["best.pt", "config.yaml", "costs.json", "last.pt", "metrics.jsonl", "oof.csv"]


@pytest.fixture
def tiny(make_dataset, config_file):
    """Path of a config for a tiny data set; two folds, one epoch."""
    return config_file(make_dataset())


def run_dir(config_path, fold="fold0"):
    return config_path.parent / "output" / config_path.stem / fold


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_fold_runs_the_stages_above_and_says_so(tiny, run_script):
    outcome = run_script("train.py", "--config", tiny)
    assert outcome.code == 0
    assert "preparing the data first" in outcome.stdout and "splitting first" in outcome.stdout
    assert "epoch 1    train loss" in outcome.stdout and "macro-F1" in outcome.stdout
    folder = run_dir(tiny)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == FILES
    row = metrics(folder)[0]
    wanted = {f"{side}_{name}" for side in ("train", "val") for name in ("loss", "accuracy", "macro_f1")}
    assert wanted <= row.keys()
    oof = pd.read_csv(folder / "oof.csv")
    folds = pd.read_csv(tiny.parent / "output" / "tiny_data" / "folds.csv")
    assert sorted(oof["image_id"]) == sorted(folds.loc[folds["fold"] == 0, "image_id"])
    assert oof["probability"].between(0, 1).all()


def test_train_fold_resumes_bit_for_bit_after_a_kill(make_dataset, config_file, run_script):
    root = make_dataset(defects=20, normals=120)
    train = {"epochs": 6, "ema": 0.9, "batch_size": 4}
    whole, killed = (config_file(root, name, train=train) for name in ("whole", "killed"))
    for path in (whole, killed):
        path.write_text(path.read_text() + "augment:\n- {name: RandomBrightnessContrast, p: 0.5}\n")
    assert run_script("train.py", "--config", whole).code == 0
    seen = run_dir(killed) / "metrics.jsonl"
    train = Script(killed.parent, ROOT / "src" / "train.py", "--config", killed)
    train.kill_when(lambda: seen.exists() and len(seen.read_text().splitlines()) >= 2)
    assert not (run_dir(killed) / "best.pt").exists()
    code, printed = Script(killed.parent, ROOT / "src" / "train.py", "--config", killed).end()
    assert code == 0 and "resuming" in printed
    for name in ("metrics.jsonl", "oof.csv", "best.pt"):
        assert (run_dir(whole) / name).read_bytes() == (run_dir(killed) / name).read_bytes(), name
    states = [torch.load(run_dir(path) / "last.pt", weights_only=True) for path in (whole, killed)]
    assert_equal(*states)


def assert_equal(one, other):
    """Equal values; pickles may still differ in which equal strings are one object."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_train_fold_is_the_same_with_loader_processes(make_dataset, config_file, run_script):
    root = make_dataset(defects=4, normals=8)
    results = []
    for workers in (0, 2):
        path = config_file(root, f"workers{workers}", train={"workers": workers})
        path.write_text(path.read_text() + "augment:\n- {name: GaussNoise, p: 0.9}\n")
        assert run_script("train.py", "--config", path).code == 0
        results.append((run_dir(path) / "oof.csv").read_bytes())
    assert results[0] == results[1]


def test_train_fold_skips_what_is_finished_and_restart_repeats_it(tiny, run_script):
    run_script("train.py", "--config", tiny)
    first = (run_dir(tiny) / "best.pt").read_bytes()
    again = run_script("train.py", "--config", tiny)
    assert again.code == 0 and "is finished" in again.stdout and "epoch" not in again.stdout
    assert run_script("train.py", "--config", tiny, "--restart").code == 0
    assert (run_dir(tiny) / "best.pt").read_bytes() == first


def test_trainer_selects_by_merit_then_loss_and_never_on_the_fold(make_dataset, config_file, run_script):
    inner = {"epochs": 4, "inner_holdout": 0.25, "select": "inner"}
    path = config_file(make_dataset(defects=16, normals=40), train=inner)
    assert run_script("train.py", "--config", path).code == 0
    rows = metrics(run_dir(path))
    best = max(rows, key=lambda row: (row["val_macro_f1"], -row["val_loss"], row["epoch"]))
    content = torch.load(run_dir(path) / "best.pt", weights_only=True)
    assert content["epoch"] == best["epoch"]
    full = run_script("train.py", "--config", path, "--fold", "full")
    assert full.code == 0
    assert len(metrics(run_dir(path, "full"))) == best["epoch"]


def test_fingerprint_holds_validate_every_of_a_run_that_selects(make_dataset, config_file, run_script):
    inner = {"epochs": 2, "inner_holdout": 0.25, "select": "inner"}
    path = config_file(make_dataset(defects=4, normals=10), train=inner)
    assert run_script("train.py", "--config", path).code == 0
    outcome = run_script("train.py", "--config", path, "--set", "train.validate_every=2")
    refused(outcome, "train.validate_every=1 then, 2 now")


def test_divide_images_shares_no_group(make_dataset, make_config):
    config = make_config(make_dataset(defects=16, normals=40), "train.inner_holdout=0.25")
    table = ensure_tables(config).folds
    data = divide_images(config, "0", table, load_training_rows(config, "0"))
    assert len(data.inner)
    parts = [set(part["group"]) for part in (data.training_rows, data.inner, data.validation)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert not inner_holdout(table, 0.0, 0).any()
    leaking = table.assign(
        group=table["group"].where(table["fold"] != "0", data.training_rows["group"].iloc[0])
    )
    with pytest.raises(UserError, match="shares a group with validation images"):
        divide_images(config, "0", leaking, load_training_rows(config, "0"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["split.balance.method=none", "train.accumulate=2"],
        ["model.options={loss: focal, global_pool: max}", "train.clip_norm=1.0"],
        ["data.symmetries=flips"],
    ],
)
def test_train_fold_trains_with_every_alternative(tiny, run_script, overrides):
    sets = [part for override in overrides for part in ("--set", override)]
    outcome = run_script("train.py", "--config", tiny, *sets)
    assert outcome.code == 0, outcome.stderr
    assert (run_dir(tiny) / "oof.csv").exists()


def test_tracker_works_offline_without_key_or_network(tiny, run_script, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    outcome = run_script("train.py", "--config", tiny, "--set", "tracking.wandb=offline")
    assert outcome.code == 0, outcome.stderr
    assert list((run_dir(tiny) / "wandb").glob("offline-run-*"))


def refused(outcome, *parts):
    assert outcome.code == 2
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_check_fingerprint_refuses_another_config_and_names_the_difference(tiny, run_script):
    run_script("train.py", "--config", tiny)
    refused(
        run_script("train.py", "--config", tiny, "--set", "train.lr=0.5"),
        "best.pt belongs to another config",
        "train.lr=0.001 then, 0.5 now",
        "--restart",
    )
    outcome = run_script("infer.py", run_at(tiny), "--set", "data.image_size=64,64")
    refused(outcome, "data.image_size=[32, 32] then, [64, 64] now")
    # What changes no result starts nothing anew.
    cosmetic = ["train.workers=1", "train.validate_every=2", "infer.batch_size=3"]
    sets = [part for setting in cosmetic for part in ("--set", setting)]
    assert "is finished" in run_script("train.py", "--config", tiny, *sets).stdout


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_load_refuses_truncated_and_foreign_checkpoints(tiny, run_script, name):
    run_script("train.py", "--config", tiny)
    path = run_dir(tiny) / name
    if name == "last.pt":  # as after a crash: the run is not finished
        (run_dir(tiny) / "best.pt").unlink()
    path.write_bytes(path.read_bytes()[:-1000])
    refused(run_script("train.py", "--config", tiny), str(path), "truncated", "--restart")
    torch.save({"fingerprint": pytest.raises}, path)  # holds a function: loading it could run code
    refused(run_script("train.py", "--config", tiny), str(path), "no checkpoint")


def test_train_fold_refuses_a_second_process_in_its_folder(tiny, run_script):
    folder = run_dir(tiny)
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        refused(run_script("train.py", "--config", tiny), "is being written by another process")


def interrupt(run_script, monkeypatch, path, *arguments):
    """Train, and stop after the first epoch of two."""
    save = Trainer._save

    def save_once(self):
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save_once)
        outcome = run_script("train.py", "--config", path, "--set", "train.epochs=2", *arguments)
    assert outcome.code == 130 and len(metrics(run_dir(path))) == 1


@pytest.mark.parametrize("scaled_first", [False, True])
def test_resume_with_and_without_a_loss_scaler(tiny, run_script, monkeypatch, scaled_first):
    """Begun on a CPU or in bf16, on with fp16 (T4, P100), and the reverse."""
    make = loop.make_accelerator

    def make_scaled(train):
        accelerator = make(train)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    def use_scaler(is_used):
        monkeypatch.setattr(fold, "make_accelerator", make_scaled if is_used else make)

    use_scaler(scaled_first)
    interrupt(run_script, monkeypatch, tiny)
    saved = torch.load(run_dir(tiny) / "last.pt", weights_only=True)
    assert (saved["scaler"] is not None) == scaled_first
    use_scaler(not scaled_first)
    outcome = run_script("train.py", "--config", tiny, "--set", "train.epochs=2")
    assert outcome.code == 0 and "resuming" in outcome.stdout, outcome.stderr
    assert len(metrics(run_dir(tiny))) == 2


@pytest.mark.parametrize("spoil", ["average", "optimizer"])
def test_resume_refuses_a_checkpoint_of_another_version(tiny, run_script, monkeypatch, spoil):
    interrupt(run_script, monkeypatch, tiny, "--set", "train.ema=0.9")
    path = run_dir(tiny) / "last.pt"
    content = torch.load(path, weights_only=True)
    content[spoil] = {"other": 1}
    torch.save(content, path)
    outcome = run_script("train.py", "--config", tiny, "--set", "train.epochs=2", "--set", "train.ema=0.9")
    refused(outcome, "last.pt is of another version", "--restart")


def test_trainer_keeps_the_best_epoch_until_last_pt_has_a_better_one(tiny, run_script, monkeypatch):
    """Killed between the two files, the old best weights were gone."""
    inner = ["--set", "train.inner_holdout=0.3", "--set", "train.select=inner"]
    interrupt(run_script, monkeypatch, tiny, *inner)
    save, kept = checkpoint.save, run_dir(tiny) / "selected1.pt"
    before = kept.read_bytes()

    def stop_before_last(path, content):
        if path.name == "last.pt":
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(loop.checkpoint, "save", stop_before_last)
        patch.setattr(Trainer, "_best_epoch", lambda self: len(self.history))
        outcome = run_script("train.py", "--config", tiny, "--set", "train.epochs=2", *inner)
    assert outcome.code == 130 and (run_dir(tiny) / "selected2.pt").exists()
    assert kept.read_bytes() == before
    assert run_script("train.py", "--config", tiny, "--set", "train.epochs=2", *inner).code == 0
    assert len(list(run_dir(tiny).glob("selected*.pt"))) == 1


def test_make_training_loader_refuses_a_batch_of_one_that_cannot_be_learnt_from(tiny, run_script):
    sets = ["model.name=segmenter", "model.options={decoder: deeplabv3plus}", "train.batch_size=1"]
    arguments = [part for value in sets for part in ("--set", value)]
    refused(run_script("train.py", "--config", tiny, *arguments), "train.batch_size=1", "batch normalisation")
    assert {path.name for path in run_dir(tiny).iterdir()} == {".lock"}
    assert run_script("train.py", "--config", tiny, *arguments[:4]).code == 0


def test_make_training_loader_counts_images_per_process(make_dataset, make_config):
    config = make_config(make_dataset(), "train.batch_size=2")
    data = divide_images(config, "0", ensure_tables(config).folds, load_training_rows(config, "0"))
    assert (
        fold.make_training_loader(build_detector(config), config, data, SimpleNamespace(num_processes=1))
        is not None
    )
    with pytest.raises(UserError, match=r"train\.batch_size=2.*one at a time"):
        fold.make_training_loader(build_detector(config), config, data, SimpleNamespace(num_processes=2))


def test_make_training_loader_takes_a_batch_of_one_that_can_be_learnt_from(tiny, run_script, monkeypatch):
    """And trying it changes nothing: the weights are those of a run without the attempt."""
    sets = ["--set", "train.batch_size=1", "--set", "data.image_size=[64, 64]"]
    weights = []
    for _ in range(2):
        assert run_script("train.py", "--config", tiny, *sets, "--restart").code == 0
        weights.append((run_dir(tiny) / "best.pt").read_bytes())
        monkeypatch.setattr(fold, "_try_step", lambda *_: None)
    assert weights[0] == weights[1]


def test_make_training_loader_refuses_crops_that_the_network_cannot_take(tiny, run_script):
    sets = ["model.backbone.name=deit_tiny_patch16_224", "infer.tta=false"]
    sets += ["augment=[{name: RandomCrop, height: 16, width: 16}]"]
    arguments = [part for value in sets for part in ("--set", value)]
    refused(run_script("train.py", "--config", tiny, *arguments), "augment gives images of 16x16 pixels")


@pytest.mark.parametrize("fold", ["2", "-1", "x", "../fold0"])
def test_train_fold_refuses_a_fold_that_does_not_exist(tiny, run_script, fold):
    refused(run_script("train.py", "--config", tiny, f"--fold={fold}"), "the folds are 0 to 1 and full")


def test_train_fold_full_on_selected_epochs_needs_folds(tiny, run_script):
    arguments = ["--fold", "full", "--set", "train.select=inner", "--set", "train.inner_holdout=0.3"]
    refused(run_script("train.py", "--config", tiny, *arguments), "train them first")


@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_trainer_keeps_the_last_good_checkpoint_of_a_broken_loss(tiny, run_script, monkeypatch, factor):
    run_script("train.py", "--config", tiny, "--set", "train.epochs=2")
    (run_dir(tiny) / "best.pt").unlink()
    before = torch.load(run_dir(tiny) / "last.pt", weights_only=True)
    before["history"] = before["history"][:1]  # as if stopped after the first epoch
    torch.save(before, run_dir(tiny) / "last.pt")
    saved = (run_dir(tiny) / "last.pt").read_bytes()
    original = Classifier.training_loss
    monkeypatch.setattr(
        Classifier, "training_loss", lambda self, batch: {"loss": original(self, batch)["loss"] * factor}
    )
    refused(
        run_script("train.py", "--config", tiny, "--set", "train.epochs=2"),
        "training diverged (loss not finite in epoch 2, by optimiser step",
    )
    assert (run_dir(tiny) / "last.pt").read_bytes() == saved


def test_train_out_of_memory_names_the_settings_to_lower(tiny, run_script, monkeypatch):
    def exhausted(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Classifier, "training_loss", exhausted)
    refused(run_script("train.py", "--config", tiny), "train.batch_size", "data.image_size")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.backbone.name=resnet_50", ["timm has no such model", "resnet50"]),
        ("model.backbone.weights=nowhere.pt", ["nowhere.pt", "no such file"]),
        ("model.name=patchwork", ["model.name=patchwork", "classifier"]),
        ("model.options={looss: bce}", ["unknown key looss, did you mean loss?"]),
        ("augment=[{name: Blurr}]", ["'Blurr' is no transform"]),
    ],
)
def test_train_refuses_settings_that_cannot_work(tiny, run_script, override, parts):
    refused(run_script("train.py", "--config", tiny, "--set", override), *parts)


def test_build_detector_refuses_weights_that_do_not_fit_the_network(tiny, run_script, tmp_path):
    good, bad, broken = tmp_path / "good.pt", tmp_path / "bad.pt", tmp_path / "broken.safetensors"
    torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), good)
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), bad)
    broken.write_bytes(b"no weights")
    assert run_script("train.py", "--config", tiny, "--set", f"model.backbone.weights={good}").code == 0
    for path, text in ((bad, "does not fit test_efficientnet"), (broken, "no readable checkpoint")):
        outcome = run_script(
            "train.py", "--config", tiny, "--restart", "--set", f"model.backbone.weights={path}"
        )
        refused(outcome, str(path), text)


def test_train_fold_refuses_backbone_weights_that_have_learnt_from_it(tiny, run_script):
    assert run_script("train.py", "--config", tiny).code == 0
    own = f"model.backbone.weights={run_dir(tiny) / 'best.pt'}"
    command = ["train.py", "--config", tiny, "--set", "experiment=second", "--set", own]
    assert run_script(*command, "--fold", "0").code == 0
    refused(run_script(*command, "--fold", "1"), "has learnt from images that fold 1 is scored on")


def test_fingerprint_ignores_training_lists_of_another_experiment(tiny, run_script):
    assert run_script("train.py", "--config", tiny).code == 0
    assert run_script("infer.py", run_at(tiny)).code == 0
    other = ["--set", "experiment=other", "--set", "data.symmetries=none"]
    assert run_script("train.py", "--config", tiny, *other).code == 0
    again = run_script("infer.py", run_at(tiny))
    assert again.code == 0, again.stderr


def test_build_detector_never_takes_random_weights_for_an_unreachable_hub(tiny, run_script, monkeypatch):
    create = timm.create_model

    def unreachable(*arguments, pretrained=False, **keywords):
        if pretrained:
            raise OSError("no network")
        return create(*arguments, **keywords)

    monkeypatch.setattr(timm, "create_model", unreachable)
    outcome = run_script("train.py", "--config", tiny, "--set", "model.backbone.weights=imagenet")
    refused(outcome, "cannot fetch test_efficientnet", "model.backbone.weights=none")


def test_load_config_refuses_pretrained_weights_without_external_data(tiny, run_script):
    rules = ["--set", "data.external_data=false", "--set", "data.pretrained_is_external=true"]
    assert run_script("train.py", "--config", tiny, *rules).code == 0
    outcome = run_script("train.py", "--config", tiny, *rules, "--set", "model.backbone.weights=imagenet")
    refused(outcome, "refuses model.backbone.weights=imagenet")


def test_train_fold_of_a_classifier_needs_both_classes(make_dataset, config_file, run_script):
    root = make_dataset()
    folders = {"normal": "train/normal_images", "abnormal": None, "test": "test/images"}
    data = {"source": "folders", "folders": folders, "sample_submission": None}
    refused(
        run_script("train.py", "--config", config_file(root, data=data)),
        "no defect images",
        "classifier needs them",
        "--model",
    )


def test_train_fold_with_fewer_defects_than_folds(make_dataset, config_file, run_script):
    path = config_file(make_dataset(defects=3), split={"folds": 5})
    outcome = run_script("train.py", "--config", path)
    refused(outcome, "the defects lie in 3 groups", "for split.folds=5: set split.folds=3")
