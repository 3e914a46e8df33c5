"""What every script does alike."""

import subprocess
import sys

import pytest

from defects import cli
from defects.config_schema import ROOT


def test_run_of_an_interrupt_during_imports_is_one_line():
    program = "from defects import cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "src", capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr == "error: interrupted before anything was done\n"


def test_run_takes_a_reader_that_stops_early():
    """As `head` does: stdout is closed before the script prints."""
    program = "from defects import cli; cli.run(lambda: print(input()))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT / "src",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, stderr = process.communicate(b"a line\n")
    assert stderr == b""
    assert process.returncode == 1


@pytest.mark.parametrize("make_parser", [cli.experiment_parser, cli.run_parser])
def test_help_shows_a_default_only_where_it_is_a_value_not_named_yet(make_parser):
    parser = make_parser("A command.")
    parser.add_argument("--limit", type=int, default=256, help="images")
    text = " ".join(parser.format_help().split())
    assert "images (default: 256)" in text
    assert text.count("(default:") == 1


def test_output_folder_is_the_setting_that_runs_were_trained_with(tmp_path):
    arguments = cli.run_parser("A command.").parse_args(["mine_dfr", "--set", f"output={tmp_path}"])
    assert cli.output_folder(arguments) == tmp_path
