"""src/submit.py for code competitions: the bundle, its notebook run offline, and the way to Kaggle."""

import json
import os
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
from conftest import texture, write_png, write_sample, write_test_images

from defects.submission import kernel, send

NOTEBOOK = {"competition": "steel", "kernel": "tester/steel-defects", "gpu": False}


@pytest.fixture
def trained(make_dataset, config_file, run_script, tmp_path):
    """Config of a code competition whose two folds are trained and whose submission is written."""
    path = config_file(make_dataset(), data={"kaggle": NOTEBOOK})
    for command in (["train.py", "--fold", "all"], ["infer.py"], ["ensemble.py"]):
        outcome = run_script(command[0], "--config", path, *command[1:])
        assert outcome.code == 0, outcome.stderr
    return path


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


def run_cells(notebook, kaggle, site):
    """The code cells in one fresh interpreter, with `kaggle` for /kaggle and every connection refused."""
    cells = json.loads(notebook.read_text())["cells"]
    assert all(cell["cell_type"] == "code" for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    (site / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_, **__):\n"
        "    raise OSError('no network in this notebook')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site), "PIP_TARGET": str(site), "TMPDIR": str(site)}
    environment.pop("PIP_INDEX_URL", None)
    command = [sys.executable, "-c", source.replace('"/kaggle/', f'"{kaggle.as_posix()}/')]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=site)


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_notebook_writes_a_valid_submission_without_network(
    trained, wheels, run_script, tmp_path, unpacked
):
    """On other test images than those seen at home, as when Kaggle runs it on the hidden ones."""
    assert run_script("submit.py", "--config", trained, "--wheels", wheels, "--dry-run").code == 0
    folder, kaggle, site = bundle_folder(trained), tmp_path / "kaggle", tmp_path / "site"
    data = kaggle / "input" / ("competitions/steel" if unpacked else "steel")
    bundle = kaggle / "input" / ("datasets/tester" if unpacked else ".") / "steel-defects-bundle"
    for made in (data.parent, bundle.parent, kaggle / "working", site):
        made.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data").rename(data)  # home's own paths lead nowhere there
    (folder / "dataset").rename(bundle)
    if unpacked:
        with zipfile.ZipFile(bundle / "project.zip") as archive:
            archive.extractall(bundle / "project")
        (bundle / "project.zip").unlink()
    hidden = [f"hidden_{i}.png" for i in range(8)]
    write_test_images(data, hidden)
    write_sample(data, hidden[::-1])
    done = run_cells(folder / "kernel" / "notebook.ipynb", kaggle, site)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(kaggle / "working" / "submission.csv")
    assert table["ImageId"].tolist() == hidden[::-1] and table["answer"].isin([0, 1]).all()
    assert (site / "extra_tool.py").exists()
    assert "splitting first" not in done.stdout  # the folds came along


def test_another_version_of_the_bundle_stops_the_notebook(trained, wheels, run_script, tmp_path):
    run_script("submit.py", "--config", trained, "--wheels", wheels, "--dry-run")
    folder, kaggle = bundle_folder(trained), tmp_path / "kaggle"
    (kaggle / "input" / "steel").mkdir(parents=True)
    (folder / "dataset").rename(kaggle / "input" / "steel-defects-bundle")
    (kaggle / "input" / "steel-defects-bundle" / "bundle.json").write_text('{"sha256": "of an older one"}')
    done = run_cells(folder / "kernel" / "notebook.ipynb", kaggle, tmp_path)
    assert done.returncode != 0 and "is not the version that this notebook was made for" in done.stderr


def test_dry_run_names_every_command_and_file(trained, kaggle_server, run_script):
    outcome = run_script("submit.py", "--config", trained, "--dry-run")
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
    assert not kaggle_server.requests
    metadata = json.loads((folder / "kernel" / "kernel-metadata.json").read_text())
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert metadata["competition_sources"] == ["steel"]
    assert metadata["dataset_sources"] == ["tester/steel-defects-bundle"]
    with zipfile.ZipFile(folder / "dataset" / "project.zip") as archive:
        names = set(archive.namelist())
    assert {"src/infer.py", "configs/tiny.yaml", "output/tiny/fold1/best.pt"} <= names
    assert not any(name.endswith(("last.pt", ".pyc", "images.csv")) for name in names)


def test_a_model_trained_since_is_not_sent(trained, fails_with_one_line, run_script):
    again = run_script("train.py", "--config", trained, "--restart", "--set", "train.workers=0")
    assert again.code == 0
    oof = trained.parent / "output" / "tiny" / "fold0" / "oof.csv"
    oof.write_text(oof.read_text().replace("0.", "0.0", 1))
    message = fails_with_one_line("submit.py", "--config", trained, "--dry-run")
    assert f"{oof} changed since the submission was made" in message


def test_from_upload_to_submission_through_every_failure(
    trained, wheels, kaggle_server, fails_with_one_line, run_script, monkeypatch
):
    """A user who repeats the command: each call gets one step further, one submission comes of it."""
    monkeypatch.setattr(kernel, "POLL_SECONDS", 0)
    monkeypatch.setattr(send, "CONFIRM_AFTER", (0,))
    server, command = kaggle_server, ("submit.py", "--config", trained, "--wheels", wheels)

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
    assert server.submissions[0]["description"].startswith(f"[{row['tag']}] tiny, out of fold ")


def test_other_test_images_leave_folds_and_models_valid(trained, run_script, tmp_path):
    write_png(tmp_path / "data" / "test" / "images" / "test_6.png", texture(77))
    write_sample(tmp_path / "data", [f"test_{i}.png" for i in range(7)])
    (tmp_path / "output" / "tiny_data" / "images.csv").unlink()
    outcome = run_script("infer.py", "--config", trained)
    assert outcome.code == 0, outcome.stderr
    assert "scoring 7 test images with fold 0, fold 1" in outcome.stdout
    assert "splitting first" not in outcome.stdout
