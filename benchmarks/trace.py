"""How much code one classifier runs from images to a submission, and how often it reads its tables.

src/train.py --fold all, src/infer.py and src/ensemble.py run one after the other in this process on a few
generated images, in a temporary folder. Counted are

  modules       files of src/defects in which a function was called
  functions     functions and methods of src that were called, without lambdas and comprehensions
  returns       every function read once, in the order of the first calls: how often the next one is in
                another file than the last one, and in a file that was read in before
  table reads   calls of pandas.read_csv, by the line of src that asked for the table

python benchmarks/trace.py --folds 2 --list
"""

import argparse
import inspect
import runpy
import sys
import tempfile
import threading
import traceback
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pandas as pd

SRC = Path(__file__).resolve().parents[1] / "src"
READERS = {"files.py", "user_tables.py"}  # of src/defects: they read for others
RUN_NAME = "demo_classifier_tiny"


class Trace:
    """Functions of src in the order of their first calls, and the tables that were read."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, None] = {}  # in order
        self.other_code: set[CodeType] = set()
        self.reads: Counter[tuple[str, str]] = Counter()  # of (name of the file, line of src)
        self.read_csv = pd.read_csv

    def __enter__(self) -> "Trace":
        pd.read_csv = self.read_table
        threading.setprofile(self.note_call)
        sys.setprofile(self.note_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        pd.read_csv = self.read_csv

    def note_call(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code in self.functions or code in self.other_code:
            return
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        path = Path(code.co_filename)
        if is_function and path.suffix == ".py" and path.is_relative_to(SRC):
            self.functions[code] = None
        else:
            self.other_code.add(code)

    def read_table(self, *arguments: Any, **options: Any) -> Any:
        name = Path(arguments[0]).name if isinstance(arguments[0], str | Path) else "a stream"
        self.reads[name, find_reader()] += 1
        return self.read_csv(*arguments, **options)

    def files(self) -> list[Path]:
        """Those of `functions`."""
        return [Path(code.co_filename) for code in self.functions]

    def count_returns(self) -> int:
        returns = 0
        seen: set[Path] = set()
        previous = None
        for path in self.files():
            if path != previous and path in seen:
                returns += 1
            seen.add(path)
            previous = path
        return returns


def find_reader() -> str:
    """File, line and name of the innermost function of src that wants a table, with the two above it."""
    frames = [
        frame
        for frame in reversed(traceback.extract_stack())
        if Path(frame.filename).is_relative_to(SRC) and Path(frame.filename).name not in READERS
    ]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[:3]]
    return " < ".join(places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="every module with its functions as well")
    arguments = parser.parse_args()
    sys.path.insert(0, str(SRC))
    with tempfile.TemporaryDirectory() as folder, Trace() as trace:
        run_stages(Path(folder), arguments.folds)
    if arguments.list:
        print_functions(trace)
    for (table, reader), count in sorted(trace.reads.items()):
        print(f"{count:4} {table:20} {reader}")
    modules = {path for path in trace.files() if path.is_relative_to(SRC / "defects")}
    figures = {
        "modules of src/defects": len(modules),
        "functions": len(trace.functions),
        "table reads": trace.reads.total(),
        "returns to a file": trace.count_returns(),
    }
    for name, figure in figures.items():
        print(f"{name:24}{figure:6}")


def run_stages(folder: Path, folds: int) -> None:
    """From nothing to a submission, by the scripts as a user calls them; one epoch of a small network."""
    settings = {
        "output": folder / "output",
        "submissions": folder / "submissions",
        "data.root": folder / "images",
        "data.answers": folder / "answers.csv",
        "data.demo": "{normal: 60, defect: 20, test: 40}",
        "data.image_size": "[64, 64]",
        "split.folds": folds,
        "train.epochs": 1,
        "train.workers": 0,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run_script("train.py", "--fold", "all", *overrides)
    run_script("infer.py", RUN_NAME, "--output", folder / "output")
    run_script("ensemble.py", RUN_NAME, "--output", folder / "output")


def run_script(name: str, *arguments: str | Path) -> None:
    """In this process; what it prints is shown only if it fails."""
    sys.argv = [name, *map(str, arguments)]
    printed = StringIO()
    printed.reconfigure = lambda **_: None  # scripts set their streams' encoding
    try:
        with redirect_stdout(printed):
            runpy.run_path(str(SRC / name), run_name="__main__")
    except SystemExit as ending:
        if ending.code:
            print(printed.getvalue())
            raise


def print_functions(trace: Trace) -> None:
    names: dict[Path, list[str]] = {}
    for code, path in zip(trace.functions, trace.files(), strict=True):
        names.setdefault(path, []).append(code.co_qualname)
    for path, functions in names.items():
        print(f"{path.relative_to(SRC)}: {len(functions)}")
        for function in functions:
            print(f"    {function}")


if __name__ == "__main__":
    main()
