"""The one decision of the program about device and dtype."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dmp_cli.errors import ResourceError, UsageError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """Where the networks run, in which dtype, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def dtype_name(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def choose(device: str = "auto", dtype: str = "auto") -> Placement:
    """CUDA in fp16, else MPS or CPU in fp32, unless asked otherwise.

    `device` is auto, cpu, mps, cuda or a CUDA device such as `cuda:1`; `dtype` is `auto` or one
    of DTYPES. ResourceError if the device is not there, UsageError for an unknown name, or for
    fp16 on the CPU, where it is slower than fp32.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(f"unknown device {device!r}", "known: auto, cpu, mps, cuda, cuda:N")
    if dtype not in (*DTYPES, "auto"):
        raise UsageError(f"unknown dtype {dtype!r}", f"known: auto, {', '.join(DTYPES)}")
    where, reason = _find(device)
    if dtype == "auto":
        return Placement(where, torch.float16 if where.type == "cuda" else torch.float32, reason)
    if where.type == "cpu" and dtype == "fp16":
        raise UsageError("fp16 is not for the CPU", "use --dtype fp32, or bf16 for speed")
    return Placement(where, DTYPES[dtype], f"{reason}, dtype as asked")


def _find(device: str) -> tuple[torch.device, str]:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "found MPS"
        return torch.device("cpu"), "no accelerator found"
    kind = device.partition(":")[0]
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if kind in there and not there[kind]():
        raise ResourceError(
            f"--device {device}: torch {torch.__version__} finds no such device here",
            "run `dmp doctor`, or use --device cpu",
        )
    index = torch.device(device).index
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        raise ResourceError(
            f"--device {device}: there are {torch.cuda.device_count()} CUDA devices",
            "count from cuda:0",
        )
    return torch.device(device), "as asked"


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: CUDA has a class for it, the CPU and MPS say it in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def memory(where: torch.device) -> tuple[int, int] | None:
    """(free, total) bytes of a CUDA device; None for a device without memory of its own."""
    return torch.cuda.mem_get_info(where) if where.type == "cuda" else None
