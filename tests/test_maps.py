"""Map files: which numbers in them mean what."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dmp_cli import classes, maps, tasks
from dmp_cli.errors import ImageError, UsageError
from dmp_cli.maps import Reading
from dmp_cli.tasks import Array, Coding, Picture, Task, find

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 4, 6


def npy(folder: Path, values: Any) -> Path:
    np.save(folder / "a.npy", np.asarray(values))
    return folder / "a.npy"


def png(folder: Path, values: Array) -> Path:
    """Written by OpenCV, which takes colours as blue, green, red."""
    colours = values[..., ::-1] if values.ndim == 3 else values
    assert cv2.imwrite(str(folder / "a.png"), np.ascontiguousarray(colours))
    return folder / "a.png"


def exact(name: str) -> Array:
    """A map as tasks.py describes it."""
    shape = (ROWS, COLUMNS, 3) if name in ("normals", "albedo") else (ROWS, COLUMNS)
    values = RNG.random(shape, np.float32)
    if name == "normals":
        return tasks.unit_vectors(values * 2 - 1)
    return (values * 149).astype(np.uint8) if name == "segmentation" else values


@pytest.mark.parametrize("name", tasks.TASKS)
def test_what_dmp_writes_comes_back(tmp_path: Path, name: str) -> None:
    values = exact(name)
    found = maps.read(npy(tmp_path, values), find(name))
    assert found.dtype == values.dtype
    np.testing.assert_allclose(found, values, atol=1e-6)


@pytest.mark.parametrize(
    "arrange",
    [lambda v: v[None], lambda v: v[..., None], lambda v: v[None, None], np.asfortranarray,
     lambda v: v.astype("f8"), lambda v: v.astype(">f4")],
)  # fmt: skip
def test_arrays_of_one_channel(tmp_path: Path, arrange: Any) -> None:
    values = exact("depth")
    found = maps.read(npy(tmp_path, arrange(values)), find("depth"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("arrange", [lambda v: np.moveaxis(v, -1, 0), lambda v: v[None]])
def test_arrays_of_three_channels(tmp_path: Path, arrange: Any) -> None:
    values = exact("albedo")
    np.testing.assert_array_equal(maps.read(npy(tmp_path, arrange(values)), find("albedo")), values)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("depth", np.zeros(5), r"array \[5\], the map is \[H, W\]"),
        ("depth", np.zeros((2, 4, 5)), r"array \[2, 4, 5\]"),
        ("depth", np.zeros((0, 5)), r"array \[0, 5\]"),
        ("depth", np.zeros((2, 3, 4, 5)), r"array \[2, 3, 4, 5\]"),
        ("normals", np.zeros((4, 5)), r"array \[4, 5\], the map is \[H, W, 3\]"),
        ("albedo", np.zeros((4, 5, 4)), r"array \[4, 5, 4\]"),
        ("depth", np.zeros((4, 5), complex), "complex128, not numbers"),
        ("depth", np.array([["a"]]), "<U1, not numbers"),
        ("shading", np.zeros((4, 5), np.int64), "int64: give uint8, uint16 or floats"),
        ("depth", np.zeros((4, 5), np.uint8), "depth of 8 bits is a picture to look at"),
    ],
)
def test_arrays_that_are_no_map(tmp_path: Path, name: str, values: Array, message: str) -> None:
    path = npy(tmp_path, values)
    with pytest.raises(ImageError, match=message) as error:
        maps.read(path, find(name))
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("how", "words"),
    [(Reading(0), "unit of 0"), (Reading(-1), "unit of -1"), (Reading(float("nan")), "unit of nan"),
     (Reading(float("inf")), "unit of inf"), (Reading(axes="x y"), "unknown axes 'x y'")],
)  # fmt: skip
def test_readings_that_make_no_sense(how: Reading, words: str) -> None:
    maps.check(Reading(1e-9, "-x y z"))
    with pytest.raises(UsageError, match=words):
        maps.check(how)


# Depth ------------------------------------------------------------------------------------


def test_no_surface_is_0_and_nan_stays(tmp_path: Path) -> None:
    stored = [[0, -1, -np.inf, np.inf], [1e10, 65504, np.nan, 2.5]]
    found = maps.read(npy(tmp_path, stored), find("depth"))
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 0, np.nan, 2.5]])


@pytest.mark.parametrize(("unit", "metres"), [(0.001, 4.5), (1 / 5000, 0.9)])
@pytest.mark.parametrize("save", [npy, png])
def test_whole_numbers_of_depth_are_steps(
    tmp_path: Path, save: Any, unit: float, metres: float
) -> None:
    steps = np.array([[0, 4500], [1, 65535]], np.uint16)
    found = maps.read(save(tmp_path, steps), find("depth"), Reading(unit))
    np.testing.assert_allclose(found, [[0, metres], [unit, 65535 * unit]], rtol=1e-6)


def test_8_bit_depth_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="8 bits") as error:
        maps.read(png(tmp_path, np.zeros((4, 5), np.uint8)), find("depth"))
    assert "16-bit" in error.value.hint


# Normals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "stored"), [("opengl", (1, 2, 3)), ("directx", (1, -2, 3)), ("opencv", (1, -2, -3)),
                         ("z x y", (3, 1, 2))]
)  # fmt: skip
def test_axes_of_other_people(tmp_path: Path, axes: str, stored: tuple[int, ...]) -> None:
    path = npy(tmp_path, np.array([[stored]], np.float32))
    found = maps.read(path, find("normals"), Reading(axes=axes))
    np.testing.assert_allclose(found[0, 0], np.array([1, 2, 3]) / 14**0.5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "atol"), [(np.uint8, 0.01), (np.uint16, 4e-5)])
def test_normals_as_colours(tmp_path: Path, dtype: Any, atol: float) -> None:
    truth = exact("normals")
    top = np.iinfo(dtype).max
    path = png(tmp_path, np.rint((truth / 2 + 0.5) * top).astype(dtype))
    found = maps.read(path, find("normals"))
    np.testing.assert_allclose(found, truth, atol=atol)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("colour", [0, 127, 128, 255])
def test_grey_black_and_white_are_no_surface(tmp_path: Path, colour: int) -> None:
    path = png(tmp_path, np.full((2, 2, 3), colour, np.uint8))
    assert not maps.read(path, find("normals")).any()


def test_lengths_and_nan_of_normals(tmp_path: Path) -> None:
    path = npy(tmp_path, [[[0, 0, 0], [0, 0, 0.05], [0, 3, 0], [np.nan, 0, 1]]])
    found = maps.read(path, find("normals"))[0]
    assert found[:3].tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert np.isnan(found[3]).any()
    stored = maps.stored(path, find("normals"))[0]
    assert stored[2].tolist() == [0, 3, 0]


# Light ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_albedo_pictures_are_srgb(tmp_path: Path, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    values = np.zeros((1, 2, 3), dtype)
    values[0, 1] = (top, round(0.5 * top), 0)
    found = maps.read(png(tmp_path, values), find("albedo"))
    np.testing.assert_allclose(found, [[[0, 0, 0], [1, 0.21404, 0]]], atol=2e-3)


def test_coloured_shading_is_averaged_in_linear_light(tmp_path: Path) -> None:
    values = np.array([[[255, 0, 0]]], np.uint8)
    assert maps.read(png(tmp_path, values), find("shading"))[0, 0] == pytest.approx(1 / 3)


def test_shading_of_one_channel(tmp_path: Path) -> None:
    found = maps.read(png(tmp_path, np.array([[128]], np.uint8)), find("shading"))
    assert found.tolist() == [[pytest.approx(0.21586, abs=1e-4)]]


# Classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "ids"),
    [
        (np.array([[0, 149, 255, 200]], np.uint8), [0, 149, 255, 200]),
        (np.array([[3, -1]], np.int32), [3, 255]),
        (np.array([[3.0, 7.0]]), [3, 7]),
        (np.array([[True, False]]), [1, 0]),
    ],
)
def test_ids(tmp_path: Path, stored: Array, ids: list[int]) -> None:
    found = maps.read(npy(tmp_path, stored), find("segmentation"))
    assert found.dtype == np.uint8
    assert found[0].tolist() == ids


@pytest.mark.parametrize(
    ("stored", "named"), [([[256]], "256"), ([[-2]], "-2"), ([[0.5]], "0.5"), ([[np.nan]], "nan"),
                          ([[np.inf]], "inf")]
)  # fmt: skip
def test_numbers_that_are_no_ids(tmp_path: Path, stored: Any, named: str) -> None:
    with pytest.raises(ImageError, match=f"{named} is no class id"):
        maps.read(npy(tmp_path, stored), find("segmentation"))


@pytest.mark.parametrize("palette", ["standard", "drawn"])
def test_colours_of_either_palette_are_ids(tmp_path: Path, palette: str) -> None:
    colours: Array = getattr(classes.ade20k(), palette)
    found = maps.read(png(tmp_path, colours[None]), find("segmentation"))[0]
    same_colour = {48: 6}  # skyscraper and road
    assert found.tolist() == [same_colour.get(index, index) for index in range(150)]


def test_black_is_no_class_and_other_colours_are_named(tmp_path: Path) -> None:
    black = np.zeros((1, 2, 3), np.uint8)
    assert maps.read(png(tmp_path, black), find("segmentation")).tolist() == [[255, 255]]
    black[0, 1] = (9, 8, 7)
    with pytest.raises(ImageError, match=r"colour \(9, 8, 7\) is not in the ADE20K palette"):
        maps.read(png(tmp_path, black), find("segmentation"))


def test_colours_of_16_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="colours of uint16"):
        maps.read(png(tmp_path, np.zeros((2, 2, 3), np.uint16)), find("segmentation"))


# A task that the table does not have ------------------------------------------------------


def _edges(rgb: Array, coding: Coding) -> Array:
    return np.clip(rgb.mean(axis=-1) / 2 + 0.5, 0, 1).astype(np.float32)


EDGES = Task(
    "edges", "outlines", "0-1", _edges, lambda edges, coding: np.dstack([edges * 2 - 1] * 3),
    lambda edges, view: Picture((edges * 255).astype(np.uint8)), ("rmse",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("save", "stored"),
    [(npy, np.array([[0, 0.5, 1]])), (npy, np.array([[False, False, True]])),
     (png, np.array([[0, 128, 255]], np.uint8)), (png, np.array([[0, 32768, 65535]], np.uint16)),
     (png, np.array([[[0] * 3, [128] * 3, [255] * 3]], np.uint8))],
)  # fmt: skip
def test_a_new_row_needs_nothing_here(tmp_path: Path, save: Any, stored: Array) -> None:
    found = maps.read(save(tmp_path, stored), EDGES)
    assert found.dtype == np.float32
    half = 0.0 if stored.dtype == bool else 0.5
    np.testing.assert_allclose(found, [[0, half, 1]], atol=2e-3)
