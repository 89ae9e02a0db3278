"""An array -> a file of a format. No tasks: what the numbers mean is said by export.py.

Pillow writes PNG, OpenEXR writes EXR, tifffile writes TIFF: each into a file that Python has
opened, so that a full disk is told with its reason. OpenImageIO opens its files itself and takes
a full disk for a success, so it is left with the one kind that the others do not know, PNG of
16-bit colours, and its file is checked. docs/formats.md has the measurements.
"""

import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from dmp_cli import files
from dmp_cli.plan import EXR_COMPRESSIONS

Array = NDArray[Any]
Kind = Literal["float", "half", "uint"]  # how a channel of EXR is stored

KINDS = {"float": np.float32, "half": np.float16, "uint": np.uint32}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PAETH = 128  # a filter of PNG: what libpng chooses for smooth maps, without its search
_FAST, _INDEXED = 1, 3  # levels of deflate: what the next one saves, docs/formats.md


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
    plain = _plain_array(pixels)
    if plain.dtype == np.uint16 and plain.ndim == 3:  # Pillow does not know it
        files.write(path, lambda file: _save_deep(file, plain, info))
        return
    image = Image.fromarray(plain)
    how: dict[str, Any] = {"compress_level": _FAST, "pnginfo": info}
    if palette is not None:
        image.putpalette(_full(palette, pixels).tobytes())
        how |= {"compress_level": _INDEXED, "bits": 8}
    files.write(path, lambda file: image.save(file, "PNG", **how))


def _full(palette: Array, pixels: Array) -> Array:
    """The palette with black up to 256 colours, so that no index is without one."""
    if palette.dtype != np.uint8 or palette.shape[1:] != (3,) or len(palette) > 256:
        raise ValueError(f"a palette of {palette.dtype} {list(palette.shape)}: not uint8 [256, 3]")
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError("only uint8 [H, W] has a palette")
    return np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])


def _save_deep(file: IO[bytes], pixels: Array, info: PngImagePlugin.PngInfo) -> None:
    """16-bit RGB by OpenImageIO; of its file only the pixels are kept, for it adds text."""
    name = file.name
    if not _is_utf8(name):  # OpenImageIO takes no other names; such are found on Linux alone
        name = f"/dev/fd/{file.fileno()}"
    said = _write_deep(name, pixels)
    chunks = _chunks(Path(name).read_bytes())
    if said or b"IEND" not in chunks:
        file.seek(0, os.SEEK_END)
        file.write(bytes(2**16))  # Python fails at the same place, and says why
        file.flush()
        raise OSError(errno.EIO, said or "the file is not whole")
    file.truncate(0)
    file.write(_SIGNATURE)
    PngImagePlugin.putchunk(file, b"IHDR", chunks[b"IHDR"])
    for name_of_chunk, data, *_ in info.chunks:
        PngImagePlugin.putchunk(file, name_of_chunk, data)
    PngImagePlugin.putchunk(file, b"IDAT", chunks[b"IDAT"])
    PngImagePlugin.putchunk(file, b"IEND")


def _is_utf8(name: str) -> bool:
    return name.encode("utf-8", "replace").decode() == name


def _write_deep(name: str, pixels: Array) -> str:
    """Let OpenImageIO write a file; what it says if that fails. It may also fail silently."""
    import OpenImageIO

    height, width, channels = pixels.shape
    spec = OpenImageIO.ImageSpec(width, height, channels, "uint16")
    spec.attribute("png:compressionLevel", _FAST)
    spec.attribute("png:filter", _PAETH)
    target = OpenImageIO.ImageOutput.create("png")
    if target is None:
        return str(OpenImageIO.geterror())
    good = target.open(name, spec) and target.write_image(pixels) and target.close()
    said = target.geterror()
    return "" if good and not said else said or "it does not say why"


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by name, those of equal names joined; without IEND if it is cut off."""
    found: dict[bytes, list[bytes]] = {}
    start = len(_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if end + 4 > len(data):
            break
        found.setdefault(data[start + 4 : start + 8], []).append(data[start + 8 : end])
        start = end + 4  # past the checksum
    return {name: b"".join(parts) for name, parts in found.items()}


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
        how |= {"compression": "zlib", "predictor": 2, "compressionargs": {"level": _FAST}}
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
