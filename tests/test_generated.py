"""Generated data sets are written whole or not at all, their key elsewhere."""

import os
import shutil
import time
from pathlib import Path

import cv2
import pytest

from defects.data.layouts import demo, strips
from defects.files import ABANDONED_AFTER_SECONDS
from defects.messages import UserError


@pytest.fixture(params=["demo", "strips"])
def generate(request, tmp_path):
    """generate(key) writes a small data set to tmp_path / "data"."""

    def run(key: str = "key.csv") -> None:
        if request.param == "demo":
            demo.generate_demo(tmp_path / "data", tmp_path / key, demo.Settings(normal=2, defect=2, test=2))
        else:
            settings = strips.Settings(images=6, test=3, size=(32, 96))
            strips.generate_strips(tmp_path / "data", tmp_path / key, settings)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("module", "name", "calls"), [(cv2, "imencode", 3), (shutil, "move", 0)])
def test_generate_an_interrupted_generation_leaves_nothing_behind(
    tmp_path, monkeypatch, generate, module, name, calls
):
    function = getattr(module, name)
    made = []

    def stopped(*arguments):
        if len(made) == calls:
            raise KeyboardInterrupt
        made.append(1)
        return function(*arguments)

    monkeypatch.setattr(module, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        generate()
    assert not list(tmp_path.iterdir())


def test_generate_existing_data_is_refused_and_stays_untouched(tmp_path, generate):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        generate()
    assert contents(tmp_path) == {"data/mine.txt": b"mine"}


@pytest.mark.parametrize("key", ["data/key.csv", "data/test/key.csv"])
def test_generate_a_key_inside_the_data_is_refused(tmp_path, generate, key):
    with pytest.raises(UserError, match="outside"):
        generate(key)
    assert not list(tmp_path.iterdir())


def test_generate_remains_of_a_killed_generation_are_removed_after_a_day(tmp_path, generate):
    old = tmp_path / ".0123.part"
    recent = tmp_path / ".4567.part"
    for part in (old, recent):
        (part / "data").mkdir(parents=True)
    long_ago = time.time() - 2 * ABANDONED_AFTER_SECONDS
    os.utime(old, (long_ago, long_ago))
    generate()
    assert recent.exists() and not old.exists()
