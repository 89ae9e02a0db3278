"""How a process takes memory from the system."""

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    assert pages("keeps") < 100
    assert pages("gives back") > 10_000


def pages(how: str) -> int:
    command = [sys.executable, "-c", COUNT, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
