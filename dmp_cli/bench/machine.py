"""What this machine is, its memory at most, and waiting for its device."""

import os
import platform
import sys
from pathlib import Path

import torch

from dmp_cli.bench.figures import Machine, Memory
from dmp_cli.device import cpu, multiplies_bf16

_DRIVER = Path("/proc/driver/nvidia/version")


def settle(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> Machine:
    """This machine, with the device that was chosen."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(
        processor=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        device=str(device),
        device_name=name,
        bf16=multiplies_bf16(),
        idle_gpu=_DRIVER.exists() and torch.version.cuda is None,
    )


def _processor() -> str:
    return str(cpu().get("cpu_name") or platform.processor() or platform.machine())


def cores() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forget_peak(device: torch.device) -> None:
    """Count the most memory of a device from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> Memory:
    """The most memory so far: resident in this process; of tensors on a CUDA device."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Memory(_resident(), on_device)


def _resident() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
