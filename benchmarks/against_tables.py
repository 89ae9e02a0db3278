"""What against.py found, as Markdown; and what a GPU could do at most."""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Record = dict[str, Any]

PACKAGES = ("torch", "diffusers", "transformers", "peft", "pillow")
SD = [320, 640, 1280, 1280]  # the blocks of the UNet that these counts are of
ENCODE, STEP, DECODE = 1.1, 0.80, 2.5  # TFLOP of SD 1.4 for 512x512
TINY = 0.14  # TFLOP of TAESD's decoder
# TFLOP/s in half precision: of the H100 and H200 what our goals count on, else what is published
CARDS = {"H100": 800.0, "H200": 800.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "T4": 65.0}


# The floor --------------------------------------------------------------------------------


def floor_share(record: Record, tflops: float | None) -> float | None:
    """The rate of a record as a share of the fastest that its arithmetic allows where it ran.

    `tflops` is the speed there, else that of a card that is known. None for another network than
    that of Stable Diffusion 1.x, or a card that is not known. An image is encoded once, and each
    map takes its steps and its decoding.
    """
    speed = tflops or next((CARDS[name] for name in CARDS if name in record["card"].split()), None)
    if record["channels"] != SD or speed is None:
        return None
    high, wide = record["seen"]
    decode = TINY if record["settings"].get("tiny_decoder") else DECODE
    each = STEP * record["settings"]["steps"] + decode
    cost = (ENCODE + len(record["tasks"]) * each) * high * wide / 512**2
    return float(record["images_per_second"] * cost / speed)


def tflops_of_cpu() -> float:
    """TFLOP/s of a large convolution in bf16, most of what the networks compute: best of eight."""
    import torch

    conv = torch.nn.Conv2d(512, 512, 3, padding=1).to(torch.bfloat16)
    conv.to(memory_format=torch.channels_last)
    picture = torch.randn(1, 512, 128, 128).to(torch.bfloat16)
    picture = picture.to(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(8):
            start = time.perf_counter()
            conv(picture)
            seconds.append(time.perf_counter() - start)
    return 2 * 9 * 512 * 512 * 128 * 128 / min(seconds) / 1e12


# Tables -----------------------------------------------------------------------------------


def machine() -> Record:
    """What ran it."""
    model = platform.processor()
    about = Path("/proc/cpuinfo")
    if about.exists():
        names = [line for line in about.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model, "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES},
    }  # fmt: skip


def heading(where: Record, given: argparse.Namespace) -> str:
    """The machine and what was asked for, as a line."""
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", *PACKAGES))
    return (
        f"{where['processor']}, {where['cores']} cores, load {where['load']:.1f} before; {versions}"
        f"\n\nmodel {given.model}, {given.steps} steps ({given.spacing}, {given.final}); "
        f"{given.turns} turns of {given.images} images\n"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _ratio(record: Record, base: str) -> str:
    """The median, and the least and the most of the turns."""
    found = record["ratios"].get(base)
    if not found:
        return ""
    middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
    return f"{middle:.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def _gate(record: Record) -> str:
    return {None: "", True: "held", False: "broken"}[record.get("held")]


TIMES: dict[str, Callable[[Record], str]] = {
    "runs in": lambda r: r["where"],
    "images/s": lambda r: _number(r["images_per_second"]),
    "maps/s": lambda r: _number(r["maps_per_second"]),
    "p50, s": lambda r: _number(r["p50"]),
    "p95, s": lambda r: _number(r["p95"]),
    "alone, s": lambda r: _number(r["alone"]),
    "x official fp32": lambda r: _ratio(r, "official fp32"),
    "x official half": lambda r: _ratio(r, "official half"),
    "mean": lambda r: _number(r.get("mean")),
    "99.9 %": lambda r: _number(r.get("p999")),
    "gate": _gate,
    "of the floor": lambda r: _number(r.get("floor_share")),
}
COSTS: dict[str, Callable[[Record], str]] = {
    "encodes": lambda r: _number(r["counts"].get("encodes", 0)),
    "texts": lambda r: _number(r["counts"].get("texts", 0)),
    "UNet": lambda r: _number(r["counts"].get("unet", 0)),
    "decodes": lambda r: _number(r["counts"].get("decodes", 0)),
    "MB to host": lambda r: _number(r["counts"].get("bytes", 0) / 1e6),
    "CPU s": lambda r: _number(r["cpu_per_image"]),
    "load, s": lambda r: _number(r["load"]),
    "host, GiB": lambda r: _number(r["host_gib"]),
}
ON_CARD: dict[str, Callable[[Record], str]] = {
    "device, GiB": lambda r: _number(r["device_gib"]),
    "idle": lambda r: _number(r["counts"].get("idle")),
}


def tables(records: Sequence[Record]) -> str:
    """Two tables of one case."""
    first = records[0]
    count, card = len(first["tasks"]), first["card"]
    maps = f"{count} tasks" if count > 1 else first["tasks"][0]
    high, wide = first["seen"]
    title = f"\n### {maps}, {first['size']}, seen as {wide}x{high}{f', {card}' if card else ''}\n"
    costs = COSTS | ON_CARD if card else COSTS
    return "\n".join([title, _table(TIMES, records), "", _table(costs, records)])


def _table(columns: dict[str, Callable[[Record], str]], records: Sequence[Record]) -> str:
    rows = [f"| way | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for record in records:
        cells = " | ".join(cell(record) for cell in columns.values())
        rows.append(f"| {record['way']} | {cells} |")
    return "\n".join(rows)
