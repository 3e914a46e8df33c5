"""Freed memory that the C library keeps."""

import platform
import subprocess
import sys

import pytest

from defects.config_schema import ROOT

MEASURE = """
import ctypes
from pathlib import Path
from defects.allocation import keep_freed_memory

keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
address = ctypes.c_void_p(library.malloc(100 * 2**20))
ctypes.memset(address, 1, 100 * 2**20)
library.free(address)
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_keep_freed_memory_keeps_a_hundred_megabytes():
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT / "src", capture_output=True, text=True, check=True
    )
    assert int(result.stdout) > 100
