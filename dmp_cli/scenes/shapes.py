"""Solids that rays can meet: box, ball, frustum, and the shell of a room seen from inside.

World: metres, X right, Y up, Z to the viewer. A ray is `origin + t * direction`; directions are
float32 [3, N] and need not have unit length. A solid stands at `centre`, turned by `yaw` about Y.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli.scenes.materials import Material

Array = NDArray[Any]
Vector = tuple[float, float, float]

NEAR = 1e-3  # a ray meets nothing nearer than this share of its direction
_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class Hole:
    """A rectangle that is missing from a wall of a shell, in the shell's own coordinates."""

    axis: int  # 0 or 2: the wall is at x or z = `side` * half
    side: int  # -1 or 1
    low: tuple[float, float]  # along the wall (z or x), and up
    high: tuple[float, float]


@dataclass(frozen=True)
class Part:
    """What a surface is: its class id and what it looks like."""

    label: int
    material: Material


@dataclass(frozen=True)
class Solid:
    """One solid.

    kind     box: `half` are half its sides. ball: its radii. frustum: radius below, half its
             height, radius above. shell: half the sides of the room that it encloses.
    parts    one part, or for a shell: floor, walls, ceiling.
    """

    kind: str
    centre: Vector
    half: Vector
    parts: tuple[Part, ...]
    yaw: float = 0.0
    holes: tuple[Hole, ...] = ()
    roofless: bool = False  # a shell without ceiling
    casts: bool = True  # whether it throws a shadow

    def meet(self, origin: Array, direction: Array) -> Array:
        """t [N] of the first point of each ray on the solid, infinite where there is none.

        `origin` is [3, N] or [3, 1].
        """
        return _MEET[self.kind](self, self.local(origin), _turn(direction, -self.yaw))

    def local(self, points: Array) -> Array:
        """Points [3, N] in the solid's own coordinates."""
        return _turn(points - np.array(self.centre, np.float32)[:, None], -self.yaw)

    def normals(self, points: Array) -> Array:
        """Unit normals [3, N], in its own coordinates, at points [3, N] of its surface."""
        return _NORMALS[self.kind](self, points)

    def to_world(self, vectors: Array) -> Array:
        """Vectors [3, N] of its own coordinates in those of the world."""
        return _turn(vectors, self.yaw)

    def part_of(self, normals: Array) -> Array:
        """Index into `parts` [N] for points with these local normals."""
        if len(self.parts) == 1:
            return np.zeros(normals.shape[1], np.int8)
        return np.select([normals[1] > 0.5, normals[1] < -0.5], [0, 2], 1).astype(np.int8)


def _turn(vectors: Array, angle: float) -> Array:
    if angle == 0.0:
        return vectors
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = vectors
    return np.stack([cos * x + sin * z, y, cos * z - sin * x])


def _slabs(solid: Solid, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Where each ray enters and leaves the three slabs of a box: t [3, N] twice."""
    safe = np.where(np.abs(direction) < _TINY, _TINY, direction)
    half = np.array(solid.half, np.float32)[:, None]
    one, two = (-half - origin) / safe, (half - origin) / safe
    return np.minimum(one, two), np.maximum(one, two)


def _meet_box(solid: Solid, origin: Array, direction: Array) -> Array:
    near, far = _slabs(solid, origin, direction)
    enter, leave = near.max(axis=0), far.min(axis=0)
    return np.where((enter <= leave) & (enter > NEAR), enter, np.inf).astype(np.float32)


def _meet_shell(solid: Solid, origin: Array, direction: Array) -> Array:
    _, far = _slabs(solid, origin, direction)
    leave = far.min(axis=0)
    points = origin + direction * leave
    half = solid.half
    open_ = (points[1] > half[1] - 1e-3) & solid.roofless
    for hole in solid.holes:
        along = points[2 - hole.axis]
        on_wall = points[hole.axis] * hole.side > half[hole.axis] - 1e-3
        open_ |= (
            on_wall
            & (along > hole.low[0]) & (along < hole.high[0])
            & (points[1] > hole.low[1]) & (points[1] < hole.high[1])
        )  # fmt: skip
    return np.where(open_, np.float32(np.inf), leave).astype(np.float32)


def _roots(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Both roots of a t^2 + 2 b t + c, the lower first; NaN-free, infinite where not real."""
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    safe = np.where(np.abs(a) < _TINY, _TINY, a)
    one, two = (-b - root) / safe, (-b + root) / safe
    real = inside > 0
    low = np.where(real, np.minimum(one, two), np.inf)
    return low, np.where(real, np.maximum(one, two), np.inf)


def _meet_ball(solid: Solid, origin: Array, direction: Array) -> Array:
    radii = np.array(solid.half, np.float32)[:, None]
    start, ray = origin / radii, direction / radii
    low, high = _roots((ray * ray).sum(0), (start * ray).sum(0), (start * start).sum(0) - 1)
    t = np.where(low > NEAR, low, high)
    return np.where(t > NEAR, t, np.inf).astype(np.float32)


def _meet_frustum(solid: Solid, origin: Array, direction: Array) -> Array:
    below, half, above = solid.half
    slope = (above - below) / (2 * half)
    radius = below + slope * (origin[1] + half)  # at the origin's height
    x, z, dx, dy, dz = origin[0], origin[2], direction[0], direction[1], direction[2]
    low, high = _roots(
        dx * dx + dz * dz - (slope * dy) ** 2,
        x * dx + z * dz - slope * dy * radius,
        x * x + z * z - radius * radius,
    )
    best = np.full(direction.shape[1], np.inf, np.float32)
    with np.errstate(invalid="ignore"):
        for t in (high, low):
            height = origin[1] + dy * t
            fits = (t > NEAR) & (np.abs(height) <= half)
            fits &= below + slope * (height + half) >= 0  # not the mirrored cone
            best = np.where(fits & (t < best), t, best)
        safe = np.where(np.abs(dy) < _TINY, _TINY, dy)
        for height, cap in ((-half, below), (half, above)):
            t = (height - origin[1]) / safe
            fits = (t > NEAR) & (t < best) & ((x + dx * t) ** 2 + (z + dz * t) ** 2 <= cap * cap)
            best = np.where(fits, t, best)
    return best.astype(np.float32)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.sqrt((vectors * vectors).sum(0)), 1e-9), np.float32)


def _box_normals(solid: Solid, points: Array) -> Array:
    share = points / np.array(solid.half, np.float32)[:, None]
    axis = np.abs(share).argmax(axis=0)
    rows = np.arange(points.shape[1])
    normals = np.zeros_like(points)
    normals[axis, rows] = np.sign(share[axis, rows])
    return normals


def _shell_normals(solid: Solid, points: Array) -> Array:
    return -_box_normals(solid, points)


def _ball_normals(solid: Solid, points: Array) -> Array:
    return _unit(points / np.array(solid.half, np.float32)[:, None] ** 2)


def _frustum_normals(solid: Solid, points: Array) -> Array:
    below, half, above = solid.half
    slope = (above - below) / (2 * half)
    radius = below + slope * (points[1] + half)
    side = _unit(np.stack([points[0], -slope * radius, points[2]]))
    inside = points[0] ** 2 + points[2] ** 2 < (radius * 0.9995) ** 2
    cap = np.zeros_like(points)
    cap[1] = np.sign(points[1])
    on_cap = inside & (np.abs(np.abs(points[1]) - half) < 1e-3)
    return np.where(on_cap, cap, side)


_MEET = {"box": _meet_box, "shell": _meet_shell, "ball": _meet_ball, "frustum": _meet_frustum}
_NORMALS = {
    "box": _box_normals,
    "shell": _shell_normals,
    "ball": _ball_normals,
    "frustum": _frustum_normals,
}
