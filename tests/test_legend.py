"""labels.json and its picture say what an id of a map is, for all classes or some."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import marks
from dmp_cli.classes import ade20k, nearest_class
from dmp_cli.errors import ImageError
from dmp_cli.outputs import legend


def test_all_classes() -> None:
    table = legend.labels()
    assert [row["id"] for row in table["classes"]] == list(range(150))
    assert table["classes"][0] == {"id": 0, "name": "wall", "color": [120, 120, 120]}
    assert table["classes"][149]["name"] == "flag"
    assert "0 to 149" in table["convention"]
    assert "255" in table["convention"]
    assert "other stands" not in table["convention"]


def test_a_subset_names_the_id_of_all_others() -> None:
    """The id that `nearest_class` gives to what is none of the classes is listed as other."""
    kept = (0, 1, 3, 7)
    table = legend.labels(kept)
    names = {row["id"]: row["name"] for row in table["classes"]}
    black = nearest_class(np.zeros((1, 1, 3), np.uint8), kept).item()
    assert names == {0: "wall", 1: "building", 2: "other", 3: "floor", 7: "bed"}
    assert names[black] == "other"
    assert "4 classes" in table["convention"]


def test_ids_come_in_order_and_once() -> None:
    assert [row["id"] for row in legend.labels([7, 3, 7])["classes"]] == [0, 3, 7]


def test_seen() -> None:
    ids = np.array([[3, 3, 3, 255], [0, 0, 7, 3]], np.uint8)
    assert legend.seen(ids) == {3: 0.5, 0: 0.25, 7: 0.125}
    assert list(legend.seen(ids)) == [3, 0, 7]
    assert legend.seen(np.full((2, 2), 255, np.uint8)) == {}


@pytest.mark.parametrize("ids", [None, ade20k().bedroom, (3,)])
def test_the_picture_shows_every_colour(ids: tuple[int, ...] | None) -> None:
    picture = legend.picture(ids)
    assert picture.dtype == np.uint8
    counts = Counter(bytes(pixel) for pixel in picture.reshape(-1, 3)[::7])  # is quicker
    large = {colour for colour, count in counts.items() if count >= 40 * 20 // 7}
    assert {bytes(row["color"]) for row in legend.labels(ids)["classes"]} <= large
    assert max(picture.shape) < 2000  # of a size to look at


def test_the_picture_holds_text_beside_each_colour() -> None:
    picture = legend.picture([0, 1]).astype(int)
    lines = picture[24 : 24 + 3 * 32].reshape(3, 32, -1, 3)
    assert ((lines[:, :, 24 + 48 + 10 :] > 150).all(axis=-1).sum(axis=(1, 2)) > 40).all()


def test_write(tmp_path: Path) -> None:
    paths = legend.write(tmp_path, iter((0, 3)))
    assert [path.name for path in paths] == ["labels.json", "labels.png"]
    assert all(map(marks.is_legend, paths))
    assert json.loads(paths[0].read_text()) == legend.labels((0, 3))
    with Image.open(paths[1]) as image:
        assert (np.asarray(image) == legend.picture((0, 3))).all()
    first = [path.read_bytes() for path in paths]
    legend.write(tmp_path, (3, 0))
    assert [path.read_bytes() for path in paths] == first


def test_write_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ImageError, match="cannot be written"):
        legend.write(tmp_path / "out" / "below")
