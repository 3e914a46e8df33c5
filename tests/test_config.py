from pathlib import Path

import pytest
import yaml

from defects.config import ROOT, as_yaml, load_config, resolve
from defects.errors import UserError

SMALL = """
data: {name: set, source: folders, root: input/set, image_size: [32, 48]}
model: {backbone: {name: test_efficientnet}}
"""


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path) -> Path:
    return _write(tmp_path, "small.yaml", SMALL)


def _error(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_and_the_experiment_is_named_after_the_file(small):
    config = load_config(small)
    assert config.experiment == "small"
    assert config.data.image_size == (32, 48)
    assert config.split.folds == 5
    assert config.dataset_dir == ROOT / "output" / "set"
    assert config.experiment_dir == ROOT / "output" / "small"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("trian.epochs=2", "train"),
        ("Model.name=classifier", "model"),
        ("train.epoch=2", "train.epochs"),
        ("train.learning_rate=1", "train."),
        ("data.symetries=none", "data.symmetries"),
        ("split.duplicates.min_corelation=0.5", "split.duplicates.min_correlation"),
        ("model.backbone.weight=none", "model.backbone.weights"),
        ("data.folders.abnormals=bad", "data.folders.abnormal"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(small, wrong, nearest):
    message = _error(small, wrong)
    assert f"unknown key {wrong.split('.')[0]}" in message
    assert f"did you mean {nearest}" in message
    assert str(small) in message


def test_an_unknown_key_that_resembles_none(small):
    assert "unknown key zzz" in _error(small, "zzz=1")


def test_an_unknown_key_below_an_optional_section(small):
    message = _error(small, "data.kaggle.competition=x", "data.kaggle.expect={}")
    assert "did you mean data.kaggle.expected?" in message


def test_all_problems_stand_in_one_line(small):
    message = _error(small, "train.epochs=-1", "train.batchsize=4", "infer.tta=maybe")
    for key in ("train.epochs=-1", "train.batchsize", "infer.tta"):
        assert key in message


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=-1",
        "train.epochs=many",
        "train.epochs=1.5",
        "train.lr=-1",
        "train.ema=1",
        "train.precision=fp8",
        "split.folds=1",
        "split.balance.ratio=0",
        "split.duplicates.max_shift=0.5",
        "data.image_size=[0, 32]",
        "data.image_size=224",
        "data.image_size=[1, 2, 3]",
        "data.root=",
        "train=5",
        "augment={name: HorizontalFlip}",
        "tracking.wandb=maybe",
        "experiment=[a]",
    ],
)
def test_bad_values_name_the_key_and_what_was_given(small, override):
    assert f"{override.partition('=')[0]}" in _error(small, override)


@pytest.mark.parametrize("override", ["train.select=inner", "train.patience=2"])
def test_settings_that_need_an_inner_holdout_say_so(small, override):
    assert "train.inner_holdout" in _error(small, override)
    assert load_config(small, [override, "train.inner_holdout=0.2"]).train.inner_holdout == 0.2


def test_experiment_and_data_set_cannot_share_a_folder(small):
    assert "experiment and data.name are both 'set'" in _error(small, "experiment=set")


@pytest.mark.parametrize("key", ["data", "model", "data.name"])
def test_missing_keys_are_named(tmp_path, key):
    values = yaml.safe_load(SMALL)
    section = values
    for part in key.split(".")[:-1]:
        section = section[part]
    del section[key.split(".")[-1]]
    assert f"{key} is missing" in _error(_write(tmp_path, "c.yaml", yaml.safe_dump(values)))


@pytest.mark.parametrize(
    "text", ["data: [1", "a: b: c", "\tdata: 1", "{", "key: *nothing", "- a\n- b", "words", "3"]
)
def test_broken_yaml_is_one_line_with_the_file_name(tmp_path, text):
    path = _write(tmp_path, "broken.yaml", text)
    assert str(path) in _error(path)


def test_a_file_that_is_no_text_at_all(tmp_path):
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    assert str(path) in _error(path)


def test_an_empty_file_says_what_is_missing(tmp_path):
    assert "data is missing" in _error(_write(tmp_path, "empty.yaml", ""))


def test_a_missing_file_lists_the_configs_there_are(tmp_path):
    message = _error(tmp_path / "dmo.yaml")
    assert "dmo.yaml" in message
    for known in (ROOT / "configs").glob("*.yaml"):
        assert known.name in message


def test_a_derived_config_changes_only_what_it_names(tmp_path, small):
    _write(tmp_path, "middle.yaml", "base: small.yaml\ntrain: {epochs: 3, lr: 0.1}\naugment: [{name: A}]")
    top = _write(tmp_path, "top.yaml", "base: middle.yaml\ntrain: {epochs: 4}\naugment: [{name: B}]")
    config = load_config(top, ["train.batch_size=2"])
    assert (config.train.epochs, config.train.lr, config.train.batch_size) == (4, 0.1, 2)
    assert config.augment == [{"name": "B"}]  # replaced, not joined
    assert config.data == load_config(small).data


def test_lists_of_a_section_are_replaced(tmp_path, small):
    top = _write(tmp_path, "top.yaml", "base: small.yaml\ndata: {image_size: [64, 64]}")
    assert load_config(top).data.image_size == (64, 64)


def test_a_base_is_looked_up_beside_the_file_that_names_it(tmp_path, small):
    (tmp_path / "deeper").mkdir()
    top = _write(tmp_path / "deeper", "top.yaml", "base: ../small.yaml")
    assert load_config(top).data.name == "set"


@pytest.mark.parametrize(("own", "expected"), [("", "top"), ("experiment: mine", "mine")])
def test_the_experiment_name_is_not_inherited(tmp_path, own, expected):
    _write(tmp_path, "small.yaml", SMALL + "experiment: of_the_base")
    _write(tmp_path, "middle.yaml", "base: small.yaml\nexperiment: of_the_middle")
    assert load_config(_write(tmp_path, "top.yaml", f"base: middle.yaml\n{own}")).experiment == expected


def test_a_chain_of_bases_that_bites_its_tail(tmp_path):
    _write(tmp_path, "a.yaml", "base: b.yaml")
    _write(tmp_path, "b.yaml", "base: a.yaml")
    assert "comes back to itself" in _error(tmp_path / "a.yaml")
    assert "comes back to itself" in _error(_write(tmp_path, "self.yaml", "base: self.yaml"))


@pytest.mark.parametrize("base", ["nowhere.yaml", "5", "[a.yaml]"])
def test_a_base_that_is_no_config_file(tmp_path, base):
    _error(_write(tmp_path, "top.yaml", f"base: {base}"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("train.ema=null", None),
        ("train.channels_last=false", False),
        ("data.image_size=[64, 32]", (64, 32)),
        ("data.root=/some where/ä=b", Path("/some where/ä=b")),
        ("data.folders={normal: good, test: null}", None),
        ("split.group_pattern='^(\\d+)_'", "^(\\d+)_"),
        ("model.options.drop_rate=0.5", 0.5),
        ("model.options={drop_rate: 0.5}", None),
    ],
)
def test_overrides_are_parsed_like_yaml(small, override, value):
    found = load_config(small, [override])
    for part in override.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    if value is None and "{" in override:
        value = type(found)(**yaml.safe_load(override.partition("=")[2]))
    assert found == value


def test_a_later_override_wins_and_others_stay(small):
    config = load_config(small, ["train.epochs=2", "train.lr=0.5", "train.epochs=3"])
    assert (config.train.epochs, config.train.lr) == (3, 0.5)


@pytest.mark.parametrize("override", ["train.epochs", "=3", "", "train.epochs=[1"])
def test_an_override_of_another_form_is_explained(small, override):
    assert f"--set {override}" in _error(small, override)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_loads(path):
    config = load_config(path)
    assert config.experiment != config.data.name


def test_the_configs_of_the_repository_do_not_share_run_folders():
    names = [load_config(path).experiment for path in (ROOT / "configs").glob("*.yaml")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_resolved_config_loads_to_the_same_settings(tmp_path, path):
    config = load_config(path, ["train.lr=1e-05", "data.root=/prüf stücke/缺陷", "train.ema=0.123456789"])
    assert load_config(_write(tmp_path, "config.yaml", as_yaml(config))) == config


def test_relative_paths_start_at_the_repository(tmp_path):
    assert resolve("input/x") == ROOT / "input" / "x"
    assert resolve(tmp_path) == tmp_path
    assert resolve("~/data") == Path.home() / "data"
