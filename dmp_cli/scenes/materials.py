"""What surfaces look like: colours and patterns as functions of the place on a solid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """A pattern of two colours (linear reflectance), its size in metres, and its shine."""

    pattern: str
    one: Colour
    two: Colour
    size: float = 0.3
    seed: int = 0
    gloss: float = 0.0  # strength of the highlight
    glow: bool = False  # shines by itself: sky in a window, a lamp

    def albedo(self, points: Array, normals: Array) -> Array:
        """Linear reflectance [3, N] at points [3, N] with normals [3, N], in local coordinates."""
        u, v = _flat(points, normals)
        share = PATTERNS[self.pattern](u / self.size, v / self.size, self.seed)
        one, two = (np.array(c, np.float32)[:, None] for c in (self.one, self.two))
        return np.asarray(one + (two - one) * share, np.float32)


def _flat(points: Array, normals: Array) -> tuple[Array, Array]:
    """Two coordinates on the surface: the axes across the strongest one of the normal."""
    axis = np.abs(normals).argmax(axis=0)
    x, y, z = points
    return np.where(axis == 0, z, x), np.where(axis == 1, z, y)


def _hash(i: Array, j: Array, seed: int) -> Array:
    """Numbers in [0, 1) that look random, one for each lattice cell."""
    mixed = i.astype(np.int64) * 374761393 + j.astype(np.int64) * 668265263 + seed * 2147483647
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 16)) * 2246822519 & 0xFFFFFFFF
    return np.asarray((mixed >> 8) / np.float32(1 << 24), np.float32)


def noise(u: Array, v: Array, seed: int) -> Array:
    """Smooth value noise in [0, 1] with cells of size 1."""
    i, j = np.floor(u), np.floor(v)
    fu, fv = u - i, v - j
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    low = _hash(i, j, seed) * (1 - fu) + _hash(i + 1, j, seed) * fu
    high = _hash(i, j + 1, seed) * (1 - fu) + _hash(i + 1, j + 1, seed) * fu
    return np.asarray(low * (1 - fv) + high * fv, np.float32)


def _cloud(u: Array, v: Array, seed: int) -> Array:
    return np.asarray(
        0.55 * noise(u, v, seed) + 0.3 * noise(u * 2.1, v * 2.1, seed + 1)
        + 0.15 * noise(u * 4.3, v * 4.3, seed + 2)
    )  # fmt: skip


def _plain(u: Array, v: Array, seed: int) -> Array:  # noqa: ARG001
    return np.zeros_like(u)


def _speckle(u: Array, v: Array, seed: int) -> Array:
    return noise(u * 6, v * 6, seed)


def _checker(u: Array, v: Array, seed: int) -> Array:  # noqa: ARG001
    return np.asarray((np.floor(u) + np.floor(v)) % 2)


def _stripes(u: Array, v: Array, seed: int) -> Array:
    return np.asarray(np.floor((v if seed % 2 else u) * 2) % 2)


def _tiles(u: Array, v: Array, seed: int) -> Array:
    joint = (np.abs(u - np.rint(u)) < 0.04) | (np.abs(v - np.rint(v)) < 0.04)
    return np.where(joint, 1.0, 0.35 * _hash(np.floor(u), np.floor(v), seed))


def _bricks(u: Array, v: Array, seed: int) -> Array:
    row = np.floor(v * 2.5)
    across = u + 0.5 * (row % 2)
    joint = (np.abs(across - np.rint(across)) < 0.04) | (np.abs(v * 2.5 - np.rint(v * 2.5)) < 0.09)
    return np.where(joint, 1.0, 0.4 * _hash(np.floor(across), row, seed))


def _planks(u: Array, v: Array, seed: int) -> Array:
    if seed % 2:
        u, v = v, u
    board = np.floor(u * 3)
    grain = noise(u * 20, v * 1.2 + 7 * _hash(board, board, seed), seed)
    gap = np.abs(u * 3 - np.rint(u * 3)) < 0.05
    return np.where(gap, 1.0, 0.4 * _hash(board, np.zeros_like(board), seed + 3) + 0.35 * grain)


def _wood(u: Array, v: Array, seed: int) -> Array:
    return np.asarray(0.5 + 0.5 * np.sin(9 * u + 5 * noise(u, v * 0.4, seed)))


def _dots(u: Array, v: Array, seed: int) -> Array:  # noqa: ARG001
    return np.asarray((u - np.rint(u)) ** 2 + (v - np.rint(v)) ** 2 < 0.09)


def _blocks(u: Array, v: Array, seed: int) -> Array:
    return np.asarray(np.rint(_hash(np.floor(u * 3), np.floor(v * 3), seed) * 3) / 3)


def _waves(u: Array, v: Array, seed: int) -> Array:
    return np.asarray(0.5 + 0.5 * np.sin(12 * u + 2 * np.sin(3 * v + seed % 7)))


PATTERNS: dict[str, Callable[[Array, Array, int], Array]] = {
    "plain": _plain,
    "cloud": _cloud,
    "speckle": _speckle,
    "checker": _checker,
    "stripes": _stripes,
    "tiles": _tiles,
    "bricks": _bricks,
    "planks": _planks,
    "wood": _wood,
    "dots": _dots,
    "blocks": _blocks,
    "waves": _waves,
}
