"""What a training set is said to hold, against sets of known content."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmp_cli import maps, survey, tasks
from dmp_cli.errors import NoInputError
from dmp_cli.survey import Report
from dmp_cli.tasks import Array, find
from tests.conftest import write_image

ROWS, COLUMNS = 10, 20
AS_OURS = maps.Reading()


def make(root: Path, task: str, *values: Any) -> None:
    """Images a, b, ... and a map of each."""
    for name, one in zip("abcdef", values, strict=False):
        write_image(root / f"images/{name}.png", ROWS, COLUMNS)
        (root / task).mkdir(exist_ok=True)
        np.save(root / task / f"{name}.npy", one)


def check(root: Path, names: str = "", how: maps.Reading = AS_OURS) -> Report:
    rows = tasks.find_several(names) if names else tuple(tasks.TASKS.values())
    content = survey.find(root, rows, every=bool(names))
    return survey.report(content, (survey.measure(one, content, how) for one in content.samples))


def flat(value: float) -> Array:
    return np.full((ROWS, COLUMNS), value, np.float32)


def test_range_and_shares_of_depth(tmp_path: Path) -> None:
    near, far = flat(1), flat(3)
    near[:, :5], near[0, 10] = 0, np.inf
    far[:5], far[9, 9] = 16, 0.25
    make(tmp_path, "depth", near, far)
    found = check(tmp_path).tasks["depth"]
    assert (found.maps, found.refused, found.missing, found.resized) == (2, 0, 0, 0)
    assert found.range == {"min": 0.25, "1%": 1, "median": 3, "99%": 16, "max": 16}
    assert found.shares == {
        "not finite": 0, "without surface": 51 / 400, "beyond 8 m": 100 / 400,
    }  # fmt: skip
    assert (found.kinds, found.sizes) == ({"npy": 2}, {"20x10": 2})


def test_lengths_and_sides_of_normals(tmp_path: Path) -> None:
    values = np.zeros((ROWS, COLUMNS, 3))
    values[..., 2] = 1
    values[0], values[1], values[2] = 0, (0, 0, -1), (0, 0, 1.5)
    values[3] = (0, 0, 1.01)  # as 8 bits may have it
    make(tmp_path, "normals", values)
    found = check(tmp_path)
    expected = {"not finite": 0, "without surface": 0.1, "not unit length": 0.1,
                "facing away": 0.1}  # fmt: skip
    assert found.tasks["normals"].shares == expected
    assert found.notes == ()
    turned = check(tmp_path, how=maps.Reading(axes="opencv"))
    assert turned.tasks["normals"].shares["facing away"] == pytest.approx(0.8)
    assert "--axes" in turned.notes[0]


def test_classes_by_share(tmp_path: Path) -> None:
    ids = np.full((ROWS, COLUMNS), 7, np.uint8)
    ids[:6], ids[6], ids[7, 0] = 3, 255, 160
    make(tmp_path, "segmentation", ids)
    report = check(tmp_path)
    found = report.tasks["segmentation"]
    assert found.shares == {"unlabelled": 0.1, "out of range": 1 / 200}
    assert found.classes == {"floor": 0.6, "bed": 59 / 200}
    assert list(found.classes) == ["floor", "bed"]
    assert "a.npy: class id 160" in report.faults[0]


def test_nan_is_counted_and_a_fault(tmp_path: Path) -> None:
    broken = flat(2)
    broken[:5] = np.nan
    make(tmp_path, "depth", broken, flat(2))
    report = check(tmp_path)
    found = report.tasks["depth"]
    assert found.shares["not finite"] == 0.25
    assert (found.maps, found.refused) == (2, 1)
    assert found.range["max"] == 2
    assert [line.split(": ")[0] for line in report.faults] == [str(tmp_path / "depth/a.npy")]


def test_nothing_but_nan_has_no_range(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(np.nan))
    assert check(tmp_path).tasks["depth"].range == {}


def test_sizes(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1), np.ones((5, 10)), np.ones((10, 10)))
    report = check(tmp_path)
    found = report.tasks["depth"]
    assert report.sizes == {"20x10": 3}
    assert found.sizes == {"20x10": 1, "10x5": 1, "10x10": 1}
    assert (found.resized, found.refused) == (1, 1)
    assert "10x10, but" in report.faults[0]
    assert report.notes == ("depth: 1 of 3 maps have another resolution than their image",)


def test_what_is_missing(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1), flat(1))
    make(tmp_path, "shading", flat(0.5), flat(0.5), flat(0.5))
    (tmp_path / "shading/a.npy").rename(tmp_path / "shading/z.npy")
    report = check(tmp_path)
    assert report.images == 3
    assert {name: one.missing for name, one in report.tasks.items()} == {"depth": 1, "shading": 1}
    assert report.faults == (
        f"{tmp_path}/images/c.png: no depth map for it",
        f"{tmp_path}/images/a.png: no shading map for it",
        f"{tmp_path}/shading/z.npy: no image for it",
    )


def test_a_task_that_was_asked_for_and_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1))
    assert list(check(tmp_path).tasks) == ["depth"]
    report = check(tmp_path, "depth,albedo")
    assert (report.tasks["albedo"].maps, report.tasks["albedo"].missing) == (0, 1)
    assert f"{tmp_path}: no albedo maps" in report.faults[0]
    assert len(report.faults) == 1
    with pytest.raises(NoInputError, match="1 images, but no maps"):
        check(tmp_path, "albedo")


def test_two_images_of_one_name_are_one_fault(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1), flat(1))
    make(tmp_path, "shading", flat(0.5), flat(0.5))
    write_image(tmp_path / "images/a.jpg", ROWS, COLUMNS)
    report = check(tmp_path)
    assert list(report.tasks) == ["depth", "shading"]
    assert len(report.faults) == 1
    assert "images/a.png: " in report.faults[0]
    assert "images/a.jpg has the same name" in report.faults[0]


def test_a_broken_image_is_a_fault(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1), flat(1))
    (tmp_path / "images/a.png").write_bytes(b"no image")
    report = check(tmp_path)
    assert report.sizes == {"20x10": 1}
    assert report.faults[0].startswith(f"{tmp_path}/images/a.png: not an image")


def test_captions_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1), flat(1))
    lines = [{"file_name": "a.png", "text": "a room"}, {"file_name": "b.png"}]
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert check(tmp_path).captions == 1


def test_percentiles_of_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_VALUES", 3000)
    rng = np.random.default_rng(0)
    values = [rng.uniform(1, 5, (100, 200)).astype(np.float32) for _ in range(3)]
    values[1][50, 50], values[2][60, 60] = 0.5, 7
    make(tmp_path, "depth", *values)
    found = check(tmp_path).tasks["depth"].range
    assert (found["min"], found["max"]) == (0.5, 7)
    for name, part in (("1%", 0.01), ("median", 0.5), ("99%", 0.99)):
        assert found[name] == pytest.approx(1 + 4 * part, abs=0.15)


def test_the_report_is_json(tmp_path: Path) -> None:
    make(tmp_path, "depth", flat(1))
    make(tmp_path, "segmentation", np.zeros((ROWS, COLUMNS), np.uint8))
    plain = check(tmp_path).plain()
    assert json.loads(json.dumps(plain))["tasks"]["segmentation"]["classes"] == {"wall": 1.0}


def test_a_new_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    edges = replace(find("shading"), name="edges", unit="0-1")
    monkeypatch.setitem(tasks.TASKS, "edges", edges)
    make(tmp_path, "edges", flat(0.5))
    found = check(tmp_path).tasks["edges"]
    assert (found.unit, found.maps, found.range["median"]) == ("0-1", 1, 0.5)
