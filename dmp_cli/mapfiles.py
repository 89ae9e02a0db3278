"""A file of a map -> the array that it holds, in its own type. Which numbers mean what: maps.py.

The messages of the ImageErrors here leave out the path of the file: maps.py puts it before them.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from dmp_cli.errors import ImageError
from dmp_cli.images import PNG_END
from dmp_cli.inputs import planes
from dmp_cli.outputs.export import PREFIX
from dmp_cli.tasks import TASKS, Array, Task

SUFFIXES = (".npy", ".npz", ".exr", ".png", ".tif", ".tiff")
MAX_VALUES = 400_000_000  # of a map, all channels together: the largest image, with alpha

_FORMATS = f"dmp reads maps from {' '.join(SUFFIXES)}"


def read(path: Path, task: Task, three: bool) -> Array:
    """The array in a file that holds the map of `task`, which has `three` channels or one.

    [H, W] or [H, W, C] from pictures, any shape from .npy and .npz. Where a file holds several
    arrays or layers, the one named after the task is taken. ImageError if the file is not there,
    damaged, of another kind, or by its header of more than MAX_VALUES, or if none or several of
    its arrays can be meant.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ImageError(f"{kind or 'no suffix'}: not a file of a map", _FORMATS)
    try:
        with path.open("rb") as file:  # OpenImageIO does not say why it cannot
            empty = not file.read(1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"cannot be read: {why}") from error
    if empty:
        raise ImageError("empty: the file has no bytes")
    if kind in (".npy", ".npz"):
        return _numpy(path, task)
    if kind == ".exr":
        return _exr(path, task, three)
    indices = _indices(path) if task.labels else None
    return _picture(path) if indices is None else indices


def _numpy(path: Path, task: Task) -> Array:
    try:
        with path.open("rb") as file:
            if not file.read(4).startswith(b"PK"):
                return _array(file)
            with zipfile.ZipFile(file) as archive:
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                with archive.open(names[_member(list(names), task)]) as member:
                    return _array(member)
    # RuntimeError: of a zip that is encrypted or packed in a way that zipfile does not know
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            hint = "save it again as an array of numbers: numpy.save(path, array)"
            raise ImageError("holds pickled objects, which dmp never loads", hint) from error
        raise ImageError(f"damaged: {error}") from error


def _array(file: IO[bytes]) -> Array:
    """The array of an open .npy; numpy.load would take memory for it before its size is known."""
    file.seek(0)
    header = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    _require_size(header(file)[0])
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _require_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise ImageError(
            f"{' x '.join(map(str, shape))} values are more than {MAX_VALUES // 1_000_000} million",
            "make the map smaller: the network sees far less of it",
        )


def _require_sizes(spec: Any, channels: int) -> None:
    for size in planes.sizes(spec):
        _require_size((*size, channels))


def _member(names: list[str], task: Task) -> str:
    """The array of an .npz: named after the task, else the only one."""
    for name in (task.name, *task.aliases, *task.layers):
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise ImageError(
        f"arrays {', '.join(names) or 'none'}: which one is {task.name}?",
        f"name the array {task.name}, or keep only one",
    )


def _indices(path: Path) -> Array | None:
    """The values of an indexed picture; None if it has no palette."""
    # Pillow's own limit is for the process; ours is checked below, from the header too
    Image.MAX_IMAGE_PIXELS = max(MAX_VALUES, Image.MAX_IMAGE_PIXELS or 0)
    try:
        with Image.open(path, formats=("PNG", "TIFF")) as image:
            _require_size((image.height, image.width))
            return np.asarray(image) if image.mode == "P" else None
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too large: {error}") from error
    except UnidentifiedImageError:  # kinds of TIFF that Pillow does not know have no palette
        return None
    except Exception as error:  # Pillow raises nearly every kind on a bad file
        raise ImageError(f"damaged: {error}") from error


def text(path: Path) -> dict[str, str]:
    """What dmp wrote into a PNG, TIFF or EXR beside its pixels; empty if it is not dmp's."""
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path, formats=("PNG",)) as image:
                found = image.text if isinstance(image, PngImageFile) else {}
        else:
            values = planes.open_file(path).spec().extra_attribs
            found = {value.name.removeprefix(PREFIX): value.value for value in values}
            if path.suffix.lower() != ".exr":
                found = json.loads(found.get("ImageDescription", "{}"))
        return {key: str(value) for key, value in found.items()}
    except Exception:  # the readers raise nearly every kind on a bad file: reading its pixels tells
        return {}


def _picture(path: Path) -> Array:
    """[H, W, C] of a PNG or TIFF in its own depth (Pillow has 8 bits of 16-bit RGB), no alpha."""
    if path.suffix.lower() == ".png":
        data = path.read_bytes()
        if data.startswith(b"\x89PNG") and PNG_END not in data:  # libpng would print it
            raise ImageError("damaged: the file ends too early")
    file = planes.open_file(path)
    spec = file.spec()
    _require_sizes(spec, spec.nchannels)
    values = planes.read(file, 0, (0, spec.nchannels))
    return values[..., [i for i in range(spec.nchannels) if i != spec.alpha_channel]]


# Layers of EXR ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One or three channels of an EXR file that belong together, and the words that name them."""

    part: int
    channels: tuple[int, ...]
    words: frozenset[str]


def _exr(path: Path, task: Task, three: bool) -> Array:
    file = planes.open_file(path)
    layers: list[_Layer] = []
    names: list[str] = []
    part = 0
    while file.seek_subimage(part, 0):
        spec = file.spec()
        title = spec.get_string_attribute("oiio:subimagename")
        layers += _layers(part, spec.channelnames, title.lower())
        names += [f"{title}: {name}" if part else name for name in spec.channelnames]
        part += 1
    layer = _choice(layers, task, three)
    if layer is None:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise ImageError(
            f"channels {shown}: which of them are {task.name}?",
            f"name them {task.name}.R, .G, .B" if three else f"name one {task.name}",
        )
    first, end = min(layer.channels), max(layer.channels) + 1
    file.seek_subimage(layer.part, 0)
    _require_sizes(file.spec(), end - first)
    values = planes.read(file, layer.part, (first, end))
    return values[..., [channel - first for channel in layer.channels]]


def _layers(part: int, names: tuple[str, ...], title: str) -> list[_Layer]:
    """Channels grouped by what stands before the last dot: R, G, B or X, Y, Z, others alone."""
    groups: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):
        before, _, channel = name.lower().rpartition(".")
        groups.setdefault(before, {})[channel] = index
    found = []
    for before, channels in groups.items():
        words = frozenset((before or title).split("."))
        for triple in ("rgb", "xyz"):
            if set(triple) <= set(channels):
                indices = tuple(channels.pop(letter) for letter in triple)
                found.append(_Layer(part, indices, words | {triple}))
        alone = {name: index for name, index in channels.items() if name not in ("a", "w")}
        for name, index in alone.items():
            found.append(_Layer(part, (index,), words if before else words | {name}))
    return found


def _choice(layers: list[_Layer], task: Task, three: bool) -> _Layer | None:
    """The layer named as the task is, else the only one that can be meant; None if none or several.

    Names: ours, `Z`, `N.X`, `albedo.R`, `seg.id`; Blender's `ViewLayer.Depth.Z`, `.Normal.X`,
    `.DiffCol.R`, `.IndexOB.X`; parts by their title. A layer named as another task is never meant,
    nor are coordinates for a map of one channel, or colours for ids.
    """
    named = [layer for layer in layers if layer.words & _names(task)]
    if named:
        return named[0] if len(named) == 1 else None
    others = frozenset[str]().union(*map(_names, TASKS.values()))
    free = [layer for layer in layers if not layer.words & others]
    if three:
        free = [layer for layer in free if len(layer.channels) == 3]
    elif any(layer.words & ({"xyz", "rgb"} if task.labels else {"xyz"}) for layer in free):
        return None
    return free[0] if len(free) == 1 else None


def _names(task: Task) -> frozenset[str]:
    return frozenset(name.lower() for name in (task.name, *task.aliases, *task.layers))
