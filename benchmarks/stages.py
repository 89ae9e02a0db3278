"""One `dmp` command in this process with timers around its stages, for full_scale.py.

python benchmarks/stages.py REPORT.json predict depth photos/ -o out/
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Record = dict[str, Any]
Call = tuple[float, int, str]  # seconds, images, their size for the network


@dataclass
class Timers:
    """The calls of each stage of a run."""

    calls: defaultdict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    loaded: float = 0.0  # when the last weights were in place
    loaded_peak: float = 0.0

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed; a network's calls with the device's queue emptied around them."""

        def timed(*args: Any, **how: Any) -> Any:
            now = time.perf_counter if stage in ("read", "write") else _now
            start = now()
            result = function(*args, **how)
            end = now()
            tensor = args[1] if stage in ("encode", "unet", "decode") else None
            self.calls[stage].append((end - start, *_size(tensor)))
            if stage == "load":
                self.loaded, self.loaded_peak = end, _peak()
            return result

        return timed

    def install(self) -> None:
        """Put timers around the stages of dmp."""
        from dmp_cli.backbone import Backbone
        from dmp_cli.engines import saving, steps

        stages = {"add_lora": "load", "encode": "encode", "predict": "unet", "decode": "decode"}
        for name, stage in stages.items():
            setattr(Backbone, name, self.around(stage, getattr(Backbone, name)))
        steps.read = self.around("read", steps.read)
        saving.write = self.around("write", saving.write)
        load = self.around("load", Backbone.load)
        setattr(Backbone, "load", staticmethod(load))  # noqa: B010  (mypy: a method)

    def seconds(self, stage: str) -> float:
        """All calls of a stage together."""
        return sum(seconds for seconds, _, _ in self.calls[stage])

    def by_size(self) -> Record:
        """Median seconds an image and call, for each size at which the network works."""
        rows: Record = {}
        for stage in ("encode", "unet", "decode"):
            for size in sorted({size for _, _, size in self.calls[stage]}):
                each = [seconds / count for seconds, count, at in self.calls[stage] if at == size]
                rows.setdefault(size, {})[stage] = round(median(each), 3)
                if stage == "encode":
                    rows[size]["images"] = sum(n for _, n, at in self.calls[stage] if at == size)
        return rows


def _size(tensor: Any) -> tuple[int, str]:
    """(images, width x height in pixels) of pictures or latents."""
    if tensor is None:
        return 1, ""
    count, channels, height, width = tensor.shape
    scale = 8 if channels == 4 else 1
    return count, f"{width * scale}x{height * scale}"


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak() -> float:
    """GiB of memory that this process held at most, pages of mapped files among them."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure(report: Path, command: list[str]) -> None:
    """Run `dmp COMMAND` in this process with timers around its stages; figures go to `report`."""
    start = time.perf_counter()
    from dmp_cli import cli
    from dmp_cli.engines import local  # noqa: F401  (brings torch and diffusers)

    imports = time.perf_counter() - start
    timers = Timers()
    timers.install()
    sys.argv = ["dmp", *command]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    report.write_text(json.dumps(_figures(timers, imports, _now() - timers.loaded)))


def _figures(timers: Timers, imports: float, run: float) -> Record:
    """The report: seconds of an image, all images averaged, unless named otherwise."""
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    count = len(timers.calls["read"])
    unet_steps = sum(images for _, images, _ in timers.calls["unet"])
    figures = {
        "imports": imports, "weights": timers.seconds("load"),
        "encode": timers.seconds("encode") / count,
        "unet_first": timers.calls["unet"][0][0],
        "unet_step": timers.seconds("unet") / unet_steps,
        "unet": timers.seconds("unet") / count,
        "decode": timers.seconds("decode") / count,
        "read": timers.seconds("read") / count, "write": timers.seconds("write") / count,
        "image": run / count, "images_per_second": count / run,
        "load_peak_gib": timers.loaded_peak, "peak_gib": _peak(),
        "cuda_peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
    }  # fmt: skip
    return {
        "torch": torch.__version__, "diffusers": diffusers.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "images": count, "threads": torch.get_num_threads(),
        **{name: round(value, 4) for name, value in figures.items()}, "by_size": timers.by_size(),
    }  # fmt: skip


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2:])
