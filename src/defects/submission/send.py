"""Sending a submission once: looked for on Kaggle first, sent, confirmed, noted in the ledger."""

import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from defects.config_schema import Config
from defects.evaluation.decision import Decision
from defects.files import read_csv, sha256, write_csv
from defects.messages import UserError
from defects.submission.build import check_answers, submission_ids
from defects.submission.kaggle_cli import last_line, printed_json, run_kaggle
from defects.submission.masks import check_masks
from defects.submission.summary import summary_path

TAG_LENGTH = 12  # hexadecimal digits

CONFIRM_AFTER = (0, 5, 15)  # seconds: the list may be late
LEDGER_COLUMNS = [
    "date",  # UTC
    "competition",
    "tag",  # hash of what was sent, also in the description on Kaggle
    "file",
    "sha256",
    "options",  # of `kaggle competitions submit`
    "experiments",
    "metric",  # macro-F1, or Dice for masks; this and the next seven as in the Decision
    "expected_score",
    "interval_low",  # of 90 %
    "interval_high",
    "share",  # of defects that the expected score is for
    "prior",  # train: the out-of-fold images have this share; estimated: the test images, by their scores
    "rule",
    "threshold",
    "ref",  # Kaggle's number
    "status",  # sending: the request was made, and whether it took the file was not learnt yet
    "public_score",
    "private_score",
]


@dataclass(frozen=True)
class Submission:
    """A file that passed validation, and its JSON."""

    path: Path
    sha256: str
    summary: dict
    message: str

    def row(self, competition: str, tag: str) -> dict:
        """The ledger's columns that are known before sending."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "competition": competition,
            "tag": tag,
            "file": self.path.name,
            "sha256": self.sha256,
            "experiments": " ".join(self.summary["weights"]),
            **_decision_columns(Decision.from_json(self.summary["decision"])),
            "status": "sending",
        }


def load_submission(
    config: Config, images: pd.DataFrame, path: Path, summary: dict, message: str | None
) -> Submission:
    """Read and validate `path` against the sample and the test images.

    `images` is images.csv, `summary` the JSON beside the file (read_summary). Raises UserError for what
    Kaggle would reject, and when the JSON belongs to another file.
    """
    if config.data.classes:
        check_masks(config, images, path)
    else:
        table = read_csv(path, ["ImageId", "answer"], "src/ensemble.py")
        answers = table["answer"].astype(str).map({"0": 0, "1": 1})  # 0.0 and True are no answers either
        check_answers(table.assign(answer=answers), submission_ids(config, images).tolist(), path)
    digest = sha256(path)
    if summary.get("sha256") != digest:
        raise UserError(
            f"{summary_path(path)} does not belong to {path.name}: run src/ensemble.py or src/infer.py again"
        )
    try:
        decision = Decision.from_json(summary["decision"])
        described = f"{_join_names(summary['weights'])}: {decision.text()}"
        return Submission(path, digest, summary, message or described)
    except (LookupError, TypeError, ValueError):
        raise UserError(
            f"the JSON beside {path} is not whole, or of an older version: run src/ensemble.py again"
        ) from None


def _join_names(experiments: Iterable[str]) -> str:
    """Their names; of many the first three and how many more."""
    names = list(experiments)
    if len(names) > 3:
        return f"{' + '.join(names[:3])} and {len(names) - 3} more"
    return " + ".join(names)


def _decision_columns(decision: Decision) -> dict:
    """The ledger's columns of what was decided; empty where something is not known."""
    low, high = decision.interval_90 or ("", "")
    return {
        "metric": decision.metric,
        "expected_score": decision.expected_score,
        "interval_low": low,
        "interval_high": high,
        "share": decision.share,
        "prior": decision.prior,
        "rule": decision.rule,
        "threshold": decision.threshold,
    }


def file_options(path: Path) -> list[str]:
    """What `kaggle competitions submit` needs for a file competition."""
    return ["-f", str(path)]


def submit_command(competition: str, options: list[str], tag: str, message: str) -> list[str]:
    """Arguments for kaggle; the description begins with the tag, which identifies the submission later."""
    return ["competitions", "submit", competition, *options, "-m", f"[{tag}] {message}"]


def send(
    submission: Submission, competition: str, tag: str, options: Callable[[], list[str]], ledger: Path
) -> dict:
    """Submit unless the tag is on Kaggle already; returns the ledger's row as confirmed there.

    `options` is called only if there is something to send. Raises UserError when Kaggle did not take it.
    """
    row = submission.row(competition, tag)
    confirmed = find_submission(competition, tag)
    if confirmed is not None:
        print(f"{submission.path.name} was submitted before; nothing sent")
    else:
        check_allowance(competition)
        arguments = options()
        row["options"] = shlex.join(arguments)
        record(ledger, row)
        command = submit_command(competition, arguments, tag, submission.message)
        confirmed = _submit_and_confirm(command, row, ledger)
    row |= confirmed
    record(ledger, row)
    return row


def _submit_and_confirm(command: list[str], row: dict, ledger: Path) -> dict:
    """Run `command` and look whether it had an effect, whatever the client said.

    Where that cannot be learnt, the ledger keeps `sending`, and the next call looks first.
    """
    try:
        output = run_kaggle(command)
        problem = UserError(
            f"kaggle competitions submit: not in the list of submissions ({last_line(output)}): run again"
        )
        waiting_seconds = CONFIRM_AFTER
        allowance = re.search(r"\d+ submissions remaining today", output)
        if allowance:
            print(allowance[0])
    except UserError as error:
        problem = error
        waiting_seconds = (0,)
    for seconds in waiting_seconds:
        time.sleep(seconds)
        confirmed = find_submission(row["competition"], row["tag"])
        if confirmed is not None:
            return confirmed
    forget(ledger, row)
    raise problem


def find_submission(competition: str, tag: str) -> dict | None:
    """The submission whose description carries `tag`, as columns of the ledger; None if there is none."""
    listing = ["competitions", "submissions", competition, "--format", "json", "--page-size", "100"]
    output = run_kaggle(listing)
    if "No submissions found" in output:
        return None
    for entry in printed_json(output):
        if f"[{tag}]" in (entry["description"] or ""):
            return {
                "date": entry["date"],
                "ref": entry["ref"],
                "status": str(entry["status"]).rpartition(".")[2].lower(),
                "public_score": entry["publicScore"],
                "private_score": entry["privateScore"],
            }
    return None


def check_allowance(competition: str) -> None:
    """UserError when no submission is left today; a server that does not answer is no obstacle."""
    try:
        limits = printed_json(run_kaggle(["competitions", "submission-limits", competition, "--json"]))
    except UserError:
        return
    used = limits.get("numToday", 0)
    remaining = limits.get("numAllowedNow", 0)
    if remaining:
        print(f"{used} submissions used today, {remaining} left")
    elif used or limits.get("limitedByTotal"):  # all zero: no submission by this team yet
        raise UserError(
            f"{competition}: the limit of submissions is reached ({used} today, none left): wait until it is "
            "reset at midnight UTC, and run again"
        )


def record(path: Path, row: dict) -> None:
    """Put `row` over the one with its competition and tag, or at the end."""
    table, same = _look_up(path, row)
    earlier = table[same].iloc[0].to_dict() if same.any() else {}
    merged = pd.DataFrame([earlier | row], columns=LEDGER_COLUMNS)
    write_csv(path, pd.concat([table[~same], merged], ignore_index=True))


def forget(path: Path, row: dict) -> None:
    """Take out the row with the competition and tag of `row`: it never arrived."""
    table, same = _look_up(path, row)
    write_csv(path, table[~same])


def _look_up(path: Path, row: dict) -> tuple[pd.DataFrame, pd.Series]:
    """The table, and where it has the competition and tag of `row`."""
    table = pd.DataFrame(columns=LEDGER_COLUMNS)
    try:
        if path.exists():
            table = pd.read_csv(path, dtype=str, keep_default_na=False)  # a tag may look like a number
        return table, (table["competition"] == row["competition"]) & (table["tag"] == row["tag"])
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no ledger of this program ({reason}): move it away") from None
