"""Training against test images: a shift is found and named, its absence too, and siblings are none."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import raising, texture, write_png
from sklearn.metrics import roc_auc_score

from defects.config import load_config
from defects.evaluation.adversarial import (
    MEASURED_SIDE,
    appearance_table,
    bootstrap_auroc,
    compare_with_test,
    defects_to_explain,
    picture_features,
    stored_comparison,
)
from defects.reports.adversarial_report import choose_features, describe_comparison, write_adversarial
from defects.stages import ensure_tables


def write_images(root, train, test):
    for folder, images in (("normal", train), ("test", test)):
        for number, image in enumerate(images):
            write_png(root / folder / f"{folder}_{number}.png", image)
    return root


@pytest.fixture
def compared(tmp_path, config_file):
    """compared(train, test) -> path of a config about these normal training images and test images."""

    def make(train, test, siblings=False):
        folders = {"normal": "normal", "test": "test"}
        data = {"source": "folders", "folders": folders, "sample_submission": None}
        split = {"folds": 2, "duplicates": {"enabled": siblings}}
        return config_file(write_images(tmp_path / "data", train, test), data=data, split=split)

    return make


def textures(first, count, brighter=0):
    return [np.clip(texture(first + k).astype(int) + brighter, 0, 255).astype(np.uint8) for k in range(count)]


def test_adversarial_brighter_test_images_are_told_and_brightness_is_named(compared, run_script, tmp_path):
    path = compared(textures(0, 40), textures(500, 40, brighter=40))
    outcome = run_script("explore.py", "--config", path)
    assert outcome.code == 0, outcome.stderr
    assert "they can clearly be distinguished" in outcome.stdout
    assert "brightness: higher in the test images, median 0.6" in outcome.stdout
    folder = tmp_path / "output" / "tiny_data"
    found = json.loads((folder / "adversarial.json").read_text(encoding="utf-8"))
    assert found["auroc"] > 0.98 and found["auroc_setting"] > 0.98 and found["interval_90"][0] > 0.95
    assert found["defects_to_explain"] > 0.95
    assert (found["train"], found["test"]) == (40, 40)
    html = (folder / "adversarial.html").read_text(encoding="utf-8")
    assert "Result: they can clearly be distinguished" in html
    assert f"<b>{found['auroc']:.3f}</b>" in html
    assert html.count("<svg") == 7
    assert "http:" not in html


def test_adversarial_a_comparison_without_its_page_does_not_count(compared, run_script, monkeypatch):
    path = compared(textures(0, 40), textures(500, 40))
    with monkeypatch.context() as patch:
        patch.setattr("defects.reports.html.build_page", raising(KeyboardInterrupt()))
        assert run_script("explore.py", "--config", path).code == 130
    config = load_config(path)
    assert stored_comparison(config) is None
    assert run_script("explore.py", "--config", path).code == 0 and stored_comparison(config)


def compare_sides(config):
    tables = ensure_tables(config)
    return compare_with_test(
        appearance_table(config, tables), float(tables.folds["label"].astype(float).mean())
    )


def test_adversarial_images_from_one_source_cannot_be_told_apart(compared):
    config = load_config(compared(textures(0, 120), textures(500, 120)))
    found = compare_sides(config)
    low, high = found["interval_90"]
    assert low < 0.5 and low < found["auroc"] < high and abs(found["auroc"] - 0.5) < 0.1
    assert (
        describe_comparison(found)[0].endswith("they cannot be distinguished")
        and len(describe_comparison(found)) == 2
    )


def test_adversarial_other_files_are_told_by_their_format_and_size(compared):
    larger = [texture(500 + k, 40) for k in range(30)]
    path = compared(textures(0, 30), larger)
    for file in (load_config(path).data.root / "test").iterdir():
        file.rename(file.with_suffix(".bmp"))  # decoded by what is in it
    config = load_config(path)
    table = appearance_table(config, ensure_tables(config))
    assert table.groupby("test")[["width", "format .bmp", "format .png"]].mean().to_numpy().tolist() == [
        [32, 0, 1],
        [40, 1, 0],
    ]
    assert compare_with_test(table, 0)["auroc_setting"] > 0.98


def test_adversarial_siblings_of_both_sides_share_a_group(compared):
    train, test = textures(0, 8), textures(500, 8)
    config = load_config(compared(train, [train[3], cv_flip(test[1]), *test[1:]], siblings=True))
    groups = appearance_table(config, ensure_tables(config)).set_index("image_id")["group"]
    by_name = groups.rename(lambda image_id: image_id.rsplit("/")[-1].removesuffix(".png"))
    assert by_name["normal_3"] == by_name["test_0"] and by_name["test_1"] == by_name["test_2"]
    assert groups.nunique() == 8 + 9 - 2


def cv_flip(image):
    return np.ascontiguousarray(image[:, ::-1])


def test_adversarial_photographs_of_a_few_objects_are_no_shift():
    """Values are those of the object: without groups each would be recognised again."""
    rng = np.random.default_rng(0)
    objects = rng.normal(size=(60, 12))
    group = np.repeat(np.arange(60), 10)
    table = pd.DataFrame(objects[group] + 0.01 * rng.normal(size=(600, 12))).add_prefix("feature ")
    table = table.assign(image_id=np.arange(600).astype(str), test=group % 2 == 1, group=group, width=1.0)
    assert abs(compare_with_test(table, 0)["auroc"] - 0.5) < 0.15
    assert compare_with_test(table.assign(group=np.arange(600)), 0)["auroc"] > 0.95


def test_adversarial_too_few_images_are_not_compared(make_dataset, make_config):
    config = make_config(make_dataset())
    page = config.dataset_dir / "adversarial.html"
    page.parent.mkdir(parents=True)
    page.write_text("of an earlier run")
    lines, (path,) = write_adversarial(config, ensure_tables(config))
    assert "42 training against 6 test images: too few" in lines[0]
    assert json.loads(path.read_text(encoding="utf-8"))["auroc"] is None and not page.exists()


def test_adversarial_a_comparison_is_kept_until_the_images_change(make_dataset, make_config):
    config = make_config(make_dataset())
    assert stored_comparison(config) is None
    write_adversarial(config, ensure_tables(config))
    assert stored_comparison(config)["train"] == 42
    with (config.dataset_dir / "images.csv").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert stored_comparison(config) is None
    (config.dataset_dir / "folds.csv").unlink()
    assert stored_comparison(config) is None


def test_adversarial_without_test_images_it_says_so(make_dataset, make_config):
    config = make_config(make_dataset(tests=0), "data.sample_submission=null")
    lines, paths = write_adversarial(config, ensure_tables(config))
    assert "there are no test images" in lines[0] and not paths


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_adversarial_defects_alone_reach_the_auroc_they_are_said_to(share):
    """A test set with the share that is named, every defect recognised, has just that AUROC."""
    wanted = defects_to_explain(0.8, share)
    train, test = np.zeros(100_000), np.zeros(100_000)
    train[: round(share * len(train))], test[: round(wanted * len(test))] = -1, 1
    labels = np.repeat([0, 1], len(train))
    assert roc_auc_score(labels, np.concatenate([train, test])) == pytest.approx(0.8, abs=1e-4)
    assert defects_to_explain(0.5, share) == 0 and defects_to_explain(1.0, share) == 1


def test_adversarial_interval_is_that_of_the_auroc_and_wider_for_few_groups():
    rng = np.random.default_rng(0)
    test = np.arange(400) % 2 == 1
    chance = np.round(rng.normal(size=400) + test, 1)  # with ties
    auroc = roc_auc_score(test, chance)
    alone = bootstrap_auroc(test, chance, np.arange(400))
    assert np.mean(alone) == pytest.approx(auroc, abs=0.01)
    assert 0.05 < alone[1] - alone[0] < 0.12  # Hanley and McNeil: 3.3 standard errors of 0.024
    few = bootstrap_auroc(test, chance, np.arange(400) // 40)
    assert few[0] != alone[0]


def test_adversarial_features_are_those_of_the_picture():
    flat = np.full((MEASURED_SIDE, MEASURED_SIDE, 3), 51, np.uint8)
    lit = flat.copy()
    lit[:, MEASURED_SIDE // 2 :] = 102
    red = np.dstack([flat[..., 0] + 51, flat[..., 1], flat[..., 2]])
    assert picture_features(flat)["brightness"] == pytest.approx(0.2, abs=1e-3)
    assert picture_features(flat)["contrast"] == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(list(picture_features(flat).values())))
    of_lit = picture_features(lit)
    assert of_lit["light at the right"] > 0.05 > -0.05 > of_lit["light at the left"]
    assert of_lit["vertical against horizontal streaks"] > 2
    assert picture_features(red)["red against blue"] == pytest.approx(0.2, abs=1e-3)
    wave = np.sin(2 * np.pi * 12 * np.arange(MEASURED_SIDE) / MEASURED_SIDE)
    stripes = np.tile((128 + 60 * wave).astype(np.uint8)[:, None], (1, MEASURED_SIDE))
    bands = {
        name: value for name, value in picture_features(np.dstack([stripes] * 3)).items() if "cycles" in name
    }
    assert max(bands, key=bands.get) == "structure of 8 to 16 cycles"


def test_adversarial_one_of_two_equal_features_is_named_even_if_the_other_does_the_work():
    def feature(name, importance, auroc):
        return {"name": name, "importance": importance, "auroc": auroc}

    noise = [feature(f"noise {k}", 0.01 / (k + 1), 0.5) for k in range(8)]
    told = choose_features({"features": [*noise, feature("twin", 0.0, 0.9)]})
    assert [each["name"] for each in told] == [*(f"noise {k}" for k in range(4)), "twin"]
