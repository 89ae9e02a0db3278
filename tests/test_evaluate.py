"""Files against files: what one pair gives, and what is wrong with another."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import evaluate, metrics
from dmp_cli.answers import Answer
from dmp_cli.evaluate import Compared, How, Run
from dmp_cli.maps import Reading
from dmp_cli.matching import Match
from dmp_cli.tasks import TASKS, Array, find, unit_vectors

RNG = np.random.default_rng(0)


def a_map(name: str) -> Array:
    if name == "normals":
        return unit_vectors(RNG.normal(size=(24, 32, 3)))
    if name == "segmentation":
        return RNG.integers(0, 150, (24, 32)).astype(np.uint8)
    shape = (24, 32, 3) if name == "albedo" else (24, 32)
    return RNG.uniform(0.1, 1, shape).astype(np.float32)


def saved(path: Path, values: Array) -> Path:
    np.save(path, values)
    return path


def pair(tmp_path: Path, pred: Array, truth: Array, mask: Array | None = None) -> Match:
    return Match(
        "a",
        saved(tmp_path / "pred.npy", pred),
        saved(tmp_path / "truth.npy", truth),
        None if mask is None else saved(tmp_path / "mask.npy", mask),
    )


@pytest.mark.parametrize("name", TASKS)
def test_the_truth_itself_is_perfect(tmp_path: Path, name: str) -> None:
    truth = a_map(name)
    found = evaluate.compare(pair(tmp_path, truth, truth), How(find(name)))
    assert (found.error, found.notes, found.pixels) == ("", (), 24 * 32)
    for metric, value in found.numbers.items():
        perfect = 1 if metrics.METRICS[metric].higher else 0
        assert value == pytest.approx(perfect, abs=1e-3), metric


@pytest.mark.parametrize("name", TASKS)
def test_numbers_are_those_of_the_counted_pixels(tmp_path: Path, name: str) -> None:
    pred, truth, task = a_map(name), a_map(name), find(name)
    mask = RNG.random((24, 32)) < 0.5
    found = evaluate.compare(pair(tmp_path, pred, truth, mask), How(task))
    assert found.pixels == mask.sum()
    if task.labels:
        expected = metrics.labels(metrics.confusion(pred[mask], truth[mask], 150))
    else:
        expected = metrics.measure(task.measured, pred[mask], truth[mask])
    if name == "normals":
        expected |= metrics.official_normals(pred[mask], truth[mask])
    assert found.numbers == pytest.approx(expected)


@pytest.mark.parametrize(
    "mask",
    [
        np.uint8([[0, 1], [255, 0]]),
        np.uint16([[0, 1], [255, 0]]),
        np.array([[False, True], [True, False]]),
        np.float32([[0, 0.5], [1, 0]]),
        np.uint8([[[0, 0, 0], [0, 9, 0]], [[255, 255, 255], [0, 0, 0]]]),
    ],
)
def test_what_is_not_black_counts(tmp_path: Path, mask: Array) -> None:
    truth = np.float32([[1, 2], [3, 4]])
    found = evaluate.compare(pair(tmp_path, truth, truth, mask), How(find("depth")))
    assert (found.pixels, found.error) == (2, "")


def test_an_indexed_mask(tmp_path: Path) -> None:
    truth = np.float32([[1, 2], [3, 4]])
    picture = Image.fromarray(np.uint8([[0, 1], [2, 0]]))
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "mask.png")
    files = pair(tmp_path, truth, truth)
    match = Match("a", files.prediction, files.truth, tmp_path / "mask.png")
    assert evaluate.compare(match, How(find("depth"))).pixels == 2


def test_the_range_and_the_units(tmp_path: Path) -> None:
    truth = np.uint16([[0, 500, 1000, 2000]])  # of 1/500 m: nothing, 1, 2 and 4 m
    pred = np.uint16([[7, 10, 30, 40]])  # of 1/10 m: 1, 3 and 4 m
    how = How(find("depth"), limits=(1.5, 9), prediction=Reading(0.1), truth=Reading(1 / 500))
    found = evaluate.compare(pair(tmp_path, pred, truth), how)
    assert found.pixels == 2
    assert found.numbers["abs_rel"] == pytest.approx(0.25)


def test_the_axes_of_both(tmp_path: Path) -> None:
    truth = a_map("normals")
    pred = truth * np.float32([1, -1, -1])  # opencv
    stored = truth * np.float32([-1, 1, 1])
    how = How(find("normals"), prediction=Reading(axes="opencv"), truth=Reading(axes="-x y z"))
    found = evaluate.compare(pair(tmp_path, pred, stored), how)
    assert found.numbers["mean_angle"] == pytest.approx(0, abs=1e-3)


def test_only_the_official_numbers_count_what_has_no_direction(tmp_path: Path) -> None:
    pred, truth = a_map("normals"), a_map("normals")
    truth[:12] = 0
    found = evaluate.compare(pair(tmp_path, pred, truth), How(find("normals")))
    assert found.pixels == 12 * 32
    lower = metrics.measure("normals", pred[12:].reshape(-1, 3), truth[12:].reshape(-1, 3))
    every = metrics.official_normals(pred.reshape(-1, 3), truth.reshape(-1, 3))
    assert found.numbers == pytest.approx(lower | every)


@pytest.mark.parametrize("name", TASKS)
def test_a_prediction_of_another_size_is_resized(tmp_path: Path, name: str) -> None:
    truth = a_map(name)[:1, :1].repeat(20, axis=0).repeat(30, axis=1)
    found = evaluate.compare(pair(tmp_path, truth[:10, :15], truth), How(find(name)))
    assert found.notes == (evaluate.RESIZED,)
    for metric, value in found.numbers.items():
        perfect = 1 if metrics.METRICS[metric].higher else 0
        assert value == pytest.approx(perfect, abs=1e-3), metric


def test_ids_are_never_mixed(tmp_path: Path) -> None:
    truth = np.repeat(np.uint8([[10, 20]]), 8, axis=0).repeat(6, axis=1)
    found = evaluate.compare(pair(tmp_path, truth[::4, ::4], truth), How(find("seg")))
    assert found.tables[0].sum(axis=0).nonzero()[0].tolist() == [10, 20]


@pytest.mark.parametrize("bad", [0.0, -2.0])
def test_predicted_depth_of_nothing_is_told(tmp_path: Path, bad: float) -> None:
    truth = a_map("depth")
    pred = truth.copy()
    pred[3, 4] = bad
    found = evaluate.compare(pair(tmp_path, pred, truth), How(find("depth")))
    assert found.notes == (evaluate.CLIPPED,)
    assert found.numbers["abs_rel"] == pytest.approx(
        (1 - metrics.NEAREST / truth[3, 4]) / truth.size
    )


def test_affine_predictions_may_be_negative(tmp_path: Path) -> None:
    truth = a_map("depth")
    how = How(find("depth"), align="affine")
    found = evaluate.compare(pair(tmp_path, truth - 7, truth), how)
    assert (found.notes, found.error) == ((), "")
    assert found.numbers["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_a_truth_that_says_nothing_is_left_out(tmp_path: Path) -> None:
    truth = a_map("depth")
    found = evaluate.compare(pair(tmp_path, truth, truth), How(find("depth"), limits=(50, 60)))
    assert found == Compared(found.match, notes=(evaluate.EMPTY,))


NAN = np.full((24, 32), np.nan, np.float32)


@pytest.mark.parametrize(
    ("name", "pred", "truth", "mask", "words"),
    [
        ("depth", NAN, None, None, "pred.npy: the prediction is not a finite number at 768 of 768"),
        ("shading", -NAN / 0, None, None, "pred.npy: the prediction is not a finite number"),
        ("depth", np.ones((32, 24)), None, None, "pred.npy: 24x32, too far from the shape"),
        ("depth", np.ones((4, 4, 4)), None, None, "pred.npy: holds an array"),
        ("normals", np.ones((24, 32)), None, None, "pred.npy: holds an array"),
        ("seg", np.full((24, 32), 0.5), None, None, "pred.npy: 0.5 is no class id"),
        ("seg", None, np.full((24, 32), 150), None, "truth.npy: 150 is no class id"),
        ("depth", None, np.ones((4, 4, 4)), None, "truth.npy: holds an array"),
        ("depth", None, None, np.ones((5, 5)), "mask.npy: a mask of 5x5 for a truth of 32x24"),
    ],
)
def test_what_is_wrong_names_the_file(
    tmp_path: Path,
    name: str,
    pred: Array | None,
    truth: Array | None,
    mask: Array | None,
    words: str,
) -> None:
    good = a_map(find(name).name)
    match = pair(tmp_path, good if pred is None else pred, good if truth is None else truth, mask)
    found = evaluate.compare(match, How(find(name)))
    assert found.error.startswith(f"{tmp_path}/{words}")
    assert not found.numbers


def test_what_is_not_finite_where_nothing_counts_is_no_matter(tmp_path: Path) -> None:
    pred, truth = a_map("depth"), a_map("depth")
    pred[:3], truth[:3] = np.nan, 0
    found = evaluate.compare(pair(tmp_path, pred, truth), How(find("depth")))
    assert (found.error, found.pixels) == ("", 21 * 32)


def test_a_picture_to_look_at_is_no_depth(tmp_path: Path) -> None:
    truth = saved(tmp_path / "truth.npy", a_map("depth"))
    Image.new("RGB", (32, 24), "red").save(tmp_path / "pred.png")
    found = evaluate.compare(Match("a", tmp_path / "pred.png", truth), How(find("depth")))
    assert "is a picture to look at" in found.error
    assert "--format npy" in found.hint


@pytest.mark.parametrize("name", TASKS)
def test_the_trivial_answer_goes_the_same_way(tmp_path: Path, name: str) -> None:
    pred, truth, task = a_map(name), a_map(name), find(name)
    value = truth[0, 0]
    constant = np.broadcast_to(value, truth.shape)
    found = evaluate.compare(pair(tmp_path, pred, truth), How(task), Answer("one", value))
    alone = evaluate.compare(pair(tmp_path, constant, truth), How(task))
    assert found.trivial == pytest.approx(alone.numbers)
    assert found.numbers != pytest.approx(alone.numbers)


def test_a_truth_that_cannot_be_read_has_no_sums(tmp_path: Path) -> None:
    match = Match("a", tmp_path / "none.npy", tmp_path / "none.npy")
    assert evaluate.sums_of(match, How(find("depth"))).tolist() == [0]


# a run ---------------------------------------------------------------------------------------


def compared(tmp_path: Path, name: str, pred: Array, truth: Array) -> Compared:
    return evaluate.compare(
        pair(tmp_path, pred, truth), How(find(name)), Answer("one", truth[0, 0])
    )


def test_images_count_alike_whatever_their_size(tmp_path: Path) -> None:
    run = Run(find("shading"))
    ones = np.ones((40, 40), np.float32)
    run.add(compared(tmp_path, "shading", ones * 1.2, ones))
    run.add(compared(tmp_path, "shading", ones[:2, :2] * 1.6, ones[:2, :2]))
    assert run.numbers()["mae"] == pytest.approx((0.2 + 0.6) / 2)
    assert run.trivial()["mae"] == 0


def test_labels_are_counted_over_all_pixels(tmp_path: Path) -> None:
    run, pixels = Run(find("seg")), []
    for height in (3, 30):
        pred, truth = RNG.integers(0, 5, (2, height, 20)).astype(np.uint8)
        run.add(compared(tmp_path, "seg", pred, truth))
        pixels.append((pred.ravel(), truth.ravel()))
    pred, truth = (np.concatenate(both) for both in zip(*pixels, strict=True))
    expected = metrics.labels(metrics.confusion(pred, truth, 150))
    assert run.numbers() == pytest.approx(expected)
    rows = run.classes()
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["name"] == "wall"
    assert sum(int(row["pixels"]) for row in rows) == len(truth)
    assert np.mean([row["iou"] for row in rows]) == pytest.approx(expected["miou"])


@pytest.mark.parametrize(("name", "worst"), [("depth", 2.0), ("segmentation", 1.0)])
def test_the_worst_come_first(tmp_path: Path, name: str, worst: float) -> None:
    run = Run(find(name))
    for value in (1, 2, 1.5):
        truth = np.ones((4, 4)) if name == "depth" else np.uint8([[0, 2]] * 4)
        pred = truth * value if name == "depth" else (truth * (value == 2)).astype(np.uint8)
        run.add(compared(tmp_path, name, pred, truth))
    metric = find(name).metrics[0]
    values = [row.numbers[metric] for row in run.worst(3)]
    assert values == sorted(values, reverse=name == "depth")
    assert len(run.worst(2)) == 2
    assert run.worst(1)[0].numbers[metric] == values[0] == pytest.approx(1 if worst == 2 else 0.25)


def test_what_failed_is_kept_apart(tmp_path: Path) -> None:
    run = Run(find("depth"))
    run.add(evaluate.compare(pair(tmp_path, NAN, np.ones((24, 32))), How(find("depth"))))
    run.add(Compared(Match("a", Path("a"), Path("b")), notes=(evaluate.EMPTY,)))
    assert (len(run.rows), len(run.failed)) == (0, 1)


def test_the_csv_has_a_line_an_image(tmp_path: Path) -> None:
    run = Run(find("depth"))
    for factor in (1, 2):
        run.add(compared(tmp_path, "depth", np.full((4, 5), float(factor)), np.ones((4, 5))))
    evaluate.write_csv(tmp_path / "new" / "a.csv", run.rows)
    with (tmp_path / "new" / "a.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["name", "prediction", "truth", "pixels", *run.rows[0].numbers]
    assert (first["pixels"], float(second["abs_rel"])) == ("20", 1.0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.csv"]
