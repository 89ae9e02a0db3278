"""EXR and Radiance HDR pictures -> 8-bit sRGB: scene-linear light, exposed, cut and coded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmp_cli.colour import linear_from_srgb, quantise, srgb_from_linear
from dmp_cli.errors import ImageError
from dmp_cli.inputs import planes
from dmp_cli.inputs.pictures import WHITE, Array, Colour, check_size, not_finite

# The first bytes of an EXR, and of the programs that write Radiance's RGBE
STARTS = (b"v/1\x01", b"#?RADIANCE", b"#?RGBE", b"#?AUTOPANO")

# Layers of one channel that are no grey picture: dmp's and Blender's own names, and usual ones
DATA = frozenset(
    {"z", "zback", "depth", "dist", "mist", "n", "normal", "normals", "uv", "vector"}
    | {"id", "seg", "segmentation", "mask"}
)

REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # x, y of red, green, blue, white
_D65 = (0.3127, 0.3290)
# Bradford's cone responses, as ICC.1:2022 annex E.3 has them
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_BAND = 256  # rows that are developed at once: large pictures are not held several times as floats
_BRIGHTEST = 1e30  # infinity, so that sums stay finite
_RESOLUTION = re.compile(rb"\n\n([+-])([XY]) +\d+ +([+-])[XY] +\d+\n")
_PRIMARIES = re.compile(rb"\nPRIMARIES=([^\n]*)\n")


def read(
    path: Path, max_pixels: int, *, background: Colour = WHITE, exposure: float = 0.0
) -> tuple[Array, tuple[str, ...]]:
    """uint8 [H, W, 3] sRGB of an EXR or HDR file, and notes.

    Light times 2**`exposure` (stops), laid over `background` by its alpha (associated in EXR:
    OpenEXR's technical introduction) in linear light, cut to [0, 1], coded by sRGB's curve. If its
    primaries are not Rec. 709's, it is converted. ImageError if the file is damaged, holds no
    colours or several pictures, or has more than `max_pixels`.
    """
    with path.open("rb") as stream:
        head = stream.read(8192)
    if b"\nFORMAT=32-bit_rle_xyze" in head:
        raise ImageError("holds XYZ colours", "convert it to RGB: `ra_xyze -r`")
    file = planes.open_file(path, "EXR" if head.startswith(STARTS[0]) else "HDR")
    if file.format_name() not in ("openexr", "hdr"):
        raise ImageError("damaged: the file begins as EXR or HDR but is neither")
    layer = _choose(list(_layers(file)))
    file.seek_subimage(layer.part, 0)
    spec = file.spec()
    for size in planes.sizes(spec):
        check_size(*size, max_pixels)
    first, end = min(layer.channels.values()), max(layer.channels.values()) + 1
    light = planes.read(file, layer.part, (first, end))
    light = light[..., [index - first for index in layer.channels.values()]]
    if file.format_name() == "hdr":
        light = _upright(light, head)
    if light.shape[-1] < 3:  # grey, and alpha
        light = np.concatenate([light[..., :1].repeat(3, -1), light[..., 1:]], -1)
    notes: tuple[str, ...] = ()
    if light.shape[-1] == 4 and not light[..., 3].any():
        light, notes = light[..., :3], ("its alpha is 0 everywhere: ignored",)
    matrix, told = _conversion(_primaries(spec, head))
    rgb, lost = _developed(light, matrix, 2.0**exposure, background)
    return rgb, notes + told + not_finite(lost)


# Which channels are the picture -----------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """Channels of a part whose names are equal up to the last dot; values: their indices."""

    part: int
    name: str
    channels: dict[str, int]
    full: tuple[str, ...]  # the names of all its channels as the file has them

    def only(self, *names: str) -> "_Layer":
        """Itself with these channels, and alpha if it has one."""
        kept = {n: self.channels[n] for n in (*names, "a") if n in self.channels}
        return replace(self, channels=kept)


def _layers(file: Any) -> Iterator[_Layer]:
    """Each layer of floats in the file; ids, and what the file calls data, are no light."""
    part = 0
    while file.seek_subimage(part, 0):
        spec = file.spec()
        groups: dict[str, dict[str, int]] = {}
        kinds = spec.channelformats or [spec.format] * spec.nchannels
        data = spec.get_string_attribute("colorInteropID") == "data"
        for index, (name, kind) in enumerate(zip(spec.channelnames, kinds, strict=True)):
            layer, _, channel = name.rpartition(".")
            no_light = data or str(kind) == "uint"
            groups.setdefault(layer, {})[f"data {name}" if no_light else channel.lower()] = index
        for layer, channels in groups.items():
            full = tuple(spec.channelnames[index] for index in channels.values())
            yield _Layer(part, layer, channels, full)
        part += 1


def _choose(layers: list[_Layer]) -> _Layer:
    """The picture: R, G, B; else Blender's Combined; else the only layer of colours; else grey."""
    colours = [layer for layer in layers if {"r", "g", "b"} <= set(layer.channels)]
    plain = [layer for layer in colours if not layer.name]
    combined = [layer for layer in colours if layer.name.lower().split(".")[-1] == "combined"]
    chosen = plain or combined or colours
    if len(chosen) > 1 and chosen is colours:
        raise ImageError(
            f"layers {', '.join(layer.name for layer in colours[:8])}: which one is the picture?",
            "save the one that is meant as R, G, B",
        )
    if chosen:
        return chosen[0].only("r", "g", "b")
    for layer in layers:
        if "y" in layer.channels and not {"x", "z"} & set(layer.channels):
            return layer.only("y")
    alone = [(layer, name) for layer in layers for name in layer.channels if name != "a"]
    if len(alone) == 1 and not alone[0][1].startswith("data "):
        layer, name = alone[0]
        if not DATA & {name, *layer.name.lower().split(".")}:
            return layer.only(name)
    names = [name for layer in layers for name in layer.full]
    raise ImageError(
        f"holds no colours, only {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        "give the picture itself: this looks like a file of maps",
    )


def _upright(values: Array, head: bytes) -> Array:
    """Values of an HDR file turned as its resolution line says: Radiance's filefmts, "-Y 3 +X 4".

    The axis that is named first is that of the scanlines; + runs upwards, and to the right.
    """
    found = _RESOLUTION.search(head)
    if found is None:
        return values
    first, axis, second = found.groups()
    if axis == b"X":
        values, first, second = values.swapaxes(0, 1), second, first
    values = values[::-1] if first == b"+" else values
    return values[:, ::-1] if second == b"-" else values


# From light to 8 bits ---------------------------------------------------------------------


def _developed(
    light: Array, matrix: Array | None, gain: float, background: Colour
) -> tuple[Array, int]:
    """uint8 [H, W, 3] of light [H, W, 3 or 4 (alpha)], and how many values were not finite."""
    rgb = np.empty((*light.shape[:2], 3), np.uint8)
    behind = linear_from_srgb(np.asarray(background, np.float32) / 255)
    lost = 0
    for top in range(0, len(light), _BAND):
        band = light[top : top + _BAND].astype(np.float32)
        lost += int(band.size - np.isfinite(band).sum())
        alpha = np.clip(np.nan_to_num(band[..., 3:], nan=1), 0, 1)
        colours = np.nan_to_num(band[..., :3], nan=0, posinf=_BRIGHTEST, neginf=0)
        colours = np.clip(colours, -_BRIGHTEST, _BRIGHTEST)
        if matrix is not None:
            colours = colours @ matrix.T
        colours = np.clip(colours, 0, 1 / gain) * gain
        if alpha.shape[-1]:
            colours = colours + (1 - alpha) * behind
        rgb[top : top + _BAND] = quantise(srgb_from_linear(np.clip(colours, 0, 1)))
    return rgb, lost


def _primaries(spec: Any, head: bytes) -> Any:
    """EXR's attribute or HDR's line that names the primaries; None if there is none."""
    line = _PRIMARIES.search(head)
    return line.group(1).split() if line else spec.getattribute("chromaticities")


def _conversion(primaries: Any) -> tuple[Array | None, tuple[str, ...]]:
    """The matrix from light of these primaries to Rec. 709's, if that changes it, and notes."""
    if primaries is None:
        return None, ()
    try:
        numbers = np.array(primaries, np.float64).reshape(8)
        if np.abs(numbers - REC709).max() < 1e-3:
            return None, ()
        with np.errstate(all="ignore"):
            matrix = np.linalg.inv(_to_xyz(np.array(REC709))) @ _to_xyz(numbers)
    except (ValueError, IndexError, ZeroDivisionError, np.linalg.LinAlgError):
        matrix = np.full((3, 3), np.nan)
    if not np.abs(matrix).max() < 100:
        return None, ("its primaries are damaged: taken as Rec. 709",)
    return matrix.astype(np.float32), ("its colours were converted from other primaries",)


def _to_xyz(primaries: Array) -> Array:
    """[3, 3] from RGB to XYZ (SMPTE RP 177), its white adapted to D65 by Bradford's method."""
    corners = np.stack([_xyz(*primaries[i : i + 2].tolist()) for i in (0, 2, 4)], -1)
    white = _xyz(*primaries[6:8].tolist())
    to_xyz = corners * np.linalg.solve(corners, white)
    cones = (_CONES @ _xyz(*_D65)) / (_CONES @ white)
    return np.asarray(np.linalg.inv(_CONES) @ np.diag(cones) @ _CONES @ to_xyz)


def _xyz(x: float, y: float) -> Array:
    return np.array([x / y, 1, (1 - x - y) / y])
