"""How the C library hands out memory."""

import ctypes
import platform

# Parameters of glibc's mallopt (malloc.h), and what they are set to, in bytes.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
TRIM_BYTES = 2**31 - 1
MMAP_BYTES = 2**30


def keep_freed_memory() -> None:
    """Let glibc use freed memory again in place of giving it back to the system at once.

    Every step of a training frees tensors of many megabytes and asks for the same again. By default they are
    mapped anew, and the system fills them with zeros page by page. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(MMAP_THRESHOLD, MMAP_BYTES)
    library.mallopt(TRIM_THRESHOLD, TRIM_BYTES)
