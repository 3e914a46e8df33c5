"""What every script does alike."""

import subprocess
import sys

from defects.config import ROOT


def test_an_interrupt_while_modules_are_imported_is_one_line():
    program = "from defects import cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr == "error: interrupted before anything was done\n"
