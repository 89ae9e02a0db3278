"""`dmp data` as a user types it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Dmp, write_image

ROWS, COLUMNS = 12, 16


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """Three images with captions, depth of 16 bits and normals: all of it fine."""
    root = tmp_path / "rooms"
    for folder in ("depth", "normals"):
        (root / folder).mkdir(parents=True)
    vectors = np.zeros((ROWS, COLUMNS, 3), np.float32)
    vectors[..., 2] = 1
    for index, name in enumerate("abc"):
        write_image(root / f"images/{name}.jpg", ROWS, COLUMNS)
        steps = np.full((ROWS, COLUMNS), 1000 * (index + 1), np.uint16)
        Image.fromarray(steps).save(root / f"depth/{name}.png")
        np.save(root / f"normals/{name}.npy", vectors)
    lines = [{"file_name": f"images/{name}.jpg", "text": "a room"} for name in "abc"]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def test_a_set_that_can_be_used(dmp: Dmp, rooms: Path) -> None:
    ran = dmp("data", "check", rooms)
    assert (ran.code, ran.err) == (0, "")
    assert (
        ran.out
        == """\
3 images, 16x12
3 captions

depth, metres: 3 maps (3 png)
  sizes    16x12
  values   min 1, 1% 1, median 2, 99% 3, max 3
  pixels   not finite 0%, without surface 0%, beyond 8 m 0%

normals, unit vectors: 3 maps (3 npy)
  sizes    16x12
  values   min 0, 1% 0, median 0, 99% 1, max 1
  pixels   not finite 0%, without surface 0%, not unit length 0%, facing away 0%

all of it can be used
"""
    )


def test_unit_and_axes(dmp: Dmp, rooms: Path) -> None:
    ran = dmp("data", "check", rooms, "--unit", "0.01", "--axes", "opencv")
    assert "max 30" in ran.out
    assert "beyond 8 m 100.0%" in ran.out
    assert "facing away 100.0%" in ran.out
    assert ran.err.startswith("dmp: normals: most face away from the viewer")
    assert ran.code == 0


def test_tasks_that_are_asked_for(dmp: Dmp, rooms: Path) -> None:
    ran = dmp("data", "check", rooms, "--tasks", "normal")
    assert ran.code == 0
    assert "normals, " in ran.out
    assert "depth" not in ran.out


def test_faults_name_the_file_and_a_remedy(dmp: Dmp, rooms: Path) -> None:
    (rooms / "depth/a.png").write_bytes(b"")
    (rooms / "images/b.jpg").unlink()
    (rooms / "metadata.jsonl").unlink()
    vectors = np.full((ROWS, COLUMNS, 3), np.nan)
    np.save(rooms / "normals/c.npy", vectors)
    ran = dmp("data", "check", rooms)
    assert ran.code == 3
    faults = [line for line in ran.out.splitlines() if line.startswith("fault: ")]
    assert faults == [
        f"fault: {rooms}/depth/b.png: no image for it",
        f"fault: {rooms}/normals/b.npy: no image for it",
        f"fault: {rooms}/depth/a.png: empty: the file has no bytes",
        f"fault: {rooms}/normals/c.npy: 576 of 576 values are NaN or infinite; "
        "write 0 where there is no surface",
    ]
    assert "all of it" not in ran.out
    assert "  faults   1 cannot be used" in ran.out


def test_many_faults_are_counted_and_json_has_all(dmp: Dmp, rooms: Path) -> None:
    for index in range(30):
        write_image(rooms / f"images/more{index:02}.jpg", ROWS, COLUMNS)
    ran = dmp("data", "check", rooms, "--tasks", "depth")
    assert ran.code == 3
    assert ran.out.count("fault: ") == 20
    assert ran.out.splitlines()[-1] == "and 10 more faults; --json names all"
    assert "  faults   30 missing" in ran.out
    record = json.loads(dmp("data", "check", rooms, "--tasks", "depth", "--json").out)
    assert len(record["faults"]) == 30
    assert record["tasks"]["depth"]["missing"] == 30


def test_sizes_are_counted_the_most_frequent_first(dmp: Dmp, rooms: Path) -> None:
    for side in range(2, 8):
        write_image(rooms / f"images/x{side}.png", ROWS * side, COLUMNS * side)
    first = dmp("data", "check", rooms).out.splitlines()[0]
    assert first == "9 images, 3 of 16x12, 1 of 32x24, 1 of 48x36, 1 of 64x48, 3 other sizes"


def test_json_is_one_object(dmp: Dmp, rooms: Path) -> None:
    ran = dmp("data", "check", rooms, "--json")
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert record["folder"] == str(rooms)
    assert (record["images"], record["captions"], record["faults"]) == (3, 3, [])
    assert record["tasks"]["depth"]["range"]["max"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{root}/none"], 2, "none: no such folder"),
        (["{root}/metadata.jsonl"], 2, "metadata.jsonl: is not a folder"),
        (["{root}", "--tasks", "dept"], 2, "did you mean depth"),
        (["{root}", "--axes", "up"], 2, "unknown axes 'up'"),
        (["{root}", "--unit", "0"], 2, "a unit of 0.0: must be metres above 0"),
        (["{root}", "--unit", "nan"], 2, "a unit of nan: must be metres above 0"),
        (["{root}/images"], 4, "3 images, but no maps"),
        (["{root}", "--tasks", "albedo"], 4, "folders there: depth, empty, images, normals"),
        (["{root}/empty"], 4, "no image found in"),
    ],
)
def test_what_cannot_be_checked(
    dmp: Dmp, rooms: Path, arguments: list[str], code: int, message: str
) -> None:
    (rooms / "empty").mkdir()
    ran = dmp("data", "check", *(text.format(root=rooms) for text in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err


def test_a_fifo_is_passed_over_and_a_link_to_nothing_is_a_fault(dmp: Dmp, rooms: Path) -> None:
    os.mkfifo(rooms / "images/x.png")
    os.mkfifo(rooms / "depth/x.png")
    assert dmp("data", "check", rooms).code == 0
    for name in ("images/c.jpg", "depth/a.png"):
        (rooms / name).unlink()
        (rooms / name).symlink_to("gone")
    ran = dmp("data", "check", rooms)
    assert ran.code == 3
    assert [line for line in ran.out.splitlines() if line.startswith("fault: ")] == [
        f"fault: {rooms}/depth/a.png: cannot be read: No such file or directory",
        f"fault: {rooms}/images/c.jpg: cannot be read: No such file or directory",
    ]


def test_captions_of_no_image_stop_it(dmp: Dmp, rooms: Path) -> None:
    (rooms / "metadata.jsonl").write_text('{"file_name": "images/z.jpg", "text": "x"}')
    ran = dmp("data", "check", rooms)
    assert (ran.code, ran.out) == (3, "")
    assert "metadata.jsonl: line 1: no image images/z.jpg" in ran.err


def test_quiet_leaves_out_notes(dmp: Dmp, rooms: Path) -> None:
    ran = dmp("data", "check", rooms, "-q", "--axes", "opencv")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


def test_dmp_data_alone_shows_its_commands(dmp: Dmp) -> None:
    ran = dmp("data")
    assert ran.code in (0, 2)
    assert "check" in ran.out + ran.err
