"""How this process takes memory from the system."""

import ctypes
import mmap
import os
from functools import cache

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = (1 << 31) - 1
_LARGE = (1 << 30, 1 << 25)  # before glibc 2.35, more than 32 MB is refused


def ask_for_large_pages() -> None:
    """Have torch ask Linux for pages of 2 MB. Counts if called before torch allocates anything."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed() -> None:
    """Have what is freed stay with the process, where glibc is the C library.

    Else each picture between two layers (0.3 GB in float32) comes from the system anew, page by
    page, zeroed: a fifth of the time of a large network on a CPU.
    """
    library = _glibc()
    if library and any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGE):
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def let_go(address: int, size: int) -> None:
    """Give the system `size` bytes of memory back that nobody reads any more, but for part pages.

    For weights of a mapped file: they count as memory of the process until all of it is unmapped.
    What is read there later is what the file has, and of memory that has no file, zeros.
    """
    library = _glibc()
    if library is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc."""
    try:
        return ctypes.CDLL("libc.so.6")
    except OSError:
        return None
