"""The one decision of the program about device and dtype."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.plan import device_name

_LARGE = 1 << 29  # bytes of a UNet's file: to a smaller one, bf16 on a CPU gives nothing
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Placement:
    """Where the networks run, in which dtype, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str
    in_turns: bool = False  # the parts of a backbone take turns there, see networks/offload.py

    @property
    def waiting(self) -> torch.device:
        """Where weights are while they do not compute."""
        return torch.device("cpu") if self.in_turns else self.device

    @property
    def dtype_name(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def choose(device: str = "auto", dtype: str = "auto", low_memory: bool = False) -> Placement:
    """CUDA in fp16, else MPS or CPU in fp32, unless asked otherwise (`for_network` goes on).

    `device` is auto, cpu, mps, cuda or a CUDA device such as `cuda:1`; `dtype` is `auto` or one
    of DTYPES. With `low_memory` parts take turns on CUDA; not on MPS, whose memory is the host's:
    what waits there would be held twice. ResourceError if the device is not there, UsageError for
    an unknown name, or for fp16 on the CPU, where it is slower than fp32.
    """
    known = device_name(device)
    if dtype not in (*DTYPES, "auto"):
        raise UsageError(f"unknown dtype {dtype!r}", f"known: auto, {', '.join(DTYPES)}")
    where, reason = _find(known)
    on_cuda = where.type == "cuda"
    turns = low_memory and on_cuda
    if dtype == "auto":
        return Placement(where, torch.float16 if on_cuda else torch.float32, reason, turns)
    if where.type == "cpu" and dtype == "fp16":
        raise UsageError("fp16 is not for the CPU", "use --dtype fp32, or bf16 for speed")
    return Placement(where, DTYPES[dtype], f"{reason}, dtype as asked", turns)


def multiplies_bf16() -> str | None:
    """What the CPU of this machine multiplies bf16 with, or None: without, bf16 is slower there."""
    known = cpu()
    return next((name for name in ("amx_bf16", "avx512_bf16") if known.get(name)), None)


def cpu() -> dict[str, object]:
    """What torch knows of the CPU of this machine, by name; nothing in torch 2.10."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def for_network(placement: Placement, dtype: str, size: int) -> Placement:
    """The placement of a network whose UNet is a file of `size` bytes, `dtype` as it was asked for.

    With `auto`, a large one on a CPU that multiplies bf16 is computed so: see mixed.py.
    """
    by = multiplies_bf16()
    if dtype != "auto" or placement.device.type != "cpu" or size < _LARGE or not by:
        return placement
    return Placement(placement.device, torch.bfloat16, f"{placement.reason}, the CPU has {by}")


def several(names: Sequence[str]) -> tuple[str, ...]:
    """The devices of a run over several, once all are there; `all` stands for every CUDA device.

    ResourceError if one is not there. CUDA is only counted: no memory of a device is taken.
    """
    if tuple(names) != ("all",):
        return tuple(str(_find(name, "--devices")[0]) for name in names)
    count = torch.cuda.device_count()
    if not count:
        raise ResourceError(
            f"--devices all: torch {torch.__version__} finds no CUDA device here",
            "run `dmp doctor`, or leave out --devices",
        )
    return tuple(f"cuda:{number}" for number in range(count))


def share_threads(among: int) -> None:
    """Take a share of the threads that this process would have, `among` so many processes."""
    torch.set_num_threads(max(1, torch.get_num_threads() // among))


def _find(device: str, option: str = "--device") -> tuple[torch.device, str]:
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
        other = "use --device cpu" if option == "--device" else f"leave out {option}"
        raise ResourceError(
            f"{option} {device}: torch {torch.__version__} finds no such device here",
            f"run `dmp doctor`, or {other}",
        )
    index = torch.device(device).index
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        first = "cuda:0" if option == "--device" else "0, or take --devices all"
        raise ResourceError(
            f"{option} {device}: there are {torch.cuda.device_count()} CUDA devices",
            f"count from {first}",
        )
    return torch.device(device), "as asked"


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: CUDA has a class for it, the CPU and MPS say it in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # of CUDA and the CPU; of the CPU; of cuBLAS and cuDNN; of oneDNN, for a primitive, a memory
    said = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED", "could not create a")
    return any(words in str(error) for words in said)


def lost(error: Exception) -> bool:
    """Whether a device failed for good: torch has a class for it, but not for its libraries."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return str(error).startswith(("CUDA error", "cuDNN error", "cuDNN Frontend error"))


def memory(where: torch.device) -> tuple[int, int] | None:
    """(free, total) bytes of a CUDA device; None for a device without memory of its own."""
    return torch.cuda.mem_get_info(where) if where.type == "cuda" else None
