"""src/submit.py for code competitions: the bundle, its notebook run offline, and the way to Kaggle."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import (
    copy_runs,
    options_for,
    raising,
    run_at,
    run_once,
    runs_at,
    submitted_at,
    texture,
    write_config,
    write_dataset,
    write_png,
    write_sample,
    write_test_images,
)

from defects.config_schema import ROOT
from defects.messages import UserError
from defects.submission import kernel, send
from defects.submission.bundle import fetch_wheels

NOTEBOOK = {"competition": "steel", "kernel": "tester/steel-defects", "gpu": False}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Folder of a code competition whose two folds are trained and whose submission is written.

    A part of the images is judged, which a mask tells that is no file of the competition.
    """
    folder = tmp_path_factory.mktemp("competition")
    root = write_dataset(folder / "data")
    inside = np.zeros((32, 32), np.uint8)
    inside[2:-2, 2:-2] = 255
    write_png(root / "roi.png", inside)
    path = write_config(folder, root, data={"kaggle": NOTEBOOK, "roi": {"mask": "roi.png"}})
    for command in (["train.py", "--fold", "all"], ["infer.py"], ["ensemble.py"]):
        run_once(command[0], *options_for(command[0], path), *command[1:])
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """Config in a copy of that folder."""
    copy_runs(trained_once, tmp_path)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def wheels(tmp_path):
    """A folder with one wheel, of a package `extra_tool`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "extra_tool-1.0.dist-info"
    members = {
        "extra_tool.py": "FOUND = True\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: extra-tool\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"extra_tool.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }
    with zipfile.ZipFile(folder / "extra_tool-1.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder


def bundle_folder(config):
    return config.parent / "submissions" / "sample_submission_bundle"


@pytest.fixture
def kaggle(trained, wheels, run_script, tmp_path):
    """kaggle(data, bundle) -> the folder that stands for /kaggle; both names are places below its input.

    Home's own files are moved there: their old paths lead nowhere.
    """

    def make(data, bundle):
        outcome = run_script("submit.py", *submitted_at(trained), "--wheels", wheels, "--dry-run")
        assert outcome.code == 0, outcome.stderr
        (tmp_path / "kaggle" / "working").mkdir(parents=True)
        for source, name in ((tmp_path / "data", data), (bundle_folder(trained) / "dataset", bundle)):
            place = tmp_path / "kaggle" / "input" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            source.rename(place)
        return tmp_path / "kaggle"

    return make


def run_cells(config, kaggle, replace_last=None):
    """The notebook's cells in one fresh interpreter, with `kaggle` for /kaggle, every connection refused.

    pip installs into kaggle/site. `replace_last` is a cell in place of the last one.
    """
    site, notebook = kaggle / "site", bundle_folder(config) / "kernel" / "notebook.ipynb"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_, **__):\n"
        "    raise OSError('no network in this notebook')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    source = "\n".join([*cells[:-1], replace_last or cells[-1]])
    environment = os.environ | {"PYTHONPATH": str(site), "PIP_TARGET": str(site), "TMPDIR": str(site)}
    command = [sys.executable, "-c", source.replace('"/kaggle/', f'"{kaggle.as_posix()}/')]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=site)


def test_kernel_the_notebook_writes_a_valid_submission_without_network(trained, kaggle, run_script):
    """A blend, on other test images than those at home, as when Kaggle runs it on the hidden ones."""
    other = ["--config", trained, "--set", "experiment=other"]
    for command in (
        ["train.py", *other, "--fold", "all"],
        ["train.py", *other, "--fold", "full"],
        ["infer.py", run_at(trained, "other"), "--use", "both"],
        ["ensemble.py", *runs_at(trained, "tiny", "other")],
    ):
        assert run_script(*command).code == 0
    place = kaggle("competitions/steel", "datasets/tester/steel-defects-bundle")
    data = place / "input" / "competitions" / "steel"
    (data / "roi.png").unlink()
    hidden = [f"hidden_{i}.png" for i in range(8)]
    write_test_images(data, hidden)
    write_sample(data, hidden[::-1])
    done = run_cells(trained, place)
    assert done.returncode == 0, done.stderr
    assert "scoring 8 test images with fold 0, fold 1, the full fit" in done.stdout
    table = pd.read_csv(place / "working" / "submission.csv")
    assert table["ImageId"].tolist() == hidden[::-1] and table["answer"].isin([0, 1]).all()
    assert (place / "site" / "extra_tool.py").exists()
    assert "splitting first" not in done.stdout  # the folds came along


def test_kernel_what_stands_for_kaggle_has_no_network(trained, kaggle):
    place = kaggle("steel", "steel-defects-bundle")
    connect = "import urllib.request\nurllib.request.urlopen('http://127.0.0.1')"
    done = run_cells(
        trained, place, replace_last=f"run = [sys.executable, '-c', {connect!r}]\nsubprocess.run(run)"
    )
    assert "no network in this notebook" in done.stderr


@pytest.mark.parametrize("folder", ["project", "project/project"])
def test_kernel_an_archive_that_kaggle_unpacked_itself_is_found(trained, kaggle, folder):
    place = kaggle("steel", "steel-defects-bundle")
    bundle = place / "input" / "steel-defects-bundle"
    with zipfile.ZipFile(bundle / "project.zip") as archive:
        archive.extractall(bundle / folder)
    (bundle / "project.zip").unlink()
    done = run_cells(trained, place, replace_last="print((project / 'src/infer.py').read_text())")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "src" / "infer.py").read_text() + "\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bundle: (bundle / "bundle.json").write_text('{"sha256": "1"}'), "is not the version"),
        (lambda bundle: bundle.rename(bundle.parent / "other"), "is not attached to this notebook"),
    ],
)
def test_kernel_a_wrong_bundle_stops_the_notebook(trained, kaggle, change, message):
    place = kaggle("steel", "steel-defects-bundle")
    change(place / "input" / "steel-defects-bundle")
    done = run_cells(trained, place)
    assert done.returncode != 0 and f"steel-defects-bundle {message}" in done.stderr


def test_kernel_dry_run_names_every_command_and_file(trained, wheels, kaggle_server, run_script):
    run_script("submit.py", *submitted_at(trained), "--dry-run", "--wheels", wheels)
    outcome = run_script("submit.py", *submitted_at(trained), "--dry-run")  # the wheel does not stay behind
    assert outcome.code == 0, outcome.stderr
    folder = bundle_folder(trained)
    commands = [line.strip() for line in outcome.stdout.splitlines() if line.startswith("  ")]
    assert commands[0].startswith("python -m pip download --no-deps")
    assert "segmentation-models-pytorch==" in commands[0]
    assert commands[1].startswith(f"kaggle datasets create -p {folder / 'dataset'}")
    assert commands[3] == f"kaggle kernels push -p {folder / 'kernel'}"
    submit = "kaggle competitions submit steel -k tester/steel-defects -v VERSION -f submission.csv -m "
    assert commands[4].startswith(submit)
    named = {line.split(" (")[0] for line in commands[5:]}
    assert named == {str(path) for path in folder.rglob("*") if path.is_file()}
    assert not any(name.endswith(".whl") for name in named)
    assert not kaggle_server.requests
    metadata = json.loads((folder / "kernel" / "kernel-metadata.json").read_text())
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert metadata["competition_sources"] == ["steel"]
    assert metadata["dataset_sources"] == ["tester/steel-defects-bundle"]
    with zipfile.ZipFile(folder / "dataset" / "project.zip") as archive:
        names = set(archive.namelist())
    assert {"src/infer.py", "output/tiny/fold1/config.yaml", "output/tiny/fold1/best.pt"} <= names
    assert "roi/roi.png" in names
    assert "src/defects/reports/templates/page.html" in names
    assert not any(name.endswith(("last.pt", ".pyc", "images.csv")) for name in names)


def test_kernel_a_model_trained_since_is_not_sent(trained, fails_with_one_line, run_script):
    assert run_script("ensemble.py", run_at(trained)).code == 0
    oof = trained.parent / "output" / "tiny" / "fold0" / "oof.csv"
    oof.write_text(oof.read_text().replace("0.", "0.0", 1))
    message = fails_with_one_line("submit.py", *submitted_at(trained), "--dry-run")
    assert f"{oof} changed since the submission was made" in message


def test_kernel_a_mask_of_the_region_drawn_since_is_not_sent(trained, fails_with_one_line, run_script):
    assert run_script("ensemble.py", run_at(trained)).code == 0
    write_png(trained.parent / "data" / "roi.png", np.full((32, 32), 255, np.uint8))
    message = fails_with_one_line("submit.py", *submitted_at(trained), "--dry-run")
    assert "fold0/best.pt belongs to another config or other data (data.roi.mask has changed)" in message


def test_kernel_from_upload_to_submission_through_every_failure(
    trained, wheels, kaggle_server, fails_with_one_line, run_script, monkeypatch
):
    """A user who repeats the command: each call gets one step further, one submission comes of it."""
    monkeypatch.setattr(kernel, "POLL_SECONDS", 0)
    monkeypatch.setattr(send, "CONFIRM_AFTER", (0,))
    server, command = kaggle_server, ("submit.py", *submitted_at(trained), "--wheels", wheels)

    def refused(*expected):
        message = fails_with_one_line(*command)
        assert all(text in message for text in expected), message
        assert len(server.submissions) == 0
        server.replies.clear()

    slug = "steel-defects-bundle"
    server.upload_status = 400
    refused("bundle.json, extra_tool-1.0-py3-none-any.whl, project.zip not uploaded")
    server.upload_status = 200
    server.replies["CreateDatasetVersion"] = (200, {"status": "error", "error": "quota is used up"})
    refused(f"kaggle datasets version tester/{slug}", "quota is used up")
    server.replies["SaveKernel"] = (200, {"error": "Maximum weekly GPU quota reached"})
    refused("kaggle kernels push tester/steel-defects: Kernel push error: Maximum weekly GPU quota reached")
    versions = len(server.datasets[slug])
    assert server.datasets[slug][-1] == ["bundle.json", "extra_tool-1.0-py3-none-any.whl", "project.zip"]
    server.replies["SaveKernel"] = (200, {"versionNumber": 9, "invalidCompetitionSources": ["steel"]})
    refused("not valid competition sources")
    server.hangs_up = "SaveKernel"
    refused("Kaggle cannot be reached")
    with monkeypatch.context() as patch:
        patch.setattr(kernel.time, "sleep", raising(KeyboardInterrupt()))
        assert run_script(*command).code == 130
    server.runs = ["queued", "error"]
    refused("ended with status error (it broke): see `kaggle kernels logs tester/steel-defects`")
    server.runs = ["complete"]
    server.refuse(400, "Notebook must have internet disabled", "CreateCodeSubmission")
    refused("kaggle competitions submit steel: Notebook must have internet disabled")
    assert len(server.kernels) == 3 and len(server.datasets[slug]) == versions
    server.hangs_up, server.stays_gone = "CreateCodeSubmission", True
    assert "Kaggle cannot be reached" in fails_with_one_line(*command)
    server.gone = False
    outcome = run_script(*command)
    assert outcome.code == 0, outcome.stderr
    assert len(server.submissions) == 1 and len(server.kernels) == 3
    sent = [request.body for request in server.requests if request.name == "CreateCodeSubmission"][-1]
    assert (sent["kernelSlug"], sent["kernelVersion"]) == ("steel-defects", 3)
    (row,) = pd.read_csv(trained.parent / "submissions" / "ledger.csv").to_dict("records")
    assert (row["ref"], row["status"], row["experiments"]) == (1000, "pending", "tiny")
    assert row["options"] == "-k tester/steel-defects -v 3 -f submission.csv"
    assert server.submissions[0]["description"].startswith(f"[{row['tag']}] tiny: expected macro-F1 ")


def test_kernel_other_test_images_leave_folds_and_models_valid(trained, run_script, tmp_path):
    write_png(tmp_path / "data" / "test" / "images" / "test_6.png", texture(77))
    write_sample(tmp_path / "data", [f"test_{i}.png" for i in range(7)])
    (tmp_path / "output" / "tiny_data" / "images.csv").unlink()
    outcome = run_script("infer.py", run_at(trained))
    assert outcome.code == 0, outcome.stderr
    assert "scoring 7 test images with fold 0, fold 1" in outcome.stdout
    assert "splitting first" not in outcome.stdout


def test_kernel_only_missing_wheels_are_downloaded(wheels, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    folder, wheel = tmp_path / "dataset", wheels / "extra_tool-1.0-py3-none-any.whl"
    folder.mkdir()
    fetch_wheels(["extra-tool==1.0"], folder)
    assert [path.name for path in folder.iterdir()] == [wheel.name]
    wheel.unlink()
    fetch_wheels(["extra-tool==1.0"], folder)  # there already
    with pytest.raises(UserError, match=r"wheels of extra-tool==2.0 cannot be downloaded .*--wheels"):
        fetch_wheels(["extra-tool==2.0"], folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.kaggle.wheels=[nothing]", "data.kaggle.wheels: constraints.txt pins no nothing"),
        ("data.kaggle.kernel=no-owner", "data.kaggle.kernel=no-owner"),
    ],
)
def test_kernel_settings_that_cannot_work(trained, fails_with_one_line, setting, message):
    assert message in fails_with_one_line("submit.py", *submitted_at(trained), "--set", setting, "--dry-run")
