"""The task table: what each map is, and how it is coded in the RGB picture that the network draws.

A network picture is float32 [H, W, 3] in [-1, 1], as the VAE decodes it; values may overshoot.
Maps, in the conventions of docs/conventions.md:

    depth         float32 [H, W]     metres along the optical axis, 0 and above
    normals       float32 [H, W, 3]  unit vectors; X right, Y up, Z towards the viewer
    segmentation  uint8 [H, W]       ADE20K class ids, 0 to 149; 255 where none is known
    albedo        float32 [H, W, 3]  reflectance in [0, 1], linear
    shading       float32 [H, W]     in [0, 1], linear
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dmp_cli.classes import ade20k, nearest_class
from dmp_cli.colour import linear_from_srgb, marked, quantise, quantise16, srgb_from_linear
from dmp_cli.errors import UsageError

Array = NDArray[Any]

AXES = {"opengl": "x y z", "directx": "x -y z", "opencv": "x -y -z"}
BRIGHT = ("far", "near")  # what bright stands for in a picture of depth
UNLABELLED = 255  # a pixel without a class
Kind = Literal["values", "light", "depth", "normals", "labels"]  # of the numbers in a map


@dataclass(frozen=True)
class Coding:
    """What has to be known, beside the picture, to read a map from it."""

    scale: float = 8.0  # metres per unit of the depth picture
    emits: str = "opengl"  # the axes that the network draws normals in: a name of AXES, or "-x y z"
    axes: str = "opengl"  # the axes of the normals map
    classes: tuple[int, ...] | None = None  # the class ids to tell apart; None: all
    bright: str = "far"  # of the depth picture: a name of BRIGHT


@dataclass(frozen=True)
class View:
    """How a map is shown as a picture, and what the steps of 16-bit depth are."""

    colours: Array | None = None  # uint8 [256, 3]: colour map for depth, near first; None: grey
    invert: bool = False  # far takes the first colour
    range: tuple[float, float] | None = None  # near and far in metres; None: of each image
    ends: tuple[float, float] | None = None  # metres of the 16-bit values 1 and 65535
    unit: float = 0.001  # metres per 16-bit step, if there are no ends
    ids: str = "palette"  # pictures of classes: palette, ids, color


@dataclass(frozen=True)
class Picture:
    """An 8-bit picture: [H, W] grey or indices into `palette`, or [H, W, 3] sRGB."""

    pixels: Array
    palette: Array | None = None  # uint8 [N, 3]
    text: Mapping[str, str] = field(default_factory=dict)  # what a reader needs to know of it


@dataclass(frozen=True)
class Packed:
    """A map as uint16 [H, W] or [H, W, 3]."""

    values: Array
    text: Mapping[str, str] = field(default_factory=dict)  # how to turn it back
    cut: int = 0  # pixels that did not fit and hold the nearest value that does


def _as_stored(values: Array) -> Array:
    return values


def _pack(values: Array, view: View) -> Packed:  # noqa: ARG001
    """[0, 1] over all of 16 bits; 0 where it is not finite."""
    known = _finite(values)
    outside = (known < 0) | (known > 1)
    cut = outside.any(axis=-1) if outside.ndim == 3 else outside
    return Packed(quantise16(known), cut=int(cut.sum()))


@dataclass(frozen=True)
class Task:
    """One row of the table. ValueError if `measured` is no Kind."""

    name: str
    summary: str
    unit: str
    decode: Callable[[Array, Coding], Array]  # network picture -> map, at the network's size
    encode: Callable[[Array, Coding], Array]  # map -> network picture, for training
    preview: Callable[[Array, View], Picture]  # map -> picture to look at
    metrics: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    measured: Kind = "values"  # what its numbers are: how they are read, resized and measured
    flip: bool = True  # whether a mirrored pair may train it
    unpack: Callable[[Array], Array] = _as_stored  # integers of a file, as [0, 1] -> map
    layers: tuple[str, ...] = ()  # names in EXR files, beside `name` and `aliases`
    pack: Callable[[Array, View], Packed] = _pack  # map -> 16 bits
    # names of channels in EXR, by layout
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.measured not in get_args(Kind):
            kinds = ", ".join(get_args(Kind))
            raise ValueError(f"task {self.name}: measured {self.measured!r} is none of {kinds}")

    def exr_channels(self, layout: str, three: bool) -> tuple[str, ...]:
        """Names of the channels of its layer in EXR; a row that names none has R, G, B or Y."""
        plain = tuple(f"{self.name}.{channel}" for channel in ("RGB" if three else "Y"))
        return self.channels.get(layout, plain)

    @property
    def labels(self) -> bool:
        """Whether it holds ids: resized by nearest, never mixed."""
        return self.measured == "labels"

    @property
    def unit_length(self) -> bool:
        """Whether it holds vectors: made unit length again after resizing."""
        return self.measured == "normals"

    @property
    def metres(self) -> bool:
        """Whether it holds distances: integers of a file are steps of a unit, 0 is no surface."""
        return self.measured == "depth"


def unit_vectors(vectors: Array) -> Array:
    """[..., 3] scaled to length 1; a zero vector becomes (0, 0, 1), towards the viewer."""
    x, y, z = (vectors[..., axis] for axis in range(3))
    length = np.sqrt(x * x + y * y + z * z)
    units: Array = np.empty_like(vectors, np.float32)
    for axis in range(3):  # numpy is slow where the last axis is short
        np.divide(vectors[..., axis], np.maximum(length, 1e-6), out=units[..., axis])
    units[length <= 1e-6] = (0, 0, 1)
    return units


def parse_axes(text: str) -> tuple[tuple[int, int], ...]:
    """(column, sign) for X, Y and Z out of a name of AXES or three signed letters, "-x y z".

    The letters say what the three channels hold: "x -y z" is X right, Y down, Z to the viewer.
    UsageError if they are not a permutation of x, y and z.
    """
    found = re.findall(r"([+-]?)([xyz])", AXES.get(text, text))
    letters = [letter for _, letter in found]
    if sorted(letters) != ["x", "y", "z"] or re.sub(r"[\sxyz+-]", "", AXES.get(text, text)):
        raise UsageError(
            f"unknown axes {text!r} for normals",
            f'use {", ".join(AXES)}, or three signed letters such as "-x y z"',
        )
    return tuple((letters.index(axis), -1 if found[letters.index(axis)][0] == "-" else 1)
                 for axis in "xyz")  # fmt: skip


def to_opengl(vectors: Array, axes: str) -> Array:
    """[..., 3] in `axes` -> the same vectors with X right, Y up, Z towards the viewer."""
    rule = parse_axes(axes)
    return vectors[..., [column for column, _ in rule]] * np.array(
        [sign for _, sign in rule], np.float32
    )


def _from_opengl(vectors: Array, axes: str) -> Array:
    out = np.empty_like(vectors)
    for axis, (column, sign) in enumerate(parse_axes(axes)):
        out[..., column] = vectors[..., axis] * np.float32(sign)
    return out


def _grey(rgb: Array) -> Array:
    return np.asarray((rgb[..., 0] + rgb[..., 1] + rgb[..., 2]) / np.float32(3))


def _finite(values: Array) -> Array:
    """The values with 0 for those that are not finite; the array itself if all are."""
    return values if np.isfinite(values).all() else np.nan_to_num(values, posinf=0, neginf=0)


def _three(grey: Array) -> Array:
    return np.repeat(np.asarray(grey, np.float32)[..., None], 3, axis=-1)


# depth ---------------------------------------------------------------------------------------


def _decode_depth(rgb: Array, coding: Coding) -> Array:
    level = _grey(rgb) / 2 + np.float32(0.5)
    level = 1 - level if coding.bright == "near" else level
    return np.maximum(level, 0) * np.float32(coding.scale)


def _encode_depth(depth: Array, coding: Coding) -> Array:
    level = depth / np.float32(coding.scale)
    level = 1 - level if coding.bright == "near" else level
    return _three(level * 2 - 1)


def depth_range(depth: Array) -> tuple[float, float] | None:
    """Metres of the 1st and the 99th percentile of what is finite; None if nothing is."""
    finite = np.isfinite(depth)
    known = depth if finite.all() else depth[finite]
    if not known.size:
        return None
    near, far = np.percentile(known, (1, 99))
    return float(near), float(far)


def _preview_depth(depth: Array, view: View) -> Picture:
    near, far = view.range or depth_range(depth) or (0.0, 1.0)
    span = max(far - near, 1e-6)
    level = (_finite(depth) - np.float32(near)) / np.float32(span)
    steps = quantise(1 - level if view.invert else level)
    pixels = steps if view.colours is None else view.colours.take(steps, axis=0)
    text = {"near": f"{near:.6g} m", "far": f"{far:.6g} m"}
    return Picture(marked(pixels, depth), text=text)


def _pack_depth(depth: Array, view: View) -> Packed:
    """0 where there is no depth; else `metres_at_zero + metres_per_step * value`."""
    near, far = view.ends or (view.unit, 65535 * view.unit)
    step = view.unit if view.ends is None else max(far - near, 1e-6) / 65534
    zero = 0.0 if view.ends is None else near - step
    finite = np.isfinite(depth)
    metres = np.where(finite, depth, near).astype(np.float64)
    steps = np.clip(np.rint((metres - zero) / step), 1, 65535)
    cut = np.abs(zero + step * steps - metres) > 0.5001 * step
    text = {"metres_per_step": repr(step), "metres_at_zero": repr(zero)}
    if view.ends:
        text |= {"near": f"{near:.6g} m", "far": f"{far:.6g} m"}
    return Packed(np.where(finite, steps, 0).astype(np.uint16), text, int(cut.sum()))


# normals -------------------------------------------------------------------------------------


def _decode_normals(rgb: Array, coding: Coding) -> Array:
    vectors = unit_vectors(np.clip(rgb, -1, 1))
    if coding.emits == coding.axes:
        return vectors
    return _from_opengl(to_opengl(vectors, coding.emits), coding.axes)


def _encode_normals(normals: Array, coding: Coding) -> Array:
    return _from_opengl(to_opengl(np.asarray(normals, np.float32), coding.axes), coding.emits)


def _unpack_normals(colours: Array) -> Array:
    vectors = colours * np.float32(2) - 1
    vectors[np.isin(colours.sum(axis=-1), (0, 3))] = 0  # black and white stand for no surface
    return vectors


def _preview_normals(normals: Array, view: View) -> Picture:  # noqa: ARG001
    return Picture(marked(quantise(_finite(normals) / 2 + 0.5), normals))


def _pack_normals(normals: Array, view: View) -> Packed:  # noqa: ARG001
    """-1 to 1 over all of 16 bits; black where there is no surface."""
    known = np.atleast_2d(np.isfinite(normals).all(axis=-1) & normals.any(axis=-1))
    return Packed(np.where(known[..., None], quantise16(_finite(normals) / 2 + 0.5), 0))


# segmentation --------------------------------------------------------------------------------


def _decode_segmentation(rgb: Array, coding: Coding) -> Array:
    return nearest_class(quantise(rgb / 2 + 0.5), coding.classes)


def _encode_segmentation(ids: Array, coding: Coding) -> Array:  # noqa: ARG001
    black = np.zeros((256 - len(ade20k().drawn), 3), np.uint8)  # 255: no class is known
    return np.asarray(np.concatenate([ade20k().drawn, black])[ids] / np.float32(127.5) - 1)


def _preview_segmentation(ids: Array, view: View) -> Picture:
    palette = ade20k().standard
    if view.ids == "color":
        black = np.zeros((256 - len(palette), 3), np.uint8)
        return Picture(np.concatenate([palette, black])[ids])
    return Picture(ids, palette=palette if view.ids == "palette" else None)


def _pack_segmentation(ids: Array, view: View) -> Packed:  # noqa: ARG001
    return Packed(ids.astype(np.uint16))


# albedo and shading --------------------------------------------------------------------------


def _decode_albedo(rgb: Array, coding: Coding) -> Array:  # noqa: ARG001
    return linear_from_srgb(np.clip(rgb / 2 + np.float32(0.5), 0, 1))


def _encode_albedo(albedo: Array, coding: Coding) -> Array:  # noqa: ARG001
    return srgb_from_linear(albedo) * 2 - 1


def _decode_shading(rgb: Array, coding: Coding) -> Array:  # noqa: ARG001
    return linear_from_srgb(_grey(np.clip(rgb / 2 + np.float32(0.5), 0, 1)))


def _encode_shading(shading: Array, coding: Coding) -> Array:  # noqa: ARG001
    return _three(srgb_from_linear(shading) * 2 - 1)


def _preview_light(values: Array, view: View) -> Picture:  # noqa: ARG001
    return Picture(marked(quantise(srgb_from_linear(_finite(values))), values))


def _pack_light(values: Array, view: View) -> Packed:
    return _pack(srgb_from_linear(_finite(values)), view)


def _layer(name: str, channels: str) -> tuple[str, ...]:
    return tuple(f"{name}.{channel}" for channel in channels)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "depth", "distance from the camera plane", "metres",
            _decode_depth, _encode_depth, _preview_depth, ("abs_rel", "delta_1"),
            measured="depth", layers=("Z",), pack=_pack_depth,
            channels={"flat": ("Z",), "blender": ("ViewLayer.Depth.Z",), "nuke": ("depth.Z",)},
        ),
        Task(
            "normals", "surface orientation", "unit vectors",
            _decode_normals, _encode_normals, _preview_normals, ("mean_angle",),
            aliases=("normal",), measured="normals", flip=False,
            unpack=_unpack_normals, layers=("N",), pack=_pack_normals,
            channels={"flat": _layer("N", "XYZ"), "blender": _layer("ViewLayer.Normal", "XYZ"),
                      "nuke": _layer("N", "XYZ")},
        ),
        Task(
            "segmentation", "what each pixel shows, ADE20K", "class ids 0-149",
            _decode_segmentation, _encode_segmentation, _preview_segmentation, ("miou",),
            aliases=("seg",), measured="labels", layers=("IndexOB",), pack=_pack_segmentation,
            channels={"flat": ("seg.id",), "blender": ("ViewLayer.IndexOB.X",),
                      "nuke": ("seg.id",)},
        ),
        Task(
            "albedo", "surface colour without light", "reflectance 0-1, linear",
            _decode_albedo, _encode_albedo, _preview_light, ("rmse_srgb",),
            measured="light", unpack=linear_from_srgb, layers=("DiffCol",), pack=_pack_light,
            channels={"blender": _layer("ViewLayer.DiffCol", "RGB")},
        ),
        Task(
            "shading", "light without surface colour", "0-1, linear",
            _decode_shading, _encode_shading, _preview_light, ("rmse",),
            measured="light", unpack=linear_from_srgb, pack=_pack_light,
            channels=dict.fromkeys(("flat", "nuke"), _layer("shading", "RGB"))
            | {"blender": _layer("ViewLayer.Shading", "RGB")},
        ),
    )
}  # fmt: skip


def find(name: str) -> Task:
    """The row of that name or alias; UsageError lists the names."""
    for task in TASKS.values():
        if name == task.name or name in task.aliases:
            return task
    close = difflib.get_close_matches(name, TASKS, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise UsageError(f"unknown task {name!r}", f"{meant}known: {', '.join(TASKS)}")


def find_several(names: str | Iterable[str]) -> tuple[Task, ...]:
    """Rows for names with commas, or for several of them; each once, in the order asked for."""
    words = names.split(",") if isinstance(names, str) else list(names)
    found = [find(word.strip()) for word in words if word.strip()]
    if not found:
        raise UsageError("no task named", f"known: {', '.join(TASKS)}")
    return tuple(dict.fromkeys(found))
