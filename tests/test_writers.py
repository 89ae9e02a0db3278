"""Arrays -> files, read back by other libraries than the one that wrote them."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from dmp_cli import mapfiles
from dmp_cli.outputs import writers
from dmp_cli.outputs.writers import Channel
from dmp_cli.plan import EXR_COMPRESSIONS
from dmp_cli.tasks import TASKS

Array = NDArray[Any]

TEXT = {"Software": "dmp", "Source": "Häuser\nam Meer 海.png", "near": "0.5 m"}
PHOTO = Path(__file__).parent.parent / "examples" / "coffee.jpg"
RNG = np.random.default_rng(6)
ODD_NAMES = ["-x", "a\nb", "a b#1%04d?", "Häuser 海", os.fsdecode(b"caf\xe9")]


def pixels(dtype: str, *shape: int) -> Array:
    if dtype == "float32":
        return RNG.normal(size=shape).astype(np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "plain": lambda a: a,
    "slice": lambda a: a[1::2, ::3],
    "reversed": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.swapaxes(0, 1),
    "CHW view": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}
SHAPES = {"grey": (24, 32), "colour": (24, 32, 3)}


def by_opencv(path: Path) -> Array:
    found = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found[..., ::-1] if found.ndim == 3 else found


# PNG --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png(tmp_path: Path, dtype: str, shape: str, layout: str) -> None:
    values = LAYOUTS[layout](pixels(dtype, *SHAPES[shape]))
    path = tmp_path / "new" / "x.png"
    writers.write_png(path, values, TEXT)
    found = by_opencv(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    with Image.open(path) as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text == TEXT
        assert not {"gamma", "srgb", "icc_profile", "chromaticity", "dpi"} & set(picture.info)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(2000, 333), (2000, 333, 3), (3, 90_000, 3), (1, 200_000)])
def test_png_of_many_bands(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Rows that are filtered at different times, and rows longer than a band."""
    smooth = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1])).astype(dtype)
    values = smooth if len(shape) == 2 else smooth[..., None] + np.arange(3).astype(dtype)
    writers.write_png(tmp_path / "x.png", values, TEXT)
    np.testing.assert_array_equal(by_opencv(tmp_path / "x.png"), values)
    np.testing.assert_array_equal(
        OpenImageIO.ImageBuf(str(tmp_path / "x.png")).get_pixels(dtype).reshape(shape), values
    )


def chunks(path: Path) -> list[tuple[bytes, int]]:
    """Name and length of each chunk of a PNG."""
    data, at, found = path.read_bytes(), 8, []
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        found.append((name, length))
        at += 12 + length
    return found


@pytest.mark.parametrize("shape", [(1, 1), (2000, 1500), (3000, 2000, 3)])
def test_no_chunk_of_pixels_is_empty(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Of equal rows the first bands are deflated to nothing that is ready yet."""
    writers.write_png(tmp_path / "a.png", np.zeros(shape, np.uint8), {})
    lengths = [length for name, length in chunks(tmp_path / "a.png") if name == b"IDAT"]
    assert lengths
    assert 0 not in lengths


@pytest.mark.parametrize("kind", ["colour", "grey", "indices"])
def test_png_is_about_as_small_as_by_zlib(tmp_path: Path, kind: str) -> None:
    photo = Image.open(PHOTO).convert("RGB")
    values = np.asarray(photo if kind == "colour" else photo.convert("L"))
    palette = None
    if kind == "indices":
        values, palette = values // 32, np.zeros((8, 3), np.uint8)
    writers.write_png(tmp_path / "x.png", values, {}, palette)
    Image.fromarray(values).save(tmp_path / "zlib.png", compress_level=1)
    sizes = [(tmp_path / name).stat().st_size for name in ("x.png", "zlib.png")]
    assert sizes[0] < 1.1 * sizes[1]


@pytest.mark.parametrize("colours", [1, 2, 3, 16, 150, 256])
def test_png_with_a_palette(tmp_path: Path, colours: int) -> None:
    palette = RNG.integers(0, 256, (colours, 3), np.uint8)
    ids = RNG.integers(0, colours, (24, 33), np.uint8)
    ids[0, 0] = 255  # has no colour where there are fewer
    writers.write_png(tmp_path / "x.png", ids[:, ::-1], TEXT, palette)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(picture, ids[:, ::-1])
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text == TEXT
    shown = np.concatenate([palette, np.zeros((256 - colours, 3), np.uint8)])[ids[:, ::-1]]
    np.testing.assert_array_equal(by_opencv(tmp_path / "x.png"), shown)


@pytest.mark.parametrize(
    ("values", "palette", "message"),
    [
        (np.zeros((2, 2), np.float32), None, "float32"),
        (np.zeros((2, 2, 4), np.uint8), None, "must be uint8 or uint16"),
        (np.zeros((2, 2, 2, 3), np.uint8), None, "must be uint8 or uint16"),
        (np.zeros((0, 2), np.uint8), None, r"\[0, 2\]"),
        (np.zeros((2, 2), np.uint8), np.zeros((257, 3), np.uint8), r"palette of uint8 \[257, 3\]"),
        (np.zeros((2, 2), np.uint8), np.zeros((9, 4), np.uint8), "palette of"),
        (np.zeros((2, 2), np.uint8), np.zeros((9, 3)), "palette of float64"),
        (np.zeros((2, 2), np.uint16), np.zeros((9, 3), np.uint8), r"only uint8 \[H, W\]"),
        (np.zeros((2, 2, 3), np.uint8), np.zeros((9, 3), np.uint8), r"only uint8 \[H, W\]"),
    ],
)
def test_what_is_no_png(tmp_path: Path, values: Array, palette: Array | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        writers.write_png(tmp_path / "x.png", values, {}, palette)
    assert list(tmp_path.iterdir()) == []


# TIFF -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff(tmp_path: Path, dtype: str, shape: str, layout: str) -> None:
    values = LAYOUTS[layout](pixels(dtype, *SHAPES[shape]))
    writers.write_tiff(tmp_path / "x.tiff", values, TEXT)
    found = by_opencv(tmp_path / "x.tiff")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    source = OpenImageIO.ImageInput.open(str(tmp_path / "x.tiff"))
    np.testing.assert_array_equal(source.read_image(source.spec().format).squeeze(), values)
    if shape == "grey":
        with Image.open(tmp_path / "x.tiff") as picture:
            np.testing.assert_array_equal(picture, values)


def test_tiff_carries_text_and_not_finite_values(tmp_path: Path) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    text = TEXT | {"odd": os.fsdecode(b"caf\xe9\0"), "shape": "[1]"}
    writers.write_tiff(tmp_path / "x.tiff", values, text)
    with Image.open(tmp_path / "x.tiff") as picture:
        np.testing.assert_array_equal(picture, values)
        assert json.loads(picture.tag_v2[270]) == text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "values", [np.zeros((2, 2)), np.zeros((2, 2, 2), np.float32), np.zeros(4, np.uint8)]
)
def test_what_is_no_tiff(tmp_path: Path, values: Array) -> None:
    with pytest.raises(ValueError, match="must be uint8 or uint16 or float32"):
        writers.write_tiff(tmp_path / "x.tiff", values, {})


# EXR --------------------------------------------------------------------------------------


def by_openimageio(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The channels of an EXR in their own types, and its attributes."""
    source = OpenImageIO.ImageInput.open(str(path))
    spec = source.spec()
    kinds = spec.channelformats or (spec.format,) * spec.nchannels
    channels = {
        name: source.read_image(0, 0, i, i + 1, kinds[i])[..., 0]
        for i, name in enumerate(spec.channelnames)
    }
    return channels, {item.name: item.value for item in spec.extra_attribs}


def five_tasks(layout: Callable[[Array], Array] = LAYOUTS["plain"]) -> list[Channel]:
    """Channels in the order of the tasks, not of the alphabet."""
    normals, albedo = (layout(pixels("float32", 24, 32, 3)) for _ in range(2))
    return [
        Channel("Z", layout(pixels("float32", 24, 32)), "float"),
        *(Channel(f"N.{letter}", normals[..., i], "half") for i, letter in enumerate("XYZ")),
        *(Channel(f"albedo.{letter}", albedo[..., i], "half") for i, letter in enumerate("RGB")),
        Channel("seg.id", layout(pixels("uint32", 24, 32)), "uint"),
        Channel("ViewLayer.IndexOB.X", layout(pixels("uint8", 24, 32)), "float"),
    ]


DTYPES = {"float": np.float32, "half": np.float16, "uint": np.uint32}


@pytest.mark.parametrize("compression", EXR_COMPRESSIONS)
@pytest.mark.parametrize("layout", sorted({*LAYOUTS} - {"CHW view"}))
def test_exr(tmp_path: Path, layout: str, compression: str) -> None:
    channels = five_tasks(LAYOUTS[layout])
    writers.write_exr(tmp_path / "x.exr", channels, TEXT, compression)
    found, attributes = by_openimageio(tmp_path / "x.exr")
    assert set(found) == {channel.name for channel in channels}
    for channel in channels:
        assert found[channel.name].dtype == DTYPES[channel.kind]
        np.testing.assert_array_equal(
            found[channel.name], channel.values.astype(DTYPES[channel.kind]), channel.name
        )
    assert attributes["compression"] == compression
    assert attributes["Source"] == TEXT["Source"]


def test_exr_of_views_of_one_array(tmp_path: Path) -> None:
    """As torch gives them: [3, H, W] in memory, seen as [H, W, 3]."""
    normals = np.moveaxis(pixels("float32", 3, 24, 32), 0, -1)
    channels = [Channel(f"N.{c}", normals[..., i], "float") for i, c in enumerate("XYZ")]
    writers.write_exr(tmp_path / "x.exr", channels, {})
    np.testing.assert_array_equal(mapfiles.read(tmp_path / "x.exr", TASKS["normals"], True),
                                  normals)  # fmt: skip


def test_a_half_is_rounded_and_overflows_to_infinity(tmp_path: Path) -> None:
    values = np.array([[0.1, 1000.2, 65504, 65520, -1e30, np.nan, -np.inf]], np.float32)
    writers.write_exr(tmp_path / "x.exr", [Channel("v.Y", values, "half")], {})
    found = by_openimageio(tmp_path / "x.exr")[0]["v.Y"]
    expected = [[0.09997559, 1000.0, 65504, np.inf, -np.inf, np.nan, -np.inf]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_float_keeps_every_value(tmp_path: Path) -> None:
    values = np.array([[0.1, -0.0, 1e-45, 3e38, np.nan, np.inf, -np.inf]], np.float32)
    writers.write_exr(tmp_path / "x.exr", [Channel("Z", values, "float")], {})
    found = by_openimageio(tmp_path / "x.exr")[0]["Z"]
    assert found.tobytes() == values.tobytes()


def test_attributes_of_exr(tmp_path: Path) -> None:
    text = TEXT | {
        "colorInteropID": "lin_rec709_scene",
        "dmp:weights-sha256": "0" * 64,
        "dmp:an attribute with a name of more than thirty-one bytes": "long",
        "dmp:empty": "",
    }
    written = text | {"dmp:odd": os.fsdecode(b"caf\xe9\0"), "compression": "b44", "type": "deep"}
    writers.write_exr(tmp_path / "x.exr", five_tasks(), written)
    attributes = by_openimageio(tmp_path / "x.exr")[1]
    assert {key: attributes.get(key, "") for key in text} == text
    assert attributes["dmp:odd"] == "caf\\udce9\\0"
    assert attributes["compression"] == "zip"


ONE = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("channels", "compression", "message"),
    [
        ([], "zip", "must have names"),
        ([Channel("Z", ONE, "float")] * 2, "zip", "each its own"),
        ([Channel("", ONE, "float")], "zip", "must have names"),
        ([Channel("Z", ONE, "float"), Channel("Y", ONE.T, "half")], "zip", "one size"),
        ([Channel("Z", ONE[..., None], "float")], "zip", "one size"),
        ([Channel("Z", ONE[:0], "float")], "zip", "one size"),
        ([Channel("seg.id", ONE, "uint")], "zip", "is not unsigned"),
        ([Channel("seg.id", ONE.astype(int), "uint")], "zip", "is not unsigned"),
        *(([Channel("Z", ONE, "float")], name, "known are none, rle, zips, zip, piz")
          for name in ("dwaa", "b44", "pxr24", "ZIP", "")),
    ],
)  # fmt: skip
def test_what_is_no_exr(
    tmp_path: Path, channels: list[Channel], compression: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        writers.write_exr(tmp_path / "x.exr", channels, {}, compression)
    assert list(tmp_path.iterdir()) == []


# npy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_npy(tmp_path: Path, dtype: str, layout: str) -> None:
    values = LAYOUTS[layout](pixels(dtype, 24, 32, 3))
    writers.write_npy(tmp_path / "x.npy", values)
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


# All of them ------------------------------------------------------------------------------

GREY, COLOUR = pixels("uint8", 64, 64), pixels("uint16", 64, 64, 3)
WRITE: dict[str, Callable[[Path], None]] = {
    "png": lambda path: writers.write_png(path, GREY, TEXT),
    "indexed.png": lambda path: writers.write_png(path, GREY, TEXT, np.ones((9, 3), np.uint8)),
    "16.png": lambda path: writers.write_png(path, COLOUR[..., 0], TEXT),
    "colour.16.png": lambda path: writers.write_png(path, COLOUR, TEXT),
    "tiff": lambda path: writers.write_tiff(path, COLOUR.astype(np.float32), TEXT),
    "16.tiff": lambda path: writers.write_tiff(path, COLOUR, TEXT),
    "exr": lambda path: writers.write_exr(path, [Channel("Z", GREY, "float")], TEXT),
    "npy": lambda path: writers.write_npy(path, COLOUR),
}


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_files_and_folders(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / name
    WRITE[kind](folder / f"{name}.{kind}")
    assert [file.name for file in folder.iterdir()] == [f"{name}.{kind}"]
    WRITE[kind](tmp_path / f"plain.{kind}")
    written = (tmp_path / f"plain.{kind}").read_bytes()
    assert (folder / f"{name}.{kind}").read_bytes() == written


def test_the_same_array_gives_the_same_bytes_at_another_time(tmp_path: Path) -> None:
    for kind, write in WRITE.items():
        write(tmp_path / f"first.{kind}")
    time.sleep(1.1)  # the times of day in files are whole seconds
    for kind, write in WRITE.items():
        write(tmp_path / f"second.{kind}")
        first, second = (tmp_path / f"{name}.{kind}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes(), kind


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_shapes_at_the_edge(tmp_path: Path, shape: tuple[int, int]) -> None:
    for dtype in ("uint8", "uint16"):
        for size in (shape, (*shape, 3)):
            values = pixels(dtype, *size)
            writers.write_png(tmp_path / "x.png", values, {})
            np.testing.assert_array_equal(by_opencv(tmp_path / "x.png"), values)
            writers.write_tiff(tmp_path / "x.tiff", values, {})
            np.testing.assert_array_equal(by_opencv(tmp_path / "x.tiff"), values)
    for kind, dtype in (("float", "float32"), ("uint", "uint32")):
        values = pixels(dtype, *shape)
        writers.write_exr(tmp_path / "x.exr", [Channel("a.b", values, kind)], {})  # type: ignore[arg-type]
        np.testing.assert_array_equal(by_openimageio(tmp_path / "x.exr")[0]["a.b"], values)


def test_several_threads_write_at_once(tmp_path: Path) -> None:
    arrays = [pixels("uint16", 200, 100, 3) for _ in range(6)]

    def write(index: int) -> None:
        values = arrays[index]
        writers.write_png(tmp_path / f"{index}.png", values, {})
        writers.write_tiff(tmp_path / f"{index}.tiff", values, {})
        channels = [Channel(f"v.{c}", values[..., i], "uint") for i, c in enumerate("RGB")]
        writers.write_exr(tmp_path / f"{index}.exr", channels, {})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(6)))
    for index, values in enumerate(arrays):
        np.testing.assert_array_equal(by_opencv(tmp_path / f"{index}.png"), values)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{index}.tiff"), values)
        found = by_openimageio(tmp_path / f"{index}.exr")[0]
        np.testing.assert_array_equal(np.dstack([found[f"v.{c}"] for c in "RGB"]), values)


@pytest.mark.parametrize("kind", WRITE)
def test_a_full_disk_is_told_wherever_the_file_is_cut(tmp_path: Path, kind: str) -> None:
    """A real failure at the first byte, in the middle and at the last byte of a file."""
    code = (
        "import pathlib, resource, sys\n"
        "from dmp_cli import errors; from tests import test_writers\n"
        "path, write = pathlib.Path(sys.argv[1]), test_writers.WRITE[sys.argv[2]]\n"
        "write(path); size = path.stat().st_size; path.write_text('old')\n"
        "for limit in (3, 200, size // 2, size - 5000, size - 4096, size - 100, size - 1):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 3), resource.RLIM_INFINITY))\n"
        "    try: write(path); print('written at', limit, 'of', size)\n"
        "    except errors.ResourceError as error: print(error)\n"
        "print(path.read_text(), len(list(path.parent.iterdir())))"
    )
    path = tmp_path / f"x.{kind}"
    ran = subprocess.run(
        [sys.executable, "-c", code, path, kind],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if "COV" not in key},
        cwd=Path(__file__).parent.parent,
    )
    failed = f"{path} cannot be written: File too large\n"
    assert (ran.stdout, ran.stderr) == (failed * 7 + "old 1\n", "")
