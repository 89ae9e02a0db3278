"""Plan: how a run is done, as plain values that can be printed, compared and sent to a worker."""

import os
import re
from dataclasses import dataclass, field
from typing import TypedDict

from dmp_cli.errors import UsageError

SAMPLERS = ("ddim", "oracle", "onepass")
SPACINGS = ("leading", "trailing")
PREDICTIONS = ("v_prediction", "epsilon", "sample")
FINALS = ("z", "y0")  # what the last step leaves (official), or its estimate of the map
DTYPES = ("auto", "fp32", "fp16", "bf16")
FORMATS = ("png", "png16", "exr", "npy", "tiff", "tiff16")
SEG_FORMATS = ("palette", "ids", "color")
EXR_LAYOUTS = ("flat", "blender", "nuke")
EXR_COMPRESSIONS = ("none", "rle", "zips", "zip", "piz")
RANGES = ("auto", "image", "run")
FAST = {"steps": 1, "spacing": "trailing", "final": "y0"}  # what `fast` stands for
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Settings:
    """What a flag may override in a model's entry of weights.toml; None leaves the entry as is."""

    steps: int | None = None
    sampler: str | None = None
    spacing: str | None = None
    prediction: str | None = None
    final: str | None = None
    timestep: int | None = None
    size: int | None = None
    prompt: str | None = None
    guidance: float | None = None
    fast: bool = False  # FAST in place of the entry's, of whatever is sampled in steps
    tiny_decoder: bool = False  # that of the entry in place of the VAE's


@dataclass(frozen=True)
class Output:
    """How maps become files: nothing here changes what the network computes."""

    formats: tuple[str, ...] = ("png",)
    colormap: str = "Spectral"
    invert: bool = False
    # metres from near to far: of pictures, and but for "auto" of 16-bit depth too. "image": each
    # its own, "run": all one, "auto": pictures each their own, 16 bits in steps of `depth_unit`
    range: str | tuple[float, float] = "auto"
    depth_unit: float = 0.001  # metres
    seg_format: str = "palette"
    exr_layout: str = "flat"
    exr_compression: str = "zip"
    merged: bool = False  # one EXR an image, with a layer for each task
    side_by_side: bool = False  # also a picture of the input beside its maps
    thumbnail: int = 0  # long side of the small pictures that a result carries; 0: none


@dataclass(frozen=True)
class Plan:
    """One run. The engine may run it elsewhere, so it holds no open file and no device."""

    tasks: tuple[str, ...]
    model: str | None = None  # a name in weights.toml; None: the first of its default list
    weights: str | None = None  # a weights file to read over the packaged one
    settings: Settings = field(default_factory=Settings)
    device: str = "auto"
    dtype: str = "auto"
    batch: int = 0  # images at once; 0: chosen from the device's memory
    low_memory: bool = False  # the least memory: on the device, or without one in this process
    max_pixels: int = 100_000_000  # an input with more is refused
    axes: str = "opengl"  # of normals maps
    classes: str | None = None  # of segmentation maps; None: as the model's entry says
    background: tuple[int, int, int] = (255, 255, 255)  # behind transparent pixels, sRGB
    exposure: float = 0.0  # stops, for EXR and HDR inputs
    output: Output = field(default_factory=Output)
    readers: int = 2  # threads
    writers: int = 2
    in_flight: int = 64_000_000  # pixels at full size that those threads hold; more passes alone

    @property
    def together(self) -> int:
        """How many images at once are asked for; 0: to be chosen where the networks run."""
        return self.batch or int(self.low_memory)


def device_name(name: str) -> str:
    """`name`, of a device that may be there or not; UsageError for what is none."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"unknown device {name!r}", "known: auto, cpu, mps, cuda, cuda:N")
    return name


class Options(TypedDict, total=False):
    """What may be given by name in Python: the fields of Settings and Plan, for type checkers."""

    steps: int | None
    sampler: str | None
    spacing: str | None
    prediction: str | None
    final: str | None
    timestep: int | None
    size: int | None
    prompt: str | None
    guidance: float | None
    fast: bool
    tiny_decoder: bool
    model: str | None
    weights: str | os.PathLike[str] | None
    device: str
    dtype: str
    batch: int
    low_memory: bool
    max_pixels: int
    axes: str
    classes: str | None
    background: tuple[int, int, int]
    exposure: float
