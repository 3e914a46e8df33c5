from pathlib import Path

import pytest
import yaml

from defects.config import load_config
from defects.config_schema import ROOT, as_yaml, resolve
from defects.messages import UserError

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


def test_load_config_names_the_experiment_after_the_file(small):
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
def test_load_config_names_the_nearest_key_of_an_unknown_one(small, wrong, nearest):
    message = _error(small, wrong)
    assert f"unknown key {wrong.split('.')[0]}" in message
    assert f"did you mean {nearest}" in message
    assert str(small) in message


@pytest.mark.parametrize(
    ("layout", "wrong", "message"),
    [
        ("demo", "data.demo.normals=3", "unknown key data.demo.normals, did you mean data.demo.normal?"),
        ("demo", "data.demo.normal=0", "data.demo.normal=0: "),
        ("demo", "data.demo.strength=strong", "data.demo.strength=strong: write a number"),
        ("strips", "data.strips.size=128", "data.strips.size=128: write 2 whole numbers, such as [64, 64]"),
        ("folders", "data.folders=normal", "data.folders=normal: write keys and values"),
        ("folders", "data.demo.seeds=1", "unknown key data.demo.seeds, did you mean data.demo.seed?"),
        ("none", "data.folder.normal=x", "unknown key data.folder"),
    ],
)
def test_settings_of_a_layout_are_checked_like_any_others(small, layout, wrong, message):
    assert message in _error(small, f"data.source={layout}", wrong)


def test_settings_of_an_unused_layout_have_no_effect(small):
    config = load_config(small, ["data.strips={images: 5}"])
    assert "strips" not in as_yaml(config)
    assert "demo" not in as_yaml(config)
    assert config.data.folders.normal == "normal"


def test_load_config_refuses_a_key_that_resembles_none(small):
    assert "unknown key zzz" in _error(small, "zzz=1")


def test_load_config_reads_what_an_old_run_kept_of_removed_settings(small):
    plain = load_config(small)
    small.write_text(small.read_text() + "train:\n  pseudo: null\n")
    assert load_config(small) == plain


def test_load_config_refuses_removed_settings_that_had_an_effect(small):
    small.write_text(small.read_text() + "train:\n  pseudo: labels.csv\n")
    message = _error(small)
    assert str(small) in message
    assert "train.pseudo=labels.csv is no setting any more" in message


def test_load_config_refuses_an_unknown_key_below_an_optional_section(small):
    message = _error(small, "data.kaggle.competition=x", "data.kaggle.expect={}")
    assert "did you mean data.kaggle.expected?" in message


def test_load_config_puts_all_problems_in_one_line(small):
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
def test_load_config_names_key_and_value_of_a_bad_value(small, override):
    assert f"{override.partition('=')[0]}" in _error(small, override)


def test_train_config_says_what_needs_an_inner_holdout(small):
    assert "train.inner_holdout" in _error(small, "train.select=inner")
    assert load_config(small, ["train.select=inner", "train.inner_holdout=0.2"]).train.inner_holdout == 0.2


def test_config_refuses_one_folder_for_experiment_and_data_set(small):
    assert "experiment and data.name are both 'set'" in _error(small, "experiment=set")


@pytest.mark.parametrize("key", ["data", "model", "data.name"])
def test_load_config_names_missing_keys(tmp_path, key):
    values = yaml.safe_load(SMALL)
    section = values
    for part in key.split(".")[:-1]:
        section = section[part]
    del section[key.split(".")[-1]]
    assert f"{key} is missing" in _error(_write(tmp_path, "c.yaml", yaml.safe_dump(values)))


@pytest.mark.parametrize(
    "text", ["data: [1", "a: b: c", "\tdata: 1", "{", "key: *nothing", "- a\n- b", "words", "3"]
)
def test_load_config_names_the_file_of_broken_yaml(tmp_path, text):
    path = _write(tmp_path, "broken.yaml", text)
    assert str(path) in _error(path)


def test_load_config_refuses_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    assert str(path) in _error(path)


def test_load_config_of_an_empty_file_says_what_is_missing(tmp_path):
    assert "data is missing" in _error(_write(tmp_path, "empty.yaml", ""))


def test_load_config_of_a_missing_file_lists_the_configs(tmp_path):
    message = _error(tmp_path / "dmo.yaml")
    assert "dmo.yaml" in message
    for known in (ROOT / "configs").glob("*.yaml"):
        assert known.name in message


DATA_FILE = "data: {source: folders, root: input/set, image_size: [32, 48]}\nsplit: {folds: 4}"
MODEL_FILE = """
model: {name: classifier, backbone: {name: test_efficientnet}, options: {loss: focal}}
augment: [{name: A}]
train: {epochs: 3, lr: 0.1}
"""


@pytest.fixture
def parts(tmp_path) -> tuple[Path, Path]:
    """A data file and a model file."""
    return _write(tmp_path, "cells.yaml", DATA_FILE), _write(tmp_path, "net.yaml", MODEL_FILE)


def test_load_config_joins_a_data_file_and_a_model_file(tmp_path, parts):
    data, model = parts
    text = f"data: {data}\nmodel: {model}\ntrain: {{epochs: 4}}\naugment: [{{name: B}}]"
    config = load_config(_write(tmp_path, "top.yaml", text), ["train.batch_size=2"])
    assert (config.train.epochs, config.train.lr, config.train.batch_size) == (4, 0.1, 2)
    assert config.augment == [{"name": "B"}]  # replaced, not joined
    assert config.data.name == "cells" and config.split.folds == 4
    assert config.experiment == "cells_net"


def test_load_config_finds_a_data_file_beside_the_experiment(tmp_path, parts):
    assert load_config(_write(tmp_path, "top.yaml", "data: cells.yaml\nmodel: net.yaml")).data.name == "cells"


def test_load_config_joins_data_and_model_of_the_command_line_alike(tmp_path, parts):
    data, model = parts
    written = load_config(_write(tmp_path, "top.yaml", f"data: {data}\nmodel: {model}"))
    assert load_config(data=str(data), model=str(model)) == written


def test_load_config_of_another_model_replaces_the_training(tmp_path, small, parts):
    text = f"{SMALL}train: {{batch_size: 3}}\ninfer: {{batch_size: 5}}\n"
    config = load_config(_write(tmp_path, "own.yaml", text), model=str(parts[1]))
    assert config.train.batch_size != 3 and config.train.epochs == 3
    assert config.infer.batch_size == 5 and config.experiment == "set_net"


def test_load_config_without_a_model_for_stages_that_need_none(parts):
    assert load_config(data=str(parts[0]), needs_model=False).data.name == "cells"


@pytest.mark.parametrize("option", ["data", "model"])
def test_load_config_lists_the_names_for_an_unknown_one(small, option):
    with pytest.raises(UserError, match=f"--{option} nowhere: configs/") as caught:
        load_config(small, **{option: "nowhere"})
    assert {"data": "magnetic_tile", "model": "patchcore_reduced"}[option] in str(caught.value)


def test_load_config_refuses_a_file_that_is_no_data_file(tmp_path, parts):
    _error(_write(tmp_path, "top.yaml", f"data: {parts[1]}\nmodel: {parts[1]}"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_load_config_takes_shipped_experiments(path):
    config = load_config(path)
    assert config.experiment.startswith(config.data.name)


def test_load_config_refuses_a_repeated_key_with_its_lines(tmp_path):
    path = _write(tmp_path, "twice.yaml", f"{SMALL}train: {{epochs: 1}}\nmodel: {{name: dfr}}\n")
    assert "model is given twice, in lines 3 and 5" in _error(path)


def test_load_config_reads_a_file_saved_by_an_editor_of_windows(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(SMALL.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_config(path).data.name == "set"


@pytest.mark.parametrize("data", ["nowhere.yaml", "5", "[a.yaml]"])
def test_load_config_refuses_data_that_is_no_file(tmp_path, data):
    _error(_write(tmp_path, "top.yaml", f"data: {data}\nmodel: classifier"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=1e-3", 1e-3),
        ("train.ema=null", None),
        ("infer.tta=false", False),
        ("data.image_size=[64, 32]", (64, 32)),
        ("data.root=/some where/ä=b", Path("/some where/ä=b")),
        ("data.folders={normal: good, test: null}", None),
        ("split.group_pattern='^(\\d+)_'", "^(\\d+)_"),
        ("model.options.drop_rate=0.5", 0.5),
        ("model.options={drop_rate: 0.5}", None),
    ],
)
def test_apply_overrides_parses_values_like_yaml(small, override, value):
    found = load_config(small, [override])
    for part in override.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    if value is None and "{" in override:
        value = type(found)(**yaml.safe_load(override.partition("=")[2]))
    assert found == value


AS_WRITTEN = [
    *("no", "off", "on", "yes", "true", "None", "2024", "2024-05-01", "010", "0x10", "1e-3", "1_000", "3E-4"),
    *("it's", "a # b", "128,800", "nan", "a 'b' c", "x=y", "é"),
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_apply_overrides_takes_text_settings_as_written(small, text):
    config = load_config(small, [f"experiment={text}", f"tracking.project={text}", f"data.root={text}"])
    assert (config.experiment, config.tracking.project, config.data.root) == (text, text, Path(text))


PLAIN_IN_FILES = [text for text in AS_WRITTEN if "#" not in text]  # there ` #` begins a comment


@pytest.mark.parametrize("text", PLAIN_IN_FILES)
def test_load_config_takes_text_settings_as_written(tmp_path, text):
    path = _write(tmp_path, "c.yaml", f"{SMALL}experiment: {text}\nsplit: {{group_pattern: null}}\n")
    assert load_config(path).experiment == text
    assert load_config(_write(tmp_path, "again.yaml", as_yaml(load_config(path)))).experiment == text


@pytest.mark.parametrize(
    "root", ["/data/Line #2", "/data/a: b", r"D:\data\line1", "/data/[1]", "{x}", "~/data", '"quoted"']
)
def test_apply_overrides_takes_paths_as_written_without_quotes(small, root):
    assert load_config(small, [f"data.root={root}"]).data.root == Path(root.strip('"'))


@pytest.mark.parametrize("pattern", [r"[A-Z]+(\d+)_", r"*(\d+)_", r"{2}(\d)", r"'(\d+)'x"])
def test_apply_overrides_takes_a_pattern_for_no_list(small, pattern):
    assert load_config(small, [f"split.group_pattern={pattern}"]).split.group_pattern == pattern


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=3E-4", 3e-4),
        ("train.lr=.5", 0.5),
        ("train.lr = 1e1", 10.0),
        ("train.epochs=010", 10),
        ("train.epochs=1e1", 10),
        ("train.epochs=08", 8),
        ("train.ema=None", None),
        ("train.ema=", None),
        ("train.ema=~", None),
        ("data.folders.abnormal=None", None),
        ("data.folders.abnormal=NULL", None),
        ("data.folders.abnormal=", None),
        ("infer.tta=True", True),
        ("infer.tta=0", False),
        ("infer.tta=no", False),
        ("train.precision=no", "no"),
        ("tracking.wandb=off", "off"),
        ("model.backbone.weights=None", "none"),
        ("model.backbone.weights=null", "none"),
        ("model.backbone.weights=ImageNet", "imagenet"),
        ("data.image_size=128,800", (128, 800)),
        ("data.image_size=(128, 800)", (128, 800)),
        ("infer.window=[64,32]", (64, 32)),
        ("data.classes=[01,02,08]", ["01", "02", "08"]),
        ("data.classes=[1.0,no,2024-05-01]", ["1.0", "no", "2024-05-01"]),
        ("data.classes=a,b", ["a", "b"]),
        ("train.milestones=[.5,0.75]", [0.5, 0.75]),
        ("train.milestones=.5", [0.5]),
        ("train.milestones=[]", []),
        ("model.options.loss=no", "no"),
        ("model.options.teacher=/data/Line #2", "/data/Line #2"),
        ("model.options.share=1e-3", 1e-3),
        ("model.options.layers=[a, 1, true, null]", ["a", 1, True, None]),
    ],
)
def test_apply_overrides_reads_values_by_the_type_of_the_setting(small, override, value):
    found = load_config(small, [override])
    for part in override.partition("=")[0].strip().split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=null", "train.epochs=null: write a whole number"),
        ("train.epochs=true", "train.epochs=true: write a whole number"),
        ("train.epochs=1.5", "train.epochs=1.5: write a whole number"),
        ("train.lr=0,001", "train.lr=0,001: write a number"),
        ("train.lr=inf", "train.lr=inf: write a finite number"),
        ("train.lr=1e400", "train.lr=1e400: write a finite number"),
        ("infer.tta=maybe", "infer.tta=maybe: write true or false"),
        ("infer.tta=2", "infer.tta=2: write true or false"),
        ("data.image_size=256", "data.image_size=256: write 2 whole numbers, such as [64, 64]"),
        ("data.image_size=128x800", "data.image_size=128x800: write 2 whole numbers"),
        ("data.image_size=[1, 2, 3]", "data.image_size=[1, 2, 3]: write 2 whole numbers"),
        ("split.duplicates.ignore=1,2", "split.duplicates.ignore=1,2: write 4 whole numbers"),
        ("train.precision=None", "train.precision=None: Input should be 'auto', 'no', 'fp16' or 'bf16'"),
        ("experiment=null", "experiment=null: write a text"),
        ("data.root=", "data.root=: write a path"),
        ("data.root=a\nb", "a path holds no control characters"),
        ("experiment=a/b", "experiment=a/b: write the name of one folder"),
        ("experiment=" + 200 * "x", "150 bytes at most"),
        ("augment={name: HorizontalFlip}", "augment={name: HorizontalFlip}: write a list"),
        ("augment=HorizontalFlip", "augment=HorizontalFlip: write keys and values"),
        ("train.milestones={a: 1}", "train.milestones={a: 1}: write a list"),
        ("model.options=none", "model.options=none: write keys and values"),
        ("train.lr", "without spaces around the ="),
    ],
)
def test_apply_overrides_names_key_value_and_what_is_allowed(small, override, said):
    assert said in _error(small, override)


def test_load_config_replaces_free_mappings_which_can_be_emptied(small):
    first = ["model.options={loss: focal}", "ensemble.weights={a: 1, b: 1}"]
    assert load_config(small, [*first, "model.options={}"]).model.options == {}
    assert load_config(small, [*first, "model.options={drop: 1}"]).model.options == {"drop": 1}
    assert load_config(small, [*first, "ensemble.weights={c: 1}"]).ensemble.weights == {"c": 1}
    assert load_config(small, [*first, "ensemble.weights={}"]).ensemble.weights is None
    assert load_config(small, [*first, "model.options.drop=1"]).model.options == {"loss": "focal", "drop": 1}


def test_load_config_replaces_free_mappings_of_a_model_file(tmp_path, parts):
    data, model = parts
    config = load_config(data=str(data), model=str(model), overrides=["model.options={drop: 1}"])
    assert config.model.options == {"drop": 1} and config.model.backbone.name == "test_efficientnet"


def test_apply_overrides_takes_names_with_dots_for_keys_of_a_mapping(small):
    overrides = ["ensemble.weights.b5.v1=2", "data.kaggle={competition: x}", "data.kaggle.expected.a/*.png=3"]
    config = load_config(small, [*overrides, "model.options.distillation.steps=5"])
    assert config.ensemble.weights == {"b5.v1": 2.0}
    assert config.data.kaggle.expected == {"a/*.png": 3}
    assert config.model.options == {"distillation": {"steps": 5}}


def test_apply_overrides_of_a_section_changes_only_its_keys(small):
    config = load_config(small, ["data.folders={normal: good, test: null}", "data.folders={masks: 01}"])
    assert (config.data.folders.normal, config.data.folders.masks) == ("good", "01")


def test_apply_overrides_lets_a_later_one_win(small):
    config = load_config(small, ["train.epochs=2", "train.lr=0.5", "train.epochs=3"])
    assert (config.train.epochs, config.train.lr) == (3, 0.5)


@pytest.mark.parametrize("override", ["train.epochs", "=3", "", "train.epochs=[1"])
def test_apply_overrides_explains_the_form(small, override):
    assert f"--set {override}" in _error(small, override)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_load_config_loads_every_config_of_the_repository(path):
    config = load_config(path)
    assert config.experiment != config.data.name


def test_load_config_gives_shipped_configs_different_run_folders():
    names = [load_config(path).experiment for path in (ROOT / "configs").glob("*.yaml")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_as_yaml_loads_to_the_same_settings(tmp_path, path):
    config = load_config(path, ["train.lr=1e-05", "data.root=/prüf stücke/缺陷", "train.ema=0.123456789"])
    assert load_config(_write(tmp_path, "config.yaml", as_yaml(config))) == config


def test_resolve_starts_at_the_repository(tmp_path):
    assert resolve("input/x") == ROOT / "input" / "x"
    assert resolve(tmp_path) == tmp_path
    assert resolve("~/data") == Path.home() / "data"
