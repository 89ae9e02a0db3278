"""What a run holds on a CUDA device, in fp16, with and without --low-memory: counted without one.

    python benchmarks/device_memory.py     # [--size 512] [--batch 1] [--tasks N]... [--json]

Networks of Stable Diffusion 1.4's shape lie on torch's device `meta`, where an operation has a
shape and no numbers, and Predictor draws with them as it does in every run. What is counted are the
bytes of all tensors that are alive there, in the blocks of 512 bytes that torch takes from CUDA.
Two things are put in as CUDA does them and `meta` does not: attention is one kernel, and
convolutions give channels_last, for which they copy an input that is not. Not in it: the CUDA
context, workspaces of cuDNN and cuBLAS, and gaps between blocks.
"""

import argparse
import json
import weakref
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import full_scale
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dmp_cli.backbone import Backbone
from dmp_cli.bench.clock import Instead
from dmp_cli.device import Placement
from dmp_cli.diffusion import Schedule
from dmp_cli.networks.loading import quiet
from dmp_cli.networks.text_encoder import Texts
from dmp_cli.predict import Predictor
from dmp_cli.tasks import TASKS

Row = dict[str, Any]
Found = dict[str, Row]  # by dtype

DEVICE, BLOCK = torch.device("meta"), 512
PARTS = {"encode": "encoder", "predict": "unet", "decode": "decoder"}  # by method of Backbone
BESIDE = (
    "Counted, not measured: nothing ran on a GPU. The CUDA context and the workspaces of cuDNN "
    "come on top, usually 0.3 to 0.5 GB."
)

# counting -----------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Within, the bytes of all tensors on the device are known: `now`, and `most` so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.brought = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """What an operation makes is alive until its last tensor is gone."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            made = torch.empty_like(args[0])
        elif func is torch.ops.aten.convolution.default:
            made = self._convolved(func(*args, **kwargs), args[0])
        elif func._can_decompose():  # in inference mode what stands for several arrives as one
            with self:
                return func.decompose(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
            if func is torch.ops.aten._to_copy.default and args[0].device != made.device == DEVICE:
                self.brought += made.nbytes
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return made

    def _convolved(self, made: Tensor, given: Tensor) -> Tensor:
        as_taken = given.contiguous(memory_format=torch.channels_last)
        self._add(as_taken)
        result = made.contiguous(memory_format=torch.channels_last)
        self._add(result)  # while the copy of the input, if it is one, is there
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device != DEVICE or storage._cdata in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._gone, storage._cdata, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, storage: int, size: int) -> None:
        self._known.remove(storage)
        self.now -= size

    def peak(self) -> int:
        """The most since the last call, or since the beginning."""
        most, self.most = self.most, self.now
        return most


# what is counted ----------------------------------------------------------------------------


def backbone(in_turns: bool, schedule: Schedule) -> Backbone:
    """A backbone of true shape. Weights that wait take no memory: nobody writes to them."""
    placement = Placement(DEVICE, torch.float16, "counted", in_turns)
    with DEVICE, quiet():
        networks = [network for _, network in islice(full_scale._networks(), 2)]
        for network in networks:
            network.to(torch.float16, memory_format=torch.channels_last)
    for network in networks:
        network.to_empty(device=placement.waiting)
    words = {"": torch.empty(1, 77, 768)}
    unet, vae = networks
    texts = Texts(Path(), None, placement.waiting, words)
    with mock.patch("dmp_cli.backbone._stored", lambda _, module: sizes(shapes[module])):
        made = Backbone(unet, vae, schedule, texts, placement, Path())
        shapes = made.shapes
    return made


def sizes(shape: tuple[int, int]) -> Tensor:
    """A matrix of a shape that takes no memory."""
    return torch.zeros(()).expand(shape)


def matrices(_: Path, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """A LoRA that fits."""
    return {name: (sizes((1, i)), sizes((o, 1))) for name, (o, i) in shapes.items()}


def not_finite(tensors: Sequence[Tensor]) -> Callable[[], list[Any]]:
    """In place of what is fetched from the device, where no number is."""
    whole, *pictures = (tuple(one.shape) for one in tensors)
    return lambda: [np.zeros(whole, bool), *(np.zeros(shape, np.float32) for shape in pictures)]


def watched(network: Backbone, alive: Alive, found: Found) -> Any:
    """The same, the most of each stage put down, and what comes to the device for it."""

    def stage(method: str) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            row = found.setdefault("float32" if network._wide else "fp16", {})
            before = alive.brought
            if method in PARTS:
                network._bring(PARTS[method])  # what was there before is of another stage
            alive.peak()
            made = getattr(network, method)(*args, **named)
            row[method] = max(row.get(method, 0), alive.peak())
            row["brought"] = row.get("brought", 0) + alive.brought - before
            return made

        return run

    return Instead(network, {method: stage(method) for method in (*PARTS, "use_lora")})


def count(names: Sequence[str], in_turns: bool, size: int, batch: int) -> Found:
    """Of a batch, which is not finite, so that all of it is drawn again."""
    own = Predictor(list(names), model="demo", size=size, steps=1, dtype="fp32")
    images = [own.host.prepare(np.zeros((size, size, 3), np.uint8)) for _ in range(batch)]
    alive, found = Alive(), Found()
    with alive:
        network = backbone(in_turns, own._backbone.schedule)
        with mock.patch("dmp_cli.lora.read", matrices):
            for name in names:
                network.add_lora(name, Path(name))
        predictor = own.through(lambda _: watched(network, alive, found))
        predictor.placement = network.placement
        with mock.patch("dmp_cli.predict.fetch", not_finite):
            predictor.draw(images)
    return found


# the command --------------------------------------------------------------------------------


def main() -> None:
    """Count all ways and print a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--size", type=int, default=512, help="sides of the network's picture")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tasks", type=int, action="append", help="how many in a run: 1 and 5")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for in_turns in (False, True):
        for tasks in args.tasks or (1, 5):
            found = count(list(TASKS)[:tasks], in_turns, args.size, args.batch)
            way = {"low_memory": in_turns, "tasks": tasks}
            rows += [way | {"dtype": dtype} | found[dtype] for dtype in ("fp16", "float32")]
    if args.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_table(rows)


def print_table(rows: Sequence[Row]) -> None:
    """GB of each stage and of the largest, and what is copied to the device for a batch."""
    print("| | tasks | encode | UNet | decode | at most | copied there, a batch |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for dtype, title in (("fp16", ""), ("float32", "what is not finite, drawn again in float32")):
        for row in rows:
            if row["dtype"] == dtype:
                how = "`--low-memory`" if row["low_memory"] else "ordinary"
                stages = [row[method] for method in PARTS]
                numbers = (f"{count / 1e9:.2f}" for count in (*stages, max(stages), row["brought"]))
                name = ", ".join(filter(None, (how, title)))
                print(f"| {name} | {row['tasks']} | {' | '.join(numbers)} |")
    print(f"\nGB (10^9 bytes). {BESIDE}")


if __name__ == "__main__":
    main()
