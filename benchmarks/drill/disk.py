"""A full disk, and folders that cannot be written: one line, nothing harmed, and all well once there is room.

On a small disk in memory that is mounted for it, which takes Linux and the superuser; skipped elsewhere.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drill import stages
from drill.stages import Ending, Reference
from drill.tally import Tally

LEVELS = (0, 0.002, 0.05, 0.2, 0.5, 0.75, 0.95)  # left free, as shares of what the stage writes
BLOCK = 4096  # bytes, of a page in memory
SPARE = 64 << 20  # bytes, for what a stage writes
MARKERS = {"prepare.json", "split.json"}  # taken away before what they vouch for is written
UNDER_WAY = {"last.pt", "metrics.jsonl", "table.csv"}  # they grow, and their end is compared
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]  # the superuser may write anywhere
SKIPPED = "skipped: needs Linux, the superuser and mount"


def full(folder: Path, only: str | None) -> list[Tally]:
    """Every stage on a disk with no room, and with less and less too little of it."""
    if not _can_mount():
        return [Tally("disk", only or "every stage", note=SKIPPED)]
    found = []
    for stage, reference in _references(folder, only):
        tally, enough = Tally("disk", stage), 0
        for level in LEVELS if _written(reference) else (0,):
            with _disk(folder / "disk", reference.before) as copy:
                ending, faults, losses = _on_full(copy, stage, reference, level)
            enough += ending.code == 0
            tally.add(*([f"{level:.1%} free: {problem}" for problem in each] for each in (faults, losses)))
        tally.note = f"{enough} had room enough" if enough else ""
        found.append(tally)
    return found


def read_only(folder: Path, only: str | None) -> list[Tally]:
    """Every stage with output mounted read-only, with output without rights, and with input read-only."""
    if not _can_mount():
        return [Tally("readonly", only or "every stage", note=SKIPPED)]
    found = []
    for stage, reference in _references(folder, only):
        tally = Tally("readonly", stage)
        for how, limited in (("mounted so", _mounted), ("without rights", _without_rights)):
            with _disk(folder / "disk", reference.before) as copy:
                faults, losses = _refused(copy, stage, reference, limited)
            tally.add(*([f"output {how}: {problem}" for problem in each] for each in (faults, losses)))
        if (reference.before / "input").exists():
            with _disk(folder / "disk", reference.before) as copy:
                faults, losses = _input_only_read(copy, stage, reference)
            tally.add(*([f"input read-only: {problem}" for problem in each] for each in (faults, losses)))
        found.append(tally)
    return found


def _can_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


def _references(folder: Path, only: str | None) -> Iterator[tuple[str, Reference]]:
    yield from stages.references(folder, [only] if only else list(stages.STAGES)).items()


@contextmanager
def _disk(place: Path, before: Path) -> Iterator[Path]:
    """A disk of its own with a copy of `before`."""
    place.mkdir()
    size = sum(path.stat().st_size + BLOCK for path in before.rglob("*")) + SPARE
    _system("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        shutil.copytree(before, place, dirs_exist_ok=True)
        yield place
    finally:
        _system("umount", "-R", place)
        place.rmdir()


def _system(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _on_full(
    copy: Path, stage: str, reference: Reference, level: float
) -> tuple[Ending, list[str], list[str]]:
    before, needed = stages.contents(copy), _written(reference)
    _fill(copy, int(level * needed))
    ending = stages.run_warm(copy, stage)
    faults, losses = _harm(ending, before, copy, reference), []
    if ending.code == 0:
        faults = []
        losses = stages.differences(copy, reference.after)
    (copy / "filler").unlink()
    again = stages.run_warm(copy, stage)
    faults += [f"with room again it ends with {again.code}: {again.stderr[-300:]}"] if again.code else []
    return ending, faults, losses + stages.differences(copy, reference.after)


def _written(reference: Reference) -> int:
    """Bytes of the files that the stage adds or changes."""
    before, after = (stages.contents(folder) for folder in (reference.before, reference.after))
    changed = [name for name in after if before.get(name) != after[name]]
    return sum(-(-(reference.after / name).stat().st_size // BLOCK) * BLOCK for name in changed)


def _fill(copy: Path, free: int) -> None:
    """Leave so many bytes of the disk."""
    with (copy / "filler").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(BLOCK, shutil.disk_usage(copy).free - free))


def _harm(ending: Ending, before: dict[str, str], copy: Path, reference: Reference) -> list[str]:
    """What is wrong with a stage that could not write, and with the files that it left."""
    lines = ending.stderr.splitlines()
    faults = []
    if ending.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        faults.append(f"ends with {ending.code}: {ending.stderr[-300:]!r}")
    left, wanted = stages.contents(copy), stages.contents(reference.after)
    gone = [name for name in before if name not in left and Path(name).name not in MARKERS]
    broken = [
        name
        for name, digest in left.items()
        if digest not in (before.get(name), wanted.get(name)) and Path(name).name not in UNDER_WAY
    ]
    return faults + [f"{name} is gone" for name in gone] + [f"{name} is in pieces" for name in broken]


def _refused(copy: Path, stage: str, reference: Reference, limited: Callable) -> tuple[list[str], list[str]]:
    before = stages.contents(copy)
    for name in ("input", "output", "submissions"):
        (copy / name).mkdir(exist_ok=True)
    with limited(copy) as prefix:
        ending = stages.run(copy, stage, prefix) if prefix else stages.run_warm(copy, stage)
    faults = [] if ending.code == 0 else _harm(ending, before, copy, reference)
    if ending.code == 0 and before != stages.contents(reference.after):
        faults = ["it ends well, although it could not write"]
    again = stages.run_warm(copy, stage)
    faults += [f"afterwards it ends with {again.code}: {again.stderr[-300:]}"] if again.code else []
    return faults, stages.differences(copy, reference.after)


@contextmanager
def _mounted(copy: Path) -> Iterator[list[str]]:
    _system("mount", "-o", "remount,ro", copy)
    try:
        yield []
    finally:
        _system("mount", "-o", "remount,rw", copy)


@contextmanager
def _without_rights(copy: Path) -> Iterator[list[str]]:
    """Folders that nobody may write to, and a process without the superuser's privileges."""
    folders = [copy / top for top in ("input", "output", "submissions")]
    folders += [path for top in folders for path in top.rglob("*") if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    try:
        yield WITHOUT_RIGHTS
    finally:
        for path in folders:
            path.chmod(0o755)


def _input_only_read(copy: Path, stage: str, reference: Reference) -> tuple[list[str], list[str]]:
    """Nothing is written there once the data is; the first stage finds it generated already."""
    if not (copy / "input" / "drill").exists():
        shutil.copytree(reference.after / "input", copy / "input", dirs_exist_ok=True)
    _system("mount", "--bind", copy / "input", copy / "input")
    _system("mount", "-o", "remount,bind,ro", copy / "input")
    ending = stages.run_warm(copy, stage)
    faults = [f"ends with {ending.code}: {ending.stderr[-300:]}"] if ending.code else []
    return faults, stages.differences(copy, reference.after)
