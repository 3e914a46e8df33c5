"""Ranges of requirements.txt, constraints.txt within them, and commands that refuse what lies outside."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from conftest import raising
from packaging.requirements import Requirement
from packaging.version import Version

from defects import versions
from defects.config_schema import ROOT
from defects.messages import UserError
from defects.versions import CORE_PACKAGES, EXPORT_PACKAGES, check_versions, parse_release, read_ranges

# What a hosted notebook came with when the ranges were chosen: pip must not replace it.
HOSTED = {
    "torch": "2.6.0+cu124",
    "torchvision": "0.21.0+cu124",
    "timm": "1.0.15",
    "numpy": "1.26.4",
    "pandas": "2.2.3",
    "scikit-learn": "1.2.2",
    "scipy": "1.15.2",
    "opencv-python-headless": "4.11.0.86",
    "albumentations": "2.0.5",
    "pydantic": "2.11.3",
    "matplotlib": "3.10.0",
}


def read_lines(name: str) -> dict[str, Requirement]:
    """The lines of a requirements or constraints file as pip reads them, by names in lower case."""
    lines = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            requirement = Requirement(text)
            lines[requirement.name.lower()] = requirement
    return lines


def install(folder: Path, package: str, version: str) -> None:
    """What importlib.metadata needs to take a package for installed in `folder`."""
    information = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8"
    )


def test_ranges_are_read_as_pip_reads_them():
    for path in (versions.REQUIREMENTS, versions.CLUSTER_REQUIREMENTS):
        own = {
            name: Requirement(name + fitting.text).specifier for name, fitting in read_ranges(path).items()
        }
        assert own == {name: line.specifier for name, line in read_lines(path.name).items()}
    ranges = read_ranges()
    assert {*CORE_PACKAGES, *EXPORT_PACKAGES, "gradio", "kaggle", "wandb"} <= set(ranges)


def test_constraints_name_every_requirement_within_its_range():
    lines = read_lines("requirements.txt") | read_lines("requirements-cluster.txt")
    constraints = read_lines("constraints.txt")
    assert constraints.keys() == lines.keys()
    outside = []
    for name, line in lines.items():
        (exact,) = constraints[name].specifier
        assert exact.operator == "=="
        if exact.version not in line.specifier:
            outside.append(name)
    assert outside == []


def test_lowest_versions_lie_in_their_ranges_and_are_shortest():
    """A lower bound of 2.6.0 would exclude 2.6 where releases are compared number by number."""
    for name, fitting in read_ranges().items():
        lowest = ".".join(map(str, fitting.least))
        assert Version(lowest) in Requirement(name + fitting.text).specifier
        assert fitting.least[-1] != 0


def test_ranges_hold_what_a_hosted_notebook_has():
    lines = read_lines("requirements.txt")
    assert [name for name, version in HOSTED.items() if version not in lines[name].specifier] == []


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("2.6.0+cu124", (2, 6, 0)),
        ("4.11.0.86", (4, 11, 0, 86)),
        ("2.7.0.dev20250101", (2, 7, 0)),
        ("3", (3,)),
    ],
)
def test_parse_release_takes_the_leading_numbers(text, release):
    assert parse_release(text) == release


@pytest.mark.parametrize("version", ["1.0.15", "1.0.15.post1", "1.20", "1.9.0.dev0"])
def test_check_versions_accepts_what_lies_in_the_range(tmp_path, monkeypatch, version):
    install(tmp_path, "timm", version)
    monkeypatch.syspath_prepend(tmp_path)
    check_versions(["timm"])


@pytest.mark.parametrize("version", ["0.9.16", "1.0.14", "2.0.0"])
def test_check_versions_names_the_package_its_range_and_the_remedy(tmp_path, monkeypatch, version):
    install(tmp_path, "timm", version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as raised:
        check_versions(["timm"])
    message = str(raised.value)
    assert f"timm {version} (needs >=1.0.15,<2)" in message
    assert "run pip install -r requirements.txt" in message


def test_check_versions_names_the_file_of_the_cluster(tmp_path, monkeypatch):
    install(tmp_path, "ray", "1.13.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="ray 1.13.0 .* run pip install -r requirements-cluster.txt"):
        check_versions(["ray"], versions.CLUSTER_REQUIREMENTS)


def test_check_versions_passes_over_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(versions, "version", raising(PackageNotFoundError("torch")))
    check_versions()


def test_check_versions_compares_nothing_without_requirements(tmp_path, monkeypatch):
    """As on a PC that only predicts, with a copy of src/ alone."""
    monkeypatch.setattr(versions, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(versions, "version", lambda name: "0.1")
    check_versions()


def test_command_stops_at_its_start_with_one_line_about_wrong_versions(tmp_path):
    install(tmp_path, "pydantic", "1.10.2")
    ran = subprocess.run(
        [sys.executable, str(ROOT / "src" / "predict.py"), "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: installed versions do not fit: pydantic 1.10.2 (needs >=2.10.6,<3);")
    assert ran.stderr.count("\n") == 1
