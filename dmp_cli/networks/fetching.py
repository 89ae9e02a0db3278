"""To a device and back to this machine's memory, while the device goes on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of this machine's memory on a device, without waiting for what it is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensors: Sequence[Tensor]) -> Callable[[], list[Array]]:
    """Copies of tensors that are being computed: begun now, complete when what this gives returns.

    In the dtype that they have, bf16 as float32. From CUDA into memory that the device writes to by
    itself, so that the caller can give it more to do before it waits.
    """
    if not tensors or tensors[0].device.type != "cuda":
        copies = [one.cpu() for one in tensors]
        return lambda: [_array(one) for one in copies]
    pinned = [
        torch.empty_like(one, device="cpu", pin_memory=True).copy_(one, non_blocking=True)
        for one in tensors
    ]
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tensors[0].device))  # else of the first device's stream

    def wait() -> list[Array]:
        done.synchronize()
        return [_array(one) for one in pinned]

    return wait


def _array(copy: Tensor) -> Array:
    array: Array = (copy.float() if copy.dtype == torch.bfloat16 else copy).numpy()
    return array
