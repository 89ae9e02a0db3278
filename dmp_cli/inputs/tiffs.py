"""TIFFs of more than 8 bits a channel: Pillow knows few of them, and reads some wrongly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dmp_cli.errors import ImageError
from dmp_cli.inputs import planes
from dmp_cli.inputs.pictures import Array, check_size

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
GREY, RGB = (0, 1), 2  # PhotometricInterpretation; of 0, white is zero

_EXTRA_SAMPLES, _ASSOCIATED = 338, 1  # OpenImageIO takes alpha of a missing tag as associated


@dataclass(frozen=True)
class Deep:
    """The first page of a TIFF as it lies in the file, and what turns it into a picture."""

    values: Array  # [H, W, 1], [H, W, 3], or [H, W, 4] with alpha, in the file's own type
    orientation: int  # 1 to 8, as EXIF has it
    profile: bytes | None  # ICC
    several: bool  # there are more pages


def read(path: Path, max_pixels: int) -> Deep:
    """Read a grey or RGB TIFF of any depth. ImageError if it is damaged, too large or another."""
    tags = _tags(path)
    check_size(tags.get(Tag.ImageLength, 0), tags.get(Tag.ImageWidth, 0), max_pixels)
    photometric = tags.get(Tag.PhotometricInterpretation)
    file = planes.open_file(path, "TIFF")
    spec = file.spec()
    colours = [i for i in range(spec.nchannels) if i != spec.alpha_channel]
    if photometric == RGB:
        colours = colours[:3]  # further ones have no stated meaning
    if photometric not in (*GREY, RGB) or len(colours) not in (1, 3):
        raise ImageError(
            f"a TIFF of {spec.nchannels} channels, photometric {photometric}: not grey or RGB",
            "save it as RGB",
        )
    values = planes.read(file, 0, (0, spec.nchannels))
    picture = values[..., colours]
    if photometric == GREY[0] and values.dtype == np.uint16:  # OpenImageIO turns 8 bits only
        picture = 65535 - picture
    if spec.alpha_channel >= 0:
        associated = tags.get(_EXTRA_SAMPLES, (0,))[0] == _ASSOCIATED
        picture = _with_alpha(picture, values[..., [spec.alpha_channel]], associated)
    return Deep(
        values=picture,
        orientation=tags.get(Tag.Orientation, 1),
        profile=tags.get(Tag.InterColorProfile),
        several=bool(file.seek_subimage(1, 0)),
    )


def _tags(path: Path) -> Any:
    """The tags of the first page, as Pillow reads them where it does not know the picture."""
    with path.open("rb") as file:
        header = file.read(8)
        directory = ImageFileDirectory_v2(header + (file.read(8) if header[2] == 43 else b""))
        file.seek(directory.next)
        directory.load(file)
    return directory


def _with_alpha(picture: Array, alpha: Array, associated: bool) -> Array:
    """[H, W, 4] with colours as they are without alpha: `associated` ones are divided by it."""
    if associated:
        integer = np.issubdtype(alpha.dtype, np.integer)
        white = np.iinfo(alpha.dtype).max if integer else 1.0
        share = np.maximum(alpha / white, 1e-6)
        picture = np.clip(picture / share, 0, white).astype(alpha.dtype)
    return np.concatenate([np.repeat(picture, 4 - picture.shape[-1], -1)[..., :3], alpha], -1)
