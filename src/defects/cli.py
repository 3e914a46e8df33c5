"""What every script of src/ does alike: options, messages, exit codes."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from defects.config import ROOT, Config, categories, load_config, of_category, resolve
from defects.errors import UserError

UNWRITABLE = {
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
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the options that all stages share."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    made = argparse.ArgumentParser(description=description, formatter_class=formatter)
    made.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml", help="experiment to run")
    made.add_argument("--detector", default=None, help="a file of configs/detectors, in place of its own")
    made.add_argument("--category", default=None, help="a category below data.root, or all")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    return made


def configs_from(arguments: argparse.Namespace, ask_detector: bool = True) -> list[Config]:
    """The experiment, once for each category asked for; see load_config for `ask_detector`."""
    config = load_config(arguments.config, arguments.set, arguments.detector, ask_detector)
    if arguments.category is None:
        return [config]
    known = categories(config.data)
    wanted = known if arguments.category == "all" else [arguments.category]
    if not known or not set(wanted) <= set(known):
        held = ", ".join(known) or "no folder with a train folder in it"
        raise UserError(f"--category {arguments.category}: {resolve(config.data.root)} holds {held}")
    return [of_category(config, name) for name in wanted]


def config_from(arguments: argparse.Namespace) -> Config:
    """The experiment of a command that takes one category only."""
    configs = configs_from(arguments)
    if len(configs) > 1:
        raise UserError("--category all: this command takes one category; name it")
    return configs[0]


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
    try:
        main()
    except UserError as error:
        # A loader process hands its errors on with its whole traceback; ours is the last part.
        _stop(str(error).rsplit("UserError: ", 1)[-1], 2)
    except KeyboardInterrupt:
        _stop("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _stop(f"{error.filename or 'output'}: {error.strerror}; free it, or choose --set output=FOLDER", 2)
    except (RuntimeError, MemoryError) as error:
        if _lost_another():
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
    if _speaks():
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _speaks() -> bool:
    """Of the processes that a launcher started, the first to fail says what went wrong."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from defects.processes import first_to_fail  # not on top: it takes seconds to import torch

    return first_to_fail()


def _lost_another() -> bool:
    """Whether another process has failed, and said why: what fails here is talking to it."""
    if "LOCAL_RANK" not in os.environ:
        return False
    from defects.processes import another_failed

    return another_failed()
