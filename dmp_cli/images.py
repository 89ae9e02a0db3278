"""File -> pixels, and the sizes of pixels and maps. No tasks, no tensors."""

import io
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from dmp_cli.errors import ImageError, UsageError
from dmp_cli.inputs import planes, radiance, tiffs
from dmp_cli.inputs.pictures import (
    SEVERAL,
    WHITE,
    Array,
    Colour,
    check_size,
    not_finite,
    to_8bit,
    too_large,
)

# Pillow has no reader named MPO: the one of JPEG reads it
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
KINDS = (*FORMATS, "EXR", "HDR", "HEIC")  # what is read in all, whatever the name
BUDGET = 4  # the network's picture has at most this many times size * size pixels

PNG_END = b"IEND\xaeB`\x82"  # a whole PNG holds it
# Brands of ISO/IEC 23008-12 that are HEVC, or may be: AVIF of the last two is Pillow's
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")

logging.getLogger("PIL").addHandler(logging.NullHandler())  # or it prints what bad files hold


@dataclass(frozen=True)
class Pixels:
    """An upright image as uint8 [H, W, 3] sRGB, and what a user may want to know of it."""

    rgb: Array
    notes: tuple[str, ...] = ()


# Reading ----------------------------------------------------------------------------------


def read(
    path: Path, max_pixels: int, *, background: Colour = WHITE, exposure: float = 0.0
) -> Pixels:
    """Read an image file by its content, whatever its name.

    `background` is the sRGB colour behind transparent pixels, `exposure` (stops) brightens EXR and
    HDR. ImageError if it is not an image of KINDS, has more than `max_pixels`, or is damaged.
    Metadata alone (EXIF, ICC, primaries) never fails an image.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
            light = start.startswith(radiance.STARTS)
            data = start if light else start + file.read()
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"cannot be read: {why}") from error
    try:
        if light:
            return Pixels(
                *radiance.read(path, max_pixels, background=background, exposure=exposure)
            )
        image, notes = _image(path, data, max_pixels)
        with image:
            pixels = upright(image, background=background)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large("it", max_pixels) from error
    except MemoryError as error:
        raise ImageError("not enough memory to read it", again=True) from error
    except Exception as error:  # Pillow raises nearly every kind on a bad file
        raise ImageError(f"damaged: {error}") from error
    return replace(pixels, notes=notes + pixels.notes)


def _image(path: Path, data: bytes, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """The file as an image of Pillow that is not too large, and notes."""
    # Pillow's own limit is for the process; ours is checked below, from the header too
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(tiffs.STARTS):
            return _deep_tiff(path, max_pixels)
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF:
            return _heic(data, max_pixels), ()
        kinds = f"not an image that dmp reads ({', '.join(KINDS)})"
        raise ImageError(kinds if data else "empty: the file has no bytes") from error
    check_size(image.height, image.width, max_pixels)
    if image.format == "PNG" and PNG_END not in data:  # Pillow does not mind
        raise ImageError("damaged: the file ends too early")
    tags = getattr(image, "tag_v2", {})
    deep = max(tags.get(ExifTags.Base.BitsPerSample, (8,))) > 8
    if deep and tags.get(ExifTags.Base.PhotometricInterpretation) in (*tiffs.GREY, tiffs.RGB):
        return _deep_tiff(path, max_pixels)
    return image, ()


def _deep_tiff(path: Path, max_pixels: int) -> tuple[Image.Image, tuple[str, ...]]:
    page = tiffs.read(path, max_pixels)
    image = _picture(page.values)
    image.getexif()[ExifTags.Base.Orientation] = page.orientation
    image.info["icc_profile"] = page.profile
    notes = (SEVERAL,) if page.several else ()
    return image, notes + not_finite(int(page.values.size - np.isfinite(page.values).sum()))


def _heic(data: bytes, max_pixels: int) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError("HEIC needs a package", "pip install pillow-heif") from error
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    check_size(image.height, image.width, max_pixels)
    return image


def upright(image: Image.Image, *, background: Colour = WHITE) -> Pixels:
    """A Pillow image turned as its EXIF says, in sRGB, over `background`, first frame, 8 bits."""
    notes = []
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(SEVERAL)
    image.load()
    profile = image.info.get("icc_profile")
    image = _without_depth(image)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, as the pixels no longer are
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
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
        behind = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(behind, image)
    return Pixels(np.asarray(image.convert("RGB")), tuple(notes))


def _without_depth(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits, by the range of the type, not clipped at 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "I" and values.max(initial=0) <= 65535:  # of 16 bits: a PGM
        values = np.maximum(values, 0).astype(np.uint16)
    exif = image.getexif()
    grey = Image.fromarray(to_8bit(values))
    if isinstance(clear := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(values != clear))
    grey.getexif().update(exif)
    return grey


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


def from_array(values: Array, *, background: Colour = WHITE) -> Pixels:
    """uint8, uint16 or float [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (alpha) -> Pixels.

    Floats are taken as sRGB-coded in [0, 1]. ImageError for another shape, type or range.
    """
    floats = np.issubdtype(values.dtype, np.floating)
    if values.dtype not in (np.uint8, np.uint16, np.bool_) and not floats:
        raise ImageError(f"an array of {values.dtype}: give uint8, uint16, or floats in [0, 1]")
    if floats and values.max(initial=0) > 1.001:
        raise ImageError(f"an array of floats up to {values.max():.6g}: give them in [0, 1]")
    return upright(_picture(values), background=background)


def _picture(values: Array) -> Image.Image:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in (1, 3, 4) or 0 in values.shape:
        raise ImageError(f"an array of shape {list(values.shape)} is no image [H, W, 3]")
    pixels = to_8bit(values[..., :3])
    if values.shape[-1] == 4:  # apart: where colours go past 1 they are scaled, alpha is cut
        alpha = values[..., 3]
        cut = np.minimum(alpha, 1) if np.issubdtype(alpha.dtype, np.floating) else alpha
        pixels = np.dstack([pixels, to_8bit(cut)])
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def parse_background(text: str) -> Colour:
    """`white`, `grey`, `#rrggbb`, `R,G,B`, or another name of CSS -> sRGB, 0 to 255; UsageError."""
    numbers: Any = ()
    for form in (text, f"rgb({text})"):
        try:
            numbers = ImageColor.getrgb(form)
        except ValueError:
            continue
    if len(numbers) != 3 or max(numbers) > 255:
        raise UsageError(
            f"{text!r} is no colour",
            "give a name such as white, black or grey, or #rrggbb, or R,G,B from 0 to 255",
        )
    red, green, blue = numbers
    return red, green, blue


# Sizes ------------------------------------------------------------------------------------


def pixels_stated(path: Path) -> int | None:
    """How many pixels a picture has by its header; None if that cannot be told.

    What is wrong with the file is for `read` to say.
    """
    with suppress(Exception):  # Pillow raises nearly every kind on a bad file
        with path.open("rb") as file:
            start = file.read(16)
        if not start.startswith(radiance.STARTS):
            with suppress(UnidentifiedImageError), Image.open(path, formats=FORMATS) as image:
                return image.height * image.width
        if start.startswith((*radiance.STARTS, *tiffs.STARTS)):
            spec = planes.open_file(path).spec()
            return max(height * width for height, width in planes.sizes(spec))
    return None


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
