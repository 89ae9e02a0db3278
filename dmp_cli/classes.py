"""ADE20K: its classes, both palettes, and the class of a colour that the network drew."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class Classes:
    """ADE20K: names, the customary palette, and the one that DMP draws in; uint8 [150, 3]."""

    names: tuple[str, ...]
    standard: Array
    drawn: Array
    bedroom: tuple[int, ...]  # the classes that the official bedroom evaluation keeps


@cache
def ade20k() -> Classes:
    """The class table that is packaged with dmp."""
    table = json.loads(resources.files("dmp_cli").joinpath("ade20k.json").read_text())
    rows = table["classes"]
    return Classes(
        tuple(row["name"] for row in rows),
        np.array([row["standard"] for row in rows], np.uint8),
        np.array([row["dmp"] for row in rows], np.uint8),
        tuple(table["bedroom"]),
    )


def parse_classes(text: str) -> tuple[int, ...] | None:
    """`all`, `bedroom`, or ids and names with commas; UsageError names one that is not known."""
    if text == "all":
        return None
    if text == "bedroom":
        return ade20k().bedroom
    names = ade20k().names
    ids = []
    for word in (word.strip() for word in text.split(",")):
        if word in names:
            ids.append(names.index(word))
        elif word.isdigit() and int(word) < len(names):
            ids.append(int(word))
        else:
            raise UsageError(
                f"unknown class {word!r}", "use all, bedroom, or ids 0 to 149 or ADE20K names"
            )
    return tuple(sorted(set(ids)))


@cache
def _lab_tables() -> tuple[Array, Array, Array]:
    """Fixed-point tables of 8-bit Lab: sRGB to linear (11 bits), the cube root, RGB to XYZ/white.

    15 bits of fraction after the cube root, 12 in the matrix, D65, the ITU-R BT.709 primaries.
    """
    coded = np.arange(256) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    light = np.arange(256 * 3 // 2 * 8, dtype=np.float32) / np.float32(255 * 8)
    root = np.where(light < 0.008856, light * 7.787 + 0.13793, np.cbrt(light))
    xyz = np.array([[0.412453, 0.357580, 0.180423],
                    [0.212671, 0.715160, 0.072169],
                    [0.019334, 0.119193, 0.950227]])  # fmt: skip
    matrix = np.rint(4096 * xyz / np.array([[0.950456], [1.0], [1.088754]]))
    return (
        np.rint(linear * 255 * 8).astype(np.int32),
        np.rint(root * 32768).astype(np.int32),
        matrix.astype(np.int32),
    )


def lab8(rgb: Array) -> Array:
    """8-bit sRGB [..., 3] to 8-bit CIE Lab: L * 255 / 100, a + 128, b + 128, uint8.

    In the integer arithmetic that the field's images are converted in (OpenCV's `COLOR_RGB2LAB`,
    equal for all 16.7 million colours), since nearest-colour ties are decided by the last bit.
    """
    linear, root, matrix = _lab_tables()
    fx, fy, fz = np.moveaxis(root[(linear[rgb] @ matrix.T + 2048) >> 12], -1, 0)
    lightness = (296 * fy - 1336934 + 16384) >> 15
    a = (500 * (fx - fy) + (128 << 15) + 16384) >> 15
    b = (200 * (fy - fz) + (128 << 15) + 16384) >> 15
    return np.asarray(np.clip(np.stack([lightness, a, b], axis=-1), 0, 255), np.uint8)


def nearest_class(rgb: Array, classes: Iterable[int] | None = None) -> Array:
    """uint8 [H, W] ids of the drawn colours nearest in 8-bit Lab to uint8 [H, W, 3]; ties: lowest.

    With `classes`, the others' colours are black, as in the official bedroom evaluation: what is
    nearest to black takes the lowest id that is left out.
    """
    palette = _palette(None if classes is None else tuple(classes))
    colours = rgb[..., 0].astype(np.uint32) << 16
    colours |= rgb[..., 1].astype(np.uint32) << 8
    colours |= rgb[..., 2]
    found = palette.met.take(colours)
    if not found.all():
        new = np.unique(colours[found == 0])
        palette.met[new] = 1 + _nearest(new, palette.lab)
        found = palette.met.take(colours)
    return np.asarray(found - np.uint8(1))


@dataclass(frozen=True)
class _Palette:
    """Colours to tell apart, in 8-bit Lab as float32 [150, 3], and of which it is known by now.

    `met`: uint8 [2^24], 1 + the id of each sRGB colour that was asked for before, else 0; at most
    16 MB. Threads may fill it at the same time: they write the same.
    """

    lab: Array
    met: Array


@lru_cache(maxsize=4)
def _palette(classes: tuple[int, ...] | None) -> _Palette:
    colours = ade20k().drawn.copy()
    if classes is not None:
        colours[np.setdiff1d(np.arange(len(colours)), classes)] = 0
    return _Palette(lab8(colours).astype(np.float32), np.zeros(1 << 24, np.uint8))


def _nearest(colours: Array, centres: Array) -> Array:
    """uint8 [N] indices of the centres, Lab [M, 3], nearest to 24-bit sRGB colours, uint32 [N]."""
    nearest = np.empty(len(colours), np.uint8)
    # |p - c|^2 less |p|^2; whole numbers below 2^24, so exact in float32
    factors, terms = -2 * centres.T, (centres**2).sum(axis=1)
    for start in range(0, len(colours), 2048):  # so that distances stay in the processor's cache
        some = colours[start : start + 2048]
        rgb = np.stack([some >> 16, some >> 8 & 255, some & 255], axis=-1).astype(np.uint8)
        distances = lab8(rgb).astype(np.float32) @ factors
        distances += terms
        nearest[start : start + 2048] = distances.argmin(axis=1)
    return nearest
