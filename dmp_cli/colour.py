"""Light and colour: the sRGB curve, 8 and 16 bits, colour maps."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLORMAPS = ("Spectral", "inferno", "turbo", "viridis", "magma", "grey")
MARK = (255, 0, 255)  # pixels without a value: in none of the colour maps


def linear_from_srgb(colour: Array) -> Array:
    """IEC 61966-2-1: sRGB-coded values in [0, 1] to linear ones."""
    low, high = colour / 12.92, ((np.maximum(colour, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(colour <= 0.04045, low, high).astype(np.float32)


def srgb_from_linear(light: Array) -> Array:
    """IEC 61966-2-1: linear values in [0, 1] to sRGB-coded ones."""
    low, high = light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, low, high).astype(np.float32)


def quantise16(values: Array) -> Array:
    """Floats in [0, 1] to uint16, rounded; what lies outside is cut."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 65535), np.uint16)


def quantise(values: Array) -> Array:
    """Floats in [0, 1] to uint8, rounded; what lies outside is cut."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255), np.uint8)


@cache
def colormap(name: str) -> Array | None:
    """uint8 [256, 3] of a colour map of COLORMAPS; None for grey."""
    if name == "grey":
        return None
    import cmap

    colours: Array = np.rint(cmap.Colormap(name).lut(256)[:, :3] * 255).astype(np.uint8)
    return colours


def marked(pixels: Array, values: Array) -> Array:
    """uint8 pixels with MARK where `values` [H, W(, C)] are not finite; grey then becomes RGB."""
    finite = np.isfinite(values)
    bad = ~(finite.all(axis=-1) if finite.ndim == 3 else finite)
    if not bad.any():
        return pixels
    rgb = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()
    rgb[bad] = MARK
    return rgb
