"""A training set: which map belongs to which image, captions, and what the network sees of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dmp_cli import data, maps, naming, tasks
from dmp_cli.data import Fit, Pair
from dmp_cli.errors import DmpError, ImageError, NoInputError, UsageError
from dmp_cli.tasks import Array, Coding, find
from tests.conftest import write_image

DEPTH = find("depth")
ROWS, COLUMNS = 48, 64
FIT = Fit(48, 8)


def write_map(path: Path, values: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((ROWS, COLUMNS), 2, np.float32) if values is None else np.asarray(values)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez_compressed(path, depth=values)
    elif path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        tifffile.imwrite(path, values)
    return path


def names(root: Path, task: str = "depth", partial: bool = False) -> list[tuple[str, str]]:
    return [
        (pair.name, pair.target.relative_to(root).as_posix())
        for pair in data.pairs(root, find(task), partial)
    ]


# Finding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", naming.IMAGE_FOLDERS)
def test_a_folder_per_task(tmp_path: Path, folder: str) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".git/d.png"):
        write_image(tmp_path / folder / name)
    for name in ("a.npy", "b.npz", "sub/c.tif", ".b.npy", "notes.txt"):
        (tmp_path / "depth" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "depth" / name).touch()
    expected = [("a", "depth/a.npy"), ("b", "depth/b.npz"), ("sub/c", "depth/sub/c.tif")]
    assert names(tmp_path) == expected
    assert data.pairs(tmp_path, DEPTH)[0].image == tmp_path / folder / "a.JPG"


def test_a_folder_by_alias_and_images_beside_it(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "normal").mkdir()
    for name in ("normal/a.png", "depth/z.png"):
        write_image(tmp_path / name)  # the folder of another task has no images
    assert names(tmp_path, "normals") == [("a", "normal/a.png")]


@pytest.mark.parametrize("below", ["", "images", "images/sub"])
def test_maps_beside_the_images(tmp_path: Path, below: str) -> None:
    write_image(tmp_path / below / "a.png")
    write_image(tmp_path / below / "b.v2.jpg")
    write_map(tmp_path / below / "a.depth.npy")
    write_map(tmp_path / below / "b.v2.depth.16.png", np.zeros((4, 4), np.uint16))
    write_image(tmp_path / below / "a.normals.png")
    found = [Path(target).name for _, target in names(tmp_path)]
    assert found == ["a.depth.npy", "b.v2.depth.16.png"]


def test_what_dmp_predict_wrote_into_a_folder_of_the_task(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_map(tmp_path / "depth/a.depth.npy")
    write_image(tmp_path / "depth/a.depth.png")  # to look at
    assert names(tmp_path) == [("a", "depth/a.depth.npy")]


def test_an_8_bit_depth_picture_beside_an_image_is_no_map(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "a.depth.png")
    with pytest.raises(NoInputError, match="1 images, but no depth maps"):
        data.pairs(tmp_path, DEPTH)
    write_map(tmp_path / "a.depth.png", np.zeros((4, 4), np.uint16))
    assert names(tmp_path) == [("a", "a.depth.png")]


@pytest.mark.parametrize("task", ["normals", "segmentation", "albedo"])
def test_8_bit_pictures_of_other_tasks_are_maps(tmp_path: Path, task: str) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / f"a.{task}.png")
    assert names(tmp_path, task) == [("a", f"a.{task}.png")]


def test_a_link_to_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere/a.png")
    root = tmp_path / "data"
    write_map(root / "depth/a.npy")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    assert names(root) == [("a", "depth/a.npy")]


def no_folder(root: Path) -> None:
    pass


def a_file(root: Path) -> None:
    root.write_text("")


def no_images(root: Path) -> None:
    write_map(root / "depth/a.npy")


def no_maps(root: Path) -> None:
    for name in ("a", "b"):
        write_image(root / "images" / f"{name}.png")
    (root / "depths").mkdir()


def an_image_too_many(root: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(root / "images" / f"{name}.png")
    write_map(root / "depth/a.npy")


def a_map_too_many(root: Path) -> None:
    write_image(root / "images/a.png")
    for name in ("a", "b"):
        write_map(root / "depth" / f"{name}.npy")


def two_maps(root: Path) -> None:
    write_image(root / "images/a.png")
    write_map(root / "depth/a.npy")
    write_map(root / "depth/a.depth.npy")


def two_folders(root: Path) -> None:
    write_image(root / "images/a.png")
    write_map(root / "normals/a.npy")
    write_map(root / "normal/a.npy")


def two_images(root: Path) -> None:
    write_image(root / "images/a.png")
    write_image(root / "images/a.jpg")
    write_map(root / "depth/a.npy")


def a_link_to_no_map(root: Path) -> None:
    write_image(root / "images/a.png")
    (root / "depth").mkdir()
    (root / "depth/a.npy").symlink_to("gone.npy")


def a_link_to_no_image(root: Path) -> None:
    write_map(root / "depth/a.npy")
    (root / "images").mkdir()
    (root / "images/a.png").symlink_to("gone.png")


@pytest.mark.parametrize(
    ("make", "kind", "message", "hint"),
    [
        (no_folder, UsageError, "data: no such folder", "folder that holds"),
        (a_file, UsageError, "data: is not a folder", "folder that holds"),
        (no_images, NoInputError, "no image found in .*data", "images end in"),
        (no_maps, NoInputError, "data: 2 images, but no depth maps", "folders there: depths"),
        (an_image_too_many, ImageError, r"images/b.png: there is no depth map for it, nor for 1",
         "--skip-missing"),
        (a_map_too_many, ImageError, "depth/b.npy: there is no image for it$", "--skip-missing"),
        (two_maps, ImageError, "depth/a.npy: .*depth/a.depth.npy has the same name", "keep one"),
        (a_link_to_no_map, ImageError, "depth/a.npy: cannot be read: No such file", "a link has"),
        (a_link_to_no_image, ImageError, "images/a.png: cannot be read: No such", "a link has"),
        (two_images, ImageError, "images/a.png: .*images/a.jpg has the same name", "keep one"),
    ],
)  # fmt: skip
def test_what_cannot_be_paired(
    tmp_path: Path, make: Callable[[Path], None], kind: type[DmpError], message: str, hint: str
) -> None:
    root = tmp_path / "data"
    make(root)
    with pytest.raises(kind, match=message) as error:
        data.pairs(root, DEPTH)
    assert hint in error.value.hint


def test_folders_of_both_names_are_one(tmp_path: Path) -> None:
    two_folders(tmp_path)
    with pytest.raises(ImageError, match="has the same name"):
        data.pairs(tmp_path, find("normals"))


@pytest.mark.parametrize("make", [an_image_too_many, a_map_too_many])
def test_partial_leaves_out_what_has_no_counterpart(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    assert names(tmp_path, partial=True) == [("a", "depth/a.npy")]


@pytest.mark.parametrize("make", [two_maps, no_maps])
def test_partial_is_no_excuse_for_the_rest(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    with pytest.raises(DmpError):
        data.pairs(tmp_path, DEPTH, partial=True)


def test_partial_without_a_single_pair(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_map(tmp_path / "depth/b.npy")
    with pytest.raises(ImageError, match=r"a\.png: there is no depth map"):
        data.pairs(tmp_path, DEPTH, partial=True)


# Captions ---------------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path: Path) -> Path:
    for name in ("a", "sub/b"):
        write_image(tmp_path / "images" / f"{name}.png", ROWS, COLUMNS)
        write_map(tmp_path / "depth" / f"{name}.npy")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "listed"),
    [("metadata.jsonl", "images/a.png"), ("images/metadata.jsonl", "a.png"),
     ("metadata.jsonl", "./images//a.png"), ("metadata.jsonl", "a.png")],
)  # fmt: skip
def test_captions(room: Path, file: str, listed: str) -> None:
    entry = {"file_name": listed, "text": "ein Zimmer, grün\u2028", "seed": 3}
    (room / file).write_text(json.dumps(entry, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert [pair.prompt for pair in data.pairs(room, DEPTH)] == ["ein Zimmer, grün\u2028", ""]


def test_a_line_without_text_is_no_caption(room: Path) -> None:
    (room / "metadata.jsonl").write_text('{"file_name": "images/a.png"}\n')
    assert {pair.prompt for pair in data.pairs(room, DEPTH)} == {""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "images/z.png", "text": "x"}', "line 2: no image images/z.png"),
        ('{"file_name": "images/a.png", "text": 5}', "line 2: text is not a string"),
        ('{"file": "images/a.png"}', "line 2: no file_name"),
        ('["images/a.png"]', "line 2: no file_name"),
        ("images/a.png", "line 2: Expecting value at character 1"),
        ('{"file_name": "images/a.png", "n": %s}' % ("9" * 5000), "line 2: Exceeds the limit"),
    ],
)
def test_captions_that_cannot_be_used(room: Path, line: str, message: str) -> None:
    file = room / "metadata.jsonl"
    file.write_text('{"file_name": "images/a.png", "text": "fine"}\n' + line)
    with pytest.raises(ImageError, match=message) as error:
        data.pairs(room, DEPTH)
    assert str(error.value).startswith(f"{file}: ")
    assert "file_name" in error.value.hint


def test_captions_that_are_no_text(room: Path) -> None:
    (room / "metadata.jsonl").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ImageError, match=r"metadata\.jsonl: cannot be read"):
        data.pairs(room, DEPTH)


# Reading ----------------------------------------------------------------------------------

AS_OURS = maps.Reading()


def pair(root: Path, values: Any, suffix: str = ".npy") -> Pair:
    image = write_image(root / "images/a.png", ROWS, COLUMNS)
    return Pair("a", image, write_map(root / f"a{suffix}", values))


def drawn(root: Path, name: str, values: Array, fit: Fit = FIT, **coding: Any) -> Array:
    suffix = ".npy"
    rgb, picture = data.load(pair(root, values, suffix), find(name), Coding(**coding), fit, AS_OURS)
    assert rgb.dtype == np.uint8
    assert picture.dtype == np.float32
    assert rgb.shape == picture.shape
    assert np.abs(picture).max() <= 1
    return picture


RNG = np.random.default_rng(0)
MAPS = {
    "depth": RNG.random((ROWS, COLUMNS), np.float32) * 7 + 0.5,
    "normals": tasks.unit_vectors(RNG.normal((1, 2, 4), size=(ROWS, COLUMNS, 3))),
    "segmentation": RNG.choice(np.array([0, 3, 149], np.uint8), (ROWS, COLUMNS)),
    "albedo": RNG.random((ROWS, COLUMNS, 3), np.float32),
    "shading": RNG.random((ROWS, COLUMNS), np.float32),
}


@pytest.mark.parametrize("name", MAPS)
def test_load_is_undone_by_decode(tmp_path: Path, name: str) -> None:
    picture = drawn(tmp_path, name, MAPS[name])
    found = find(name).decode(picture, Coding())
    np.testing.assert_allclose(found, MAPS[name], atol=1e-4)


@pytest.mark.parametrize("name", MAPS)
def test_load_at_another_size(tmp_path: Path, name: str) -> None:
    picture = drawn(tmp_path, name, MAPS[name], Fit(24, 16))
    assert picture.shape == (32, 32, 3)
    decoded = find(name).decode(picture, Coding())
    assert np.isfinite(decoded).all()
    if name == "segmentation":
        assert set(np.unique(decoded)) == {0, 3, 149}
    if name == "normals":
        np.testing.assert_allclose(np.linalg.norm(picture, axis=-1), 1, atol=1e-5)


def test_axes_that_the_network_draws(tmp_path: Path) -> None:
    picture = drawn(tmp_path, "normals", MAPS["normals"], emits="opencv", axes="directx")
    np.testing.assert_allclose(picture, MAPS["normals"] * (1, -1, -1), atol=1e-6)


@pytest.mark.parametrize("scale", [8.0, 3.0])
def test_no_surface_and_what_is_too_far_are_the_far_end(tmp_path: Path, scale: float) -> None:
    depth = np.full((ROWS, COLUMNS), scale / 2, np.float32)
    depth[:, :8], depth[:, 8:16], depth[:, 16:24] = 0, np.inf, scale * 2
    picture = drawn(tmp_path, "depth", depth, scale=scale)
    assert (picture[:, :24] == 1).all()
    np.testing.assert_allclose(picture[:, 24:], 0, atol=1e-6)


def test_no_surface_is_far_before_it_is_resized(tmp_path: Path) -> None:
    """Else the edge of a hole would come nearer than both of its sides."""
    depth = np.full((ROWS, COLUMNS), 6, np.float32)
    depth[:, : COLUMNS // 2 + 1] = 0
    picture = drawn(tmp_path, "depth", depth, Fit(24, 8))
    assert picture.min() >= 0.5 - 1e-6


def test_no_normal_and_no_class(tmp_path: Path) -> None:
    assert not drawn(tmp_path, "normals", np.zeros((ROWS, COLUMNS, 3))).any()
    ids = np.full((ROWS, COLUMNS), 255, np.uint8)
    assert (drawn(tmp_path, "segmentation", ids) == -1).all()


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_another_resolution_is_taken(tmp_path: Path, name: str) -> None:
    half = np.ascontiguousarray(MAPS[name][::2, ::2])
    assert drawn(tmp_path, name, half).shape == (ROWS, COLUMNS, 3)


@pytest.mark.parametrize("size", [(48, 62), (64, 48), (100, 100), (24, 40)])
def test_a_map_of_another_shape_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    one = pair(tmp_path, np.ones(size))
    with pytest.raises(ImageError, match=f"{size[1]}x{size[0]}, but .*a.png is 64x48") as error:
        data.load(one, DEPTH, Coding(), FIT, AS_OURS)
    assert str(error.value).startswith(f"{one.target}: ")
    assert "upright image" in error.value.hint


@pytest.mark.parametrize("size", [(24, 32), (240, 320), (33, 43), (479, 640)])
def test_sizes_may_be_rounded(tmp_path: Path, size: tuple[int, int]) -> None:
    rgb, picture = data.load(pair(tmp_path, np.ones(size)), DEPTH, Coding(), FIT, AS_OURS)
    assert rgb.shape == picture.shape == (ROWS, COLUMNS, 3)
    assert np.allclose(picture, 2 / 8 - 1)


def test_the_image_is_turned_upright_first(tmp_path: Path) -> None:
    image = Image.new("RGB", (COLUMNS, ROWS))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=image.getexif())
    one = Pair("a", tmp_path / "a.jpg", write_map(tmp_path / "a.npy", np.ones((COLUMNS, ROWS))))
    rgb, picture = data.load(one, DEPTH, Coding(), FIT, AS_OURS)
    assert rgb.shape == picture.shape == (COLUMNS, ROWS, 3)


def holed(name: str, value: float) -> Array:
    values = MAPS[name].copy()
    values[3, 4] = value
    return values


@pytest.mark.parametrize(
    ("name", "values", "message", "hint"),
    [
        ("depth", holed("depth", np.nan), "1 of 3072 values are NaN", "write 0 where there is no"),
        ("normals", holed("normals", np.nan), "3 of 9216 values are NaN", "write 0 where"),
        ("albedo", holed("albedo", np.inf), "3 of 9216 values are NaN or inf", "finite numbers"),
        ("segmentation", holed("segmentation", 150), "class id 150 is out of", "count from 1"),
        ("segmentation", holed("segmentation", 254), "class id 254 is out of range", "0 to 149"),
    ],
)  # fmt: skip
def test_values_that_cannot_train(
    tmp_path: Path, name: str, values: Array, message: str, hint: str
) -> None:
    one = pair(tmp_path, values)
    with pytest.raises(ImageError, match=message) as error:
        data.load(one, find(name), Coding(), FIT, AS_OURS)
    assert str(error.value).startswith(f"{one.target}: ")
    assert hint in error.value.hint


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    one = pair(tmp_path, MAPS["depth"])
    one.image.write_bytes(one.image.read_bytes()[:99])
    with pytest.raises(ImageError, match=f"^{one.image}: damaged"):
        data.load(one, DEPTH, Coding(), FIT, AS_OURS)


def test_a_broken_map_is_named(tmp_path: Path) -> None:
    one = pair(tmp_path, MAPS["depth"])
    one.target.write_bytes(one.target.read_bytes()[:99])
    with pytest.raises(ImageError, match=f"^{one.target}: damaged"):
        data.load(one, DEPTH, Coding(), FIT, AS_OURS)


def test_units_and_axes_reach_the_reader(tmp_path: Path) -> None:
    steps = pair(tmp_path, np.full((ROWS, COLUMNS), 1000, np.uint16), ".png")
    _, picture = data.load(steps, DEPTH, Coding(), FIT, maps.Reading(unit=1 / 250))
    np.testing.assert_allclose(picture, 0, atol=1e-6)
    vectors = pair(tmp_path, MAPS["normals"])
    _, picture = data.load(vectors, find("normals"), Coding(), FIT, maps.Reading(axes="opencv"))
    np.testing.assert_allclose(picture, MAPS["normals"] * (1, -1, -1), atol=1e-6)
