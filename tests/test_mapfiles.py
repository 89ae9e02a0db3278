"""Files of maps as other programs write them, and files that are none."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenEXR
import pytest
import tifffile
from PIL import Image

from dmp_cli import mapfiles
from dmp_cli.errors import ImageError
from dmp_cli.tasks import Array, find

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 4, 6
MAP = RNG.random((ROWS, COLUMNS), np.float32) + 1
THREE = RNG.random((ROWS, COLUMNS, 3), np.float32) + 1
IDS = RNG.integers(0, 150, (ROWS, COLUMNS), np.uint8)


def read(path: Path, name: str) -> Array:
    return mapfiles.read(path, find(name), three=name in ("normals", "albedo"))


def exr(path: Path, channels: Mapping[str, Array], **header: Any) -> Path:
    """Written by OpenEXR's own library."""
    header |= {"type": OpenEXR.scanlineimage}
    OpenEXR.File(header, dict(channels)).write(str(path))
    return path


def layer(name: str, letters: str, values: Array = THREE) -> dict[str, Array]:
    return {
        f"{name}{letter}": np.ascontiguousarray(values[..., index])
        for index, letter in enumerate(letters)
    }


# EXR --------------------------------------------------------------------------------------

OURS = {
    "Z": MAP,
    **layer("N.", "XYZ", -THREE.astype("f2")),
    "seg.id": IDS.astype(np.uint32),
    **layer("albedo.", "RGB", THREE.astype("f2")),
    **layer("shading.", "RGB", (THREE / 2).astype("f2")),
}
BLENDER = {
    **layer("ViewLayer.Combined.", "RGBA", RNG.random((ROWS, COLUMNS, 4), np.float32)),
    "ViewLayer.Depth.Z": MAP,
    "ViewLayer.Mist.Z": MAP * 0,
    **layer("ViewLayer.Normal.", "XYZ", -THREE),
    **layer("ViewLayer.DiffCol.", "RGB", THREE),
    "ViewLayer.IndexOB.X": IDS.astype(np.float32),
}
EXPECTED = {"depth": MAP[..., None], "normals": -THREE, "segmentation": IDS[..., None],
            "albedo": THREE}  # fmt: skip


@pytest.mark.parametrize("channels", [OURS, BLENDER], ids=["ours", "blender"])
@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_found_by_name(tmp_path: Path, channels: Mapping[str, Array], name: str) -> None:
    found = read(exr(tmp_path / "a.exr", channels), name)
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-3)


def test_shading_of_our_exr(tmp_path: Path) -> None:
    found = read(exr(tmp_path / "a.exr", OURS), "shading")
    np.testing.assert_allclose(found, THREE / 2, rtol=1e-3)


def test_ids_of_exr_are_whole_numbers(tmp_path: Path) -> None:
    found = read(exr(tmp_path / "a.exr", OURS), "segmentation")
    assert found.dtype == np.uint32
    assert np.array_equal(found[..., 0], IDS)


@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("depth", {"Y": MAP}, MAP[..., None]),
        ("depth", {"V": MAP.astype("f2")}, MAP[..., None]),
        ("depth", {"depth": MAP, "confidence": MAP * 0}, MAP[..., None]),
        ("depth", {**layer("", "RGBA", np.dstack([THREE, MAP])), "Z": MAP}, MAP[..., None]),
        ("depth", layer("", "RGB"), THREE),
        ("shading", {"Y": MAP}, MAP[..., None]),
        ("shading", layer("", "RGB"), THREE),
        ("normals", layer("", "XYZ"), THREE),
        ("normals", layer("", "RGB"), THREE),
        ("normals", {**layer("normal.", "rgb"), **layer("", "RGB", -THREE)}, THREE),
        ("albedo", layer("", "rgb"), THREE),
        ("segmentation", {"Y": IDS.astype(np.uint32)}, IDS[..., None]),
    ],
)
def test_the_only_layer_that_can_be_meant(
    tmp_path: Path, name: str, channels: Mapping[str, Array], expected: Array
) -> None:
    found = read(exr(tmp_path / "a.exr", channels), name)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("depth", {"a1": MAP, "a2": MAP}),
        ("depth", {"left.depth.Z": MAP, "right.depth.Z": MAP}),
        ("depth", layer("", "XYZ")),
        ("shading", {"Z": MAP}),
        ("albedo", layer("N.", "XYZ")),
        ("albedo", {"Y": MAP}),
        ("normals", {**layer("left.", "RGB"), **layer("right.", "RGB")}),
        ("segmentation", {**layer("", "RGB"), "Z": MAP}),
    ],
)
def test_layers_are_never_guessed(tmp_path: Path, name: str, channels: Mapping[str, Array]) -> None:
    with pytest.raises(ImageError, match=f"which of them are {name}") as error:
        read(exr(tmp_path / "a.exr", channels), name)
    assert all(channel in str(error.value) for channel in channels)


def test_parts_are_found_by_their_title(tmp_path: Path) -> None:
    parts = [
        OpenEXR.Part({"type": OpenEXR.scanlineimage, "name": title}, channels)
        for title, channels in (("rgba", layer("", "RGB")), ("normals", layer("", "XYZ", -THREE)),
                                ("depth", {"Y": MAP}))
    ]  # fmt: skip
    OpenEXR.File(parts).write(str(tmp_path / "a.exr"))
    np.testing.assert_array_equal(read(tmp_path / "a.exr", "depth")[..., 0], MAP)
    np.testing.assert_array_equal(read(tmp_path / "a.exr", "normals"), -THREE)
    np.testing.assert_array_equal(read(tmp_path / "a.exr", "albedo"), THREE)


@pytest.mark.parametrize("corner", [(2, 1), (-2, -1), (-1, 1), (40, 0)])
def test_a_data_window_is_laid_on_the_picture(tmp_path: Path, corner: tuple[int, int]) -> None:
    first = np.array(corner, np.int32)
    window = (first, first + np.array([COLUMNS - 1, ROWS - 1], np.int32))
    whole = (np.zeros(2, np.int32), np.array([6, 4], np.int32))
    path = exr(tmp_path / "a.exr", {"Z": MAP}, dataWindow=window, displayWindow=whole)
    expected = np.zeros((5, 7), np.float32)
    for row in range(ROWS):
        for column in range(COLUMNS):
            x, y = column + corner[0], row + corner[1]
            if 0 <= x < 7 and 0 <= y < 5:
                expected[y, x] = MAP[row, column]
    np.testing.assert_array_equal(read(path, "depth")[..., 0], expected)


# npz --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("depth", {"depth": MAP, "mask": MAP * 0}),
        ("depth", {"arr_0": MAP}),
        ("depth", {"Z": MAP, "rgb": THREE}),
        ("segmentation", {"seg": MAP, "depth": MAP * 0}),
    ],
)
def test_npz(tmp_path: Path, name: str, arrays: Mapping[str, Array]) -> None:
    np.savez_compressed(tmp_path / "a.npz", allow_pickle=False, **arrays)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", name), MAP)


@pytest.mark.parametrize("arrays", [{"a": MAP, "b": MAP}, {}])
def test_npz_of_several_arrays_is_not_guessed(tmp_path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **arrays)
    with pytest.raises(ImageError, match="which one is depth") as error:
        read(tmp_path / "a.npz", "depth")
    assert (", ".join(arrays) or "none") in str(error.value)


# Pictures ---------------------------------------------------------------------------------

DEEP = RNG.integers(0, 65536, (ROWS, COLUMNS, 3), np.uint16)


def test_png_of_16_bits_keeps_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), np.ascontiguousarray(DEEP[..., ::-1]))
    with Image.open(path) as image:
        assert np.asarray(image).dtype == np.uint8  # why it is not read by Pillow
    found = read(path, "normals")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, DEEP)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (MAP, {}),
        (MAP.astype("f8"), {}),
        (MAP.astype("f2"), {}),
        ((MAP * 1000).astype("u2"), {"compression": "zlib"}),
        ((MAP * 1000).astype("i4"), {}),
        (THREE, {"photometric": "rgb"}),
        (DEEP, {"photometric": "rgb", "tile": (16, 16)}),
    ],
)
def test_tiff(tmp_path: Path, values: Array, options: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", values, **options)
    found = read(tmp_path / "a.tiff", "albedo" if values.ndim == 3 else "depth")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values if values.ndim == 3 else values[..., None])


def test_tiff_of_planes(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(THREE, -1, 0))
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", "normals"), THREE)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bands", [2, 4])
def test_alpha_is_left_out_and_changes_nothing(tmp_path: Path, suffix: str, bands: int) -> None:
    values = RNG.integers(0, 256, (ROWS, COLUMNS, bands), np.uint8)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = read(tmp_path / f"a.{suffix}", "albedo")
    np.testing.assert_array_equal(found, values[..., :-1])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_indexed_pictures_are_their_indices(tmp_path: Path, suffix: str, bits: int) -> None:
    ids = IDS & np.uint8(2**bits - 1)
    image = Image.fromarray(ids)
    image.putpalette(RNG.integers(0, 256, 3 * 2**bits, np.uint8).tobytes())
    image.save(tmp_path / f"a.{suffix}", **({"bits": bits} if suffix == "png" else {}))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}", "segmentation"), ids)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures_of_ids(tmp_path: Path, dtype: Any) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), IDS.astype(dtype))
    np.testing.assert_array_equal(read(tmp_path / "a.png", "segmentation")[..., 0], IDS)


@pytest.mark.parametrize("name", ["a b#1?.png", "Häuser 海.exr", "A.PNG", "%04d.tif"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".exr":
        exr(path, {"Z": MAP})
    else:
        Image.fromarray((MAP * 1000).astype(np.uint16)).save(path)
    assert read(path, "depth").shape == (ROWS, COLUMNS, 1)


# What cannot be read ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*mapfiles.SUFFIXES, "indexed.png"])
def test_maps_that_are_too_large(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix.startswith(".np"):
        (np.save if suffix == ".npy" else np.savez)(path, MAP)
    elif suffix == ".exr":
        exr(path, {"Z": MAP})
    else:
        image = Image.fromarray(IDS)
        if "indexed" in suffix:
            image.putpalette(bytes(768))
        image.save(path)
    task = "segmentation" if "indexed" in suffix else "depth"
    monkeypatch.setattr(mapfiles, "MAX_VALUES", ROWS * COLUMNS)
    assert read(path, task).size == ROWS * COLUMNS
    monkeypatch.setattr(mapfiles, "MAX_VALUES", ROWS * COLUMNS - 1)
    with pytest.raises(ImageError, match=r"4 x 6.* values are more than") as error:
        read(path, task)
    assert error.value.hint


def huge_npy() -> bytes:
    """The header of 40 GB, and no data."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (100_000, 100_000)}
    np.lib.format.write_array_header_2_0(file, header)
    return file.getvalue()


def huge_npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("depth.npy", huge_npy())
    return file.getvalue()


@pytest.mark.parametrize(("suffix", "make"), [(".npy", huge_npy), (".npz", huge_npz)])
def test_the_header_alone_refuses_an_array(
    tmp_path: Path, suffix: str, make: Callable[[], bytes]
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(make())
    with pytest.raises(ImageError, match="100000 x 100000 values are more than 400 million"):
        read(tmp_path / f"a{suffix}", "depth")


def test_the_display_window_counts_too(tmp_path: Path) -> None:
    first = np.zeros(2, np.int32)
    window, whole = (first, np.array([COLUMNS - 1, ROWS - 1], np.int32)), (first, first + 99_999)
    path = exr(tmp_path / "a.exr", {"Z": MAP}, dataWindow=window, displayWindow=whole)
    with pytest.raises(ImageError, match="100000 x 100000 x 1 values"):
        read(path, "depth")


def test_an_archive_with_a_password(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", depth=MAP)
    packed = bytearray((tmp_path / "a.npz").read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # where either header keeps them
        packed[packed.index(mark) + flags] |= 1
    (tmp_path / "a.npz").write_bytes(packed)
    with pytest.raises(ImageError, match=r"damaged: .*encrypted"):
        read(tmp_path / "a.npz", "depth")


@pytest.mark.parametrize("suffix", mapfiles.SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"not a map at all", b"\0" * 4096])
def test_files_that_are_none(
    tmp_path: Path, suffix: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for name in ("depth", "segmentation"):
        with pytest.raises(ImageError, match="empty" if not content else "damaged|pickled"):
            read(path, name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", mapfiles.SUFFIXES)
def test_files_that_end_too_early(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"a{suffix}"
    big = RNG.random((200, 200)).astype(np.float32)
    if suffix == ".npy":
        np.save(path, big)
    elif suffix == ".npz":
        np.savez_compressed(path, big)
    elif suffix == ".exr":
        exr(path, {"Z": big})
    elif suffix == ".png":
        Image.fromarray((big * 60000).astype(np.uint16)).save(path)
    else:
        tifffile.imwrite(path, big)
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.01):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ImageError, match="damaged"):
            read(path, "depth")
    assert capfd.readouterr() == ("", "")


def test_an_indexed_picture_that_ends_too_early(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 150, (99, 99), np.uint8)).convert("P").save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError, match="damaged"):
        read(path, "segmentation")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "loaded",))

    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", depth=np.array([Trap()], object))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ImageError, match="pickled objects, which dmp never loads"):
            read(tmp_path / name, "depth")
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.npy", "cannot be read: No such file"), ("a.txt", ".txt: not a file of a map"),
     ("a", "no suffix: not a file of a map"), ("folder.npy", "cannot be read: Is a directory"),
     ("nul\0.npy", "cannot be read: embedded null")],
)  # fmt: skip
def test_names_that_are_no_file(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ImageError, match=message):
        read(tmp_path / name, "depth")


def test_deep_exr_is_refused(tmp_path: Path) -> None:
    samples = np.empty((ROWS, COLUMNS), object)
    for index in np.ndindex(samples.shape):
        samples[index] = np.array([1, 2], np.float32)
    header = {"type": OpenEXR.deepscanline, "compression": OpenEXR.ZIPS_COMPRESSION}
    OpenEXR.File(header, {"Z": samples}).write(str(tmp_path / "a.exr"))
    with pytest.raises(ImageError, match="deep data") as error:
        read(tmp_path / "a.exr", "depth")
    assert error.value.hint


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.exr"
    exr(tmp_path / "a.exr", {"Z": MAP}).rename(path)
    with pytest.raises(ImageError, match="not UTF-8"):
        read(path, "depth")
