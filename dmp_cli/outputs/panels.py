"""Pictures to look at: small ones for a page, and an image beside its maps. Pixels only."""

import io
from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]

BACKGROUND = (32, 32, 32)  # neutral, so that it does not bend how colours are judged
INK = (216, 216, 216)
COLUMNS = 3  # pictures beside each other before they wrap
HEIGHT = 512  # pixels, at which a picture is shown beside others
WIDEST = 2  # a picture's place is at most this many times `height` wide


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow carries, at a height of `size` pixels: no fonts of the system."""
    return ImageFont.load_default(size)


def cut(text: str, width: float, size: int) -> str:
    """The text on one line, shortened with dots until it is at most `width` pixels wide."""
    line = " ".join(text.split())
    if font(size).getlength(line) <= width:
        return line
    while line and font(size).getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."


def lowered(height: int, width: int) -> tuple[int, int]:
    """The size of a picture that is not higher than HEIGHT: what panels need of it at most."""
    high = min(height, HEIGHT)
    return high, max(round(width * high / height), 1)


def thumbnail(pixels: Array, side: int) -> bytes:
    """uint8 [H, W, 3] or grey [H, W] as JPEG, its long side at most `side`, never enlarged.

    Class ids are coloured before: neighbouring ids are not neighbouring colours.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    data = io.BytesIO()
    # 4:4:4: the edges of normals and classes are edges of colour. Not optimize=True: libjpeg then
    # wants a buffer for the whole file, and what Pillow gives it is too small for noise
    image.save(data, "JPEG", quality=85, subsampling=0)
    return data.getvalue()


def side_by_side(pictures: Sequence[tuple[str, Array]], height: int = HEIGHT) -> Array:
    """Named pictures, uint8 [H, W, 3] or [H, W], as one: uint8 [h, w, 3].

    Each is brought to `height`, or to WIDEST times that in width if it is longer, and stands in
    a place of equal size with its name above it. More than COLUMNS wrap into a grid. ValueError
    if there are none.
    """
    if not pictures:
        raise ValueError("no pictures to put side by side")
    fitted = [(name, _fit(pixels, height)) for name, pixels in pictures]
    columns = ceil(len(fitted) / ceil(len(fitted) / COLUMNS))
    margin, strip = max(height // 32, 4), max(height // 14, 14)
    # a hairline still has room for its name
    width = max(height // 3, *(image.width for _, image in fitted))
    tall = max(image.height for _, image in fitted)
    across, down = width + margin, strip + tall + margin
    size = (margin + across * columns, down * ceil(len(fitted) / columns))
    sheet = Image.new("RGB", size, BACKGROUND)
    for index, (name, image) in enumerate(fitted):
        left, top = margin + index % columns * across, index // columns * down
        _label(sheet, name, (left, top, left + width, top + strip))
        sheet.paste(image, (left, top + strip))
    return np.asarray(sheet)


def _fit(pixels: Array, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = min(height / image.height, WIDEST * height / image.width)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _label(sheet: Image.Image, name: str, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    size = max((bottom - top) * 5 // 9, 9)
    middle = (left, (top + bottom) / 2)
    text = cut(name, right - left, size)
    ImageDraw.Draw(sheet).text(middle, text, INK, font(size), anchor="lm")
