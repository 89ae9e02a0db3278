"""An array -> a file of a format. No tasks: what the numbers mean is said by export.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dmp_cli import files

Array = NDArray[Any]


def write_png(
    path: Path, pixels: Array, text: Mapping[str, str], palette: Array | None = None
) -> None:
    """Write uint8 [H, W] or [H, W, 3] as PNG, indexed with `palette`; `text` goes into it."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        image.putpalette(palette.tobytes())
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value.encode("utf-8", "backslashreplace").decode())
    files.write(path, lambda file: image.save(file, "PNG", compress_level=1, pnginfo=info))


def write_npy(path: Path, values: Array) -> None:
    """Write an array as .npy, in its own dtype."""
    plain = np.ascontiguousarray(values)

    def save(file: IO[bytes]) -> None:
        # not np.save: its errors do not say that the disk is full
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
        file.write(plain.data.cast("B"))

    files.write(path, save)
