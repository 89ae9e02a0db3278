"""How a process takes memory from the system."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmp_cli import allocation

# Pages that came from the system while 64 MB were taken and freed ten times over
COUNT = """
import resource, sys
from dmp_cli import allocation
if sys.argv[1] == "keeps":
    allocation.ask_for_large_pages()
    allocation.keep_freed()
import torch
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")


@glibc
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    assert pages("keeps") < pages("gives back") / 10


def pages(how: str) -> int:
    command = [sys.executable, "-c", COUNT, how]
    plain = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    return int(done.stdout)


@glibc
def test_pages_of_a_mapped_file_are_let_go_and_nothing_else(tmp_path: Path) -> None:
    np.arange(1 << 22, dtype=np.float64).tofile(tmp_path / "numbers")
    numbers = np.memmap(tmp_path / "numbers", np.float64, "r")
    middle = numbers[1000:-1000]  # not on the borders of pages
    total = numbers.sum()
    before = resident(tmp_path / "numbers")
    allocation.let_go(middle.ctypes.data, middle.nbytes)
    after = resident(tmp_path / "numbers")
    assert before >= numbers.nbytes // 1024
    assert after <= 4096  # the pages at both ends, which may be of 2 MB
    assert numbers.sum() == total


@glibc
def test_what_is_not_given_keeps_its_numbers() -> None:
    numbers = np.ones(1 << 20)
    allocation.let_go(numbers[1000:].ctypes.data, 8)  # no whole page
    assert numbers.all()
    allocation.let_go(numbers[1000:-1000].ctypes.data, numbers[1000:-1000].nbytes)
    assert numbers[:1000].all()
    assert numbers[-1000:].all()
    assert not numbers[2000:-2000].any()


def resident(file: Path) -> int:
    """kB of a mapped file that count as memory of this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith(str(file)))
    found = next(line for line in lines[start:] if line.startswith("Rss:"))
    return int(found.split()[1])
