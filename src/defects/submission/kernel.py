"""A bundle on its way: uploaded as a Kaggle data set, its notebook pushed and run, ready to be submitted."""

import re
import shlex
import time
from pathlib import Path

from defects.files import read_json, write_json
from defects.messages import UserError
from defects.submission.bundle import Bundle, download_command
from defects.submission.kaggle_cli import last_line, printed_json, run_kaggle, show_command

POLL_SECONDS = 20.0
DATASET_POLLS = 90  # half an hour
DATASET_APPEARS = 3  # polls until a new one has to be known to Kaggle
INVALID_SOURCES = re.compile(r"not valid (?:dataset|competition) sources.*")


def run_notebook(bundle: Bundle) -> list[str]:
    """Bring `bundle` to Kaggle and wait for its run; returns what `kaggle competitions submit` needs.

    Steps that are done stand in state.json, so that a second call goes on with the next one. Raises
    UserError when Kaggle refuses a step or the run fails.
    """
    state = _state(bundle)
    if "dataset" not in state:
        state = _note(bundle, state | {"dataset": _upload(bundle)})
    _wait_for_dataset(bundle, state["dataset"])
    if "kernel" not in state:
        state = _note(bundle, state | {"kernel": _push(bundle)})
    try:
        _wait_for_run(bundle.kernel)
    except RunFailed:
        # The next call pushes it again.
        _note(bundle, {name: value for name, value in state.items() if name != "kernel"})
        raise
    return options(bundle, str(state["kernel"]))


def options(bundle: Bundle, version: str) -> list[str]:
    """For `kaggle competitions submit`; -f is the name of the notebook's output there."""
    return ["-k", bundle.kernel, "-v", version, "-f", "submission.csv"]


def create_command(bundle: Bundle) -> list[str]:
    return ["datasets", "create", "-p", str(bundle.folder / "dataset")]


def version_command(bundle: Bundle) -> list[str]:
    return ["datasets", "version", "-p", str(bundle.folder / "dataset"), "-m", bundle.sha256[:12]]


def push_command(bundle: Bundle) -> list[str]:
    return ["kernels", "push", "-p", str(bundle.folder / "kernel")]


def planned(bundle: Bundle, pins: list[str]) -> list[str]:
    """The commands before the submission, for a dry run."""
    lines = [f"python {shlex.join(download_command(pins, bundle.folder / 'dataset'))}"] if pins else []
    first = show_command(create_command(bundle))
    later = show_command(version_command(bundle))
    return [*lines, f"{first}   (the first time)", f"{later}   (later)", show_command(push_command(bundle))]


def list_bundle_files(bundle: Bundle) -> list[Path]:
    """What is uploaded and pushed."""
    return sorted(path for name in ("dataset", "kernel") for path in (bundle.folder / name).glob("[!.]*"))


class RunFailed(UserError):
    """The notebook's run came to an end without a result."""


def _state(bundle: Bundle) -> dict:
    """What was done of this very bundle: dataset and kernel, the versions on Kaggle."""
    state = read_json(bundle.folder / "state.json")
    return state if state and state["sha256"] == bundle.sha256 else {"sha256": bundle.sha256}


def _note(bundle: Bundle, state: dict) -> dict:
    """Keep what is done; returns it."""
    write_json(bundle.folder / "state.json", state)
    return state


def _upload(bundle: Bundle) -> int:
    """Create the data set or a new version of it; returns the number of the version."""
    before = _version_before(bundle)
    command = version_command(bundle) if before else create_command(bundle)
    print(f"uploading {bundle.folder / 'dataset'} as {bundle.dataset}")
    output = run_kaggle(command)
    names = {path.name for path in (bundle.folder / "dataset").glob("[!.]*")} - {"dataset-metadata.json"}
    lost = sorted(name for name in names if f"Upload successful: {name} (" not in output)
    # The client leaves out what it could not upload, creates the data set all the same, and returns 0.
    if lost or not re.search(r"[Dd]ataset (?:version )?is being created", output):
        what = f"{', '.join(lost)} not uploaded" if lost else last_line(output)
        raise UserError(f"kaggle datasets {command[1]} {bundle.dataset}: {what}: run again")
    return before + 1


def _version_before(bundle: Bundle) -> int:
    """0 if there is no such data set yet, which Kaggle words in several ways; `create` says more."""
    try:
        return _dataset(bundle)["current_version_number"] or 1
    except UserError:
        return 0


def _dataset(bundle: Bundle) -> dict:
    """Its status and current_version_number. Raises UserError if it cannot be had."""
    return printed_json(run_kaggle(["datasets", "status", bundle.dataset, "--format", "json"]))


def _wait_for_dataset(bundle: Bundle, version: int) -> None:
    """The notebook must not be started with the version before."""
    for look in range(DATASET_POLLS):
        try:
            status = _dataset(bundle)
        except UserError:
            if look >= DATASET_APPEARS:
                raise
            status = {"status": "not there yet"}
        if status["status"] == "ready" and (status["current_version_number"] or 0) >= version:
            return
        if status["status"] in ("failed", "deleted"):
            (bundle.folder / "state.json").unlink()  # the next call uploads it again
            raise UserError(f"Kaggle could not process the data set {bundle.dataset}: run again")
        time.sleep(POLL_SECONDS)
    raise UserError(f"Kaggle is still processing the data set {bundle.dataset}: run again later to go on")


def _push(bundle: Bundle) -> int:
    """Start the notebook; returns the number of its version."""
    output = run_kaggle(push_command(bundle))
    pushed = re.search(r"Kernel version (\d+) successfully", output)
    invalid = INVALID_SOURCES.search(output)
    if invalid or not pushed:
        reason = invalid[0] if invalid else last_line(output)
        raise UserError(f"kaggle kernels push {bundle.kernel}: {reason}")
    print(f"pushed {bundle.kernel}, version {pushed[1]}")
    return int(pushed[1])


def _wait_for_run(kernel: str) -> None:
    last_status = None
    while True:
        time.sleep(POLL_SECONDS)  # before the first look, too: it may still show the version before
        output = run_kaggle(["kernels", "status", kernel])
        status = re.search(r'has status "(?:\w+\.)?(\w+)"', output)
        status = status[1].lower() if status else last_line(output)
        if status == "complete":
            return
        if status not in ("queued", "running", "new_script"):
            failure = re.search(r'Failure message: "(.*)"', output)
            raise RunFailed(
                f"the notebook {kernel} ended with status {status}{f' ({failure[1]})' if failure else ''}: "
                f"see `kaggle kernels logs {kernel}`, then run again"
            )
        if status != last_status:
            print(f"{kernel} is {status}")
        last_status = status
