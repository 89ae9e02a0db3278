"""The task table: each row's coding, both ways, and what is made of odd values."""

from dataclasses import replace

import numpy as np
import pytest

from dmp_cli import tasks
from dmp_cli.errors import UsageError
from dmp_cli.tasks import TASKS, Array, Coding, View, find

RNG = np.random.default_rng(0)
UNIQUE = [i for i in range(150) if i not in (48, 51)]  # drawn in a colour that a lower id has


def a_map(name: str) -> Array:
    """A map with values from all of the task's range."""
    if name == "normals":
        return tasks.unit_vectors(RNG.normal(size=(20, 30, 3)))
    if name == "segmentation":
        return RNG.choice(UNIQUE, (20, 30)).astype(np.uint8)
    if name == "albedo":
        return RNG.random((20, 30, 3), np.float32)
    return RNG.random((20, 30), np.float32) * (12 if name == "depth" else 1)


CODINGS = [
    Coding(), Coding(scale=3.0, emits="-y x -z", axes="opencv"), Coding(scale=3.0, bright="near"),
]  # fmt: skip


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("name", TASKS)
def test_decode_undoes_encode(name: str, coding: Coding) -> None:
    row, truth = find(name), a_map(name)
    drawn = row.encode(truth, coding)
    assert drawn.shape == (20, 30, 3)
    assert drawn.dtype == np.float32
    found = row.decode(drawn, coding)
    assert found.dtype == truth.dtype
    np.testing.assert_allclose(found, truth, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", TASKS)
def test_the_order_in_memory_changes_no_bit(name: str) -> None:
    """A network leaves its picture as [3, h, w] or as [h, w, 3]."""
    drawn = RNG.normal(0, 0.7, (40, 50, 3)).astype(np.float32)
    planes = np.moveaxis(np.ascontiguousarray(np.moveaxis(drawn, -1, 0)), 0, -1)
    row = find(name)
    found, other = row.decode(drawn, Coding()), row.decode(planes, Coding())
    assert found.tobytes() == other.tobytes()
    for make in (row.preview, row.pack):
        one, two = (vars(make(values, View())) for values in (found, other))
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_depth_is_the_mean_clamped_below_only() -> None:
    drawn = np.array([[[1.4, 1.5, 1.6], [-0.5, 0.0, 0.5], [-2, -2, -2]]], np.float32)
    np.testing.assert_allclose(
        find("depth").decode(drawn, Coding(scale=8)), [[10, 4, 0]], atol=1e-5
    )


def test_bright_may_be_near() -> None:
    """A picture brighter than white is at the camera, not behind it."""
    drawn = np.array([[[1.4, 1.5, 1.6], [-0.5, 0.0, 0.5], [-2, -2, -2]]], np.float32)
    found = find("depth").decode(drawn, Coding(scale=2, bright="near"))
    np.testing.assert_allclose(found, [[0, 1, 3]], atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "vector"), [("opengl", (1, 2, 3)), ("directx", (1, -2, 3)), ("opencv", (1, -2, -3)),
                         ("-z x y", (-3, 1, 2))]
)  # fmt: skip
def test_axes(axes: str, vector: tuple[float, ...]) -> None:
    expected = tasks.unit_vectors(np.array([[vector]], np.float32))
    truth = tasks.unit_vectors(np.array([[[1, 2, 3]]], np.float32))
    found = find("normals").decode(truth, Coding(axes=axes))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    back = find("normals").decode(expected, Coding(emits=axes))
    np.testing.assert_allclose(back, truth, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("values", (0, 0, 0)), ("light", (0, 0, 0)), ("depth", (1, 0, 0)), ("normals", (0, 1, 0)),
     ("labels", (0, 0, 1))],
)  # fmt: skip
def test_what_is_measured_says_how_a_map_is_handled(
    kind: tasks.Kind, flags: tuple[int, ...]
) -> None:
    row = replace(find("shading"), name="edges", measured=kind)
    assert (row.metres, row.unit_length, row.labels) == flags


def test_a_row_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="task edges: measured 'label' is none of values, light"):
        replace(find("shading"), name="edges", measured="label")


@pytest.mark.parametrize("axes", ["", "x y", "x y y", "x y z w", "vulkan"])
def test_unknown_axes_are_refused(axes: str) -> None:
    with pytest.raises(UsageError, match="unknown axes"):
        tasks.parse_axes(axes)


def test_a_zero_vector_faces_the_viewer() -> None:
    assert tasks.unit_vectors(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 1]]


def test_near_takes_the_first_colour() -> None:
    depth = np.linspace(1, 5, 100, dtype=np.float32)[None]
    colours = np.stack([np.arange(256)] * 3, axis=-1).astype(np.uint8)
    shown = find("depth").preview(depth, View(colours, range=(1, 5))).pixels[0, :, 0]
    assert (shown[0], shown[-1]) == (0, 255)
    turned = find("depth").preview(depth, View(colours, invert=True, range=(1, 5))).pixels[0, :, 0]
    assert np.array_equal(turned, 255 - shown)


def test_the_range_of_a_depth_picture_is_told() -> None:
    depth = np.linspace(0, 10, 1001, dtype=np.float32)[None]
    assert find("depth").preview(depth, View()).text == {"near": "0.1 m", "far": "9.9 m"}


@pytest.mark.parametrize("name", TASKS)
def test_a_constant_map_has_a_picture(name: str) -> None:
    constant = find(name).decode(np.zeros((4, 5, 3), np.float32), Coding())
    picture = find(name).preview(constant, View())
    assert picture.pixels.dtype == np.uint8
    assert len(np.unique(picture.pixels.reshape(20, -1), axis=0)) == 1


def test_segmentation_pictures_hold_ids_and_the_customary_palette() -> None:
    ids = np.array([[0, 7, 149]], np.uint8)
    picture = find("segmentation").preview(ids, View())
    assert np.array_equal(picture.pixels, ids)
    assert picture.palette is not None
    assert picture.palette[7].tolist() == [204, 5, 255]


@pytest.mark.parametrize(("text", "names"), [("seg,depth,seg", ["segmentation", "depth"]),
                                             ("normal", ["normals"])])  # fmt: skip
def test_names_and_aliases(text: str, names: list[str]) -> None:
    assert [row.name for row in tasks.find_several(text)] == names


@pytest.mark.parametrize("text", ["", ",", "dept", "depth,foo"])
def test_unknown_tasks_are_refused_with_the_list(text: str) -> None:
    with pytest.raises(UsageError) as error:
        tasks.find_several(text)
    assert "depth, normals, segmentation, albedo, shading" in error.value.hint
