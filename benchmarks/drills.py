"""Reliability drills: what the stages do when they are killed, starved, refused, lied to or attacked.

python benchmarks/drills.py fuzz --tries 400

Prints a table at the end, and what went wrong as it happens; the exit code is 1 if anything did.
"""

import argparse
import tempfile
from pathlib import Path

from drill import fuzz
from drill.tally import Tally, print_table

DRILLS = ("fuzz",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("drill", choices=[*DRILLS, "all"])
    parser.add_argument("--tries", type=int, default=None, help="of each stage (20) or parser (400)")
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
    seed, only = arguments.seed, arguments.only
    if name == "fuzz":
        return fuzz.drill(folder, seed, arguments.tries or 400, only)
    raise AssertionError(name)


if __name__ == "__main__":
    main()
