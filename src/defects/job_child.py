"""Run a script, and end when the process that started this one ends: python job_child.py SCRIPT OPTIONS…

Without it a training would go on after its sweep was killed, and would be in the way of the next one.
"""

import os
import runpy
import sys
import threading
from pathlib import Path


def main() -> None:
    threading.Thread(target=end_with_starter, daemon=True).start()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def end_with_starter() -> None:
    """Standard input is a pipe from the starter, which writes nothing: it ends when the starter does."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
