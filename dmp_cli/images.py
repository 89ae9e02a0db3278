"""File -> pixels, and the sizes of pixels and maps. No tasks, no tensors."""

import io
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from dmp_cli.errors import ImageError

Array = NDArray[Any]

# Pillow has no reader named MPO: the one of JPEG reads it
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
BACKGROUND = (255, 255, 255)  # what stands behind transparent pixels
SEVERAL = "has several frames: the first is taken"
BUDGET = 4  # the network's picture has at most this many times size * size pixels

PNG_END = b"IEND\xaeB`\x82"  # a whole PNG holds it
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_QUIET = logging.NullHandler()


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
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"cannot be read: {why}") from error
    # Pillow's own limit is for the process; ours is checked below, from the header too
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            if image.format == "PNG" and PNG_END not in data:  # Pillow does not mind
                raise ImageError("damaged: the file ends too early")
            if not _deep_planes(image):
                return upright(image)
        return _read_tiff(data, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("it", max_pixels) from error
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF_STARTS:
            return _read_tiff(data, max_pixels)
        kinds = f"not an image that dmp reads ({', '.join(FORMATS)})"
        raise ImageError(kinds if data else "empty: the file has no bytes") from error
    except MemoryError as error:
        raise ImageError("not enough memory to read it") from error
    except Exception as error:  # Pillow raises nearly every kind on a bad file
        raise ImageError(f"damaged: {error}") from error


def _deep_planes(image: Image.Image) -> bool:
    """Whether it is a TIFF of 16-bit channels one after the other: Pillow reads noise there."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and max(tags.get(258, (1,))) > 8


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(f"{width}x{height}", max_pixels)


def _too_large(what: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{what} is more than --max-pixels {max_pixels}",
        "raise --max-pixels if the file is to be trusted",
    )


def upright(image: Image.Image) -> Pixels:
    """A Pillow image turned as its EXIF says, in sRGB, over BACKGROUND, first frame, 8 bits."""
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(SEVERAL)
    image.load()
    profile = image.info.get("icc_profile")
    image = _without_depth(image)
    try:
        image = ImageOps.exif_transpose(image)  # a copy: the caller's own stays as it is
    except Exception:  # damaged EXIF: Pillow raises nearly every kind
        notes.append("its EXIF data is damaged: orientation ignored")
    if profile:
        try:
            image = _to_srgb(image, profile)
        except Exception:  # Pillow and Little CMS raise several kinds
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
    import tifffile

    logging.getLogger("tifffile").addHandler(_QUIET)  # or it prints what it thinks of bad files
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            _check_size(page.imagewidth, page.imagelength, max_pixels)
            if page.samplesperpixel > 4:  # before memory is taken for them
                raise ImageError(f"{page.samplesperpixel} channels: not a grey or RGB picture")
            values = np.moveaxis(page.asarray(), 0, -1) if page.axes == "SYX" else page.asarray()
            turn, profile = (page.tags.valueof(tag) for tag in ("Orientation", "InterColorProfile"))
            notes = (SEVERAL,) if len(file.pages) > 1 else ()
        image = _picture(values)
        image.getexif()[ExifTags.Base.Orientation] = int(turn or 1)
        image.info["icc_profile"] = profile
        pixels = upright(image)
    except ImageError:
        raise
    except Exception as error:  # tifffile, too, raises nearly every kind on a bad file
        raise ImageError(f"damaged, or a TIFF that dmp does not read: {error}") from error
    return replace(pixels, notes=notes + pixels.notes)


def from_array(values: Array) -> Pixels:
    """uint8, uint16 or float [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha) -> Pixels.

    Floats are taken as sRGB-coded in [0, 1]. ImageError for another shape, type or range.
    """
    floats = np.issubdtype(values.dtype, np.floating)
    if values.dtype not in (np.uint8, np.uint16, np.bool_) and not floats:
        raise ImageError(f"an array of {values.dtype}: give uint8, uint16, or floats in [0, 1]")
    if floats and values.max(initial=0) > 1.001:
        raise ImageError(f"an array of floats up to {values.max():.6g}: give them in [0, 1]")
    return upright(_picture(values))


def _picture(values: Array) -> Image.Image:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(f"an array of shape {list(values.shape)} is no image [H, W, 3]")
    if values.dtype == np.bool_:
        values = values * np.uint8(255)
    pixels = _to_8bit(values)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(pixels))


# Sizes ------------------------------------------------------------------------------------


def fitted_size(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """(height, width) that the network sees: short side `size`, aspect kept, few enough pixels.

    Both are rounded to the `multiple` that the VAE needs. A long picture is brought to BUDGET
    times size * size pixels instead. `size` 0 leaves the picture as it is.
    """
    scale, budget = 1.0, BUDGET * size * size
    if size:
        scale = min(size / min(height, width), (budget / (height * width)) ** 0.5)

    def rounded(side: int) -> int:
        return max(round(side * scale / multiple), 1) * multiple

    short, long = rounded(min(height, width)), rounded(max(height, width))
    if size:  # rounding up the short side must not break the budget
        long = min(long, max(budget // short // multiple, 1) * multiple)
    return (short, long) if height < width else (long, short)


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
