"""The real kaggle command line as a subprocess; everything that can go wrong ends in one line."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from defects.config_schema import KaggleConfig
from defects.messages import UserError
from defects.versions import check_versions

TROUBLES = (  # the client's last line -> what to do about it; the first match counts
    (
        r"No module named '?kaggle\b",
        f"the kaggle client is not installed for {sys.executable}: run pip install kaggle",
    ),
    (  # version 1.7 held kagglesdk itself, and takes it along when a newer one replaces it
        r"from 'kagglesdk'|No module named '?kagglesdk",
        "the kaggle client lost a part when it was upgraded: "
        "run pip install --force-reinstall --no-deps kagglesdk",
    ),
    (  # before the others: a proxy's or a certificate's refusal has their words too
        r"Max retries exceeded|Connection|ReadTimeout|IncompleteRead",
        "Kaggle cannot be reached: check the network and the proxy settings, then run again ({said})",
    ),
    (
        r"Authentication required|401 Client Error|Unauthenticated|Unauthorized",
        "no valid Kaggle credentials: create a token at https://www.kaggle.com/settings/api and put it into "
        "~/.kaggle/kaggle.json, or set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY",
    ),
)
COMPETITION_TROUBLES = (
    (
        r"403 Client Error|Forbidden|\brules\b|[Pp]ermission '|phone",
        "access denied: join the competition and accept its rules on its kaggle.com page, "
        "and check data.kaggle.competition ({said})",
    ),
    (  # not every message with these words: a rejected file may lack a column
        r"404 Client Error|^Not ?[Ff]ound|^Competition\b.* not found",
        "no such competition: data.kaggle.competition must be the end of its kaggle.com address ({said})",
    ),
)
OWN_TROUBLES = (  # of the data sets and notebooks that are made
    (
        r"40[34] Client Error|Forbidden|[Nn]ot ?[Ff]ound|[Pp]ermission '|phone",
        "access denied: data.kaggle.kernel must begin with your own Kaggle user name, and notebooks "
        "need a verified phone number ({said})",
    ),
)


def run_kaggle(arguments: list[str]) -> str:
    """Run `kaggle ARGUMENTS` with its progress bar on stderr and return what else it printed.

    Raises UserError when it fails. Exit code 0 proves little: callers check the effect themselves.
    """
    check_versions(["kaggle"])
    # -P: a file kaggle.py in the working folder must not be taken for the client
    command = [sys.executable, "-P", "-m", "kaggle", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, **streams) as client:
        # newline="": the carriage returns of the progress bar end a line, and are kept
        output = "".join(map(_show, TextIOWrapper(client.stdout, "utf-8", errors="replace", newline="")))
    if client.returncode != 0:
        reason = last_line(output)
        troubles = TROUBLES + (COMPETITION_TROUBLES if arguments[0] == "competitions" else OWN_TROUBLES)
        advice = next((advice for pattern, advice in troubles if re.search(pattern, reason)), "{said}")
        cause = reason.rpartition("(Caused by ")[2]  # of a connection error, without the addresses
        raise UserError(f"kaggle {' '.join(arguments[:3])}: {advice.format(said=cause)}")
    return output


def show_command(arguments: list[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["kaggle", *arguments])


def printed_json(output: str) -> Any:
    """The JSON among what the client printed. Raises UserError if there is none."""
    content = re.search(
        r"^[\[{].*[\]}]\s*$", output, re.DOTALL | re.MULTILINE
    )  # warnings may stand around it
    try:
        return json.loads(content[0])
    except (TypeError, ValueError):
        raise UserError(f"the kaggle client printed no JSON; its last line: {last_line(output)}") from None


def _show(line: str) -> str:
    """Pass progress on to the terminal; the lines that are not the progress bar come back."""
    bar = "B/s]" in line
    if bar or line.startswith("Retrying"):
        sys.stderr.write(line)
        sys.stderr.flush()
    return "" if bar else line


def last_line(output: str) -> str:
    """The line that says how it ended: the last one, or the first of the client's help on credentials."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("Authentication required")] or lines
    return telling[-1] if telling else "it printed nothing"


def download(kaggle: KaggleConfig, root: Path) -> None:
    """Put the competition's files into `root`, all of them or none; a complete `root` is left alone.

    The archive waits beside `root` until it is unpacked, so that a second call goes on with it.
    """
    root = root.resolve()
    mismatch = _mismatch(root, kaggle.expected)
    if root.is_dir() and any(root.iterdir()):
        if mismatch:
            raise UserError(f"{root} is not empty, but {mismatch}: move it away and run again")
        print(f"{root} is complete already, nothing downloaded")
        return
    archive = root.parent / f"{kaggle.competition}.zip"
    if not _complete(archive):
        _fetch(kaggle.competition, archive)
    print(f"unpacking {archive} into {root}")
    _unpack(archive, root, kaggle.expected)
    archive.unlink()


def _mismatch(folder: Path, expected: dict[str, int]) -> str | None:
    """Which glob does not match as many files as expected, in words."""
    for pattern, count in expected.items():
        try:
            count_there = sum(path.is_file() for path in folder.glob(pattern))
        except (ValueError, NotImplementedError) as error:  # empty or absolute
            raise UserError(f"data.kaggle.expected: {pattern!r} cannot be used ({error})") from None
        if count_there != count:
            return f"data.kaggle.expected says {count} files for {pattern}, and there are {count_there}"
    return None


def _complete(archive: Path) -> bool:
    """Whether the archive came to its end; the client keeps a marker beside one that did not."""
    marker = archive.with_name(f"{archive.name}.kaggle-partial")
    return zipfile.is_zipfile(archive) and not marker.exists()


def _fetch(competition: str, archive: Path) -> None:
    reason = last_line(run_kaggle(["competitions", "download", competition, "-p", str(archive.parent)]))
    if not _complete(archive):
        raise UserError(
            f"{archive} is not a complete zip although the kaggle client reported no error "
            f"(its last line: {reason}): delete that file and run again"
        )


def _unpack(archive: Path, root: Path, expected: dict[str, int]) -> None:
    """Unpack beside `root`, check, then move into place: `root` never holds a part of the data."""
    partial = root.with_name(f".{root.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    try:
        _extract(archive, partial)
        for nested in sorted(partial.rglob("*.zip")):
            _extract(nested, _nested_folder(nested))
            nested.unlink()
        if mismatch := _mismatch(partial, expected):
            raise UserError(
                f"{archive}: {mismatch}: correct the setting, or delete the archive and run again"
            )
        if root.exists():
            root.rmdir()  # it is empty, and Windows cannot rename over it
        partial.rename(root)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}): delete it and run again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if not (folder / name).resolve().is_relative_to(folder):
                raise UserError(f"{archive.name} is unsafe: its member {name} lies outside; do not unpack it")
        opened.extractall(folder)


def _nested_folder(archive: Path) -> Path:
    """In place for `train.zip` holding `train/` and `train.csv.zip` holding `train.csv`; else a folder."""
    with zipfile.ZipFile(archive) as opened:
        tops = {name.split("/")[0] for name in opened.namelist()}
    return archive.parent if tops == {archive.stem} else archive.with_suffix("")
