"""src/predict.py in chunks: the same bytes however they come about, and going on after interruptions."""

import json
import sys
from types import SimpleNamespace

import fsspec
import pandas as pd
import pytest
from conftest import defective, raising, texture, write_png
from exports import write_export

from defects.deploy import scoring_jobs
from defects.deploy.model import META
from defects.files import locked, write_json
from defects.messages import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`images`: a folder of 11, one of them broken; `export`: a model for them."""
    root = tmp_path_factory.mktemp("chunks")
    for seed in range(5):
        write_png(root / "images" / f"a_{seed}.png", defective(seed)[0])
        write_png(root / "images" / f"b_{seed}.png", texture(seed))
    (root / "images" / "b_9.png").write_bytes(b"no image")
    return SimpleNamespace(images=root / "images", export=write_export(root / "export"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Three batches of 2 images at most, so that there are 2 chunks of 11 images: 6 and 5."""
    monkeypatch.setattr(scoring_jobs, "CHUNK_IMAGES", 5)


@pytest.fixture
def predict(made, run_script, tmp_path):
    """predict(*options, name="scores.csv") -> how the command ended; its table is `tmp_path / name`."""

    def run(*options, name="scores.csv"):
        paths = [made.export, made.images, "--output", tmp_path / name, "--batch-size", 2]
        return run_script("predict.py", *paths, *options)

    return run


@pytest.fixture
def interrupted(predict, tmp_path, monkeypatch):
    """The folder of chunks after a command that was stopped in its second chunk."""
    score = scoring_jobs.score_chunk

    def stopping(model, scoring, chunk):
        if chunk.number == 1:
            raise KeyboardInterrupt
        return score(model, scoring, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(scoring_jobs, "score_chunk", stopping)
        assert predict("--jobs", 1).code == 130
    folder = tmp_path / "scores.csv.chunks"
    assert {path.name for path in folder.iterdir()} >= {"000000.chunk", "job.json"}
    assert not (tmp_path / "scores.csv").exists()
    return folder


@pytest.fixture
def scored(monkeypatch):
    """Numbers of the chunks that are scored."""
    numbers = []
    score = scoring_jobs.score_chunk

    def noting(model, scoring, chunk):
        numbers.append(chunk.number)
        return score(model, scoring, chunk)

    monkeypatch.setattr(scoring_jobs, "score_chunk", noting)
    return numbers


@pytest.mark.parametrize("name", ["scores.csv", "scores.jsonl"])
def test_score_in_chunks_writes_what_one_process_writes(predict, tmp_path, name):
    whole = predict(name=name)
    expected = (tmp_path / name).read_bytes()
    chunked = predict("--jobs", 1, name=name)
    assert (tmp_path / name).read_bytes() == expected
    assert whole.code == chunked.code == 2
    assert "1 of 11 files could not be read" in chunked.stderr
    assert not (tmp_path / f"{name}.chunks").exists()


def test_score_in_chunks_writes_the_same_in_two_processes(predict, tmp_path):
    predict()
    expected = (tmp_path / "scores.csv").read_bytes()
    outcome = predict("--jobs", 2)
    assert "11 images, 11 of them scored now" in outcome.stderr
    assert (tmp_path / "scores.csv").read_bytes() == expected


def test_score_in_chunks_scores_only_what_is_missing(interrupted, predict, scored, tmp_path):
    assert "11 images, 5 of them scored now" in predict("--jobs", 1).stderr
    assert scored == [1]
    joined = (tmp_path / "scores.csv").read_bytes()
    predict()
    assert (tmp_path / "scores.csv").read_bytes() == joined


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: content[: content.index(b"\n")],
        lambda content: b"",
        lambda content: content.replace(b"a_1", b"a_2"),
        lambda content: b"[]" + content[content.index(b"\n") :],
        lambda content: content.replace(b'"job": "', b'"job": "0'),
    ],
)
def test_score_in_chunks_scores_a_damaged_chunk_again(interrupted, predict, scored, tmp_path, damage):
    chunk = interrupted / "000000.chunk"
    chunk.write_bytes(damage(chunk.read_bytes()))
    predict("--jobs", 1)
    assert scored == [0, 1]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 11


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--threshold", 0.2], "threshold was None, is 0.2"),
        (["--batch-size", 3], "batch size was 2, is 3"),
        (["--threads", 2], "threads was 1, is 2"),
    ],
)
def test_score_in_chunks_refuses_chunks_of_other_options(interrupted, predict, tmp_path, options, word):
    outcome = predict("--jobs", 1, *options)
    assert outcome.code == 2 and outcome.stderr.count("error:") == 1
    assert word in outcome.stderr and "name another --output" in outcome.stderr
    assert (interrupted / "000000.chunk").exists()


def test_score_in_chunks_refuses_chunks_of_other_images_and_models(
    interrupted, made, fails_with_one_line, tmp_path
):
    output = ["--output", tmp_path / "scores.csv", "--batch-size", 2, "--jobs", 1]
    message = fails_with_one_line("predict.py", made.export, f"{made.images}/a_*", *output)
    assert "images was 11 with names" in message and "is 5 with names" in message
    other = write_export(tmp_path / "export", maps=False)
    message = fails_with_one_line("predict.py", other, made.images, *output)
    assert "model was model.onnx" in message


def test_score_in_chunks_of_other_options_begin_where_no_chunk_is_done(interrupted, predict, scored):
    (interrupted / "000000.chunk").unlink()
    assert predict("--jobs", 1, "--threshold", 0.2).stderr.count("error:") == 1  # the broken image
    assert scored == [0, 1]


def test_score_in_chunks_names_a_damaged_description(interrupted, predict):
    (interrupted / "job.json").write_text("{")
    outcome = predict("--jobs", 1)
    assert outcome.code == 2 and "job.json is damaged: delete" in outcome.stderr


def test_score_in_chunks_refuses_a_second_command(predict, tmp_path, scored):
    with locked(tmp_path / "scores.csv.chunks", wait=False):
        outcome = predict("--jobs", 1)
    assert outcome.code == 2 and "is being written by another process" in outcome.stderr
    assert scored == []


def test_score_in_chunks_leaves_nothing_of_a_command_that_did_not_begin(predict, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = predict("--ray")
    assert outcome.code == 2 and "pip install -r requirements-cluster.txt" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_score_in_chunks_names_a_chunk_that_vanished(interrupted, predict, monkeypatch):
    join = scoring_jobs._join

    def losing(folder, *arguments):
        (interrupted / "000000.chunk").unlink()
        return join(folder, *arguments)

    monkeypatch.setattr(scoring_jobs, "_join", losing)
    outcome = predict("--jobs", 1)
    assert outcome.code == 2 and "000000.chunk is missing or damaged" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--jobs", 2, "--overlays", "pictures"], "--overlays: pictures are drawn without --jobs"),
        (["--jobs", 2, "--output", "labels.coco.json"], "need --output FILE.csv or FILE.jsonl"),
        (["--jobs", 2, "--output", "{folder}/folder.csv"], "folder.csv is a folder: choose another name"),
        (["--jobs", 2, "--output", "{folder}/file.csv/a.csv"], "a.csv.chunks: Not a directory"),
    ],
)
def test_predict_in_chunks_refuses_other_outputs(made, fails_with_one_line, tmp_path, options, words):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").touch()
    options = [str(option).format(folder=tmp_path) for option in options]
    arguments = ["--output", tmp_path / "scores.csv", *options]
    assert words in fails_with_one_line("predict.py", made.export, made.images, *arguments)


# --- URLs --------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(made):
    """fsspec's file system in memory, with the images and the export."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in [*made.images.iterdir(), *made.export.iterdir()]:
        files.pipe_file(f"/{path.parent.name}/{path.name}", path.read_bytes())
    yield files
    files.store.clear()


URLS = ["memory://export", "memory://images", "--output", "memory://scores/new.csv", "--batch-size", 2]


def test_predict_takes_everything_from_urls(predict, memory, run_script, tmp_path, made):
    predict()
    expected = (tmp_path / "scores.csv").read_text().replace(f"{made.images}/", "memory://images/")
    outcome = run_script("predict.py", *URLS)
    assert "1 of 11 files could not be read (memory://images/b_9.png)" in outcome.stderr
    assert memory.cat_file("/scores/new.csv").decode() == expected
    assert memory.find("/scores") == ["/scores/new.csv"]


@pytest.mark.parametrize("error", [PermissionError("403"), ConnectionError("no route to host")])
def test_predict_goes_on_after_a_store_that_was_lost(memory, run_script, scored, monkeypatch, error):
    read = type(memory).cat_file

    def losing(files, path, **options):
        if "b_2" in path:
            raise error
        return read(files, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "cat_file", losing)
        outcome = run_script("predict.py", *URLS)
    message = outcome.stderr.splitlines()[-1]
    assert outcome.code == 2 and message.startswith("error: memory://images/b_2.png:")
    assert message.endswith("the chunks that are done stay: run the same command again")
    assert "/scores/new.csv.chunks/000000.chunk" in memory.find("/scores")
    assert "5 of them scored now" in run_script("predict.py", *URLS).stderr
    assert scored == [0, 1, 1]


def test_predict_names_a_store_that_takes_nothing(memory, run_script, monkeypatch):
    monkeypatch.setattr(type(memory), "pipe_file", raising(PermissionError("403")))
    outcome = run_script("predict.py", *URLS)
    assert outcome.code == 2
    assert "memory://scores/new.csv.chunks/lease.json: access is denied" in outcome.stderr


@pytest.mark.parametrize("model", ["memory://nothing", "memory://images"])
def test_fetch_export_names_a_folder_without_a_model(memory, tmp_path, model):
    with pytest.raises(UserError, match=f"{model} holds no model.json"):
        scoring_jobs.fetch_export(model, tmp_path)


def test_fetch_export_copies_what_one_model_needs(memory, tmp_path):
    path = scoring_jobs.fetch_export("memory://export/model.onnx", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.onnx"]
    assert path == tmp_path / "model.onnx"


def test_make_scorer_needs_no_model_on_disk(made):
    scoring = scoring_jobs.Scoring(made.export / "model.onnx", ".jsonl", 2, 1).with_files()
    lost = scoring_jobs.replace(scoring, model=scoring.model.with_name("gone") / "model.onnx")
    chunk = scoring_jobs.Chunk(0, (str(made.images / "a_0.png"),))
    content, unread = scoring_jobs.make_scorer(lost)(chunk)
    assert json.loads(content)["label"] and unread == []


def test_predict_writes_the_same_on_ray(predict, tmp_path):
    pytest.importorskip("ray")
    predict()
    expected = (tmp_path / "scores.csv").read_bytes()
    predict("--ray", "local")
    assert (tmp_path / "scores.csv").read_bytes() == expected


def test_scoring_jobs_a_model_that_needs_masks_is_refused_at_once(made, tmp_path, fails_with_one_line):
    export = write_export(tmp_path / "masked")
    values = json.loads((export / META).read_text())
    write_json(export / META, values | {"roi": {}})
    command = ("predict.py", export, made.images, "--output", tmp_path / "scores.csv", "--jobs", 1)
    message = fails_with_one_line(*command)
    assert "needs a mask for each image, which --jobs, --ray and URLs do not read: leave these out" in message
    assert not (tmp_path / "scores.csv.chunks").exists()
