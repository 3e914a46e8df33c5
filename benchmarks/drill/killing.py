"""Killed without notice at random moments of every stage: the same command again ends in the same files."""

import time
from pathlib import Path

import numpy as np

from drill import stages
from drill.stages import Reference
from drill.tally import Tally

LATER = 0.4  # half of the kills come after this share of the time, when the program's own imports are over


def drill(folder: Path, seed: int, tries: int, only: str | None) -> list[Tally]:
    found = []
    for stage, reference in stages.references(folder, [only] if only else list(stages.STAGES)).items():
        # Of its own for each stage, so that one alone is killed at the same moments.
        rng = np.random.default_rng([seed, list(stages.STAGES).index(stage)])
        tally, early = Tally("kill", stage), 0
        while tally.tries < tries and early < 10 * tries:
            moment = reference.seconds * rng.uniform(LATER if tally.tries % 2 else 0, 1)
            with stages.copy_of(reference.before, folder / "killed") as copy:
                if not _killed(copy, stage, moment):
                    early += 1
                    continue
                faults, losses = _again(copy, stage, reference)
            tally.add(_at(moment, faults), _at(moment, losses))
        tally.note = f"{early} more had ended before" if early else ""
        print(f"{stage}: {tally.tries} kills, {len(tally.faults + tally.losses)} problems", flush=True)
        found.append(tally)
    return found


def _killed(copy: Path, stage: str, moment: float) -> bool:
    """Whether the stage was still running after `moment` seconds, when it was killed."""
    process = stages.start(copy, stage)
    time.sleep(moment)
    running = process.is_alive()
    stages.kill(process)
    return running


def _again(copy: Path, stage: str, reference: Reference) -> tuple[list[str], list[str]]:
    ending = stages.run_warm(copy, stage)
    faults = [f"run again it ends with {ending.code}: {ending.stderr[-300:]}"] if ending.code else []
    return faults, stages.differences(copy, reference.after)


def _at(moment: float, problems: list[str]) -> list[str]:
    return [f"killed after {moment:.2f} s: {problem}" for problem in problems]
