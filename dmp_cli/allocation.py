"""How this process takes memory from the system."""

import ctypes
import os

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = (1 << 31) - 1, 1 << 30


def ask_for_large_pages() -> None:
    """Have torch ask Linux for pages of 2 MB. Counts if called before torch allocates anything."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed() -> None:
    """Have what is freed stay with the process, where glibc is the C library.

    Else each picture between two layers (0.3 GB in float32) comes from the system anew, page by
    page, zeroed: a fifth of the time of a large network on a CPU.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
