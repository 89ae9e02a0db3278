"""Clips made for tests: each frame says which it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

HEIGHT, WIDTH = 64, 96
BITS = 8


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> Any:
    """Grey with a red corner, and the number as black and white blocks in the lower half."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 4, : width // 4] = 220, 40, 40
    for bit in range(BITS):
        block = slice(bit * width // BITS, (bit + 1) * width // BITS)
        pixels[height // 2 :, block] = 235 if number >> bit & 1 else 20
    return pixels


def number(pixels: Any) -> int:
    """Which frame it is."""
    height, width = pixels.shape[:2]
    row = pixels[height * 3 // 4, :, 1]
    return sum(int(row[(2 * bit + 1) * width // (2 * BITS)] > 128) << bit for bit in range(BITS))


def encode(
    path: Path,
    pictures: Iterable[Any],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    flip: bool = False,
    container: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A clip at 25 frames a second, one in 12 a key frame; `times` are in frames."""
    stream = None
    with av.open(str(path), "w", options=container or {}) as file:
        for index, values in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            if stream is None:
                stream = file.add_stream(codec, 25, options={"g": "12", **options})
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = pixels
                if rotation or flip:
                    stream.set_display_rotation(rotation, hflip=flip)
            frame.pts = times[index] if times else index
            file.mux(stream.encode(frame))
        assert stream is not None
        file.mux(stream.encode())
    return path


def numbered(path: Path, frames: int = 40, codec: str = "libx264", **options: Any) -> Path:
    return encode(path, map(picture, range(frames)), codec, **options)


def packets(path: Path) -> list[tuple[int, int, int]]:
    """Place in the file, size and time of each packet, in the order of decoding."""
    data = path.read_bytes()
    with av.open(str(path)) as file:
        return [(data.index(bytes(p)), p.size, p.pts) for p in file.demux(video=0) if p.size]
