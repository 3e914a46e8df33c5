"""notebooks/quickstart.ipynb from start to end, with nothing but local files.

Its cells run in one new interpreter, and so do the scripts that they start: importing torch takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from defects.config_schema import ROOT

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
PARAMETERS = """
REPOSITORY = {repository!r}
MODELS = ["classifier_tiny"]
SETTINGS = ["data.demo.normal=12", "data.demo.defect=4", "data.demo.test=6", "data.image_size=[32,32]"]
SETTINGS += ["split.folds=2", "train.epochs=1", "train.workers=0"]
"""
# In place of the notebook's own `run`: scripts in this process; pip, which would ask for a network, is named.
RUN_SCRIPTS_HERE = """
import runpy

sys.path.insert(0, str(PROJECT / "src"))


def run(*command):
    if command[0] == "-m":
        return print(*command)
    sys.argv = [*command]
    runpy.run_path(str(PROJECT / command[0]), run_name="__main__")
"""
# What a notebook has and a plain interpreter lacks: IPython.display, here into files.
DISPLAY = """
from pathlib import Path

HTML = str


def display(text):
    Path("displayed.html").write_text(text, encoding="utf-8")
"""

ASKED_BY_MATPLOTLIB = """
version_info = (9, 0)


def get_ipython():
    return None
"""


def load_cells(kind: str) -> list[tuple[list[str], str]]:
    """Tags and source of the notebook's cells of a kind."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == kind]
    return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]


def copy_repository(folder: Path) -> None:
    """A git repository in `folder` with what the notebook needs of this one, as it is now."""
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.txt", folder / "requirements.txt")
    author = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def execute(folder: Path, sources: list[str]) -> subprocess.CompletedProcess:
    """Run cells one after the other in a new interpreter in `folder`."""
    modules = folder / "modules" / "IPython"
    modules.mkdir(parents=True)
    (modules / "__init__.py").write_text(ASKED_BY_MATPLOTLIB, encoding="utf-8")
    (modules / "display.py").write_text(DISPLAY, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(modules.parent)}
    return subprocess.run(
        [sys.executable, "-c", "\n".join(sources)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_quickstart_clones_and_runs_from_start_to_end(tmp_path):
    repository = tmp_path / "repository"
    copy_repository(repository)
    sources = []
    for tags, source in load_cells("code"):
        if "parameters" in tags:
            source = PARAMETERS.format(repository=str(repository))
        sources.append(source)
        if "def run(" in source:
            sources.append(RUN_SCRIPTS_HERE)
    folder = tmp_path / "elsewhere" / "notebooks"
    folder.mkdir(parents=True)
    done = execute(folder, sources)
    assert done.returncode == 0, done.stderr
    assert "-m pip install --quiet -r requirements.txt" in done.stdout
    assert "expected macro-F1" in done.stdout
    assert "kaggle competitions submit my-competition" in done.stdout
    displayed = (folder / "displayed.html").read_text(encoding="utf-8")
    assert displayed.startswith("<iframe srcdoc=") and "demo_classifier_tiny" in displayed


def test_quickstart_in_the_repository_clones_nothing_and_stops_at_an_error(tmp_path):
    sources = [source for _, source in load_cells("code")]
    (tmp_path / "src" / "defects").mkdir(parents=True)
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    done = execute(notebooks, [*sources[:2], "print(PROJECT)", "run('-c', 'print(1); raise SystemExit(3)')"])
    assert done.stdout.splitlines() == [str(tmp_path), "1"]
    assert "ended with exit code 3" in done.stderr


def test_quickstart_elsewhere_asks_for_the_repository(tmp_path):
    folder = tmp_path / "elsewhere" / "notebooks"
    folder.mkdir(parents=True)
    done = execute(folder, [source for _, source in load_cells("code")][:2])
    assert "set REPOSITORY above, or put this notebook into the repository" in done.stderr


def test_quickstart_holds_no_outputs():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert [cell for cell in content["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
