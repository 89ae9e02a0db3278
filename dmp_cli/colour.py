"""Light and colour: the sRGB curve, 8 and 16 bits, colour maps."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COLORMAPS = ("Spectral", "inferno", "turbo", "viridis", "magma", "grey")
MARK = (255, 0, 255)  # pixels without a value: in none of the colour maps


# In one array each, below: a map of megabytes takes as long to allocate as to compute


def linear_from_srgb(colour: Array) -> Array:
    """IEC 61966-2-1: sRGB-coded values in [0, 1] to linear ones."""
    linear = np.asarray(np.maximum(colour, 0.04045))
    linear += 0.055
    linear /= 1.055
    linear **= 2.4
    np.divide(colour, 12.92, out=linear, where=colour <= 0.04045)
    return linear.astype(np.float32, copy=False)


def srgb_from_linear(light: Array) -> Array:
    """IEC 61966-2-1: linear values in [0, 1] to sRGB-coded ones."""
    coded = np.asarray(np.maximum(light, 0.0031308))
    coded **= 1 / 2.4
    coded *= 1.055
    coded -= 0.055
    np.multiply(light, 12.92, out=coded, where=light <= 0.0031308)
    return coded.astype(np.float32, copy=False)


def quantise16(values: Array) -> Array:
    """Floats in [0, 1] to uint16, rounded; what lies outside is cut."""
    return _steps(values, 65535).astype(np.uint16)


def quantise(values: Array) -> Array:
    """Floats in [0, 1] to uint8, rounded; what lies outside is cut."""
    return _steps(values, 255).astype(np.uint8)


def _steps(values: Array, most: int) -> Array:
    steps = np.asarray(np.clip(values, 0, 1))
    steps *= most
    return np.asarray(np.rint(steps, out=steps))


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
    if finite.all():
        return pixels
    bad = ~(finite.all(axis=-1) if finite.ndim == 3 else finite)
    rgb = np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels.copy()
    rgb[bad] = MARK
    return rgb
