"""Training images/s of two processes with one thread each against one with two threads, and with one.

EfficientNet-B0 at 256 px as in throughput.py. The images of all processes count, their start does not. All
take turns; processor seconds for each image say what sharing costs where other programs hold the cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from accelerate import PartialState
from accelerate.utils import gather_object
from throughput import benchmark_config, timed, train_whole, write_images
from tqdm import tqdm

WAYS = {"2 processes, 1 thread": (2, 1), "1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1)}
ROWS = "rows.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--measured", type=Path, help=argparse.SUPPRESS)  # the folder: one of the processes
    arguments = parser.parse_args()
    if arguments.measured:
        measure(arguments.measured, arguments.set)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images).to_csv(Path(folder) / ROWS, index=False)
        options = ["--measured", folder, *(part for each in arguments.set for part in ("--set", each))]
        turns = tqdm(range(arguments.repeats), leave=False, disable=None)
        found = [{way: run(*WAYS[way], options) for way in turned(turn)} for turn in turns]
    report(*(pd.DataFrame([{way: pair[i] for way, pair in each.items()} for each in found]) for i in (0, 1)))


def turned(turn: int) -> list[str]:
    """The ways in an order that begins with another one each time."""
    ways = list(WAYS)
    return [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]


def run(processes: int, threads: int, options: list[str]) -> tuple[float, float]:
    """Images/s and processor seconds for each image of this script started anew."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), __file__, *options]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    rate, busy = map(float, done.stdout.splitlines()[-1].split())
    return rate, busy


def measure(folder: Path, sets: list[str]) -> None:
    config, rows = benchmark_config(folder, ["train.workers=0", *sets]), pd.read_csv(folder / ROWS)
    timed(train_whole, config, rows[: 2 * config.train.batch_size])  # the first allocations are slow
    start = time.process_time()
    rate = timed(train_whole, config, rows)
    busy = sum(gather_object([time.process_time() - start])) / len(rows)
    if PartialState().is_main_process:
        print(rate, busy)


def report(rates: pd.DataFrame, busy: pd.DataFrame) -> None:
    print(f"{os.cpu_count()} cores, load of the last minutes {os.getloadavg()}")
    for way in WAYS:
        print(f"{way:22}{rates[way].median():6.1f} images/s, {busy[way].median():.3f} processor s an image")
    first, *others = WAYS
    for other in others:
        ratio, share = rates[first] / rates[other], busy[first] / busy[other]
        print(f"{first} / {other}: rate {ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f}),")
        print(f"  processor time {share.median():.2f}")


if __name__ == "__main__":
    main()
