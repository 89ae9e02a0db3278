"""What stands in rooms and yards, put where nothing else stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmp_cli.scenes.shapes import Part, Solid, Vector
from dmp_cli.scenes.surfaces import any_colour, object_surface, part_of, surface_of, wooden


@dataclass
class Site:
    """Ground that is being furnished: what has been put there so far."""

    rng: np.random.Generator
    width: float  # half
    depth: float  # half
    eye: Vector
    taken: list[tuple[float, float, float]]  # x, z, radius
    solids: list[Solid]
    words: list[str]

    def spot(self, radius: float) -> tuple[float, float] | None:
        """A free place on the ground for something of that radius, or None."""
        for _ in range(12):
            x = self.rng.uniform(radius - self.width, self.width - radius)
            z = self.rng.uniform(radius - self.depth, self.depth - radius)
            clear = np.hypot(x - self.eye[0], z - self.eye[2]) > radius + 0.9
            if clear and all(np.hypot(x - a, z - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, z, radius))
                return x, z
        return None


def vector(values: Sequence[float] | np.ndarray) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def _box(
    site: Site, place: Vector, half: Vector, yaw: float, part: Part
) -> None:  # fmt: skip
    site.solids.append(Solid("box", place, half, (part,), yaw))


def _turned(place: Vector, yaw: float, offset: Vector) -> Vector:
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y, z = offset
    return vector([place[0] + cos * x + sin * z, place[1] + y, place[2] + cos * z - sin * x])


def rug(site: Site) -> None:
    rng = site.rng
    x, z = rng.uniform(-0.4, 0.4) * site.width, rng.uniform(-0.5, 0.3) * site.depth
    cloth = surface_of(
        rng, ("plain", "stripes", "checker", "dots", "blocks"), any_colour(rng), (0.2, 0.5)
    )
    half = rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.2)
    if rng.random() < 0.4:
        solid = Solid("frustum", (x, 0.008, z), (half[0], 0.008, half[0]), (part_of("rug", cloth),))
    else:
        solid = Solid("box", (x, 0.008, z), (half[0], 0.008, half[1]), (part_of("rug", cloth),),
                      float(rng.uniform(-0.5, 0.5)))  # fmt: skip
    site.solids.append(solid)
    site.words.append("a rug")


def crate(site: Site, height: float) -> None:  # noqa: ARG001
    rng = site.rng
    half = rng.uniform(0.15, 0.45), rng.uniform(0.12, 0.5), rng.uniform(0.15, 0.45)
    spot = site.spot(float(np.hypot(half[0], half[2])))
    if spot is None:
        return
    yaw, part = float(rng.uniform(0, 3.1)), part_of("box", object_surface(rng))
    _box(site, (spot[0], half[1], spot[1]), half, yaw, part)
    if rng.random() < 0.3:  # a smaller one on top
        small = half[0] * 0.6, half[1] * 0.6, half[2] * 0.6
        part = part_of("box", object_surface(rng))
        _box(site, (spot[0], 2 * half[1] + small[1], spot[1]), small, yaw + 0.4, part)
    site.words.append("a box")


def ball(site: Site, height: float) -> None:  # noqa: ARG001
    radius = float(site.rng.uniform(0.14, 0.5))
    spot = site.spot(radius)
    if spot is not None:
        part = part_of("ball", object_surface(site.rng))
        site.solids.append(Solid("ball", (spot[0], radius, spot[1]), (radius,) * 3, (part,)))
        site.words.append("a ball")


def _column(site: Site, height: float) -> None:
    radius = float(site.rng.uniform(0.12, 0.28))
    spot = site.spot(radius + 0.1)
    if spot is not None:
        stone = surface_of(
            site.rng, ("plain", "cloud", "waves", "stripes"), any_colour(site.rng, 0.3), (0.2, 0.6)
        )
        shape = (radius, height / 2, radius * float(site.rng.uniform(0.8, 1)))
        site.solids.append(
            Solid("frustum", (spot[0], height / 2, spot[1]), shape, (part_of("column", stone),))
        )
        site.words.append("a column")


def _table(site: Site, height: float) -> None:  # noqa: ARG001
    rng = site.rng
    wide, deep, tall = rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.5), rng.uniform(0.55, 0.8)
    spot = site.spot(float(np.hypot(wide, deep)))
    if spot is None:
        return
    yaw, part = float(rng.uniform(0, 3.1)), part_of("table", wooden(rng))
    place = (spot[0], 0.0, spot[1])
    _box(site, (spot[0], tall, spot[1]), (wide, 0.03, deep), yaw, part)
    for x in (-1, 1):
        for z in (-1, 1):
            foot = _turned(place, yaw, (x * (wide - 0.06), tall / 2, z * (deep - 0.06)))
            _box(site, foot, (0.035, tall / 2 - 0.03, 0.035), yaw, part)
    if rng.random() < 0.5:
        size = float(rng.uniform(0.08, 0.18))
        top = _turned(place, yaw, (rng.uniform(-0.5, 0.5) * wide, tall + 0.03 + size, 0.0))
        if rng.random() < 0.5:
            part = part_of("ball", object_surface(rng))
            site.solids.append(Solid("ball", top, (size,) * 3, (part,)))
        else:
            _box(site, top, (size, size, size), yaw + 0.3, part_of("box", object_surface(rng)))
    site.words.append("a table")


def _cabinet(site: Site, height: float) -> None:
    """Against a wall: tall, with lines between its doors."""
    rng = site.rng
    half = rng.uniform(0.35, 0.7), rng.uniform(0.4, min(0.42 * height, 1.1)), rng.uniform(0.2, 0.3)
    side = rng.choice([-1, 0, 1])  # left wall, back wall, right wall
    if side:
        x, z = side * (site.width - half[2]), rng.uniform(-0.9, 0.1) * (site.depth - half[0])
    else:
        x, z = rng.uniform(-0.9, 0.9) * (site.width - half[0]), half[2] - site.depth
    radius = half[0]
    if any(np.hypot(x - a, z - b) < radius + r for a, b, r in site.taken):
        return
    site.taken.append((x, z, radius))
    yaw = side * np.pi / 2
    part = part_of("cabinet", wooden(rng))
    _box(site, (x, half[1], z), half, yaw, part)
    for i in range(int(rng.integers(2, 4))):
        across = (i - 1) * half[0] * 0.6
        knob = _turned((x, 0, z), yaw, (across, half[1] * 1.05, half[2] + 0.02))
        knob = knob if side <= 0 else _turned((x, 0, z), yaw, (across, half[1], -half[2] - 0.02))
        _box(site, knob, (0.02, half[1] * 0.5, 0.015), yaw, part)
    site.words.append("a cabinet")


def _bed(site: Site, height: float) -> None:  # noqa: ARG001
    rng = site.rng
    wide, long, tall = rng.uniform(0.5, 0.85), rng.uniform(0.85, 1.05), rng.uniform(0.22, 0.32)
    spot = site.spot(0.85 * float(np.hypot(wide, long)))
    if spot is None:
        return
    yaw = float(rng.choice([0, 0.5, 1, 1.5])) * np.pi + rng.normal(0, 0.06)
    place = (spot[0], 0.0, spot[1])
    cloth = surface_of(
        rng, ("plain", "stripes", "dots", "checker"), any_colour(rng, 0.3), (0.15, 0.5)
    )
    sheet = part_of("bed", cloth)
    frame = part_of("bed", wooden(rng))
    _box(site, (spot[0], tall, spot[1]), (wide, tall, long), yaw, sheet)
    head = _turned(place, yaw, (0, tall + 0.25, -long - 0.04))
    _box(site, head, (wide, tall + 0.25, 0.04), yaw, frame)
    pale = part_of("bed", surface_of(rng, ("plain",), any_colour(rng, 0.6, 0.9), (0.3, 0.3)))
    for x in (-0.45, 0.45):
        pillow = _turned(place, yaw, (x * wide, 2 * tall + 0.05, -long + 0.25))
        site.solids.append(Solid("ball", pillow, (0.38 * wide, 0.11, 0.2), (pale,), yaw))
    site.words.append("a bed")


def tree(site: Site, height: float) -> None:  # noqa: ARG001
    rng = site.rng
    spot = site.spot(float(rng.uniform(0.6, 0.9)))
    if spot is None:
        return
    trunk, crown = rng.uniform(0.5, 1.5), rng.uniform(0.45, 0.85)
    bark = part_of("tree", surface_of(rng, ("speckle", "wood"), (0.16, 0.10, 0.06), (0.1, 0.3)))
    site.solids.append(
        Solid("frustum", (spot[0], trunk / 2, spot[1]), (0.13, trunk / 2, 0.08), (bark,))
    )
    leaves = (rng.uniform(0.04, 0.2), rng.uniform(0.14, 0.34), rng.uniform(0.03, 0.1))
    part = part_of("tree", surface_of(rng, ("speckle", "cloud"), leaves, (0.2, 0.6)))
    if rng.random() < 0.35:
        tall = crown * 1.3
        site.solids.append(
            Solid("frustum", (spot[0], trunk + tall, spot[1]), (crown * 0.8, tall, 0.02), (part,))
        )
    else:
        for i in range(int(rng.integers(1, 4))):
            x, y, z = rng.normal(0, 0.25 * crown, 3) * (i > 0)
            radius = crown * rng.uniform(0.65, 1)
            centre = (spot[0] + x, trunk + 0.6 * crown + y, spot[1] + z)
            site.solids.append(Solid("ball", centre, (radius, radius * 0.9, radius), (part,)))
    site.words.append("a tree")


def post(site: Site, height: float) -> None:
    _column(site, height + 0.4)


FURNITURE = (crate, ball, _column, _table, _cabinet, _bed)
ODDS = (0.2, 0.17, 0.11, 0.2, 0.2, 0.12)
