"""Pictures -> a movie that players show in the right colours: H.264 in MP4. No tasks, no tensors.

Through PyAV itself: imageio's plugin for it leaves BT.601 colours without a tag, which players show
as BT.709 from HD on (off by up to 23 of 255), refuses odd sizes, and takes no quality.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli import files, images, storage
from dmp_cli.errors import ImageError
from dmp_cli.inputs import clip
from dmp_cli.urls import shown

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer

Array = NDArray[Any]

_BT709, _LIMITED, _FULL = 1, 1, 2  # ITU-T H.273
_MAX_PIXELS = 2**28  # of a picture; H.264 ends before
# Few frames ahead: each is held in memory. Keys are kept as they are given
_ENCODER = {"preset": "fast", "x264-params": "rc-lookahead=10"}
_CONTAINER = {"movflags": "+faststart+use_metadata_tags"}


def write(
    path: Path,
    pictures: Iterable[Array | Path],
    rate: Fraction,
    text: Mapping[str, str] | None = None,
    quality: int = 18,
) -> None:
    """Write pictures of one size as a movie of `rate` frames a second, one picture at a time.

    A picture is uint8 [H, W, 3] in sRGB, or the path of one. `quality` is x264's constant rate
    factor: 0 is lossless, 18 looks so, 51 is worst. Of odd sides the last row or column is doubled:
    H.264 with colour at half size has even sides only. `text` becomes tags of the file.

    ImageError for no picture, one that cannot be read, or one of another size, naming it;
    ResourceError as `files.write`.
    """
    clip.require(writing=True)
    import av

    def save(file: IO[bytes]) -> None:  # by its name: the index is moved to the front at the end
        with av.open(f"file:{file.name}", "w", format="mp4", options=_CONTAINER) as container:
            container.metadata.update(text or {})
            _encode(container, _of_one_size(pictures), rate, quality)

    try:
        files.write(path, save)
    except av.FFmpegError as error:  # those of the disk are OSError and told by files.write
        raise ImageError(f"{shown(path)} cannot be written: {clip.reason(error)}") from error


def _of_one_size(pictures: Iterable[Array | Path]) -> Iterator[Array]:
    """Each picture as uint8 [H, W, 3]; ImageError for the first that differs from those before."""
    size = None
    for number, picture in enumerate(pictures, 1):
        name = shown(picture) if isinstance(picture, Path) else f"picture {number}"
        try:
            rgb = _read(picture) if isinstance(picture, Path) else picture
        except ImageError as error:
            raise ImageError(f"{name}: {error}", error.hint) from error
        size = size or rgb.shape
        if rgb.shape != size:
            raise ImageError(
                f"{name} is {rgb.shape[1]}x{rgb.shape[0]}, those before it {size[1]}x{size[0]}",
                "a movie has pictures of one size",
            )
        yield rgb
    if size is None:
        raise ImageError("no picture to make a movie of")


def _read(picture: Path) -> Array:
    with storage.fetched(picture) as file:
        return images.read(file, _MAX_PIXELS).rgb


def _encode(
    container: "OutputContainer", pictures: Iterable[Array], rate: Fraction, quality: int
) -> None:
    stream = None
    for number, picture in enumerate(pictures):
        frame = _coded(picture)
        if stream is None:
            stream = container.add_stream("libx264", rate, _ENCODER | {"crf": str(quality)})
            stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            context.thread_count = min(8, os.cpu_count() or 1)  # each holds a frame
        frame.pts, frame.time_base = number, 1 / rate
        container.mux(stream.encode(frame))
    if stream is not None:
        container.mux(stream.encode())


def _coded(picture: Array) -> "VideoFrame":
    """A picture as BT.709 in limited range, with even sides."""
    from av import VideoFrame
    from av.video.reformatter import Interpolation as How

    odd = [(0, side % 2) for side in picture.shape[:2]]
    even = np.ascontiguousarray(np.pad(picture, [*odd, (0, 0)], "edge"))
    return VideoFrame.from_ndarray(even, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=_BT709,
        src_color_range=_FULL,
        dst_color_range=_LIMITED,
        interpolation=How.BILINEAR | How.ACCURATE_RND | How.FULL_CHR_H_INP,
        threads=1,
    )


def in_order(pictures: Iterable[Path]) -> list[Path]:
    """The pictures of a folder in the order of their numbers: frame 2 before frame 10."""
    return sorted(pictures, key=_by_numbers)


def _by_numbers(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.stem)  # text and digits by turns, so that like meets like
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], path.name
