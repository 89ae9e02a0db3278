"""A file -> the numbers of its channels, by OpenImageIO: what Pillow cannot read, or not in full.

The messages of the ImageErrors here leave out the path of the file: callers put it before them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO
from numpy.typing import NDArray

from dmp_cli.errors import ImageError

Array = NDArray[Any]


def open_file(path: Path, kind: str = "") -> Any:
    """An open OpenImageIO.ImageInput, found by content; ImageError if it is damaged or unknown.

    Its values come as they are in the file: not multiplied by alpha where the file has not. `kind`
    is what the file is by its first bytes: OpenImageIO's own words are about that of its suffix.
    """
    config = OpenImageIO.ImageSpec()
    config["oiio:UnassociatedAlpha"] = 1
    try:
        file = OpenImageIO.ImageInput.open(str(path), config)
    except TypeError as error:  # from its bindings
        raise ImageError("its name is not UTF-8", "rename it") from error
    if file is None:
        why = _why(OpenImageIO.geterror())
        own = f"damaged, or a kind of {kind} that dmp does not read"
        raise ImageError(own if kind else f"damaged: {why}")
    return file


def sizes(spec: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of what is stored, the data window, and of the whole picture."""
    return (spec.height, spec.width), (spec.full_height, spec.full_width)


def read(file: Any, part: int, channels: tuple[int, int]) -> Array:
    """[H, W, C] of channels (first, end) of a part, in the type of the first, on the whole picture.

    A data window smaller than the picture (Nuke crops what is empty) is laid on zeros, what hangs
    over is cut off. Sizes are for the caller to check. ImageError if values are damaged or deep.
    """
    file.seek_subimage(part, 0)
    spec = file.spec()
    kind = spec.channelformats[channels[0]] if spec.channelformats else spec.format
    if spec.deep:
        raise ImageError("holds deep data", "flatten it")
    values = file.read_image(part, 0, *channels, kind)
    if values is None:
        raise ImageError(f"damaged: {_why(file.geterror())}")
    x, y = spec.x - spec.full_x, spec.y - spec.full_y
    if (x, y, spec.width, spec.height) == (0, 0, spec.full_width, spec.full_height):
        return np.asarray(values)
    full = np.zeros((spec.full_height, spec.full_width, values.shape[-1]), values.dtype)
    window = full[max(y, 0) : max(y + spec.height, 0), max(x, 0) : max(x + spec.width, 0)]
    window[...] = values[max(-y, 0) :, max(-x, 0) :][: window.shape[0], : window.shape[1]]
    return full


def _why(text: str) -> str:
    return text.strip().split("\n", maxsplit=1)[0] or "it cannot be decoded"
