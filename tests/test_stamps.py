"""Which settings make which outputs stale: every setting of a config is in the table below."""

from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import cv2
import numpy as np
import pytest

from defects.config import validate_config
from defects.config_schema import Config, ModelConfig
from defects.data import fold_files, index
from defects.data.layouts import find_layout_settings, layout_names
from defects.evaluation import adversarial
from defects.models import check_options
from defects.runs import Run
from defects.settings import accepted_kinds, section_of
from defects.stages import ensure_tables
from defects.stamps import content_of, differences, join_differences, settings_but
from defects.training import checkpoint, distillation

# run: weights and out-of-fold scores; test: test scores and maps; index: images.csv; folds: folds.csv and the
# training lists; comparison: of training with test images; teacher: of src/distill.py. What an output is made
# from through another one's file (a run through folds.csv, say) is not listed.
STALE = {
    "experiment": "",
    "output": "",
    "submissions": "",
    "data.name": "",
    "data.category": "",
    "data.source": "index",
    "data.root": "index",
    "data.image_size": "run",
    "data.symmetries": "run folds",
    "data.sample_submission": "index",
    "data.answers": "",
    "data.annotations": "index",
    "data.annotation_format": "index",
    "data.classes": "run index folds",
    "data.use_test_as": "index",
    "data.kaggle": "",
    "data.pixel_size_mm": "",
    "data.external_data": "",
    "data.pretrained_is_external": "",
    "data.contradictions": "index",
    "data.bad_masks": "index",
    "data.unlisted_classes": "index",
    "data.bits": "run index folds comparison teacher",
    "data.inverted_masks": "index",
    "data.roi": "run index folds comparison",
    "split.folds": "folds",
    "split.seed": "run folds",
    "split.group_file": "folds",
    "split.group_pattern": "folds",
    "split.duplicates.enabled": "folds comparison",
    "split.duplicates.thumbnail_size": "folds comparison",
    "split.duplicates.neighbours": "folds comparison",
    "split.duplicates.ignore": "folds comparison",
    "split.duplicates.max_shift": "folds comparison",
    "split.duplicates.min_correlation": "folds comparison",
    "split.duplicates.min_texture": "folds comparison",
    "split.balance.method": "run folds",
    "split.balance.ratio": "run folds",
    "split.balance.angle_step": "run folds",
    "model.name": "run",
    "model.backbone": "run teacher",
    "model.options": "run",  # and of those that distillation has each one makes the teacher stale
    "augment": "run",
    "train.seed": "run teacher",
    "train.epochs": "run",
    "train.least_steps": "run",
    "train.batch_size": "run",
    "train.accumulate": "run",
    "train.steps": "run",
    "train.optimizer": "run",
    "train.lr": "run",
    "train.milestones": "run",
    "train.lr_factor": "run",
    "train.weight_decay": "run",
    "train.warmup_epochs": "run",
    "train.clip_norm": "run",
    "train.ema": "run",
    "train.black_out": "run",
    "train.paste": "run",
    "train.synthetic": "run",
    "train.precision": "run teacher",
    "train.workers": "",
    "train.inner_holdout": "run",
    "train.select": "run",
    "train.validate_every": "",  # unless an epoch is chosen by it, see below
    "infer.batch_size": "",
    "infer.tta": "run test",
    "infer.map_size": "run test",
    "infer.window": "run test",
    "infer.shard": "",
    "threshold.rule": "",
    "threshold.fpr": "run",
    "threshold.prior": "",
    "threshold.costs": "",
    "claims.confidence": "",
    "claims.escape": "",
    "claims.false_alarm": "",
    "ensemble.method": "",
    "ensemble.weights": "",
    "ensemble.compare": "",
    "tracking.wandb": "",
    "tracking.project": "",
}


def setting_types(model: type, prefix: str = "") -> dict[str, Any]:
    """Type by dotted name of all settings; sections that may be None count as one."""
    found = {}
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section and NoneType not in accepted_kinds(field.annotation):
            found |= setting_types(section, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.annotation
    return found


@pytest.fixture
def config(make_dataset, make_config, tmp_path, monkeypatch):
    """Of a data set whose folder stays where it is whatever data.name and output say."""
    (tmp_path / "given.csv").write_text("x")
    made = make_config(make_dataset(defects=4, normals=8, tests=2))
    ensure_tables(made)
    folder = made.dataset_dir
    monkeypatch.setattr(Config, "dataset_dir", property(lambda self: folder))
    return made


def stamps(config: Config) -> dict[str, dict]:
    """Of every output that has one."""
    teacher = config.model_copy(update={"model": ModelConfig(name="efficientad")})
    return {
        "run": checkpoint.fingerprint(config, "0", None),
        "test": Run(config).score_stamp("0"),
        "index": index._stamp(config.data),
        "folds": fold_files._stamp(config),
        "comparison": adversarial.inputs(config),
        "teacher": distillation.teacher_stamp(config, check_options(teacher), []),
    }


def changed(config: Config, name: str, value: Any) -> Config:
    """`config` with another value at a dotted name."""
    first, _, rest = name.partition(".")
    if rest:
        value = changed(getattr(config, first), rest, value)
    return config.model_copy(update={first: value})


def another_value(value: Any, annotation: Any, folder: Path) -> Any:
    """A value that the setting may have in place of `value`."""
    (kind,) = {kind for kind in accepted_kinds(annotation) if kind is not NoneType}
    if get_origin(kind) is Literal:
        return next(word for word in get_args(kind) if word != value)
    if get_origin(kind) is tuple:
        return tuple(7 for _ in get_args(kind))
    if get_origin(kind) is list:
        return [{"name": "Blur"}] if get_args(kind)[0] not in (str, float) else ["other"]
    if get_origin(kind) is dict:
        return {"other": 1}
    if kind is Path:
        return folder / "given.csv"
    if kind is bool:
        return not value
    if section_of(kind):
        return None if value else section_of(kind).model_construct(competition="other")
    return {str: "other", int: 3 if value != 3 else 4, float: 0.123}[kind]


def test_stamps_every_setting_is_in_the_table():
    assert sorted(setting_types(Config)) == sorted(STALE)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_stamps_settings_make_stale_what_the_table_says(config, tmp_path):
    before = stamps(config)
    types = setting_types(Config)
    for name, outputs in STALE.items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        after = stamps(changed(config, name, another_value(value, types[name], tmp_path)))
        stale = {output for output in before if differences(before[output], after[output])}
        assert stale == set(outputs.split()), name


def with_data(config: Config, **settings: Any) -> Config:
    values = config.model_dump(mode="json")
    values["data"] |= settings
    return validate_config(values, "test")


@pytest.mark.parametrize("layout", [name for name in layout_names() if find_layout_settings(name)])
def test_stamps_settings_of_a_layout_make_the_index_stale_and_nothing_else(config, tmp_path, layout):
    config = with_data(config, source=layout)
    before = stamps(config)
    for name, annotation in setting_types(find_layout_settings(layout)).items():
        settings = getattr(config.data, layout)
        value = another_value(getattr(settings, name), annotation, tmp_path)
        after = stamps(changed(config, f"data.{layout}.{name}", value))
        stale = {output for output in before if differences(before[output], after[output])}
        assert stale == {"index"}, name


def test_stamps_settings_of_an_unused_layout_make_nothing_stale(config):
    before = stamps(config)
    assert stamps(with_data(config, folders={"normal": "other"}, strips={"images": 5})) == before
    before["index"]["settings"] |= {
        "data.folders.normal": "other",
        "data.demo.strength": 2.0,
    }  # of an old version
    assert differences(before["index"], index._stamp(config.data)) == []


def test_stamps_how_often_is_validated_counts_where_it_chooses_the_epoch(config):
    chosen = changed(config, "train", config.train.model_copy(update={"select": "inner"}))
    other = changed(chosen, "train.validate_every", 3)
    found = differences(stamps(chosen)["run"], stamps(other)["run"])
    assert found == ["train.validate_every=1 then, 3 now"]


def test_stamps_a_difference_names_the_setting_and_both_values():
    then = {
        "settings": {"infer.map_size": 64, "train.lr": 0.1, "train.ema": None},
        "files": {"folds.csv": "a"},
    }
    now = {"settings": {"infer.map_size": 32, "train.lr": 0.1, "train.ema": 0.9}, "files": {"folds.csv": "b"}}
    found = differences(then, now)
    assert found == [
        "folds.csv has changed",
        "infer.map_size=64 then, 32 now",
        "train.ema=null then, 0.9 now",
    ]
    assert join_differences([*found, "x", "y"]).endswith("train.ema=null then, 0.9 now and 2 more")
    assert differences(then, now, but=["folds.csv", "infer.map_size", "train.ema"]) == []


def test_stamps_a_setting_that_did_not_exist_had_the_effect_of_its_default():
    now = {"settings": {"infer.map_size": 64, "train.lr": 1e-3, "model.options.new": 1}, "files": {}}
    assert differences({"settings": {}, "files": {}}, now) == ["model.options.new=(not set) then, 1 now"]


def test_stamps_a_setting_that_was_removed_may_have_had_no_effect():
    now = {"settings": {}, "files": {}}
    assert differences({"settings": {"data.fit": "squash", "train.pseudo": None}, "files": {}}, now) == []
    found = differences({"settings": {"data.fit": "letterbox"}, "files": {}}, now)
    assert found == ["data.fit=letterbox then, squash now"]


@pytest.mark.parametrize("then", [None, {}, {"train": {"lr": 1}}, {"settings": 1, "files": {}}, "text"])
def test_stamps_what_an_earlier_version_wrote_is_stale(then):
    assert differences(then, {"settings": {}, "files": {}}) == [
        "it was written by an earlier version of this program"
    ]


def test_stamps_of_a_file_that_a_setting_names_the_content_counts(tmp_path):
    def stamp(path, content):
        return {"settings": {"model.backbone.weights": path}, "files": {"model.backbone.weights": content}}

    assert differences(stamp("a.pt", "1"), stamp("b.pt", "1")) == []
    assert differences(stamp("a.pt", "1"), stamp("a.pt", "2")) == ["model.backbone.weights has changed"]
    assert differences(stamp("a.pt", "1"), stamp("a.pt", None)) == []  # gone, or on another computer
    assert differences(stamp("a.pt", "1"), stamp("none", None)) == [
        "model.backbone.weights=a.pt then, none now"
    ]


def test_stamps_a_model_that_is_gone_differs(tmp_path):
    then, now = ({"settings": {}, "files": {"best.pt": content}} for content in ("1", None))
    assert differences(then, now) == ["best.pt has changed"]


def test_stamps_masks_of_regions_count_by_their_pixels(config, tmp_path):
    """Masks drawn anew may take as many bytes; what the system leaves beside them does not count."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    root = config.data.root
    for roi in ({"mask": "roi.bmp"}, {"folder": "rois"}):
        masked = with_data(config, roi=roi)
        path = root / roi.get("mask", "rois/part/1.bmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask)
        before = stamps(masked)
        (path.parent / "Thumbs.db").write_text("1")
        assert stamps(masked) == before
        cv2.imwrite(str(path), mask[::-1])
        after = stamps(masked)
        stale = {output for output in before if differences(before[output], after[output])}
        assert stale == {"run", "index", "folds", "comparison"}


def test_stamps_the_content_of_a_folder_is_its_names_and_sizes(tmp_path):
    assert content_of(tmp_path / "none") is None
    (tmp_path / "a").write_text("1")
    before = content_of(tmp_path)
    assert content_of(tmp_path) == before
    (tmp_path / "a").write_text("12")
    assert content_of(tmp_path) != before


def test_stamps_excluded_are_a_name_and_what_is_below_it(config):
    found = settings_but(config, {"data", "train.lr"})
    assert "train.epochs" in found and "train.lr" not in found and "data.name" not in found
    assert "data.bits" in settings_but(config.data, {"data.name"}, "data.")
