"""A file of a map, ours or other people's -> the array that tasks.py describes.

Every ImageError raised here begins with the path of the file, so it can be shown as it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dmp_cli import mapfiles
from dmp_cli.classes import ade20k
from dmp_cli.errors import ImageError, UsageError
from dmp_cli.tasks import UNLABELLED, Array, Coding, Task, parse_axes, to_opengl

SUFFIXES = mapfiles.SUFFIXES
NOWHERE = 65504.0  # metres: the largest half. From here on there is no surface; Blender writes 1e10
SHORTEST = 0.1  # a vector below this length is no normal: 8-bit grey is 0.007 long


@dataclass(frozen=True)
class Reading:
    """How files of other people are to be understood.

    A file that dmp wrote says itself what its steps or axes are, but for npy: these then do not
    count.
    """

    unit: float = 0.001  # metres per step of an integer depth file
    axes: str = "opengl"  # the axes in which normals are stored, as tasks.parse_axes takes them
    zero: float = 0.0  # metres of the integer 0, which itself stands for no surface


def check(how: Reading) -> None:
    """UsageError for a unit that is no length, or axes that there are not."""
    if not 0 < how.unit < float("inf"):
        raise UsageError(f"a unit of {how.unit}: must be metres above 0")
    parse_axes(how.axes)


def read(path: Path, task: Task, how: Reading = Reading()) -> Array:
    """The map in a file, in the conventions of tasks.py, at the size that it has there.

    Float32 [H, W] or [H, W, 3] as the task has it; ids are uint8. Depth: 0 where there is no
    surface, which a file says by 0, a negative number, infinity or NOWHERE. Normals: opengl, unit
    length, (0, 0, 0) where there is no surface. Segmentation: UNLABELLED where there is no class;
    ids are not held against the class table. NaN stays NaN. Raises ImageError.
    """
    return settled(stored(path, task, how), task)


def settled(values: Array, task: Task) -> Array:
    """What `stored` returns, with one value for "no surface", and normals made unit length."""
    if task.metres:
        surface = (values > 0) & (values < NOWHERE)
        return np.where(surface | np.isnan(values), values, np.float32(0))
    return normalised(values) if task.unit_length else values


def normalised(vectors: Array) -> Array:
    """float32 [..., 3] at length 1, or (0, 0, 0) if shorter than SHORTEST; NaN stays NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
        units = vectors / np.maximum(length, np.float32(SHORTEST))
    return np.where(length < SHORTEST, np.float32(0), units).astype(np.float32)


def stored(path: Path, task: Task, how: Reading = Reading()) -> Array:
    """The numbers of a file as a map, before `settled`: as long, far or negative as they are.

    ImageError if the file is not there, damaged, or holds no map of that task.
    """
    three = task.decode(np.zeros((1, 1, 3), np.float32), Coding()).ndim == 3
    try:
        values = _arranged(mapfiles.read(path, task, three), three)
        if task.labels:
            return _ids(values)
        return _floats(values, task, _told(path, task, values, how), three)
    except ImageError as error:
        raise ImageError(f"{path}: {error}", error.hint) from error
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to read it") from error


def _arranged(values: Array, three: bool) -> Array:
    """[H, W] or [H, W, 3] of arrays with the channels in front or at the end, or of a batch of 1.

    Three channels stay for a map of one: they are averaged once they are light or metres.
    """
    shape = list(values.shape)
    if values.dtype.kind not in "buif":
        raise ImageError(f"holds {values.dtype}, not numbers")
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 3 and values.shape[-1] not in (1, 3) and values.shape[0] in (1, 3):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    wanted = "[H, W, 3]" if three else "[H, W]"
    good = values.ndim == 3 if three else values.ndim in (2, 3)
    if not good or 0 in shape or values.shape[2:] not in ((), (3,)):
        raise ImageError(f"holds an array {shape}, the map is {wanted}")
    return values


def _told(path: Path, task: Task, values: Array, how: Reading) -> Reading:
    """How a file is to be read: as it says itself, if dmp wrote it."""
    steps = task.metres and values.dtype.kind in "ui"
    if not (steps or task.unit_length) or path.suffix.lower() in (".npy", ".npz"):
        return how
    text = mapfiles.text(path)
    try:
        if task.unit_length:
            return replace(how, axes=text.get("Axes") or text[f"{task.name}.Axes"])
        return replace(how, unit=float(text["metres_per_step"]), zero=float(text["metres_at_zero"]))
    except (KeyError, ValueError):
        return how


def _floats(values: Array, task: Task, how: Reading, three: bool) -> Array:
    if values.dtype.kind not in "ui":
        with np.errstate(over="ignore"):  # float64 beyond float32: infinite
            floats = values.astype(np.float32)
    elif task.metres:
        if values.dtype.itemsize == 1:
            hint = "give 16-bit PNG or TIFF, EXR, or npy"
            raise ImageError(f"{task.name} of 8 bits is a picture to look at, not data", hint)
        metres = np.where(values > 0, values * np.float64(how.unit) + how.zero, 0)
        floats = metres.astype(np.float32)
    elif values.dtype in (np.uint8, np.uint16):
        floats = task.unpack(values / np.float32(np.iinfo(values.dtype).max))
    else:
        raise ImageError(f"holds {values.dtype}: give uint8, uint16 or floats")
    if not three and floats.ndim == 3:
        floats = floats.mean(axis=-1, dtype=np.float32)
    return to_opengl(floats, how.axes) if task.unit_length else floats


def _ids(values: Array) -> Array:
    """uint8 ids of numbers, or of colours of the ADE20K palettes; -1 is UNLABELLED, as 255 is."""
    if values.ndim == 3:
        return _ids_of_colours(values)
    if values.dtype == np.uint8:
        return values
    rounded = np.nan_to_num(np.rint(values), nan=-2)
    wrong = (rounded != values) | (rounded < -1) | (rounded > UNLABELLED)
    if wrong.any():
        raise ImageError(
            f"{values[wrong][0]} is no class id",
            "ids are 0 to 149, 255 where there is no class",
        )
    return np.where(rounded == -1, UNLABELLED, rounded).astype(np.uint8)


def _ids_of_colours(colours: Array) -> Array:
    if colours.dtype != np.uint8:
        raise ImageError(f"classes as colours of {colours.dtype}", "give 8-bit colours, or ids")
    weights = np.array([65536, 256, 1], np.int64)
    table = ade20k()
    # of equal colours the lower id: a later key of a dict wins
    ids = {0: UNLABELLED} | {
        int(colour @ weights): index
        for palette in (table.drawn, table.standard)
        for index, colour in reversed(list(enumerate(palette)))
    }
    unique, where = np.unique(colours.reshape(-1, 3) @ weights, return_inverse=True)
    unknown = [int(key) for key in unique if int(key) not in ids]
    if unknown:
        red, green, blue = unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255
        raise ImageError(
            f"colour ({red}, {green}, {blue}) is not in the ADE20K palette",
            "give class ids as an indexed or grey PNG, or npy",
        )
    return np.array([ids[int(key)] for key in unique], np.uint8)[where].reshape(colours.shape[:2])
