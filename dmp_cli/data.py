"""The layout of a training set: which map belongs to which image, and a pair as pictures.

    DATA/images/a.jpg  DATA/images/sub/b.png    or image/, rgb/, or the images in DATA itself
    DATA/depth/a.npy   DATA/depth/sub/b.exr     a folder per task, by its name or alias, or else
    DATA/images/a.depth.npy                     the task before the suffix, as dmp predict writes
    DATA/metadata.jsonl                         captions, as Hugging Face's ImageFolder has them

Every ImageError raised here begins with the path of the file, so it can be shown as it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dmp_cli import captions, images, jobs, maps, naming
from dmp_cli.classes import ade20k
from dmp_cli.errors import ImageError, NoInputError
from dmp_cli.maps import Reading
from dmp_cli.tasks import UNLABELLED, Array, Coding, Task

MAX_PIXELS = 100_000_000  # an image with more is refused


@dataclass(frozen=True)
class Pair:
    """An image and its map. `name` is the path below the folder of images, without suffix."""

    name: str
    image: Path
    target: Path
    prompt: str = ""


@dataclass(frozen=True)
class Layout:
    """What a folder has for one task. `doubles`: two files of one name, so neither can be meant."""

    maps: int  # names that have a map, or several
    pairs: tuple[Pair, ...]
    without_target: tuple[Path, ...] = ()
    without_image: tuple[Path, ...] = ()
    doubles: tuple[tuple[Path, Path], ...] = ()


@dataclass(frozen=True)
class Fit:
    """The size at which the network sees an image, as images.fitted_size takes it."""

    size: int = 512  # of the short side; 0: as it is
    multiple: int = 8  # of both sides: Backbone.multiple


# Finding ----------------------------------------------------------------------------------


def pairs(root: Path, task: Task, partial: bool = False) -> list[Pair]:
    """The pairs of a folder, sorted by name.

    UsageError if it is no folder. NoInputError if it has no images, or no maps of the task.
    ImageError for captions of no image, for two maps of one image, for a file that is not there,
    such as a link to nothing, and, unless `partial`, for an image without a map or a map without
    an image. Every path returned is that of a file that was there, no FIFO or device.
    """
    found = layout(root, task)
    if found.doubles:
        raise naming.same_name(*found.doubles[0])
    if not found.maps:
        number = len(found.without_target)
        raise NoInputError(f"{root}: {number} images, but no {task.name} maps", where(root, task))
    if not found.pairs or not partial:
        _require(found.without_target, f"{task.name} map")
        _require(found.without_image, "image")
    for pair in found.pairs:
        _require_file(pair.image)
        _require_file(pair.target)
    return list(found.pairs)


def _require_file(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        why = f"{path}: cannot be read: {error.strerror}"
        raise ImageError(why, "a link has to lead to a file") from error


def _require(lonely: tuple[Path, ...], counterpart: str) -> None:
    if not lonely:
        return
    more = f", nor for {len(lonely) - 1} others" if len(lonely) > 1 else ""
    raise ImageError(
        f"{lonely[0]}: there is no {counterpart} for it{more}",
        "add what is missing, or use --skip-missing to leave out what has no counterpart",
    )


def layout(root: Path, task: Task) -> Layout:
    """What is there for a task, and what is not. Raises as `pairs` does for a folder as a whole."""
    folder, shots = naming.image_folder(root), naming.images(root)
    if not shots:
        endings = " ".join(sorted(jobs.PICTURES))
        raise NoInputError(f"no image found in {folder}", f"images end in {endings}")
    targets = _targets(root, task)
    prompts = captions.read(
        (root, folder), {path: name for name, paths in shots.items() for path in paths}
    )
    doubles = [paths for paths in (*shots.values(), *targets.values()) if len(paths) > 1]
    found = [
        Pair(name, shots[name][0], targets[name][0], prompts.get(name, ""))
        for name in sorted(shots.keys() & targets.keys())
        if len(shots[name]) == len(targets[name]) == 1
    ]
    return Layout(
        len(targets),
        tuple(found),
        tuple(shots[name][0] for name in sorted(shots.keys() - targets.keys())),
        tuple(targets[name][0] for name in sorted(targets.keys() - shots.keys())),
        tuple((paths[0], paths[1]) for paths in doubles),
    )


def where(root: Path, task: Task) -> str:
    """Where maps of a task are looked for, and which folders are there instead."""
    there = sorted(path.name for path in root.iterdir() if path.is_dir())
    kinds = ", ".join(maps.SUFFIXES[1:])
    looked = f"looked for {task.name}/NAME.npy and NAME.{task.name}.npy, or {kinds}"
    return f"{looked}; folders there: {', '.join(there) or 'none'}"


def _targets(root: Path, task: Task) -> naming.Named:
    """The maps of a task by name, without pictures of 8 bits that show depth."""

    def shows(path: Path) -> bool:
        return task.metres and naming.is_picture(path) and _is_8bit_png(path)

    found = {
        name: [path for path in files if not shows(path)]
        for name, files in naming.maps(root, task).items()
    }
    return {name: files for name, files in found.items() if files}


def _is_8bit_png(path: Path) -> bool:
    """By the header, whose 25th byte is the bit depth."""
    try:
        with path.open("rb") as file:
            return file.read(25)[24:] in (b"\1", b"\2", b"\4", b"\x08")
    except OSError:
        return False  # reading the map will say what is wrong


# Reading ----------------------------------------------------------------------------------


def load(pair: Pair, task: Task, coding: Coding, fit: Fit, how: Reading) -> tuple[Array, Array]:
    """An image, uint8 [h, w, 3] sRGB, and the picture of its map, float32 [h, w, 3] in [-1, 1].

    Both at the network's size; the map is resized before it is coded: ids by nearest, others
    bilinear, normals made unit length again. Where there is no surface, depth is drawn as the far
    end, `coding.scale`, as is all beyond it; normals are drawn as zero; no class is black.
    ImageError if one of the two cannot be read, if the map has another shape than the upright
    image (the same at another resolution is taken), or if `require_usable` refuses it.
    """
    rgb = read_image(pair.image)
    values = maps.read(pair.target, task, how)
    require_usable(pair.target, values, task)
    require_shape(pair, values, rgb)
    size = images.fitted_size(rgb.shape[0], rgb.shape[1], fit.size, fit.multiple)
    if task.metres:
        far = np.float32(coding.scale)
        values = np.where((values > 0) & (values < far), values, far)
    values = images.resize(values, size, nearest=task.labels)
    if task.unit_length:
        values = maps.normalised(values)
    drawn = task.encode(values, replace(coding, axes="opengl"))
    return images.fit(rgb, size), np.clip(drawn, -1, 1).astype(np.float32)


def read_image(path: Path) -> Array:
    """uint8 [H, W, 3] upright sRGB; ImageError."""
    try:
        return images.read(path, MAX_PIXELS).rgb
    except ImageError as error:
        raise ImageError(f"{path}: {error}", error.hint) from error


def require_usable(path: Path, values: Array, task: Task) -> None:
    """ImageError if a map of `maps.read` cannot train: NaN or infinite, or ids of no class."""
    if task.labels:
        known = len(ade20k().names)
        wrong = values[(values >= known) & (values != UNLABELLED)]
        if wrong.size:
            raise ImageError(
                f"{path}: class id {wrong[0]} is out of range (pixels with such: {wrong.size})",
                f"ids are 0 to {known - 1}, {UNLABELLED} for no class; ADE20K's own files "
                "count from 1: take 1 off",
            )
        return
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        surfaces = task.metres or task.unit_length
        raise ImageError(
            f"{path}: {broken} of {values.size} values are NaN or infinite",
            "write 0 where there is no surface" if surfaces else "write finite numbers",
        )


def require_shape(pair: Pair, values: Array, rgb: Array) -> None:
    """ImageError if a map has another aspect than its image, by more than a pixel of either."""
    (height, width), (rows, columns) = rgb.shape[:2], values.shape[:2]
    off = abs(rows * width - columns * height)
    if off > max(height, width, rows, columns):
        raise ImageError(
            f"{pair.target}: {columns}x{rows}, but {pair.image} is {width}x{height}",
            "the map has to show what the upright image shows, to its edges",
        )
