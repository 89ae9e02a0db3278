"""Which file is which image or map, and that training and evaluation are of one mind about it."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmp_cli import data, matching, naming, survey
from dmp_cli.errors import ImageError, NoInputError
from dmp_cli.outputs import legend, writers
from dmp_cli.tasks import TASKS, Task, find


def lay(root: Path, names: str) -> Path:
    """A folder with empty files of these names."""
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(root: Path, named: naming.Named) -> dict[str, list[str]]:
    return {
        name: [path.relative_to(root).as_posix() for path in files] for name, files in named.items()
    }


AWKWARD = """
    images/a.jpg images/sub/b.png images/c.v2.tif images/.hidden.png images/notes.txt
    depth/a.npy depth/a.depth.png depth/a.png depth/a.normals.npy depth/.a.npy
    depth/sub/b.depth.16.png depth/sub/b.png depth/c.v2.npz depth/c.v2.exr
    normal/a.png normal/a.normal.png normals/sub/b.npy normals/c.v2.normals.npy
    images/a.seg.png images/a.segmentation.npy images/sub/b.seg.png images/c.v2.seg.16.png
    segments/a.png other/albedo/a.png
    images/a.shading.png images/sub/b.shading.png images/c.v2.shading.npy images/c.v2.shading.png
"""
EXPECTED = {
    "depth": ["depth/a.npy", "depth/c.v2.npz", "depth/sub/b.depth.16.png"],
    "normals": ["normal/a.png", "normals/c.v2.normals.npy", "normals/sub/b.npy"],
    "segmentation": ["images/a.segmentation.npy", "images/c.v2.seg.16.png", "images/sub/b.seg.png"],
    "shading": ["images/a.shading.png", "images/c.v2.shading.npy", "images/sub/b.shading.png"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_training_its_check_and_evaluation_take_the_same_files(tmp_path: Path, name: str) -> None:
    root, task = lay(tmp_path, AWKWARD), find(name)
    expected = dict(zip(("a", "c.v2", "sub/b"), EXPECTED[name], strict=True))
    trained = {pair.name: str(pair.target.relative_to(root)) for pair in data.pairs(root, task)}
    checked = {
        sample.pairs[name].name: str(sample.pairs[name].target.relative_to(root))
        for sample in survey.find(root, [task], every=True).samples
    }
    both = matching.find(root, root, task, images=root).matches
    assert trained == checked == expected
    assert {one.name: str(one.truth.relative_to(root)) for one in both} == expected
    assert {one.name: one.image for one in both} == {
        pair.name: pair.image for pair in data.pairs(root, task)
    }


@pytest.mark.parametrize(
    ("names", "double"),
    [
        (
            "normals/a.npy normals/a.normal.npy",
            "normals/a.npy: .*normals/a.normal.npy has the same",
        ),
        ("normals/a.npy normal/a.png", "normal/a.png: .*normals/a.npy has the same name"),
        ("images/a.normal.exr images/a.normals.exr", "a.normals.exr: .*a.normal.exr has the same"),
        ("normals/a.PNG normals/a.png", "normals/a.png: .*normals/a.PNG has the same name"),
    ],
)
def test_what_is_no_other_format_of_a_map_is_told_by_all(
    tmp_path: Path, names: str, double: str
) -> None:
    root, task = lay(tmp_path, f"images/a.jpg {names}"), find("normals")
    with pytest.raises(ImageError, match=double):
        data.pairs(root, task)
    with pytest.raises(ImageError, match=double):
        matching.find(root, root, task)
    assert len(survey.find(root, [task], every=True).faults) == 1


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("place", ["images", "image", "rgb", "depth", "normal", "test/seg/x"])
def test_photographs_and_maps_of_other_tasks_are_no_truth(
    tmp_path: Path, place: str, name: str
) -> None:
    root, task = lay(tmp_path, f"{place}/1.png"), find(name)
    named = naming.maps(root, task) or naming.loose_maps(root, task)
    own = {*naming.words(task)} & {*place.split("/")}
    assert bool(named) == bool(own)
    if not own:
        with pytest.raises(NoInputError, match=f"has no maps of {name}"):
            matching.find(root, root, task)


def test_a_folder_of_maps_alone(tmp_path: Path) -> None:
    root = lay(tmp_path, "a.png b/c.exr test/depth/d.npy images/e.png rgb/f.png")
    depth, normals = find("depth"), find("normals")
    assert not naming.maps(root, depth)
    expected = {"a": ["a.png"], "b/c": ["b/c.exr"], "test/depth/d": ["test/depth/d.npy"]}
    assert found(root, naming.loose_maps(root, depth)) == expected
    del expected["test/depth/d"]
    assert found(root, naming.loose_maps(root, normals)) == expected
    lay(root, "b/c.normal.exr")
    assert found(root, naming.loose_maps(root, normals)) == {"b/c": ["b/c.normal.exr"]}


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    root = lay(tmp_path, "images/a.png depth/a.npy")
    for name in ("images/x.png", "depth/x.npy", "depth/y.npy"):
        os.mkfifo(root / name)
    (root / "depth/z.npy").mkdir()
    (root / "depth/w.npy").symlink_to("x.npy")
    assert [pair.name for pair in data.pairs(root, find("depth"))] == ["a"]
    assert found(root, naming.images(root)) == {"a": ["images/a.png"]}
    assert [one.name for one in matching.find(root, root, find("depth")).matches] == ["a"]


def test_a_link_to_nothing_is_left_to_the_reader(tmp_path: Path) -> None:
    (lay(tmp_path, "images/a.png depth/a.npy") / "depth/b.npy").symlink_to("gone.npy")
    assert list(naming.maps(tmp_path, find("depth"))) == ["a", "b"]


@pytest.mark.parametrize("form", ["npy", "exr", "tiff", "16.tiff", "16.png"])
def test_of_the_formats_of_a_map_the_most_exact_is_read(tmp_path: Path, form: str) -> None:
    order = ["npy", "exr", "tiff", "16.tiff", "16.png", "png"]
    for end in order[order.index(form) :]:
        (tmp_path / f"a.depth.{end}").touch()
    assert naming.loose_maps(tmp_path, find("depth")) == {"a": [tmp_path / f"a.depth.{form}"]}


def write_layers(path: Path, tasks: str = "") -> None:
    """An EXR file with the maps of these tasks, or a photograph."""
    plane = writers.Channel("Y", np.zeros((2, 2)), "half")
    writers.write_exr(path, [plane], {"dmp:Task": tasks} if tasks else {})


@pytest.mark.parametrize("place", [naming.loose_maps, naming.maps])
def test_layers_of_an_image_are_read_where_there_is_no_other_map_of_data(
    tmp_path: Path, place: Callable[[Path, Task], naming.Named]
) -> None:
    lay(tmp_path, "a.depth.png b.depth.npy d.depth.png e.depth.png")
    for name in "abc":
        write_layers(tmp_path / f"{name}.exr", "depth,albedo")
    write_layers(tmp_path / "d.exr", "albedo")
    write_layers(tmp_path / "e.exr")
    assert found(tmp_path, place(tmp_path, find("depth"))) == {
        "a": ["a.exr"], "b": ["b.depth.npy"], "c": ["c.exr"],
        "d": ["d.depth.png"], "e": ["e.depth.png"],
    }  # fmt: skip


def test_layers_beside_the_images_of_a_data_set(tmp_path: Path) -> None:
    lay(tmp_path, "images/a.png images/b.png")
    write_layers(tmp_path / "images/a.exr", "depth,normals")
    write_layers(tmp_path / "images/b.exr")
    maps = naming.maps(tmp_path, find("normals"))
    assert found(tmp_path, maps) == {"a": ["images/a.exr"]}


def test_a_photograph_beside_a_picture_of_its_map_is_no_map(tmp_path: Path) -> None:
    lay(tmp_path, "plate.albedo.png")
    write_layers(tmp_path / "plate.exr")
    maps = naming.loose_maps(tmp_path, find("albedo"))
    assert found(tmp_path, maps) == {"plate": ["plate.albedo.png"]}


def test_what_dmp_writes_beside_maps_is_neither_image_nor_map(tmp_path: Path) -> None:
    lay(tmp_path, "a.png a.side-by-side.png sub/b.png sub/b.side-by-side.png seg/a.png")
    lay(tmp_path, "seg/a.side-by-side.png")
    legend.write(tmp_path)
    legend.write(tmp_path / "seg")
    task = find("segmentation")
    assert list(naming.images(tmp_path)) == ["a", "sub/b"]
    assert list(naming.maps(tmp_path, task)) == ["a"]
    assert list(naming.loose_maps(tmp_path / "seg", task)) == ["a"]
    lay(tmp_path / "other", "labels.png")
    assert list(naming.images(tmp_path / "other")) == ["labels"]
