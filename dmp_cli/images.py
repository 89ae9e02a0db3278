"""File -> pixels, and pixels or maps -> file. No tasks, no tensors."""

import io
import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from dmp_cli.errors import ImageError, ResourceError

Array = NDArray[Any]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
COLORMAPS = ("Spectral", "inferno", "turbo", "viridis", "magma", "grey")
BACKGROUND = (255, 255, 255)  # what stands behind transparent pixels
BUDGET = 4  # the network's picture has at most this many times size * size pixels

_counter = itertools.count()


@dataclass(frozen=True)
class Pixels:
    """An upright image as uint8 [H, W, 3] sRGB, and what a user may want to know of it."""

    rgb: Array
    notes: tuple[str, ...] = ()


# Reading ----------------------------------------------------------------------------------


def read(path: Path, max_pixels: int) -> Pixels:
    """Read an image file by its content, whatever its name.

    ImageError if it is not an image of FORMATS, has more than `max_pixels`, or is damaged.
    Metadata alone (EXIF, ICC) never fails an image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    # Pillow's own limit is for the process; ours is checked below, from the header too
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            return upright(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises nearly every kind on a bad file
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _read_tiff(data, max_pixels)
        if isinstance(error, UnidentifiedImageError):
            kind = "empty" if not data else "not an image that dmp reads"
            raise ImageError(f"{kind} ({', '.join(FORMATS)})") from error
        raise ImageError(f"damaged: {error}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} is more than --max-pixels {max_pixels}",
            "raise --max-pixels if the file is to be trusted",
        )


def upright(image: Image.Image) -> Pixels:
    """A Pillow image turned as its EXIF says, in sRGB, over BACKGROUND, first frame, 8 bits."""
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append("has several frames: the first is taken")
    image.load()
    profile = image.info.get("icc_profile")
    image = _without_depth(image)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged EXIF: Pillow raises nearly every kind
        notes.append("its EXIF data is damaged: orientation ignored")
    if profile:
        try:
            image = _to_srgb(image, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("its colour profile is damaged: taken as sRGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(behind, image)
    return Pixels(np.asarray(image.convert("RGB")), tuple(notes))


def _without_depth(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits, by the range of the type, not clipped at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    exif = image.getexif()
    grey = Image.fromarray(_to_8bit(np.asarray(image)))
    grey.getexif().update(exif)
    return grey


def _to_8bit(values: Array) -> Array:
    """uint8 of any numbers: integers by the range of their type, floats from [0, 1].

    Where the type does not tell (int32 of Pillow, floats past 1), 16 bits if they fit, else the
    largest value is white.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return np.asarray(np.rint(values / 257), np.uint8)
    data = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top = data.max(initial=0.0)
    if np.issubdtype(values.dtype, np.integer):
        white = 65535.0 if top <= 65535 else top
    else:
        white = 1.0 if top <= 1 else top
    return np.asarray(np.rint(np.clip(data / white, 0, 1) * 255), np.uint8)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode.removesuffix("A")) if alpha else image
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    if converted is None:
        raise ImageCms.PyCMSError("no conversion")
    if alpha:
        converted.putalpha(alpha)
    return converted


def _read_tiff(data: bytes, max_pixels: int) -> Pixels:
    """What Pillow does not know of TIFF: several channels of 16 or 32 bits or floats."""
    import imageio.v3 as iio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            height, width = iio.improps(data, extension=".tif", plugin="tifffile", index=0).shape[
                :2
            ]
            _check_size(width, height, max_pixels)
            values = iio.imread(data, extension=".tif", plugin="tifffile", index=0)
    except ImageError:
        raise
    except Exception as error:  # tifffile, too, raises nearly every kind on a bad file
        raise ImageError(f"damaged, or a TIFF that dmp does not read: {error}") from error
    return from_array(values)


def from_array(values: Array) -> Pixels:
    """uint8, uint16 or float [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha) -> Pixels.

    Floats are taken as sRGB-coded in [0, 1]. ImageError for another shape.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(f"an array of shape {list(values.shape)} is no image [H, W, 3]")
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    pixels = _to_8bit(values)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return upright(Image.fromarray(np.ascontiguousarray(pixels)))


# Sizes ------------------------------------------------------------------------------------


def fitted_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """(height, width) that the network sees: short side `size`, aspect kept, few enough pixels.

    Both are rounded to the `multiple` that the VAE needs. A long picture is brought to BUDGET
    times size * size pixels instead. `size` 0 leaves the picture as it is.
    """
    scale = 1.0
    if size:
        budget = BUDGET * size * size
        scale = min(size / min(height, width), (budget / (height * width)) ** 0.5)

    def rounded(side: int) -> int:
        return max(round(side * scale / multiple), 1) * multiple

    return rounded(height), rounded(width)


def fit(pixels: Array, size: tuple[int, int]) -> Array:
    """uint8 [H, W, 3] at `size` (height, width): bilinear, averaging where it shrinks."""
    if pixels.shape[:2] == size:
        return pixels
    resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize(values: Array, size: tuple[int, int], nearest: bool = False) -> Array:
    """A map [h, w] or [h, w, C] at `size` (height, width) in its own dtype, float32 or uint8.

    Bilinear, averaging where it shrinks; with `nearest`, values are picked and never mixed.
    """
    if values.shape[:2] == size:
        return values
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    channels = values[..., None] if values.ndim == 2 else values
    out = np.empty((*size, channels.shape[-1]), values.dtype)
    for channel in range(channels.shape[-1]):
        plane = Image.fromarray(np.ascontiguousarray(channels[..., channel]))
        out[..., channel] = np.asarray(plane.resize(size[::-1], how))
    return out[..., 0] if values.ndim == 2 else out


# Writing ----------------------------------------------------------------------------------


def colormap(name: str) -> Array | None:
    """uint8 [256, 3] of a colour map of COLORMAPS; None for grey."""
    if name == "grey":
        return None
    import cmap

    colours: Array = np.rint(cmap.Colormap(name).lut(256)[:, :3] * 255).astype(np.uint8)
    return colours


def write_png(
    path: Path, pixels: Array, text: Mapping[str, str], palette: Array | None = None
) -> None:
    """Write uint8 [H, W] or [H, W, 3] as PNG, indexed with `palette`; `text` goes into it."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if palette is not None:
        image.putpalette(palette.tobytes())
    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value)
    write(path, lambda file: image.save(file, "PNG", compress_level=1, pnginfo=info))


def write_npy(path: Path, values: Array) -> None:
    """Write an array as .npy, in its own dtype."""
    write(path, lambda file: np.save(file, np.ascontiguousarray(values), allow_pickle=False))


def write(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a temporary name, then rename it: a file that exists is whole.

    ImageError if this one name cannot be written, ResourceError if none could be.
    """
    temporary = path.parent / f".dmp-{os.getpid()}-{next(_counter)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                save(file)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: Exception) -> ImageError | ResourceError:
    import errno

    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENAMETOOLONG, errno.EISDIR, errno.EILSEQ, None):
        return ImageError(f"{path} cannot be written: {error}")
    hint = "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return ResourceError(
        f"{path} cannot be written: {os.strerror(number or 0)}", f"{hint}, then run it again"
    )


def check_writable(folder: Path) -> None:
    """Make an output folder and a file in it; ResourceError if that fails."""
    probe = folder / f".dmp-{os.getpid()}-probe"
    write(probe, lambda file: file.flush())
    probe.unlink()
