"""What a run calls and copies: figures that no noise can hide, seen from outside of it."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, DecoderTiny, Encoder
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextModel

Record = dict[str, Any]

NETWORKS = {
    Encoder: "encodes",
    CLIPTextModel: "texts",
    UNet2DConditionModel: "unet",
    Decoder: "decodes",
    DecoderTiny: "decodes",
}
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


@contextmanager
def counted(found: Counter[str]) -> Iterator[None]:
    """Within, what each network is given is counted in `found`: a batch of four is four.

    And the bytes that leave torch for numpy: without an accelerator nothing is copied from one.
    """

    def seen(module: Any, args: tuple[Any, ...]) -> None:
        name = NETWORKS.get(type(module))
        if name:
            found[name] += len(args[0]) if args else 1

    def handed(tensor: Tensor, **how: Any) -> Any:
        found["bytes"] += tensor.nbytes
        return plain(tensor, **how)

    plain, hook = Tensor.numpy, register_module_forward_pre_hook(seen)
    try:
        with mock.patch.object(Tensor, "numpy", handed):
            yield
    finally:
        hook.remove()


@contextmanager
def traced(found: Record) -> Iterator[None]:
    """Within, what a CUDA device does is recorded; `of_trace` of it is put into `found`."""
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            yield
            torch.cuda.synchronize()
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        found |= of_trace(json.loads(path.read_text())["traceEvents"])


def of_trace(events: Sequence[Record]) -> Record:
    """The bytes that were copied to the host, and the share of time in which the device idled.

    From the first thing that it did to the last: so before the first image is read and after the
    last is drawn nothing counts.
    """
    done = [event for event in events if event.get("cat") in ON_DEVICE]
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in done)
    if not spans:
        return {}
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    copied = sum(event["args"].get("bytes", 0) for event in done if "DtoH" in event["name"])
    return {"bytes": copied, "idle": 1 - busy / (reached - spans[0][0])}
