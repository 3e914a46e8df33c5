"""All stages one after the other write below output, submissions and, for generated data, input only."""

from pathlib import Path

from drill import stages
from drill.tally import Tally

INSIDE = ("copy/output", "copy/submissions", "copy/input")
CACHES = (".cache/matplotlib", ".config/matplotlib", "torchinductor_")  # of libraries, at home


def drill(folder: Path) -> list[Tally]:
    copy, tally, caches = stages.new_copy(folder / "copy"), Tally("outside", "every stage in turn"), set()
    (folder / "home").mkdir()
    for stage in stages.STAGES:
        before = _listing(folder)
        ending = stages.run(copy, stage)
        faults = [f"{stage} ends with {ending.code}: {ending.stderr[-300:]}"] if ending.code else []
        after = _listing(folder)
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        strange = sorted(name for name in changed if not name.startswith(INSIDE) and name != "home")
        caches |= {cache for cache in CACHES for name in strange if name.startswith(f"home/{cache}")}
        known = tuple(f"home/{cache}" for cache in CACHES)
        tally.add(faults, [f"{stage} writes {name}" for name in strange if not name.startswith(known)])
    tally.note = f"besides caches of libraries: {', '.join(sorted(caches))}" if caches else ""
    return [tally]


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Time of the last change and size of every file by relative path; empty folders are there, or not."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        if not path.is_dir() or not any(path.iterdir()):  # folders are told by what is in them
            key = (0, 0) if path.is_dir() else (facts.st_mtime_ns, facts.st_size)
            found[path.relative_to(folder).as_posix()] = key
    return found
