"""src/submit.py for file competitions: the real kaggle client against a stand-in for Kaggle's servers."""

import json

import pandas as pd
import pytest
from conftest import submitted_at

from defects.config import load_config
from defects.config_schema import as_yaml
from defects.evaluation.decision import Decision
from defects.files import sha256, write_bytes
from defects.submission import send

STEEL = {"competition": "steel"}
DECISION = Decision(
    metric="macro-F1",
    rule="expected_fpr",
    prior="estimated",
    share=0.5,
    threshold=0.25,
    score_threshold=-1.0,
    fpr=0.05,
    predicted_defective=3,
    expected_score=0.875,
    interval_90=(0.75, 0.9375),
)


@pytest.fixture
def server(kaggle_server, monkeypatch):
    monkeypatch.setattr(send, "CONFIRM_AFTER", (0,))
    return kaggle_server


@pytest.fixture
def make_ready(make_dataset, config_file):
    """make_ready(data=...) -> config of a data set whose submission lies ready, with its JSON."""

    def make(rows="", **data):
        path = config_file(make_dataset(), data=data)
        file = path.parent / "submissions" / "sample_submission.csv"
        file.parent.mkdir()
        file.write_text("ImageId,answer\n" + (rows or "".join(f"test_{i}.png,{i % 2}\n" for i in range(6))))
        config = load_config(path)
        write_bytes(config.experiment_dir / "fold0" / "config.yaml", as_yaml(config).encode())
        summary = {"data": "tiny_data", "weights": {"tiny": 1.0}, "images": 6}
        summary["runs"] = {"tiny": str(config.experiment_dir)}
        summary["settings"] = config.model_dump(mode="json", include={"threshold", "ensemble"})
        summary["decision"] = DECISION.to_json()
        file.with_suffix(".json").write_text(json.dumps(summary | {"sha256": sha256(file)}))
        return path

    return make


def ledger(config):
    path = config.parent / "submissions" / "ledger.csv"
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def test_submit_sent_once_confirmed_and_noted_with_its_expected_score(server, make_ready, run_script):
    config = make_ready(kaggle=STEEL)
    outcome = run_script("submit.py", *submitted_at(config))
    assert outcome.code == 0, outcome.stderr
    file = config.parent / "submissions" / "sample_submission.csv"
    assert list(server.uploads.values()) == [file.read_bytes()]
    assert "0 submissions used today, 5 left" in outcome.stdout
    assert (
        "4 submissions remaining today" in outcome.stdout and "on Kaggle as 1000: pending" in outcome.stdout
    )
    tag = sha256(file)[:12]
    assert server.submissions[0]["description"] == f"[{tag}] tiny: {DECISION.text()}"
    (row,) = ledger(config)
    expected = {"competition": "steel", "tag": tag, "file": file.name, "sha256": sha256(file), "ref": 1000}
    expected |= {"experiments": "tiny", "metric": "macro-F1", "rule": "expected_fpr", "prior": "estimated"}
    expected |= {"share": 0.5, "threshold": 0.25, "expected_score": 0.875}
    expected |= {"interval_low": 0.75, "interval_high": 0.9375}
    assert expected.items() <= row.items() and row["status"] == "pending"

    server.submissions[0] |= {"status": "complete", "publicScore": "0.91"}
    outcome = run_script("submit.py", *submitted_at(config))
    assert "was submitted before; nothing sent" in outcome.stdout and len(server.submissions) == 1
    (row,) = ledger(config)
    assert (row["status"], row["public_score"]) == ("complete", 0.91)


def test_submit_every_refusal_is_one_line_and_the_file_goes_out_once(
    server, make_ready, fails_with_one_line, run_script, monkeypatch
):
    """A user who repeats the command: each call fails for another reason, the last one works."""
    config = make_ready(kaggle=STEEL)

    def refused(*expected):
        message = fails_with_one_line("submit.py", *submitted_at(config))
        assert all(text in message for text in expected), message
        assert not server.submissions and not ledger(config)
        server.replies.clear()

    monkeypatch.delenv("KAGGLE_KEY")
    refused("no valid Kaggle credentials", "kaggle.json")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    server.refuse(401, "Unauthenticated", "ListSubmissions")
    refused("no valid Kaggle credentials")
    server.refuse(404, "Competition not found", "ListSubmissions")
    refused("no such competition: data.kaggle.competition")
    server.refuse(403, "You must accept this competition's rules", "StartSubmissionUpload")
    refused("accept its rules on its kaggle.com page")
    server.refuse(400, "ImageId: 3 rows not found", "CreateSubmission")
    refused("kaggle competitions submit steel: ImageId: 3 rows not found")
    server.upload_status = 500
    refused("not in the list of submissions (Could not submit to competition)")
    server.upload_status = 200
    server.replies["CreateSubmission"] = (200, {"message": "Successfully submitted", "ref": 1})
    refused("not in the list of submissions (Successfully submitted)")
    server.gone = True
    refused("Kaggle cannot be reached")
    server.gone, server.allowed = False, 0
    server.replies["GetSubmissionLimits"] = (200, {"numToday": 5, "numTotal": 9, "numAllowedNow": 0})
    refused("steel: the limit of submissions is reached (5 today, none left)")
    outcome = run_script("submit.py", *submitted_at(config))  # no submission yet: zeros are no limit
    assert outcome.code == 0, outcome.stderr
    assert len(server.submissions) == len(ledger(config)) == 1


@pytest.mark.parametrize("stays_gone", [False, True])
def test_submit_a_lost_reply_does_not_submit_twice(
    server, make_ready, run_script, fails_with_one_line, stays_gone
):
    config = make_ready(kaggle=STEEL)
    server.hangs_up, server.stays_gone = "CreateSubmission", stays_gone
    if stays_gone:
        message = fails_with_one_line("submit.py", *submitted_at(config))
        assert "Kaggle cannot be reached" in message
        assert [row["status"] for row in ledger(config)] == ["sending"]
        server.gone = False
    outcome = run_script("submit.py", *submitted_at(config))
    assert outcome.code == 0, outcome.stderr
    assert len(server.submissions) == 1
    assert [row["status"] for row in ledger(config)] == ["pending"]


ORDERED = "".join(f"test_{i}.png,0\n" for i in range(6))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ORDERED.replace("test_5.png,0\n", ""), "missing ['test_5.png']"),
        (ORDERED.replace("test_5", "test_7"), "unknown ['test_7.png']"),
        (ORDERED.replace("test_0.png,0", "test_0.png,1.0"), "answers are not 0 or 1"),
        (ORDERED.replace("test_3.png,0", "test_3.png,"), "1 answers are not 0 or 1, that of test_3.png"),
    ],
)
def test_submit_what_would_be_rejected_is_not_sent(server, make_ready, fails_with_one_line, rows, message):
    config = make_ready(rows, kaggle=STEEL)
    assert message in fails_with_one_line("submit.py", *submitted_at(config))
    assert not server.requests


def test_submit_scores_of_another_file_are_not_noted_for_this_one(server, make_ready, fails_with_one_line):
    config = make_ready(kaggle=STEEL)
    (config.parent / "submissions" / "sample_submission.csv").write_text("ImageId,answer\n" + ORDERED)
    message = fails_with_one_line("submit.py", *submitted_at(config))
    assert "sample_submission.json does not belong to sample_submission.csv" in message
    assert not server.requests


def test_submit_dry_run_prints_the_command_and_sends_nothing(server, make_ready, run_script):
    config = make_ready(kaggle=STEEL)
    outcome = run_script("submit.py", *submitted_at(config), "--dry-run", "--message", "second try")
    assert outcome.code == 0, outcome.stderr
    file = config.parent / "submissions" / "sample_submission.csv"
    command = f"kaggle competitions submit steel -f {file} -m '[{sha256(file)[:12]}] second try'"
    assert command in outcome.stdout and f"{file} ({file.stat().st_size} bytes)" in outcome.stdout
    assert not server.requests and not ledger(config)


def test_submit_other_sites_are_for_uploads_by_hand(make_ready, run_script):
    outcome = run_script("submit.py", *submitted_at(make_ready()))
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[-1].startswith("tiny_data is not on Kaggle (no data.kaggle): upload ")
