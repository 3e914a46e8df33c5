"""Data sets of several categories, and any detector on any data set."""

import pytest
from conftest import defective, texture, write_png

from defects.config import load_config
from defects.config_schema import ROOT
from defects.messages import UserError

DETECTORS = sorted(path.stem for path in (ROOT / "configs" / "models").glob("*.yaml"))


@pytest.fixture
def two_categories(tmp_path, config_file):
    """Config of a folder with the categories bottle and cable."""
    root = tmp_path / "parts"
    for category in ("bottle", "cable"):
        for i in range(4):
            write_png(root / category / "train/good" / f"{i}.png", texture(i))
            image, mask = defective(i)
            write_png(root / category / "test/hole" / f"{i}.png", image)
            write_png(root / category / "ground_truth/hole" / f"{i}_mask.png", mask)
    return config_file(root, data={"source": "mvtec", "sample_submission": None})


def test_category_every_category_gets_its_own_data_set(two_categories, run_script, tmp_path):
    outcome = run_script("prepare.py", "--config", two_categories, "--category", "all")
    assert outcome.code == 0
    for category in ("bottle", "cable"):
        assert (tmp_path / "output" / f"tiny_data_{category}" / "images.csv").exists()


def test_category_one_category_can_be_trained(two_categories, run_script, tmp_path):
    arguments = ["--category", "cable", "--set", "data.use_test_as=train"]
    assert run_script("train.py", "--config", two_categories, *arguments).code == 0
    assert (tmp_path / "output" / "tiny_cable" / "fold0" / "oof.csv").exists()
    assert not (tmp_path / "output" / "tiny_data_bottle").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("prepare.py", ["--category", "botle"], ["--category botle", "bottle, cable"]),
        ("prepare.py", [], ["--category", "bottle, cable"]),
        ("distill.py", ["--category", "all"], ["one category"]),
        ("prepare.py", ["--set", "data.root=nowhere", "--category", "all"], ["nowhere", "no folder"]),
        ("train.py", ["--model", "patchcor"], ["--model patchcor", "patchcore"]),
    ],
)
def test_category_wrong_names_are_told(two_categories, fails_with_one_line, script, arguments, parts):
    message = fails_with_one_line(script, "--config", two_categories, *arguments)
    assert all(part in message for part in parts)


@pytest.mark.parametrize("detector", DETECTORS)
def test_category_a_detector_replaces_the_model_of_any_data_set(detector):
    config = load_config(ROOT / "configs" / "magnetic_tile.yaml", ["train.seed=7"], model=detector)
    assert config.experiment == f"magnetic_tile_{detector}"
    assert config.data.name == "magnetic_tile" and config.train.seed == 7
    if not detector.startswith("classifier"):
        assert "map_loss" not in config.model.options  # of the classifier that was replaced


def test_category_a_mistyped_key_of_a_detector_is_told(tmp_path):
    with pytest.raises(UserError, match="did you mean train.milestones"):
        load_config(ROOT / "configs/demo.yaml", ["train.milestone=[0.5]"], model=DETECTORS[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "threshold.rule=expected_cost",
            "threshold.rule=expected_cost needs threshold.costs, such as {escape",
        ),
        ("threshold.costs={escape: 0, false_alarm: 1}", "threshold.costs.escape=0: Input should be greater"),
        ("threshold.costs={escape: 1, false_alarm: -1}", "threshold.costs.false_alarm=-1: Input should be"),
        (
            "threshold.costs={escape: 2, false_alarm: 1}",
            "threshold.costs has no effect with threshold.rule=macro_f1: set threshold.rule=expected_cost",
        ),
        ("threshold.costs={escape: 1}", "threshold.costs.false_alarm is missing"),
        ("threshold.costs={escape: 1, false_alarm: 1, defect_share: 1}", "threshold.costs.defect_share=1: "),
        ("claims.confidence=0.5", "claims.confidence=0.5: Input should be greater than 0.5"),
        ("claims.confidence=95", "claims.confidence=95: Input should be less than 1"),
        ("claims.escape=2%", "claims.escape=2%: write a number"),
        ("claims.false_alarm=0", "claims.false_alarm=0: Input should be"),
    ],
)
def test_claims_and_costs_that_cannot_be_are_told(setting, message):
    with pytest.raises(UserError) as caught:
        load_config(ROOT / "configs" / "demo.yaml", [setting])
    assert message in str(caught.value)
