"""What the readers of pictures share: the limit of pixels, and 8 bits of numbers of any type."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli.errors import ImageError

Array = NDArray[Any]
Colour = tuple[int, int, int]  # sRGB, 0 to 255

WHITE: Colour = (255, 255, 255)
SEVERAL = "has several frames: the first is taken"

_BAND = 256  # rows that are turned at once: large pictures are not held several times as floats


def check_size(height: int, width: int, max_pixels: int) -> None:
    """ImageError if a picture of this size is more than the user lets in."""
    if width * height > max_pixels:
        raise too_large(f"{width}x{height}", max_pixels)


def too_large(what: str, max_pixels: int) -> ImageError:
    """The error of a picture past the limit."""
    return ImageError(
        f"{what} is more than --max-pixels {max_pixels}",
        "raise --max-pixels if the file is to be trusted",
    )


def not_finite(count: int) -> tuple[str, ...]:
    """The note of a picture in which `count` values are NaN or infinite; none if all are finite."""
    if not count:
        return ()
    return (f"{count} values are NaN or infinite: infinity is white, the others are black",)


def to_8bit(values: Array) -> Array:
    """uint8 of any numbers: integers by the range of their type, floats from [0, 1].

    Where a float is past 1 the largest finite value is white. Infinity is white, NaN is black, and
    so is what lies below 0.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    if np.issubdtype(values.dtype, np.integer):
        white = float(np.iinfo(values.dtype).max)
    else:
        white = max(float(np.max(values, initial=0, where=np.isfinite(values))), 1.0)
    pixels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND):
        light = values[top : top + _BAND].astype(np.float64) / white
        light = np.clip(np.nan_to_num(light, nan=0, posinf=1, neginf=0), 0, 1)
        pixels[top : top + _BAND] = np.rint(light * 255)
    return pixels
