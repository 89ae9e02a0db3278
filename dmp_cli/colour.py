"""Light and colour: the sRGB curve, 8 and 16 bits, colour maps."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLORMAPS = ("Spectral", "inferno", "turbo", "viridis", "magma", "grey")


def linear_from_srgb(colour: Array) -> Array:
    """IEC 61966-2-1: sRGB-coded values in [0, 1] to linear ones."""
    low, high = colour / 12.92, ((np.maximum(colour, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(colour <= 0.04045, low, high).astype(np.float32)


def srgb_from_linear(light: Array) -> Array:
    """IEC 61966-2-1: linear values in [0, 1] to sRGB-coded ones."""
    low, high = light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, low, high).astype(np.float32)


def quantise(values: Array) -> Array:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)


@cache
def colormap(name: str) -> Array | None:
    """uint8 [256, 3] of a colour map of COLORMAPS; None for grey."""
    if name == "grey":
        return None
    import cmap

    colours: Array = np.rint(cmap.Colormap(name).lut(256)[:, :3] * 255).astype(np.uint8)
    return colours
