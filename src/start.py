"""From a folder of images to a detector and what may be expected of it, in one command that asks nothing.

It tells normal images, defects, masks and images to be scored by the names of folders or by annotations,
writes that to configs/data/NAME.yaml for you to correct, trains what of configs/sweeps/recipe.yaml fits the
minutes on this machine, and ends with the expected score, a report and an exported model. Interrupted, the
same command goes on.
"""

import argparse
from pathlib import Path

from defects import cli


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("folder", type=Path, help="normal images, and defects if there are any")
    parser.add_argument("--minutes", type=_minutes, default=None, help="that it may take, about; default: 20")
    parser.add_argument(
        "--name", default=None, help="of the data file and of the runs; default: the folder's"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    arguments = parser.parse_args()
    from defects.start.first_run import start  # not on top: it takes seconds to import torch

    start(arguments.folder.expanduser(), arguments.minutes, arguments.name, arguments.set)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


if __name__ == "__main__":
    cli.run(main)
