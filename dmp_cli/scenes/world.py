"""What a scene is: solids, lights and a camera."""

from dataclasses import dataclass

import numpy as np

from dmp_cli.classes import ade20k
from dmp_cli.scenes.materials import Colour
from dmp_cli.scenes.shapes import Array, Solid, Vector

FARTHEST = 10.0  # metres: nothing in a scene is farther away


@dataclass(frozen=True)
class Light:
    """A lamp at `place`, or the sun in direction `place` (a unit vector towards it)."""

    place: Vector
    power: float
    sun: bool = False


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken from; angles in radians."""

    place: Vector
    yaw: float
    pitch: float
    roll: float
    field: float  # of view, across

    def axes(self) -> Array:
        """[3, 3]: columns are the camera's X right, Y up, Z to the viewer, in the world."""
        (cy, cp, cr), (sy, sp, sr) = (
            f([self.yaw, self.pitch, self.roll]) for f in (np.cos, np.sin)
        )
        turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return np.asarray(turn @ tilt @ roll, np.float32)


@dataclass(frozen=True)
class World:
    """A scene, ready to be traced."""

    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    ambient: float
    tint: Colour  # of the light
    sky: tuple[Colour, Colour]  # at the horizon and above, linear
    camera: Camera
    style: str
    caption: str


def class_id(name: str) -> int:
    """The ADE20K id of a class."""
    return ade20k().names.index(name)
