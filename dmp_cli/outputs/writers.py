"""An array -> a file of a format. No tasks: what the numbers mean is said by export.py.

PNG is filtered here and deflated by ISA-L; OpenEXR writes EXR, tifffile TIFF: each into a file
that Python has opened, so that a full disk is told with its reason. docs/formats.md has the
measurements.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import PngImagePlugin

from dmp_cli import files
from dmp_cli.plan import EXR_COMPRESSIONS

Array = NDArray[Any]
Kind = Literal["float", "half", "uint"]  # how a channel of EXR is stored

KINDS = {"float": np.float32, "half": np.float16, "uint": np.uint32}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NO_FILTER, _UP = 0, 2  # filters of PNG: as it is; less the row above
_LEVEL = 1  # of deflate: what the next one saves, docs/formats.md
_BAND = 1 << 17  # bytes of rows that are filtered and deflated at a time


@dataclass(frozen=True)
class Channel:
    """A channel of an EXR file: its full name, `albedo.R`, its values [H, W], how it is stored."""

    name: str
    values: Array
    kind: Kind


def _plain(text: Mapping[str, str]) -> dict[str, str]:
    """Text that every reader can decode: what is not UTF-8 and NUL are written as escapes."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        for key, value in text.items()
    }


def _plain_array(values: Array) -> Array:
    """The same values one after the other, in the machine's order of bytes."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _require(values: Array, *kinds: str) -> None:
    flat = values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3)
    if values.dtype.name not in kinds or not flat or 0 in values.shape:
        wanted = f"must be {' or '.join(kinds)}, [H, W] or [H, W, 3]"
        raise ValueError(f"{values.dtype} {list(values.shape)}: {wanted}")


# PNG --------------------------------------------------------------------------------------


def write_png(
    path: Path,
    pixels: Array,
    text: Mapping[str, str],
    palette: Array | None = None,
    srgb: bool = False,
) -> None:
    """Write uint8 or uint16 [H, W] or [H, W, 3] as PNG; `text` goes into it as iTXt.

    With `palette`, uint8 [N, 3] of at most 256 colours, uint8 [H, W] are its indices; those past
    its end are black. `srgb` declares that the values are sRGB-coded; without it neither gamma nor
    colour space are written, so that data are left as they are. ValueError for another type or
    shape, else the errors of `files.write`.
    """
    _require(pixels, "uint8", "uint16")
    info = PngImagePlugin.PngInfo()
    if srgb:
        info.add(b"sRGB", b"\0")  # perceptual intent
    for key, value in _plain(text).items():
        info.add_itxt(key, value)
    if palette is not None:
        info.add(b"PLTE", _full(palette, pixels).tobytes())
    files.write(path, lambda file: _save_png(file, pixels, info, palette is not None))


def _full(palette: Array, pixels: Array) -> Array:
    """The palette with black up to 256 colours, so that no index is without one."""
    if palette.dtype != np.uint8 or palette.shape[1:] != (3,) or len(palette) > 256:
        raise ValueError(f"a palette of {palette.dtype} {list(palette.shape)}: not uint8 [256, 3]")
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError("only uint8 [H, W] has a palette")
    return np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])


def _save_png(file: IO[bytes], pixels: Array, info: PngImagePlugin.PngInfo, indexed: bool) -> None:
    """The chunks of a PNG: ISO/IEC 15948. Bytes differ between kinds of processors, pixels do not.

    Not by Pillow, whose search for a filter and zlib take nine times as long for files of equal
    size, and which does not know 16-bit RGB.
    """
    height, width = pixels.shape[:2]
    colour_type = 3 if indexed else 2 if pixels.ndim == 3 else 0
    header = struct.pack(">2I5B", width, height, 8 * pixels.itemsize, colour_type, 0, 0, 0)
    file.write(_SIGNATURE)
    PngImagePlugin.putchunk(file, b"IHDR", header)
    for chunk in info.chunks:
        PngImagePlugin.putchunk(file, chunk[0], chunk[1])
    deflate = isal_zlib.compressobj(_LEVEL)
    for band in _filtered(pixels, indexed):
        if data := deflate.compress(band):  # which may keep it for later, and no chunk is empty
            PngImagePlugin.putchunk(file, b"IDAT", data)
    PngImagePlugin.putchunk(file, b"IDAT", deflate.flush())
    PngImagePlugin.putchunk(file, b"IEND")


def _filtered(pixels: Array, indexed: bool) -> Iterator[Array]:
    """The rows of a PNG less the row above, some at a time: they stay in the processor's cache.

    Indices are left as they are: their differences repeat less than they do.
    """
    height, count = len(pixels), max(_BAND // pixels[0].nbytes, 1)
    for start in range(0, height, count):
        part = pixels[start : start + count]
        rows = np.zeros((len(part) + 1, *part.shape[1:]), part.dtype.newbyteorder(">"))
        rows[1:] = part
        if start:
            rows[0] = pixels[start - 1]
        plain = rows.reshape(len(rows), -1).view(np.uint8)
        band = np.full((len(part), plain.shape[1] + 1), _NO_FILTER if indexed else _UP, np.uint8)
        np.subtract(plain[1:], 0 if indexed else plain[:-1], out=band[:, 1:])
        yield band


# EXR --------------------------------------------------------------------------------------


def write_exr(
    path: Path, channels: Sequence[Channel], text: Mapping[str, str], compression: str = "zip"
) -> None:
    """Write channels [H, W] of equal size as one EXR; `text` becomes attributes of type string.

    A half holds up to 65504, larger values become infinite: counting them is the caller's part.
    `compression` is one of EXR_COMPRESSIONS, none of which loses anything. ValueError for channels
    that do not fit together or another compression, else the errors of `files.write`.
    """
    import OpenEXR

    _require_channels(channels)
    if compression not in EXR_COMPRESSIONS:
        raise ValueError(f"compression {compression!r}: known are {', '.join(EXR_COMPRESSIONS)}")
    how = {"none": "NO"}.get(compression, compression.upper())
    header = _plain(text) | {
        "type": OpenEXR.scanlineimage,
        "compression": getattr(OpenEXR, f"{how}_COMPRESSION"),
    }
    with np.errstate(over="ignore"):
        # OpenEXR writes wrong pixels of arrays that are not contiguous
        planes = {c.name: np.ascontiguousarray(c.values, KINDS[c.kind]) for c in channels}
    # without threads of its own: dmp writes several files at once
    files.write(path, lambda file: OpenEXR.File(header, planes, 0).write(file))


def _require_channels(channels: Sequence[Channel]) -> None:
    names = [channel.name for channel in channels]
    if not names or len({*names}) < len(names) or "" in names:
        raise ValueError(f"channels {names}: must have names, each its own")
    for channel in channels:
        shape = channel.values.shape
        if len(shape) != 2 or 0 in shape or shape != channels[0].values.shape:
            sizes = {each.name: each.values.shape for each in channels}
            raise ValueError(f"channels {sizes}: must have one size [H, W]")
        if channel.kind == "uint" and channel.values.dtype.kind not in "ub":
            raise ValueError(f"channel {channel.name} of {channel.values.dtype}: is not unsigned")


# TIFF and npy -----------------------------------------------------------------------------


def write_tiff(path: Path, values: Array, text: Mapping[str, str]) -> None:
    """Write uint8, uint16 or float32 [H, W] or [H, W, 3] as TIFF.

    `text` becomes a JSON object in the tag ImageDescription. Integers are deflated with a
    horizontal predictor; floats are not compressed, deflate alone saves a twelfth of them.
    ValueError for another type or shape, else the errors of `files.write`.
    """
    import tifffile

    _require(values, "uint8", "uint16", "float32")
    how: dict[str, Any] = {"photometric": "rgb" if values.ndim == 3 else "minisblack"}
    if values.dtype.kind == "u":
        how |= {"compression": "zlib", "predictor": 2, "compressionargs": {"level": _LEVEL}}
    memory = io.BytesIO()  # not the file: tifffile's errors do not say that the disk is full
    tifffile.imwrite(
        memory, _plain_array(values), description=json.dumps(dict(text)), software=False,
        metadata=None, maxworkers=1, **how,
    )  # fmt: skip
    files.write_bytes(path, memory.getvalue())


def write_npy(path: Path, values: Array) -> None:
    """Write an array as .npy, in its own dtype."""
    plain = np.ascontiguousarray(values)

    def save(file: IO[bytes]) -> None:
        # not np.save: its errors do not say that the disk is full
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(plain))
        file.write(plain.data.cast("B"))

    files.write(path, save)
