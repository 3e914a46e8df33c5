"""What all scripts of src/ do alike: options, messages, exit codes."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from defects.allocation import keep_freed_memory
from defects.messages import UserError
from defects.versions import check_versions

try:
    check_versions()  # before other modules, which may not even load with older packages
except UserError as wrong_versions:
    print(f"error: {wrong_versions}", file=sys.stderr)
    sys.exit(2)

from defects.config import known_config_files, load_config, of_category  # noqa: E402
from defects.config_schema import ROOT, Config, resolve  # noqa: E402

if TYPE_CHECKING:
    from defects.engines import Engine, MakeWorker
    from defects.runs import Run

WRITE_ERRORS = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EROFS",
        "EACCES",
        "EPERM",
        "EDQUOT",
        "ENOTDIR",
        "EEXIST",
        "EISDIR",
        "EFBIG",
        "EIO",
        "ENAMETOOLONG",
        "ESTALE",
        "ENOTCONN",
    )
    if hasattr(errno, name)  # Windows does not have them all
}
DEFAULT_RUN = "demo_classifier_tiny"  # what src/train.py trains without arguments
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def experiment_parser(description: str) -> argparse.ArgumentParser:
    """A parser for stages that work on an experiment: preparing, splitting, training."""
    parser = _parser(description)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, default=None, help="an experiment; default: configs/demo.yaml")
    source.add_argument("--data", default=None, help="a file of configs/data, in place of an experiment")
    parser.add_argument(
        "--model", default=None, help="a file of configs/models, in place of the experiment's"
    )
    parser.add_argument("--category", default=None, help="a category below data.root, or all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return parser


def run_parser(
    description: str, takes_several: bool = True, default: str = DEFAULT_RUN
) -> argparse.ArgumentParser:
    """A parser for commands that work on trained runs, which carry their configuration."""
    parser = _parser(description)
    parser.add_argument(
        "runs",
        nargs="*" if takes_several else "?",
        default=[] if takes_several else None,
        metavar="RUN",
        help=f"a folder of output/ by its name, a pattern ('mine_*') or its path; default: {default}",
    )
    add_run_options(parser)
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all commands on trained runs."""
    parser.add_argument("--output", type=Path, default=None, help="where the runs lie; default: output")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of this stage"
    )


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to an option's help where the default is a value that the text does not name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], False) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_engine_options(parser: argparse.ArgumentParser, jobs_help: str) -> None:
    """Add the options of commands that consist of many jobs; see start_engine."""
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--jobs", type=positive, metavar="N", help=f"{jobs_help} at a time")
    engine.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="do so on a Ray cluster; without an address: $RAY_ADDRESS, or what runs on this machine, or a "
        "new one here",
    )


def start_engine(arguments: argparse.Namespace, make_worker: "MakeWorker", cpus: int) -> "Engine":
    """The engine that add_engine_options has a command name; a job takes `cpus` processors."""
    from defects.engines import InTurn, LocalProcesses, RayCluster

    if arguments.ray is not None:
        return RayCluster(make_worker, arguments.ray, cpus)
    if (arguments.jobs or 1) == 1:
        return InTurn(make_worker)
    return LocalProcesses(make_worker, arguments.jobs)


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)


def configs_from(arguments: argparse.Namespace, needs_model: bool = False) -> list[Config]:
    """The experiment, once for each category of --category; `needs_model` for stages that use it."""
    path = arguments.config
    if path is None and arguments.data is None:
        path = ROOT / "configs" / "demo.yaml"
    if needs_model and arguments.data is not None and arguments.model is None:
        models = ", ".join(known_config_files("models"))
        raise UserError(f"--data {arguments.data} needs --model NAME too: configs/models holds {models}")
    config = load_config(path, arguments.set, arguments.data, arguments.model, needs_model)
    if arguments.category is None:
        return [config]
    from defects.data.folder_scan import list_categories  # not on top: it loads OpenCV

    existing = list_categories(resolve(config.data.root))
    chosen = existing if arguments.category == "all" else [arguments.category]
    if not existing or not set(chosen) <= set(existing):
        content = ", ".join(existing) or "no folder with a train folder in it"
        raise UserError(f"--category {arguments.category}: {resolve(config.data.root)} holds {content}")
    return [of_category(config, name) for name in chosen]


def config_from(arguments: argparse.Namespace, needs_model: bool = False) -> Config:
    """The experiment of a command that takes one category only."""
    configs = configs_from(arguments, needs_model)
    if len(configs) > 1:
        raise UserError("--category all: this command takes one category; name it")
    return configs[0]


def output_folder(arguments: argparse.Namespace) -> Path:
    """The folder that holds the runs: --output, or the setting by which they were trained there."""
    if arguments.output is not None:
        return arguments.output.absolute()
    folder = "output"
    for setting in arguments.set:
        key, _, value = setting.partition("=")
        if key.strip() == "output":
            folder = value.strip()
    return resolve(folder)


def runs_from(arguments: argparse.Namespace) -> "list[Run]":
    """The runs that a command is about."""
    from defects.runs import find_runs  # not on top: src/predict.py does without pandas

    return find_runs(arguments.runs or [DEFAULT_RUN], output_folder(arguments), arguments.set)


def run_from(arguments: argparse.Namespace) -> "Run":
    """The run of a command that takes one."""
    from defects.runs import find_runs

    return find_runs([arguments.runs or DEFAULT_RUN], output_folder(arguments), arguments.set)[0]


def positive(text: str) -> int:
    """An argument's type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def probability(text: str) -> float:
    """An argument's type: a number from 0 to 1."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")


def run(main: Callable[[], None]) -> None:
    """Run a script: wrong input or a full disk ends in one line and exit code 2, Ctrl-C in 130."""
    for stream in (sys.stdout, sys.stderr):
        # A Windows console may not know every letter, and a file name may hold bytes that are no text; a log
        # file should not lag behind.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        # A loader process hands its errors on with its whole traceback; ours is the last part.
        _stop(str(error).rsplit("UserError: ", 1)[-1], 2)
    except KeyboardInterrupt:
        _stop("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        _stop(f"{error.filename or 'output'}: {error.strerror}; free it, or choose --set output=FOLDER", 2)
    except (RuntimeError, MemoryError) as error:
        if "LOCAL_RANK" in os.environ:
            from defects.processes import has_another_failed

            if has_another_failed():  # it has said why: what fails here is the connection to it
                sys.exit(2)
        if not (isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY)):
            raise
        _stop("out of memory: lower train.batch_size, infer.batch_size or data.image_size", 2)


def _tell_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of sys.excepthook: Ctrl-C while a script still imports its modules, which takes seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _tell_uncaught  # scripts import this module first


def _stop(message: str, code: int) -> None:
    """Of the processes that a launcher started, the first to fail says what went wrong."""
    is_silent = False
    if "LOCAL_RANK" in os.environ:
        from defects.processes import is_first_to_fail  # not on top: it takes seconds to import torch

        is_silent = not is_first_to_fail()
    if not is_silent:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
