"""A map of a task -> the file of a format. What a number means there: docs/conventions.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmp_cli import colour
from dmp_cli.jobs import MARK
from dmp_cli.outputs import writers
from dmp_cli.outputs.writers import KINDS, Channel, Kind
from dmp_cli.plan import Output
from dmp_cli.tasks import Array, Packed, Task, View, depth_range

LARGEST_HALF = 65504.0
PREFIX = MARK.decode().removesuffix("Task")  # of the attributes in EXR files
LINEAR = "lin_rec709_scene"  # of the ASWF's Color Interop Forum: linear light, BT.709 primaries
_RANGED = ("png", "png16", "tiff16")  # formats whose values depend on a range of depth

Text = Mapping[str, str]


@dataclass(frozen=True)
class Span:
    """Metres that depth maps cover: the 1st and 99th percentile, and the ends."""

    near: float
    far: float
    least: float
    most: float

    def __or__(self, other: "Span") -> "Span":
        """The span of both."""
        return Span(
            min(self.near, other.near), max(self.far, other.far),
            min(self.least, other.least), max(self.most, other.most),
        )  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A map as channels of an EXR file; `light`: its numbers are linear light, not data.

    The values have the type that they have in the file: half of the memory for most.
    """

    channels: tuple[Channel, ...]
    light: bool


def span(task: Task, values: Array) -> Span | None:
    """What a depth map covers; None for another map, or one without a finite value."""
    percentiles = depth_range(values) if task.metres else None
    if percentiles is None:
        return None
    finite = np.isfinite(values)
    known = values if finite.all() else values[finite]
    return Span(*percentiles, float(known.min()), float(known.max()))


def waits(task: Task, form: str, look: Output) -> bool:
    """Whether this file can be written only when the span of the whole run is known."""
    return look.range == "run" and task.metres and form in _RANGED


def set_aside(task: Task, look: Output) -> bool:
    """Whether a map has to be kept until then: for its files, or for pictures of all maps."""
    shown = bool(look.thumbnail or look.side_by_side)
    return any(waits(task, form, look) for form in (*look.formats, *(["png"] if shown else [])))


def view(look: Output, covered: Span | None) -> View:
    """How maps are shown that cover this; None: each picture takes its own range."""
    near_far = ends = None
    if isinstance(look.range, tuple):
        near_far = ends = look.range
    elif covered is not None:
        near_far = covered.near, covered.far
        ends = None if look.range == "auto" else (covered.least, covered.most)
    colours = colour.colormap(look.colormap)
    return View(colours, look.invert, near_far, ends, look.depth_unit, look.seg_format)


def save(path: Path, form: str, task: Task, values: Array, shown: View, text: Text) -> list[str]:
    """Write a map in any format but exr; returns remarks on what did not fit.

    Raises ImageError if this file cannot be written, ResourceError if none could be.
    """
    light = task.measured == "light"
    if form == "npy":
        writers.write_npy(path, values)
        return []
    if form == "tiff":
        writers.write_tiff(path, values, {**text, **({"ColorSpace": LINEAR} if light else {})})
        return []
    text = {**text, **({"ColorSpace": "sRGB"} if light else {})}
    if form == "png":
        picture = task.preview(values, shown)
        text = {**text, **picture.text}
        writers.write_png(path, picture.pixels, text, picture.palette, light)
        return []
    packed = task.pack(values, shown)
    text = {**text, **packed.text}
    if form == "png16":
        writers.write_png(path, packed.values, text, srgb=light)
    else:
        writers.write_tiff(path, packed.values, text)
    return _cut(path, task, packed)


def _cut(path: Path, task: Task, packed: Packed) -> list[str]:
    if not packed.cut:
        return []
    height, width = packed.values.shape[:2]
    hint = "; --depth-unit or --range can make them fit" if task.metres else ""
    return [f"{path.name}: {packed.cut} of {height * width} pixels are cut to what fits{hint}"]


def layer(task: Task, values: Array, layout: str) -> tuple[Layer, list[str]]:
    """A map as a layer of an EXR file, and remarks on what did not fit.

    Depth is float, since half steps by 0.5 at 1000; ids are uint, or float for programs that know
    no whole numbers in EXR; all others are half.
    """
    names = task.exr_channels(layout, values.ndim == 3)
    kind = _kind(task, layout)
    with np.errstate(over="ignore"):
        stored = values.astype(KINDS[kind])
    planes = [stored] * len(names)
    if values.ndim == 3:  # each by itself, as it will be written: no copies are made of it then
        planes = [np.ascontiguousarray(stored[..., i]) for i in range(3)]
    told = []
    if kind == "half":
        over = int((np.isfinite(values) & np.isinf(stored)).sum())
        if over:
            told = [f"{task.name}: {over} values beyond {LARGEST_HALF:g} are infinite in EXR"]
    channels = [Channel(*pair, kind) for pair in zip(names, planes, strict=True)]
    return Layer(tuple(channels), task.measured == "light"), told


def _kind(task: Task, layout: str) -> Kind:
    if task.labels:
        return "uint" if layout == "flat" else "float"
    return "float" if task.metres else "half"


def save_exr(path: Path, layers: Sequence[Layer], look: Output, text: Text) -> None:
    """Write the maps of an image as the layers of one EXR file."""
    channels = [channel for layer in layers for channel in layer.channels]
    space = LINEAR if any(layer.light for layer in layers) else "data"
    named = {key if key == "Software" else PREFIX + key: value for key, value in text.items()}
    writers.write_exr(path, channels, {"colorInteropID": space, **named}, look.exr_compression)


def remarks(task: Task, values: Array) -> list[str]:
    """What is odd about a map: values that are not finite, or one value everywhere."""
    if task.labels or values.shape[0] * values.shape[1] < 2:
        return []
    finite = np.isfinite(values)
    if not finite.all():
        return [f"{task.name}: {int((~finite).sum())} of {values.size} values are not finite"]
    first = values[:1, :1]  # a row before all: most maps differ within it
    if (values[:1] == first).all() and (values == first).all():
        return [f"{task.name}: every pixel has the same value"]
    return []
