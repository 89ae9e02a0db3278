"""File -> pixels and map -> file: rows 1 to 13, 19, 22 and 23 of the faults, and the sizes."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

from dmp_cli import images
from dmp_cli.errors import ImageError, UsageError
from tests.mutations import LIMIT, require_pixels_or_an_error

Read = Callable[..., images.Pixels]

# Pillow only warns of damaged metadata, which must not fail an image
quiet = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read bytes as the file x.png, whatever they are."""

    def run(data: bytes, max_pixels: int = LIMIT, **options: Any) -> images.Pixels:
        path = tmp_path / "x.png"
        path.write_bytes(data)
        return images.read(path, max_pixels, **options)

    return run


def encode(picture: Any, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, form, **options)
    return file.getvalue()


def tiff(values: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def heic(picture: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    pillow_heif.from_pillow(image).save(file, quality=100, chroma=444, **options)
    return file.getvalue()


def opencv(values: Any, suffix: str = ".tif", *options: int) -> bytes:
    """Pixels [H, W] or [H, W, RGB or RGBA] as OpenCV writes them."""
    turned = values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[-1]]]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(turned), options)
    assert done
    return bytes(data.tobytes())


def noise(height: int = 24, width: int = 32) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 24, width: int = 32) -> Any:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, rows + columns], -1).astype("u1")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def png16(values: Any) -> bytes:
    """A 16-bit PNG of uint16 [H, W] or [H, W, 3]: Pillow cannot write one of RGB."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = 2 if values.ndim == 3 else 0
    return png(values.shape[1], values.shape[0], 16, colour, chunk(b"IDAT", zlib.compress(rows)))


# What is no image -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"not an image\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image"),
        (png(8, 8, 8, 2)[:33], "not an image"),
        (png(8, 8, 8, 2), "damaged"),
    ],
    ids=["empty", "text", "signature", "jpeg marker", "png header", "png without pixels"],
)
def test_no_image(read: Read, data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read(data)


@pytest.mark.parametrize("name", ["absent.png", "folder", "a\0b.png", "n" * 300])
def test_unreadable_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match="cannot be read"):
        images.read(tmp_path / name, LIMIT)


@quiet
@pytest.mark.parametrize("cut", ["1 %", "50 %", "2 bytes", "12 bytes"])
@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}),
     ("PPM", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("AVIF", {})],
    ids=["jpeg", "progressive", "png", "webp", "bmp", "ppm", "tiff", "lzw", "avif"],
)  # fmt: skip
def test_truncated(read: Read, form: str, options: dict[str, Any], cut: str) -> None:
    data = encode(noise(), form, **options)
    size = len(data)
    left = {"1 %": size // 100, "50 %": size // 2, "2 bytes": size - 2, "12 bytes": size - 12}[cut]
    assert read(data).rgb.shape == (24, 32, 3)
    with pytest.raises(ImageError):
        read(data[:left])


@pytest.mark.parametrize("quality", [30, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (17, 33), (200, 300)])
def test_jpeg_without_its_end(
    read: Read, size: tuple[int, int], subsampling: int, quality: int
) -> None:
    data = encode(noise(*size), "JPEG", quality=quality, subsampling=subsampling)
    assert data[-2:] == b"\xff\xd9"
    assert read(data + b"trailing bytes").rgb.shape == (*size, 3)
    with pytest.raises(ImageError, match="damaged"):
        read(data[:-2])


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 4}, {"compression": "zlib"}])
@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_truncated_tiff_of_tifffile(read: Read, kind: str, options: dict[str, Any]) -> None:
    data = tiff(noise().astype(kind), photometric="rgb", **options)
    assert read(data).rgb.shape == (24, 32, 3)
    with pytest.raises(ImageError):
        read(data[: len(data) * 2 // 3])


# What is an image, whatever its name ------------------------------------------------------


@pytest.mark.parametrize("form", ["BMP", "PNG", "PPM", "TIFF"])
def test_read_by_content_exactly(read: Read, form: str) -> None:
    pixels = read(encode(noise(), form))
    np.testing.assert_array_equal(pixels.rgb, noise())
    assert pixels.rgb.dtype == np.uint8
    assert pixels.notes == ()


@pytest.mark.parametrize("form", ["AVIF", "JPEG", "WEBP"])
def test_read_by_content_nearly(read: Read, form: str) -> None:
    pixels = read(encode(smooth(), form, quality=95)).rgb
    assert np.abs(pixels.astype(int) - smooth()).mean() < 3


def test_formats_read_in_a_fresh_process(tmp_path: Path) -> None:
    """No plugin of Pillow is loaded there yet: an unknown name of a format fails all after it."""
    for form in images.FORMATS:
        (tmp_path / f"{form}.x").write_bytes(encode(smooth(), form))
    code = (
        "import sys, pathlib; from dmp_cli import images\n"
        "for path in map(pathlib.Path, sys.argv[1:]): print(images.read(path, 10**6).rgb.shape)"
    )
    for form in images.FORMATS:
        ran = subprocess.run(
            [sys.executable, "-c", code, tmp_path / f"{form}.x"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("(24, 32, 3)\n", ""), form


def psd() -> bytes:
    return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 2, 2, 8, 3) + bytes(12) + bytes(2 + 12)


OTHERS = {
    **{form: (form, {}) for form in ("EPS", "ICO", "PCX", "TGA", "SGI", "PDF", "DDS")},
    "JPEG2000": ("JPEG2000", {}),
    "ICNS": ("ICNS", {}),
}


@pytest.mark.parametrize("form", [*OTHERS, "PSD", "FITS", "SVG"])
def test_formats_off_the_list(read: Read, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"another program was started: {arguments}")

    texts = {
        "PSD": psd(),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
    }
    data = texts.get(form) or encode(smooth(32, 32), *OTHERS[form][:1])
    Image.init()  # as if another library had loaded every reader
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(os, "system", started)
    with pytest.raises(ImageError, match="not an image that dmp reads"):
        read(data)


# Bombs ------------------------------------------------------------------------------------


def tiff_header(width: int, height: int, kind: str) -> bytes:
    data = bytearray(tiff(np.zeros((4, 4, 3), kind), photometric="rgb"))
    for entry in range(struct.unpack_from("<H", data, 8)[0]):
        at = 10 + 12 * entry
        tag = struct.unpack_from("<H", data, at)[0]
        if tag in (256, 257, 278):
            code = struct.unpack_from("<H", data, at + 2)[0]
            value = width if tag == 256 else height
            struct.pack_into("<H" if code == 3 else "<I", data, at + 8, value)
    return bytes(data)


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encode(smooth(), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def bmp_header(width: int, height: int) -> bytes:
    data = bytearray(encode(smooth(), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


BOMBS = {
    "png": lambda w, h: png(w, h, 8, 2),
    "jpeg": jpeg_header,
    "bmp": bmp_header,
    "gif": lambda w, h: b"GIF89a" + struct.pack("<HH", w, h) + encode(smooth(), "GIF")[10:],
    "ppm": lambda w, h: b"P6 %d %d 255\n" % (w, h),
    "tiff": lambda w, h: tiff_header(w, h, "u1"),
    "float tiff": lambda w, h: tiff_header(w, h, "f4"),
}


@pytest.mark.parametrize("side", [1001, 12_000, 20_000])
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_from_the_header(read: Read, kind: str, side: int) -> None:
    with pytest.raises(ImageError, match=f"more than --max-pixels {LIMIT}") as refused:
        read(BOMBS[kind](side, 1000 if side == 1001 else side))
    assert "--max-pixels" in refused.value.hint


@pytest.mark.parametrize("side", [20_000, 12_000])
def test_default_limit(read: Read, side: int) -> None:
    with pytest.raises(ImageError, match="more than --max-pixels 100000000"):
        read(png(side, side, 8, 2), 100_000_000)


def test_small_file_of_80_megapixels(read: Read) -> None:
    rows = zlib.compress(bytes(8000 * (1 + 1250)), 9)
    data = png(10_000, 8000, 1, 0, chunk(b"IDAT", rows))
    assert len(data) < 12_000
    with pytest.raises(ImageError, match="10000x8000 is more than"):
        read(data)


def test_limit_is_inclusive(read: Read) -> None:
    assert read(encode(noise(), "PNG"), 24 * 32).rgb.shape == (24, 32, 3)
    with pytest.raises(ImageError, match="32x24 is more than"):
        read(encode(noise(), "PNG"), 24 * 32 - 1)


def test_tiff_of_many_channels(read: Read) -> None:
    with pytest.raises(ImageError, match="5 channels"):
        read(tiff(np.zeros((8, 8, 5), "f4"), photometric="minisblack", planarconfig="contig"))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_text_chunk_bomb(read: Read, kind: bytes) -> None:
    bomb = zlib.compress(bytes(32 << 20), 9)
    text = chunk(kind, b"key\0\0" + bomb if kind == b"zTXt" else b"key\0\1\0\0\0" + bomb)
    pixels = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    with pytest.raises(ImageError, match=r"(?i)too large"):
        read(png(4, 4, 8, 2, text, pixels))


# Metadata ---------------------------------------------------------------------------------

BAD_EXIF = {
    "garbage": b"Exif\0\0garbage",
    "no header": b"\xff" * 40,
    "bad offset": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0",
    "wrong type": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0\0\0\0\0",
    "orientation 99": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\1\0\0\0\x63\0\0\0\0\0\0\0",
    "empty": b"Exif\0\0",
}


@quiet
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", BAD_EXIF)
def test_corrupt_exif(read: Read, form: str, kind: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    plain = read(encode(noise(), form, **options)).rgb
    bad = read(encode(noise(), form, exif=BAD_EXIF[kind], **options))
    np.testing.assert_array_equal(bad.rgb, plain)


@quiet
def test_random_exif(read: Read) -> None:
    rng = np.random.default_rng(1)
    good = Image.Exif()
    good[0x0112], good[0x010F], good[0x829A] = 6, "maker", 0.5
    head = bytearray(good.tobytes())
    for _ in range(60):
        block = head.copy()
        for at in rng.integers(6, len(block), 4):
            block[at] = rng.integers(256)
        assert read(encode(smooth(), "JPEG", exif=bytes(block))).rgb.size == 24 * 32 * 3


ORIENTED: dict[int, Callable[[Any], Any]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("turn", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "float", "grey16", "palette"])
def test_orientation(read: Read, kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    grey = np.repeat(noise()[..., :1], 3, -1)
    tag = {"photometric": "rgb", "extratags": [(274, 3, 1, turn, True)]}
    few = Image.fromarray(noise() // 128 * 255).quantize(8)
    data, stored = {
        "PNG": lambda: (encode(noise(), "PNG", exif=exif), noise()),
        "WEBP": lambda: (encode(noise(), "WEBP", lossless=True, exif=exif), noise()),
        "TIFF": lambda: (tiff(noise(), **tag), noise()),
        "float": lambda: (tiff((noise() / 255).astype("f4"), **tag), noise()),
        "grey16": lambda: (encode(noise()[..., 0].astype("u2") * 257, "PNG", exif=exif), grey),
        "palette": lambda: (encode(few, "PNG", exif=exif), np.asarray(few.convert("RGB"))),
    }[kind]()
    np.testing.assert_array_equal(read(data).rgb, ORIENTED[turn](stored))


def blocks() -> Any:
    """A picture that lossy coding leaves alone: quarters of four colours, 32 x 64."""
    small = np.array([[(250, 10, 10), (10, 250, 10)], [(10, 10, 250), (250, 250, 250)]], "u1")
    return small.repeat(16, 0).repeat(32, 1)


@pytest.mark.parametrize("turn", ORIENTED)
@pytest.mark.parametrize("kind", ["AVIF", "HEIC", "JPEG"])
def test_orientation_of_lossy_files(read: Read, kind: str, turn: int) -> None:
    """AVIF and HEIC are turned by boxes of their own, which stand for the tag of EXIF there."""
    exif = Image.Exif()
    exif[0x0112] = turn
    if kind == "HEIC":
        data = heic(blocks(), exif=exif.tobytes())
    else:
        data = encode(blocks(), kind, exif=exif.tobytes(), quality=100)
    pixels = read(data).rgb.astype(int)
    expected = ORIENTED[turn](blocks())
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 5


def test_orientation_of_jpeg(read: Read) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(encode(smooth(), "JPEG", exif=exif, quality=95)).rgb
    np.testing.assert_array_equal(
        turned, np.rot90(read(encode(smooth(), "JPEG", quality=95)).rgb, -1)
    )


# Colour profiles: made here, and checked with the arithmetic of the standard ---------------

SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
ADOBE = [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]]
P3 = [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
CURVE = b"para\0\0\0\0\0\3\0\0" + struct.pack(
    ">5i", *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
)
GAMMA = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">Hxx", round(2.19921875 * 256))


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def profile(matrix: Any, curve: bytes, space: bytes = b"RGB ") -> bytes:
    """A version 2 ICC profile (ICC.1:2001-04): matrix to D50 XYZ, one curve for each channel."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), np.transpose(matrix), strict=True))
    text = b"made by dmp's tests\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0" + text,
            b"wtpt": xyz(0.9642, 1, 0.8249)}  # fmt: skip
    tags |= {key: xyz(*column) for key, column in columns.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC", b"kTRC"), curve)
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += key + struct.pack(">II", start + len(body), len(value))
        body += padded
    header = struct.pack(">I4s4s4s4s4s12s4s", start + len(body), b"", b"\x02\x10\0\0", b"mntr",
                         space, b"XYZ ", bytes(12), b"acsp")  # fmt: skip
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def to_srgb(rgb: Any, matrix: Any, gamma: float | None) -> Any:
    coded = rgb / 255
    low = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    linear = coded**gamma if gamma else low
    light = np.clip(linear @ np.transpose(np.linalg.inv(SRGB) @ matrix), 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255


PROFILES = {"AdobeRGB": (ADOBE, GAMMA, 2.19921875), "Display P3": (P3, CURVE, None)}
CARRIERS = {
    "PNG": lambda pixels, icc: encode(pixels, "PNG", icc_profile=icc),
    "TIFF": lambda pixels, icc: encode(pixels, "TIFF", icc_profile=icc),
    "WEBP": lambda pixels, icc: encode(pixels, "WEBP", lossless=True, icc_profile=icc),
    "float TIFF": lambda pixels, icc: tiff(
        (pixels / 255).astype("f4"), photometric="rgb", iccprofile=icc
    ),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", PROFILES)
def test_profile_is_converted(read: Read, name: str, carrier: str) -> None:
    matrix, curve, gamma = PROFILES[name]
    pixels = 40 + noise() // 2  # saturated colours would leave sRGB
    result = read(CARRIERS[carrier](pixels, profile(matrix, curve)))
    expected = to_srgb(pixels, matrix, gamma)
    assert result.notes == ()
    assert np.abs(result.rgb - expected).max() < 3
    assert np.abs(pixels - expected).max() > 10  # so the profile matters


def test_profile_of_srgb_changes_nothing(read: Read) -> None:
    pixels = read(encode(noise(), "PNG", icc_profile=profile(SRGB, CURVE))).rgb
    assert np.abs(pixels.astype(int) - noise()).max() <= 1


def test_profile_and_alpha(read: Read) -> None:
    rgba = np.dstack([40 + noise() // 2, np.zeros((24, 32), "u1")])
    rgba[:, :16, 3] = 255
    pixels = read(encode(rgba, "PNG", icc_profile=profile(ADOBE, GAMMA))).rgb
    expected = to_srgb(rgba[..., :3], ADOBE, 2.19921875)
    assert np.abs(pixels[:, :16] - expected[:, :16]).max() < 3
    assert (pixels[:, 16:] == 255).all()


def test_profile_of_grey(read: Read) -> None:
    ramp = np.tile(np.arange(256, dtype="u1"), (2, 1))
    icc = profile(SRGB, b"curv\0\0\0\0\0\0\0\1" + struct.pack(">Hxx", 256), b"GRAY")  # linear
    pixels = read(encode(ramp, "PNG", icc_profile=icc)).rgb
    assert np.abs(pixels[0, [0, 55, 128, 255], 1] - (0, 128, 188, 255)).max() <= 2


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("icc", [b"garbage", profile(P3, CURVE)[:200], bytes(500)])
def test_corrupt_profile(read: Read, icc: bytes, carrier: str) -> None:
    result = read(CARRIERS[carrier](noise(), icc))
    np.testing.assert_array_equal(result.rgb, noise())
    assert "profile is damaged" in result.notes[0]


def test_profile_that_is_no_zlib_stream(read: Read) -> None:
    pixels = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    assert read(png(4, 4, 8, 2, chunk(b"iCCP", b"x\0\0garbage"), pixels)).rgb.shape == (4, 4, 3)


def test_random_profiles(read: Read) -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        icc = bytearray(profile(ADOBE, GAMMA))
        for at in rng.integers(0, len(icc), 6):
            icc[at] = rng.integers(256)
        assert read(encode(noise(), "PNG", icc_profile=bytes(icc))).rgb.shape == (24, 32, 3)


@pytest.mark.parametrize("name", PROFILES)
def test_profile_of_16_bits(read: Read, name: str) -> None:
    matrix, curve, gamma = PROFILES[name]
    pixels = (40 + noise() // 2).astype("u2") * 257
    icc = profile(matrix, curve)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"iCCP", b"x\0\0" + zlib.compress(icc)), chunk(b"IDAT", zlib.compress(rows))
    for data in (
        png(32, 24, 16, 2, *chunks),
        tiff(pixels, photometric="rgb", iccprofile=icc),
        tiff(pixels, photometric="rgb", iccprofile=icc, compression="zlib", predictor=True),
    ):
        expected = to_srgb(pixels / 257, matrix, gamma)
        assert np.abs(read(data).rgb - expected).max() < 3


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_profile_of_lossy_files(read: Read, kind: str) -> None:
    icc = profile(P3, CURVE)
    muted = blocks() // 2 + 60
    if kind == "HEIC":
        data = heic(muted, icc_profile=icc)
    else:
        data = encode(muted, kind, quality=100, icc_profile=icc)
    assert np.abs(read(data).rgb - to_srgb(muted, P3, None)).mean() < 4
    assert np.abs(muted - to_srgb(muted, P3, None)).mean() > 5


@pytest.mark.parametrize("kind", ["PNG", "16-bit PNG", "TIFF", "float TIFF"])
def test_profile_of_grey_of_any_depth(read: Read, kind: str) -> None:
    ramp = np.tile(np.arange(256, dtype="u1"), (2, 1))
    gamma18 = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">Hxx", round(1.8 * 256))
    icc = profile(SRGB, gamma18, b"GRAY")
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp.astype("u2") * 257)
    iccp, idat = (
        chunk(b"iCCP", b"x\0\0" + zlib.compress(icc)),
        chunk(b"IDAT", zlib.compress(rows)),
    )
    data = {
        "PNG": lambda: encode(ramp, "PNG", icc_profile=icc),
        "16-bit PNG": lambda: png(256, 2, 16, 0, iccp, idat),
        "TIFF": lambda: tiff(ramp, iccprofile=icc),
        "float TIFF": lambda: tiff((ramp / 255).astype("f4"), iccprofile=icc),
    }[kind]()
    light = (ramp[0] / 255) ** 1.8
    expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(read(data).rgb[0, :, 1] - expected * 255).max() < 3


def from_lab(lab: Any) -> Any:
    """sRGB, 0 to 255, of CIE Lab with the white of ICC, D50 (CIE 15:2004, 8.2.1)."""
    middle = (lab[..., 0] + 16) / 116
    roots = np.stack([middle + lab[..., 1] / 500, middle, middle - lab[..., 2] / 200], -1)
    light = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29))
    linear = np.clip(light * (0.9642, 1, 0.8249) @ np.linalg.inv(SRGB).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def cmyk_profile(corners: Any) -> bytes:
    """An ICC profile of inks: lut8Type (ICC.1:2001-04, 6.5.8), CIE Lab at the 16 corners."""
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lab = np.stack([corners[..., 0] * 2.55, corners[..., 1] + 128, corners[..., 2] + 128], -1)
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4
    table += np.rint(lab).astype("u1").tobytes() + identity * 3
    text = b"made by dmp's tests\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
            b"cprt": b"text\0\0\0\0" + text, b"wtpt": xyz(0.9642, 1, 0.8249),
            b"A2B0": table}  # fmt: skip
    listing, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        listing += key + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(">I4s4s4s4s4s12s4s", start + len(body), b"", b"\x02\x10\0\0", b"prtr",
                         b"CMYK", b"Lab ", bytes(12), b"acsp")  # fmt: skip
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + listing + body


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile(read: Read, form: str) -> None:
    """Muted inks; Little CMS holds that no ink is white and that all together are black."""
    rng = np.random.default_rng(6)
    corners = np.stack([rng.uniform(30, 80, 16), *rng.uniform(-20, 20, (2, 16))], -1)
    corners[0], corners[-1] = (100, 0, 0), (0, 0, 0)
    inks = np.indices((2,) * 4).reshape(4, 16).T.astype("u1") * 255
    picture = Image.fromarray(inks[None].repeat(8, 0).repeat(8, 1), "CMYK")
    result = read(encode(picture, form, icc_profile=cmyk_profile(corners)))
    assert result.notes == ()
    assert np.abs(result.rgb[4, 4::8] - from_lab(corners)).max() < 4


@pytest.mark.parametrize("space", ["CMYK", "LAB"])
def test_profile_of_another_kind_of_colour(read: Read, space: str) -> None:
    picture = Image.new(space, (8, 8), (0, 255, 255, 0) if space == "CMYK" else (136, 208, 195))
    result = read(encode(picture, "TIFF", icc_profile=profile(P3, CURVE)))
    assert np.abs(result.rgb[0, 0].astype(int) - (255, 0, 0)).max() < 12
    assert "profile is damaged" in result.notes[0]


# Sizes and kinds of pixels ----------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_odd_sizes(read: Read, form: str, size: tuple[int, int]) -> None:
    assert read(encode(noise(*size), form)).rgb.shape == (*size, 3)


def ramp16() -> Any:
    return np.arange(65536, dtype="u2").reshape(256, 256)


RAMPS = {
    "png grey": lambda: png16(ramp16()),
    "png rgb": lambda: png16(np.dstack([ramp16()] * 3)),
    "tiff grey": lambda: tiff(ramp16()),
    "tiff grey, big-endian": lambda: tiff(ramp16(), byteorder=">"),
    "tiff rgb": lambda: tiff(np.dstack([ramp16()] * 3), photometric="rgb"),
    "tiff rgb, big-endian": lambda: tiff(
        np.dstack([ramp16()] * 3), photometric="rgb", byteorder=">"
    ),
    "tiff rgb, planes": lambda: tiff(
        np.stack([ramp16()] * 3), photometric="rgb", planarconfig="separate"
    ),
    "pgm": lambda: b"P5 256 256 65535\n" + ramp16().astype(">u2").tobytes(),
    "float grey": lambda: tiff((ramp16() / 65535).astype("f4")),
    "float rgb": lambda: tiff(np.dstack([ramp16() / 65535] * 3).astype("f4"), photometric="rgb"),
    "double rgb": lambda: tiff(np.dstack([ramp16() / 65535] * 3), photometric="rgb"),
    "half rgb": lambda: tiff(np.dstack([ramp16() / 65535] * 3).astype("f2"), photometric="rgb"),
    "float rgb, planes": lambda: tiff(
        np.stack([ramp16() / 65535] * 3).astype("f4"), photometric="rgb", planarconfig="separate"
    ),
    "float rgb, bigtiff": lambda: tiff(
        np.dstack([ramp16() / 65535] * 3).astype("f4"), photometric="rgb", bigtiff=True
    ),
}


@pytest.mark.parametrize("kind", RAMPS)
def test_deep_ramp_keeps_256_levels(read: Read, kind: str) -> None:
    pixels = read(RAMPS[kind]()).rgb
    assert len(np.unique(pixels)) == 256
    np.testing.assert_allclose(pixels[..., 1], ramp16() / 257, atol=1)
    assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


def test_float_past_one_is_scaled_by_its_largest(read: Read) -> None:
    pixels = read(tiff(np.linspace(-1, 10, 12, dtype="f4")[None].repeat(4, 0))).rgb
    np.testing.assert_array_equal(pixels[0, [0, 1, 6, 11], 0], [0, 0, 128, 255])


def test_float_that_is_not_finite(read: Read) -> None:
    values = np.full((4, 4), 0.5, "f4")
    values[0] = np.nan, np.inf, -np.inf, 1
    np.testing.assert_array_equal(read(tiff(values)).rgb[0, :, 0], [0, 255, 0, 255])


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(read: Read, form: str) -> None:
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    inks.paste((255, 255, 0, 0), (0, 0, 8, 4))
    pixels = read(encode(inks, form)).rgb.astype(int)
    assert np.abs(pixels[0, 0] - (0, 0, 255)).max() < 6
    assert np.abs(pixels[7, 7] - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "BMP"])
def test_palette(read: Read, form: str) -> None:
    picture = Image.fromarray(noise() // 128 * 255).quantize(8)
    np.testing.assert_array_equal(read(encode(picture, form)).rgb, picture.convert("RGB"))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff\x80"], ids=["one", "each"])
def test_palette_with_transparency(read: Read, transparency: int | bytes) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    picture.putdata([0, 1, 2])
    pixels = read(encode(picture, "PNG", transparency=transparency)).rgb[0]
    last = (0, 0, 0) if transparency == 0 else (127, 127, 127)
    np.testing.assert_array_equal(pixels, [(255, 255, 255), (40, 50, 60), last])


def test_transparent_colour(read: Read) -> None:
    pixels = np.array([[(1, 2, 3), (9, 9, 9)]], "u1")
    np.testing.assert_array_equal(
        read(encode(pixels, "PNG", transparency=(1, 2, 3))).rgb, [[(255, 255, 255), (9, 9, 9)]]
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM"])
def test_one_bit(read: Read, form: str) -> None:
    mask = noise()[..., 0] > 127
    pixels = read(encode(Image.fromarray(mask), form)).rgb
    np.testing.assert_array_equal(pixels, np.repeat(mask[..., None] * np.uint8(255), 3, -1))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_stands_over_white(read: Read, form: str, mode: str) -> None:
    black = Image.new("RGBA", (4, 1))
    black.putalpha(Image.fromarray(np.array([[0, 64, 128, 255]], "u1")))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    pixels = read(encode(black.convert(mode), form, **options)).rgb
    np.testing.assert_allclose(pixels[0], [[v] * 3 for v in (255, 191, 127, 0)], atol=1)


def half_clear(kind: str) -> bytes:
    """A file of 8 x 8 grey pixels of 200, the left half transparent."""
    alpha = np.zeros((8, 8), "u1")
    alpha[:, 4:] = 255
    rgba = np.dstack([np.full((8, 8, 3), 200, "u1"), alpha])
    deep, share = rgba.astype("u2") * 257, (rgba / 255).astype("f4")
    indexed = Image.fromarray(alpha // 255, "P")
    indexed.putpalette([9, 9, 9, 200, 200, 200])
    clear = np.where(alpha == 255, 200, 77).astype("u2")
    rows = zlib.compress(b"".join(b"\0" + (row * 257).astype(">u2").tobytes() for row in clear))
    made: dict[str, Callable[[], bytes]] = {
        "PNG": lambda: encode(rgba, "PNG"),
        "16-bit PNG": lambda: opencv(deep, ".png"),
        "16-bit PNG, one colour": lambda: png(
            8, 8, 16, 0, chunk(b"tRNS", struct.pack(">H", 77 * 257)), chunk(b"IDAT", rows)
        ),
        "palette": lambda: encode(indexed, "PNG", transparency=0),
        "GIF": lambda: encode(indexed, "GIF", transparency=0),
        "LA": lambda: encode(Image.fromarray(rgba).convert("LA"), "PNG"),
        "WEBP": lambda: encode(rgba, "WEBP", lossless=True),
        "AVIF": lambda: encode(rgba, "AVIF", quality=100),
        "HEIC": lambda: heic(rgba),
        "TIFF": lambda: encode(rgba, "TIFF"),
        "16-bit TIFF": lambda: tiff(deep, photometric="rgb", extrasamples=["unassalpha"]),
        "float TIFF": lambda: tiff(share, photometric="rgb", extrasamples=["assocalpha"]),
    }
    return made[kind]()


CLEAR = ["PNG", "16-bit PNG", "16-bit PNG, one colour", "palette", "GIF", "LA", "WEBP", "AVIF",
         "HEIC", "TIFF", "16-bit TIFF", "float TIFF"]  # fmt: skip


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 128, 250)])
@pytest.mark.parametrize("kind", CLEAR)
def test_background(read: Read, kind: str, background: tuple[int, int, int]) -> None:
    pixels = read(half_clear(kind), background=background).rgb.astype(int)
    apart = 4 if kind in ("AVIF", "HEIC") else 0
    assert np.abs(pixels[:, :3] - background).max() <= apart
    assert np.abs(pixels[:, 5:] - 200).max() <= apart


def test_background_of_arrays_and_pillow_images() -> None:
    rgba = np.zeros((2, 2, 4), "u1")
    for pixels in (
        images.from_array(rgba, background=(1, 2, 3)),
        images.upright(Image.fromarray(rgba), background=(1, 2, 3)),
    ):
        np.testing.assert_array_equal(pixels.rgb, np.broadcast_to((1, 2, 3), (2, 2, 3)))


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("grey", (128, 128, 128)),
     ("gray", (128, 128, 128)), ("#ff8001", (255, 128, 1)), ("#FF8001", (255, 128, 1)),
     ("1,2,3", (1, 2, 3)), ("255, 0, 10", (255, 0, 10)), ("0,0,0", (0, 0, 0))],
)  # fmt: skip
def test_parse_background(text: str, colour: tuple[int, int, int]) -> None:
    assert images.parse_background(text) == colour


@pytest.mark.parametrize(
    "text",
    ["", "nocolour", "1,2", "1,2,3,4", "256,0,0", "-1,0,0", "#ff80", "#ff8000ff", "#gggggg",
     "1.5,2,3", "white,black", "9" * 500],
)  # fmt: skip
def test_parse_background_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="is no colour") as refused:
        images.parse_background(text)
    assert "R,G,B" in refused.value.hint


# TIFFs made elsewhere ---------------------------------------------------------------------

SHARE = 0.6  # of alpha
FLOATS = np.random.default_rng(7).random((20, 30, 4)).astype("f4")
FLOATS[..., 3] = SHARE
DEEP = np.rint(FLOATS * 65535).astype("u2")
RGB, GREY = FLOATS[..., :3], FLOATS[..., :1].repeat(3, -1)
OVER = RGB * SHARE + 1 - SHARE
LZW, DEFLATE = (cv2.IMWRITE_TIFF_COMPRESSION, 5), (cv2.IMWRITE_TIFF_COMPRESSION, 8)
UNASSOCIATED = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
ASSOCIATED = {"photometric": "rgb", "extrasamples": ["assocalpha"]}
ALPHA_TIMES = np.dstack([RGB * SHARE, FLOATS[..., 3:]])

TIFFS: dict[str, tuple[Callable[[], bytes], Any]] = {
    "float, LZW": (lambda: opencv(RGB, ".tif", *LZW), RGB),
    "float, LZW, predictor": (
        lambda: opencv(RGB, ".tif", *LZW, cv2.IMWRITE_TIFF_PREDICTOR, 3), RGB),
    "float, deflate": (lambda: opencv(RGB, ".tif", *DEFLATE), RGB),
    "float grey, LZW": (lambda: opencv(RGB[..., 0], ".tif", *LZW), GREY),
    "16 bits, LZW": (lambda: opencv(DEEP[..., :3], ".tif", *LZW), RGB),
    "16 bits, tiles": (lambda: tiff(DEEP[..., :3], photometric="rgb", tile=(16, 16)), RGB),
    "16 bits, alpha of no tag": (lambda: opencv(DEEP), OVER),
    "16 bits, alpha": (lambda: tiff(DEEP, **UNASSOCIATED), OVER),
    "16 bits, alpha in the colours": (
        lambda: tiff(np.rint(ALPHA_TIMES * 65535).astype("u2"), **ASSOCIATED), OVER),
    "float, alpha": (lambda: tiff(FLOATS, **UNASSOCIATED), OVER),
    "float, alpha in the colours": (lambda: tiff(ALPHA_TIMES.astype("f4"), **ASSOCIATED), OVER),
    "a fourth channel of no meaning": (
        lambda: tiff(DEEP, photometric="rgb", extrasamples=["unspecified"]), RGB),
    "16 bits, grey and alpha": (
        lambda: tiff(DEEP[..., [0, 3]], photometric="minisblack", planarconfig="contig",
                     extrasamples=["unassalpha"]), GREY * SHARE + 1 - SHARE),
    "8 bits, grey and alpha": (
        lambda: tiff((DEEP[..., [0, 3]] >> 8).astype("u1"), photometric="minisblack",
                     planarconfig="contig", extrasamples=["unassalpha"]),
        GREY * SHARE + 1 - SHARE),
    "16 bits, white is zero": (lambda: tiff(65535 - DEEP[..., 0], photometric="miniswhite"), GREY),
    "8 bits, white is zero": (
        lambda: tiff((255 - (DEEP[..., 0] >> 8)).astype("u1"), photometric="miniswhite"), GREY),
    "32 bits": (
        lambda: tiff((RGB.astype("f8") * (2**32 - 1)).astype("u4"), photometric="rgb"), RGB),
    "32 bits grey": (lambda: tiff((GREY[..., 0].astype("f8") * (2**32 - 1)).astype("u4")), GREY),
    "signed": (lambda: tiff((DEEP[..., 0] // 2).astype("i2")), GREY),
    "CMYK": (lambda: tiff((DEEP >> 8).astype("u1"), photometric="separated"),
             (1 - RGB) * (1 - SHARE)),
    "CMYK of 16 bits": (lambda: tiff(DEEP, photometric="separated"), (1 - RGB) * (1 - SHARE)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_made_elsewhere(read: Read, kind: str) -> None:
    make, expected = TIFFS[kind]
    result = read(make())
    assert result.notes == ()
    assert np.abs(result.rgb - expected * 255).max() <= 1.3


def test_lab_tiff(read: Read) -> None:
    """a and b are signed bytes in TIFF."""
    lab = np.random.default_rng(8).integers((40, -20, -20), (80, 20, 20), (6, 9, 3))
    stored = np.dstack([np.rint(lab[..., 0] * 2.55), lab[..., 1:] % 256]).astype("u1")
    result = read(tiff(stored, photometric="cielab"))
    assert np.abs(result.rgb - from_lab(lab)).max() < 4


@pytest.mark.parametrize(
    "make",
    [lambda: tiff(DEEP[..., :3], photometric="cielab"),
     lambda: tiff(FLOATS, photometric="separated"),
     lambda: tiff(FLOATS[..., [0, 1, 2, 0, 1]], photometric="minisblack", planarconfig="contig")],
    ids=["deep Lab", "float CMYK", "five bands"],
)  # fmt: skip
def test_tiff_of_other_colours_is_refused(read: Read, make: Callable[[], bytes]) -> None:
    with pytest.raises(ImageError, match="not grey or RGB"):
        read(make())


# HEIC -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 50), (65, 33)])
@pytest.mark.parametrize("form", ["AVIF", "HEIC"])
def test_odd_sizes_of_lossy_files(read: Read, form: str, size: tuple[int, int]) -> None:
    grey = np.full((*size, 3), 90, "u1")
    data = heic(grey) if form == "HEIC" else encode(grey, form, quality=95)
    assert np.abs(read(data).rgb.astype(int) - grey).max() < 4


def test_heic_of_10_bits(read: Read) -> None:
    deep = blocks().astype("u2") * 257
    file = io.BytesIO()
    picture = pillow_heif.from_bytes("RGB;16", (64, 32), deep.tobytes())
    picture.save(file, quality=100, chroma=444)
    assert np.abs(read(file.getvalue()).rgb.astype(int) - blocks()).mean() < 4


def test_heic_of_several_images(read: Read) -> None:
    file = io.BytesIO()
    pictures = pillow_heif.from_pillow(Image.fromarray(blocks()))
    pictures.add_from_pillow(Image.new("RGB", (64, 32)))
    pictures.save(file, quality=100, chroma=444)
    result = read(file.getvalue())
    assert np.abs(result.rgb.astype(int) - blocks()).mean() < 4
    assert result.notes == ("has several frames: the first is taken",)


def test_heic_past_the_limit(read: Read) -> None:
    with pytest.raises(ImageError, match="64x32 is more than --max-pixels 2047"):
        read(heic(blocks()), 2047)


@pytest.mark.parametrize("left", [20, 200, -200, -12, -2])
def test_truncated_heic(read: Read, left: int) -> None:
    with pytest.raises(ImageError, match="damaged"):
        read(heic(noise())[:left])


def test_heic_without_its_package(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="HEIC needs a package") as refused:
        read(heic(noise()))
    assert refused.value.hint == "pip install pillow-heif"


# Several frames ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {})],
)
def test_first_frame_with_a_note(read: Read, form: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    pixels = read(data)
    assert np.abs(pixels.rgb.astype(int) - (255, 0, 0)).max() < 4
    assert pixels.notes == ("has several frames: the first is taken",)


def test_first_page_of_float_tiff(read: Read) -> None:
    pages = np.stack([noise() / 255, np.zeros((24, 32, 3))]).astype("f4")
    pixels = read(tiff(pages, photometric="rgb"))
    np.testing.assert_array_equal(pixels.rgb, noise())
    assert pixels.notes == ("has several frames: the first is taken",)


def test_mpo_is_a_photograph(read: Read) -> None:
    other = Image.fromarray(noise())
    data = encode(smooth(), "MPO", save_all=True, append_images=[other], quality=95)
    pixels = read(data)
    assert np.abs(pixels.rgb.astype(int) - smooth()).mean() < 3
    assert pixels.notes == ()


# Mutations --------------------------------------------------------------------------------

SEEDS = {
    "JPEG": lambda: encode(noise(), "JPEG"),
    "progressive": lambda: encode(smooth(), "JPEG", progressive=True),
    "PNG": lambda: encode(noise(), "PNG", icc_profile=profile(P3, CURVE)),
    "palette": lambda: encode(Image.fromarray(noise()).quantize(16), "PNG", transparency=3),
    "WEBP": lambda: encode(noise(), "WEBP"),
    "TIFF": lambda: encode(noise(), "TIFF", compression="tiff_lzw"),
    "float TIFF": lambda: tiff((noise() / 255).astype("f4"), photometric="rgb", rowsperstrip=5),
    "GIF": lambda: encode(noise(), "GIF"),
    "BMP": lambda: encode(noise(), "BMP"),
    "AVIF": lambda: encode(noise(), "AVIF"),
    "HEIC": lambda: heic(noise()),
    "LZW float TIFF": lambda: opencv(RGB, ".tif", *LZW),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_bytes_give_pixels_or_an_error(
    read: Read, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    require_pixels_or_an_error(read, SEEDS[kind](), turns=60, header=200, seed=len(kind))
    assert "tifffile" not in capfd.readouterr().err


# Arrays and Pillow images, as the API takes them -------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [(np.full((2, 3), 7, "u1"), 7), (np.full((2, 3, 1), 257 * 9, "u2"), 9),
     (np.full((2, 3, 3), 0.2, "f4"), 51), (np.ones((2, 3), bool), 255),
     (np.full((2, 3, 4), 0, "u1"), 255)],
    ids=["grey", "u16", "float", "bool", "alpha"],
)  # fmt: skip
def test_from_array(values: Any, expected: int) -> None:
    np.testing.assert_array_equal(images.from_array(values).rgb, np.full((2, 3, 3), expected))


@pytest.mark.parametrize("shape", [(2,), (2, 2, 2), (2, 2, 5), (1, 2, 2, 3), (0, 4, 3)])
def test_from_array_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="is no image"):
        images.from_array(np.zeros(shape, "u1"))


def test_upright_leaves_the_callers_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encode(noise(), "PNG", exif=exif))) as picture:
        np.testing.assert_array_equal(images.upright(picture).rgb, np.rot90(noise(), -1))
        assert picture.size == (32, 24)


# Sizes for the network --------------------------------------------------------------------

SHAPES = [(1, 1), (7, 7), (480, 640), (1080, 1920), (64, 6400), (6400, 64), (1, 5000), (5000, 1),
          (20_000, 20_000), (333, 1332), (333, 1333), (1, 10**8), (512, 2048)]  # fmt: skip


@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize("size", [64, 256, 512, 768])
@pytest.mark.parametrize("shape", SHAPES)
def test_fitted_size(shape: tuple[int, int], size: int, multiple: int) -> None:
    fitted = images.fitted_size(*shape, size, multiple)
    assert all(side >= multiple and side % multiple == 0 for side in fitted)
    assert fitted[0] * fitted[1] <= images.BUDGET * size * size
    assert images.fitted_size(*shape[::-1], size, multiple) == fitted[::-1]
    if max(shape) <= 3.9 * min(shape):
        assert min(fitted) == size
        assert abs(max(fitted) - size * max(shape) / min(shape)) <= multiple / 2


def test_fitted_size_keeps_the_aspect_of_long_pictures() -> None:
    height, width = images.fitted_size(64, 6400, 512, 8)
    assert width / height == pytest.approx(100, rel=0.05)
    assert height * width > 0.9 * images.BUDGET * 512**2


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 1), (8, 8)), ((100, 203), (96, 200)), ((3000, 4000), (3000, 4000)),
     ((1, 5000), (8, 5000))],
)  # fmt: skip
def test_fitted_size_zero_only_rounds(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert images.fitted_size(*shape, 0, 8) == expected


@pytest.mark.parametrize("size", [(24, 32), (8, 8), (50, 16), (1, 1)])
def test_fit(size: tuple[int, int]) -> None:
    fitted = images.fit(noise(), size)
    assert fitted.shape == (*size, 3)
    assert fitted.dtype == np.uint8
    assert np.abs(fitted.mean((0, 1)) - noise().mean((0, 1))).max() < 12


def test_fit_averages_where_it_shrinks() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    fitted = images.fit(np.dstack([checks] * 3).astype("u1"), (8, 8))
    assert np.abs(fitted.astype(int) - 127).max() < 4


def bilinear(values: Any, size: tuple[int, int]) -> Any:
    """The definition: centres of pixels at halves, the edge repeated."""
    for axis, new in enumerate(size):
        old = values.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        weight = (at - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        high = np.minimum(low + 1, old - 1)
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, high, axis) * weight
    return values


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
@pytest.mark.parametrize("size", [(12, 18), (13, 31), (6, 40)])
def test_resize_of_floats_is_bilinear(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    values = np.random.default_rng(3).normal(5, 100, shape).astype("f4")
    result = images.resize(values, size)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, bilinear(values, size), rtol=1e-4, atol=1e-3)


def test_resize_of_floats_does_not_quantise() -> None:
    values = np.linspace(0.5, 0.5001, 32, dtype="f4")[None].repeat(4, 0)
    assert len(np.unique(images.resize(values, (4, 320)))) > 100


@pytest.mark.parametrize("size", [(48, 64), (5, 7), (101, 3)])
def test_resize_of_ids_makes_no_new_ids(size: tuple[int, int]) -> None:
    ids = np.random.default_rng(4).choice(np.array([3, 77, 149], "u1"), (24, 32))
    result = images.resize(ids, size, nearest=True)
    assert result.shape == size
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {3, 77, 149}


def test_resize_of_ids_by_two_repeats_them() -> None:
    ids = np.arange(12, dtype="u1").reshape(3, 4)
    expected = ids.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(images.resize(ids, (6, 8), nearest=True), expected)


@pytest.mark.parametrize("nearest", [False, True])
def test_resize_of_what_is_not_contiguous(nearest: bool) -> None:
    planes = np.random.default_rng(5).random((3, 9, 14)).astype("f4")
    view = np.moveaxis(planes, 0, -1)[::-1, ::2]
    assert not view.flags.c_contiguous
    expected = images.resize(view.copy(), (20, 11), nearest)
    np.testing.assert_array_equal(images.resize(view, (20, 11), nearest), expected)


def test_resize_to_the_same_size_is_free() -> None:
    values = np.zeros((3, 4), "f4")
    assert images.resize(values, (3, 4)) is values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 3), 200), "an array of int64: give uint8, uint16, or floats"),
        (np.full((4, 4, 3), 200.0), r"floats up to 200: give them in \[0, 1\]"),
        (np.zeros((4, 4, 3), complex), "an array of complex128"),
    ],
)
def test_arrays_of_another_type_or_range_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        images.from_array(values)
