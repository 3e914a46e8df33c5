"""What is built from a configuration: which detector, of which arguments, and what it says itself."""

import subprocess
import sys

import pytest

from defects.config import load_config
from defects.config_schema import ROOT
from defects.messages import UserError
from defects.models import build_detector, check_options, find_detector

NETWORK = "model.backbone={name: test_resnet, weights: none}"


def test_models_options_have_the_defaults_of_the_detector(make_config, tmp_path):
    options = check_options(make_config(tmp_path, "model.options={focal_gamma: 3}"))
    assert (options.loss, options.focal_gamma) == ("bce", 3.0)


def test_models_options_are_checked_by_the_detector(make_config, tmp_path):
    with pytest.raises(UserError, match="did you mean focal_gamma"):
        build_detector(make_config(tmp_path, "model.options={focal_gama: 1}"))


def test_models_options_read_elsewhere_are_checked_with_the_others(make_config, tmp_path):
    config = make_config(tmp_path, "model.name=efficientad", "model.options={distillation: {step: 1}}")
    with pytest.raises(UserError, match="unknown key distillation.step, did you mean distillation.steps"):
        build_detector(config)


def test_models_detectors_that_do_not_exist_are_refused_with_a_list(make_config, tmp_path):
    with pytest.raises(UserError, match="model.name=statistics: the detectors are classifier, convae, dfr, "):
        make_config(tmp_path, "model.name=statistics")


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (("infer.tta=false",), [(64, 96)]),
        (("data.symmetries=flips",), [(64, 96)]),
        (("data.symmetries=dihedral",), [(64, 96), (96, 64)]),
        (("infer.window=[32, 128]",), [(32, 96), (32, 64)]),
        (("infer.window=[32, 32]",), [(32, 32)]),
    ],
)
def test_models_detectors_are_built_for_the_windows_of_all_views(
    make_config, tmp_path, monkeypatch, overrides, sizes
):
    kind, given = find_detector("classifier"), []

    def build(self, backbone, view_sizes, targets, *, loss="bce"):
        given.extend(view_sizes)
        super(kind, self).__init__()

    monkeypatch.setattr(kind, "__init__", build)
    build_detector(make_config(tmp_path, "data.image_size=[64, 96]", *overrides))
    assert given == sizes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["model.name=patchcore", NETWORK], False),
        (["model.name=supersimplenet", NETWORK, "model.options.supervised=true"], False),
        (["model.name=patchcore", NETWORK, "infer.tta=true"], True),
        (["infer.tta=false"], False),
    ],
)
def test_models_tta_is_as_the_detector_says_unless_it_is_set(make_config, tmp_path, overrides, expected):
    assert make_config(tmp_path, *overrides).infer.tta is expected


def test_models_tta_of_a_run_is_what_its_config_says(make_config, tmp_path):
    path = tmp_path / "run.yaml"
    config = make_config(tmp_path, "model.name=patchcore", NETWORK)
    path.write_text(config.model_dump_json(), encoding="utf-8")
    assert load_config(path).infer.tta is False


def test_models_indexing_does_not_load_the_libraries_of_detectors():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from defects.config import *; "
        "load_config(ROOT / 'configs' / 'demo.yaml', needs_model=False); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
