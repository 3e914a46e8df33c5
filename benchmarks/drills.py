"""Reliability drills: what the stages do when they are killed, starved, refused, lied to or attacked.

python benchmarks/drills.py kill --tries 20

Prints a table at the end, and what went wrong as it happens; the exit code is 1 if anything did.
"""

import argparse
import tempfile
from pathlib import Path

from drill import disk, fuzz, hostile, killing, outside
from drill.tally import Tally, print_table

DRILLS = ("fuzz", "hostile", "kill", "disk", "readonly", "outside")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("drill", choices=[*DRILLS, "all"])
    parser.add_argument("--tries", type=int, default=None, help="of each stage (20) or parser (300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=None, help="a stage, or part of a parser's name")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    tallies = []
    for name in DRILLS if arguments.drill == "all" else [arguments.drill]:
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            tallies += drilled(name, Path(folder), arguments)
    print_table(tallies)
    raise SystemExit(any(each.faults or each.losses for each in tallies))


def drilled(name: str, folder: Path, arguments: argparse.Namespace) -> list[Tally]:
    seed, tries, only = arguments.seed, arguments.tries, arguments.only
    if name == "fuzz":
        return fuzz.drill(folder, seed, tries or 300, only)
    if name == "kill":
        return killing.drill(folder, seed, tries or 20, only)
    if name == "disk":
        return disk.full(folder, only)
    if name == "readonly":
        return disk.read_only(folder, only)
    return hostile.drill(folder) if name == "hostile" else outside.drill(folder)


if __name__ == "__main__":
    main()
