"""Traces a scene: the photograph of it, and the exact maps that belong to it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli.colour import srgb_from_linear
from dmp_cli.scenes.world import Light, World, class_id

Array = NDArray[Any]

_OFFSETS = np.array([[-1, -3], [3, -1], [-3, 1], [1, 3]], np.float32) / 8  # inside a pixel


@dataclass(frozen=True)
class Frame:
    """A picture and its maps, all [S, S] at pixel centres, in the conventions of tasks.py.

    `image` is uint8 sRGB, smooth at edges. Sky has depth 0 and normal 0: there is no surface.
    """

    image: Array
    maps: dict[str, Array]


@dataclass(frozen=True)
class _Hits:
    """What rays met: one column for each."""

    depth: Array  # [N] along the optical axis, 0 for the sky
    normals: Array  # [3, N] in the world
    labels: Array  # [N]
    albedo: Array  # [3, N] linear
    shading: Array  # [N] before exposure; -1 where a thing shines by itself
    shine: Array  # [N] highlight
    surface: Array  # [N] which face of which solid


def render(world: World, size: int, rng: np.random.Generator) -> Frame:
    """The picture and the maps at `size` x `size` pixels; `rng` makes the camera's noise."""
    axes = world.camera.axes()
    hits = _trace(world, _apply(axes, _rays(world, size, np.zeros((1, 2), np.float32))))
    exposure = _exposure(hits)
    light = _picture(world, hits, exposure).reshape(3, size, size)
    light = _smooth_edges(world, light, hits, exposure)
    shading = _shading(hits, exposure)
    normals = _apply(axes.T, hits.normals).T.reshape(size, size, 3)
    maps = {
        "depth": hits.depth.reshape(size, size),
        "normals": np.ascontiguousarray(normals, np.float32),
        "segmentation": hits.labels.reshape(size, size),
        "albedo": np.ascontiguousarray(hits.albedo.T.reshape(size, size, 3), np.float32),
        "shading": shading.reshape(size, size),
    }
    return Frame(_develop(np.moveaxis(light, 0, -1), world.style, rng), maps)


def _apply(matrix: Array, vectors: Array) -> Array:
    """The matrix times [3, N], without BLAS: its threads would be in each other's way."""
    return np.asarray(np.einsum("ij,jn->in", matrix, vectors))


def _rays(world: World, size: int, offsets: Array) -> Array:
    """Directions [3, size * size * len(offsets)] of the camera, with 1 along its optical axis."""
    reach = np.tan(world.camera.field / 2)
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    step = np.float32(2 / size)
    x = centre[None, :, None] + offsets[:, 0] * step + np.zeros((size, 1, 1), np.float32)
    y = -centre[:, None, None] - offsets[:, 1] * step + np.zeros((1, size, 1), np.float32)
    rays = np.stack([x * reach, y * reach, -np.ones_like(x)]).reshape(3, -1)
    return np.asarray(rays, np.float32)


def _trace(world: World, rays: Array) -> _Hits:
    count = rays.shape[1]
    origin = np.array(world.camera.place, np.float32)[:, None]
    nearest, which = np.full(count, np.inf, np.float32), np.full(count, -1, np.int16)
    for number, solid in enumerate(world.solids):
        t = solid.meet(origin, rays)
        closer = t < nearest
        nearest[closer], which[closer] = t[closer], number
    sky = which < 0
    depth = np.where(sky, 0, nearest).astype(np.float32)
    normals, albedo = np.zeros((3, count), np.float32), np.zeros((3, count), np.float32)
    labels = np.full(count, class_id("sky"), np.uint8)
    gloss, glow = np.zeros(count, np.float32), sky.copy()
    surface = which * 8
    points = origin + rays * depth
    for number in np.unique(which[~sky]):
        solid, here = world.solids[number], which == number
        local = solid.local(points[:, here])
        facing = solid.normals(local)
        normals[:, here] = solid.to_world(facing)
        surface[here] += (np.abs(facing).argmax(0) * 2 + (facing.max(0) > 0.5)).astype(np.int16)
        parts = solid.part_of(facing)
        for index, part in enumerate(solid.parts):
            mine = np.flatnonzero(here)[parts == index]
            of_part = parts == index
            labels[mine], gloss[mine] = part.label, part.material.gloss
            glow[mine] = part.material.glow
            albedo[:, mine] = part.material.albedo(local[:, of_part], facing[:, of_part])
    albedo[:, sky] = _sky_colour(world, rays[:, sky])
    shading, shine = _light(world, points, normals, rays, gloss)
    return _Hits(
        depth, normals, labels, albedo, np.where(glow, -1, shading), np.where(glow, 0, shine),
        surface,
    )  # fmt: skip


def _sky_colour(world: World, rays: Array) -> Array:
    up = np.clip(rays[1] / np.sqrt((rays * rays).sum(0)), 0, 1) ** 0.6
    low, high = (np.array(colour, np.float32)[:, None] for colour in world.sky)
    return np.asarray(low + (high - low) * up, np.float32)


def _light(
    world: World, points: Array, normals: Array, rays: Array, gloss: Array
) -> tuple[Array, Array]:
    """Irradiance [N] at points with normals, and the highlights [N] that the camera sees."""
    total = world.ambient * _openness(world, points, normals) * (0.75 + 0.25 * normals[1])
    shine = np.zeros_like(total)
    towards_eye = -rays / np.sqrt((rays * rays).sum(0))
    for light in world.lights:
        ray, falloff = _towards(light, points)
        unit = ray / np.sqrt((ray * ray).sum(0))
        facing = np.maximum((unit * normals).sum(0), 0)
        lit = facing * falloff * light.power
        seen = lit > 0
        start = points[:, seen] + normals[:, seen] * np.float32(4e-3)
        clear = _clear(world, light, start, ray[:, seen])
        lit[seen] *= clear
        total += lit
        half = unit + towards_eye
        half /= np.maximum(np.sqrt((half * half).sum(0)), 1e-6)
        shine += gloss * np.maximum((half * normals).sum(0), 0) ** 40 * (lit > 0) * light.power
    return total.astype(np.float32), (0.25 * shine).astype(np.float32)


def _towards(light: Light, points: Array) -> tuple[Array, Array | float]:
    place = np.array(light.place, np.float32)[:, None]
    if light.sun:
        return np.broadcast_to(place * np.float32(40), points.shape), 1.0
    ray = place - points
    return ray, 1 / (0.6 + (ray * ray).sum(0))


def _clear(world: World, light: Light, start: Array, ray: Array) -> Array:
    """1 where nothing stands between, 0 in shadow. A lamp is inside its room."""
    clear = np.ones(start.shape[1], np.float32)
    for solid in world.solids:
        if solid.casts and (light.sun or solid.kind != "shell"):
            clear[solid.meet(start, ray) < 1] = 0
    return clear


def _openness(world: World, points: Array, normals: Array) -> Array:
    """How much of the surroundings lights a point: less in the corners, and near what stands by.

    An approximation, but part of the scene's light: image and shading use the same.
    """
    shell = world.solids[0]
    local, half = shell.local(points), np.array(shell.half, np.float32)
    open_ = np.ones(points.shape[1], np.float32)
    for axis in range(3):
        for side in (-1, 1):
            if axis == 1 and side == 1 and shell.roofless:
                continue
            gap = np.maximum(half[axis] - side * local[axis], 0)
            across = 1 - np.abs(normals[axis])
            open_ *= 1 - 0.4 * across * np.exp(-gap / np.float32(0.35))
    for solid in world.solids[1:]:
        if solid.casts and solid.centre[1] < solid.half[1] * 1.5:  # it stands on the ground
            x, _, z = solid.local(points)
            reach = max(solid.half[0], solid.half[2]) * 1.25
            away = np.maximum(np.hypot(x, z) / np.float32(reach), 0)
            low = np.exp(-np.maximum(points[1], 0) / np.float32(0.2)) * (normals[1] > 0.7)
            open_ *= 1 - 0.45 * low * np.exp(-(away**4))
    return open_


def _exposure(hits: _Hits) -> float:
    """Brings the light of nearly all surfaces into [0, 1]."""
    lit = hits.shading[hits.shading >= 0]
    return float(0.92 / max(np.percentile(lit, 98), 1e-3)) if lit.size else 1.0


def _shading(hits: _Hits, exposure: float) -> Array:
    """[N] in [0, 1]; what shines by itself has 1, its albedo being the colour seen."""
    return np.where(hits.shading < 0, 1, np.clip(hits.shading * exposure, 0, 1)).astype(np.float32)


def _picture(world: World, hits: _Hits, exposure: float) -> Array:
    """Linear light [3, N]: albedo times shading in the light's tint, and highlights."""
    tint = np.array(world.tint, np.float32)[:, None]
    tint = np.where(hits.shading < 0, 1, tint)
    return np.asarray(hits.albedo * _shading(hits, exposure) * tint + hits.shine * exposure)


def _smooth_edges(world: World, light: Array, hits: _Hits, exposure: float) -> Array:
    """The mean of four rays in pixels where another surface begins."""
    size = light.shape[1]
    surface = hits.surface.reshape(size, size)
    edge = np.zeros((size, size), bool)
    across, down = surface[:, 1:] != surface[:, :-1], surface[1:] != surface[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    places = np.flatnonzero(edge)
    rays = _rays(world, size, _OFFSETS).reshape(3, size * size, len(_OFFSETS))[:, places]
    finer = _trace(world, _apply(world.camera.axes(), rays.reshape(3, -1)))
    colours = np.clip(_picture(world, finer, exposure), 0, 1)
    out = np.clip(light, 0, 1).reshape(3, -1)
    out[:, places] = colours.reshape(3, len(places), len(_OFFSETS)).mean(-1)
    return out.reshape(3, size, size)


def _develop(light: Array, style: str, rng: np.random.Generator) -> Array:
    """uint8 sRGB of linear light [S, S, 3], in the style of the scene."""
    gain = rng.uniform(0.75, 1.15)
    coded = srgb_from_linear(np.clip(light * np.float32(gain), 0, 1))
    if style in ("warm", "cold"):
        turn = np.float32(0.1 if style == "warm" else -0.1)
        coded = coded * np.array([1 + turn, 1, 1 - turn], np.float32)
    elif style in ("faded", "vivid"):
        grey = coded.mean(axis=-1, keepdims=True)
        coded = grey + (coded - grey) * np.float32(0.4 if style == "faded" else 1.35)
    elif style == "noisy":
        coded = coded + rng.normal(0, 0.035, coded.shape).astype(np.float32)
    elif style == "soft":
        wide = np.pad(coded, ((0, 1), (0, 1), (0, 0)), "edge")
        coded = (wide[1:, 1:] + wide[:-1, 1:] + wide[1:, :-1] + wide[:-1, :-1]) / 4
    elif style == "poster":
        coded = np.rint(coded * 7) / 7
    return np.asarray(np.rint(np.clip(coded, 0, 1) * 255), np.uint8)
