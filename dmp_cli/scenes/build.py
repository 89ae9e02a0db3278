"""Invents scenes: what stands where, what it is made of, how it is lit, and where the camera is."""

from collections.abc import Sequence

import numpy as np

from dmp_cli.scenes.furniture import FURNITURE, ODDS, Site, ball, crate, post, rug, tree, vector
from dmp_cli.scenes.materials import Colour, Material
from dmp_cli.scenes.shapes import Hole, Part, Solid, Vector
from dmp_cli.scenes.surfaces import WOODS, any_colour, object_surface, part_of, surface_of, wooden
from dmp_cli.scenes.world import Camera, Light, World

STYLES = ("plain", "warm", "cold", "faded", "vivid", "noisy", "soft", "poster")
STYLE_ODDS = (0.46, 0.1, 0.1, 0.08, 0.08, 0.08, 0.08, 0.02)


def build(rng: np.random.Generator) -> World:
    """A scene that `rng` decides: a room in two of three cases, else a yard under the sky."""
    return _room(rng) if rng.random() < 0.68 else _yard(rng)


# rooms ---------------------------------------------------------------------------------------


def _room(rng: np.random.Generator) -> World:
    width, depth = rng.uniform(1.6, 3.0), rng.uniform(2.0, 3.6)
    height = rng.uniform(2.4, 2.9)
    camera = _room_camera(rng, width, depth)
    site = Site(rng, width, depth, camera.place, [], [], [])
    floor, walls, ceiling = _room_surfaces(rng)
    sky = _sky(rng)
    holes = _on_the_walls(site, height, sky)
    site.solids.insert(
        0,
        Solid("shell", (0, height / 2, 0), (width, height / 2, depth), (floor, walls, ceiling),
              holes=tuple(holes)),
    )  # fmt: skip
    if rng.random() < 0.35:
        rug(site)
    for _ in range(int(rng.integers(2, 8))):
        FURNITURE[rng.choice(len(FURNITURE), p=ODDS)](site, height)
    lights = [_lamp(rng, width, depth, height) for _ in range(int(rng.integers(1, 3)))]
    if holes and rng.random() < 0.6:
        lights.append(_sun(rng, holes[0]))
    seen = f"a room with a {floor.material.pattern} floor"
    return World(
        tuple(site.solids), tuple(lights), float(rng.uniform(0.25, 0.6)), _tint(rng), sky, camera,
        str(rng.choice(STYLES, p=STYLE_ODDS)), _caption(seen, site.words),
    )  # fmt: skip


def _room_camera(rng: np.random.Generator, width: float, depth: float) -> Camera:
    """Near the front wall, looking to the back."""
    place = (
        rng.uniform(-0.6, 0.6) * width, rng.uniform(1.35, 1.65), depth * rng.uniform(0.72, 0.95)
    )  # fmt: skip
    aim = rng.uniform(-0.5, 0.5) - 0.25 * place[0] / width
    return _camera(rng, place, -aim)


def _camera(rng: np.random.Generator, place: Vector, yaw: float) -> Camera:
    roll = rng.normal(0, 0.03) if rng.random() < 0.3 else 0.0
    return Camera(
        place, float(yaw), float(np.radians(rng.uniform(-16, -1))), float(roll),
        float(np.radians(rng.uniform(56, 70))),
    )  # fmt: skip


def _room_surfaces(rng: np.random.Generator) -> tuple[Part, Part, Part]:
    wooden = rng.random() < 0.6
    base = WOODS[rng.integers(len(WOODS))] if wooden else any_colour(rng, 0.15, 0.7)
    patterns = ("planks", "wood") if wooden else ("tiles", "plain", "checker", "speckle", "cloud")
    floor = surface_of(rng, patterns, base, (0.3, 0.8))
    walls = surface_of(
        rng, ("plain", "plain", "plain", "stripes", "cloud", "bricks", "dots"),
        any_colour(rng, 0.35, 0.85), (0.3, 0.9),
    )  # fmt: skip
    pale = rng.uniform(0.6, 0.88)
    ceiling = surface_of(
        rng, ("plain", "plain", "plain", "planks", "tiles"), (pale, pale, pale * 0.97), (0.5, 1.0)
    )
    return part_of("floor", floor), part_of("wall", walls), part_of("ceiling", ceiling)


def _tint(rng: np.random.Generator) -> Colour:
    warm = rng.normal(0, 0.08)
    return float(1 + warm), 1.0, float(1 - 1.3 * warm)


def _lamp(rng: np.random.Generator, width: float, depth: float, height: float) -> Light:
    place = (
        rng.uniform(-0.7, 0.7) * width, height * rng.uniform(0.8, 0.95),
        rng.uniform(-0.7, 0.7) * depth,
    )  # fmt: skip
    return Light(place, float(rng.uniform(1.5, 5.0)))


def _sun(rng: np.random.Generator, hole: Hole) -> Light:
    """Sun that falls through a window."""
    out = np.zeros(3)
    out[hole.axis] = hole.side
    out[1], out[2 - hole.axis] = rng.uniform(0.35, 1.0), rng.normal(0, 0.4)
    out /= np.linalg.norm(out)
    return Light(
        (float(out[0]), float(out[1]), float(out[2])), float(rng.uniform(1.5, 4)), sun=True
    )


def _sky(rng: np.random.Generator) -> tuple[Colour, Colour]:
    bright = rng.uniform(0.5, 0.95)
    blue = rng.uniform(0.1, 0.7)
    above = bright * (1 - 0.8 * blue), bright * (1 - 0.45 * blue), bright
    haze = rng.uniform(0.7, 0.95)
    return (haze, haze, haze), (float(above[0]), float(above[1]), float(above[2]))


def _on_the_walls(site: Site, height: float, sky: tuple[Colour, Colour]) -> list[Hole]:
    """Windows, doors and paintings on the back and side walls; the holes of the windows."""
    rng, holes = site.rng, list[Hole]()
    for axis, side in ((2, -1), (0, -1), (0, 1)):
        half = site.depth if axis == 0 else site.width
        room = 2 * half - 0.6
        kind = str(rng.choice(["window", "door", "painting", "nothing"], p=[0.32, 0.22, 0.26, 0.2]))
        if kind == "nothing":
            continue
        low, high = {"window": (0.9, 2.0), "door": (0.8, 1.1), "painting": (0.6, 1.6)}[kind]
        wide = rng.uniform(low, min(high, room))
        at = rng.uniform(-half + 0.3 + wide / 2, half - 0.3 - wide / 2)
        if kind == "door":
            bottom, top = 0.0, rng.uniform(1.95, 2.15)
        elif kind == "window":
            bottom, top = rng.uniform(0.6, 1.0), rng.uniform(1.8, height - 0.2)
        else:
            bottom = rng.uniform(1.0, 1.4)
            top = min(bottom + rng.uniform(0.5, 1.0), height - 0.2)
        flat = (at, (bottom + top) / 2, wide / 2, (top - bottom) / 2)
        site.solids.extend(_hung(site, kind, (axis, side), flat, sky))
        site.words.append(f"a {kind}")
        if kind == "window":
            up = height / 2
            holes.append(Hole(axis, side, (at - wide / 2, bottom - up), (at + wide / 2, top - up)))
    return holes


def _hung(
    site: Site, kind: str, wall: tuple[int, int], flat: tuple[float, float, float, float],
    sky: tuple[Colour, Colour],
) -> list[Solid]:  # fmt: skip
    """What hangs on a wall: `flat` is its middle along the wall and up, and half its sizes."""
    rng, (axis, side), (at, up, wide, tall) = site.rng, wall, flat
    face = (site.width if axis == 0 else site.depth) * side

    def slab(offset: float, half: float, sizes: tuple[float, float], part: Part) -> Solid:
        centre, sides = [0.0, up + offset, 0.0], [half, sizes[1], half]
        centre[axis], centre[2 - axis] = face, at
        sides[2 - axis] = sizes[0]
        return Solid("box", (centre[0], centre[1], centre[2]), (sides[0], sides[1], sides[2]),
                     (part,), casts=kind != "window")  # fmt: skip

    if kind == "window":
        glass = Material("cloud", sky[1], sky[0], 0.8, int(rng.integers(1 << 16)), glow=True)
        frame = part_of(
            "windowpane", surface_of(rng, ("plain",), any_colour(rng, 0.4, 0.9), (1, 1))
        )
        bars = [slab(0, 0.05, (wide, 0.03), frame), slab(0, 0.05, (0.03, tall), frame)]
        return [slab(0, 0.02, (wide, tall), part_of("windowpane", glass)), *bars]
    if kind == "door":
        leaf = wooden(rng)
        knob = Solid("ball", _knob(axis, face, side, at + 0.75 * wide), (0.05, 0.05, 0.05),
                     (part_of("door", object_surface(rng)),))  # fmt: skip
        return [slab(0, 0.04, (wide, tall), part_of("door", leaf)), knob]
    picture = Material("blocks", any_colour(rng), any_colour(rng), float(rng.uniform(0.3, 0.9)),
                       int(rng.integers(1 << 16)))  # fmt: skip
    frame = part_of(
        "painting", surface_of(rng, ("plain", "wood"), any_colour(rng, 0.05, 0.5), (0.3, 0.5))
    )
    return [
        slab(0, 0.03, (wide + 0.05, tall + 0.05), frame),
        slab(0, 0.035, (wide, tall), part_of("painting", picture)),
    ]


def _knob(axis: int, face: float, side: int, along: float) -> Vector:
    place = [0.0, 1.05, 0.0]
    place[axis], place[2 - axis] = face - 0.09 * side, along
    return place[0], place[1], place[2]


# yards ---------------------------------------------------------------------------------------


def _yard(rng: np.random.Generator) -> World:
    width, depth = rng.uniform(2.6, 4.0), rng.uniform(2.8, 4.2)
    tall = rng.uniform(1.4, 3.2)
    place = (rng.uniform(-0.5, 0.5) * width, rng.uniform(1.35, 1.65), depth * 0.85)
    camera = _camera(rng, place, rng.uniform(-0.45, 0.45))
    site = Site(rng, width, depth, camera.place, [], [], [])
    green = (0.10, rng.uniform(0.2, 0.34), 0.06)
    grass = rng.random() < 0.6
    ground = (
        part_of("grass", surface_of(rng, ("speckle", "cloud"), green, (0.3, 0.9))) if grass
        else part_of("sidewalk", surface_of(rng, ("tiles", "bricks", "checker"),
                                        any_colour(rng, 0.2, 0.6), (0.4, 0.9)))
    )  # fmt: skip
    fence = _yard_walls(rng)
    shell = (width, tall / 2, depth)
    site.solids.append(Solid("shell", (0, tall / 2, 0), shell, (ground, fence, fence),
                             roofless=True))  # fmt: skip
    for _ in range(int(rng.integers(3, 8))):
        (tree, crate, ball, post)[rng.choice(4, p=(0.4, 0.22, 0.22, 0.16))](site, tall)
    up = rng.uniform(0.35, 1.1)
    around = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(around), up, np.sin(around)]) / np.hypot(1, up)
    seen = f"a yard with {'grass' if grass else 'paving'} under the sky"
    return World(
        tuple(site.solids),
        (Light(vector(sun), float(rng.uniform(2.0, 4.0)), True),),
        float(rng.uniform(0.5, 1.0)), _tint(rng), _sky(rng), camera,
        str(rng.choice(STYLES, p=STYLE_ODDS)),
        _caption(seen, site.words),
    )  # fmt: skip


def _yard_walls(rng: np.random.Generator) -> Part:
    if rng.random() < 0.55:
        colour = WOODS[rng.integers(len(WOODS))]
        return part_of("fence", surface_of(rng, ("planks", "stripes"), colour, (0.3, 0.7)))
    return part_of("wall", surface_of(rng, ("bricks", "plain", "cloud", "tiles"),
                                  any_colour(rng, 0.2, 0.7), (0.4, 0.9)))  # fmt: skip


def _caption(seen: str, words: Sequence[str]) -> str:
    """`a room with ..., a table and two boxes`: what is there, each kind once, in order."""
    names = list(dict.fromkeys(words))
    counted = [
        name if words.count(name) == 1 else f"{words.count(name)} {name[2:]}{_plural(name)}"
        for name in names
    ]
    if not counted:
        return seen
    return f"{seen}, {', '.join(counted[:-1])}{' and ' if counted[1:] else ''}{counted[-1]}"


def _plural(name: str) -> str:
    return "es" if name.endswith("x") else "s"
