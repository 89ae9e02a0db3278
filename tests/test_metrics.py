"""Each number: worked out by hand, by other libraries, and by the evaluation of DMP's authors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.spatial.transform import Rotation
from sklearn import metrics as sk
from torchmetrics import functional as tm

from dmp_cli import metrics
from dmp_cli.colour import linear_from_srgb, srgb_from_linear
from dmp_cli.errors import ImageError
from dmp_cli.tasks import TASKS, Array, unit_vectors
from tests.conftest import PARITY

ARRAYS = dict(np.load(PARITY / "metrics.npz"))
OFFICIAL: dict[str, Any] = json.loads((PARITY / "metrics.json").read_text())
RNG = np.random.default_rng(0)


def depths() -> tuple[Array, Array]:
    truth = RNG.uniform(0.5, 8, 2000)
    return truth * np.exp(RNG.normal(0.1, 0.3, 2000)), truth


def ids() -> tuple[Array, Array]:
    """20 classes of 150, two of them only in the truth, two only predicted."""
    truth = RNG.integers(3, 21, 5000).astype(np.uint8)
    pred = np.where(RNG.random(5000) < 0.4, RNG.integers(5, 23, 5000), truth).astype(np.uint8)
    pred[np.isin(pred, (3, 4))] = 5
    return pred, truth


# depth ---------------------------------------------------------------------------------------


def test_depth_by_hand() -> None:
    found = metrics.measure("depth", np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0, 4.0]))
    ln = np.log([1, 1.5, 0.5])
    expected = {
        "abs_rel": (0 + 1 / 2 + 2 / 4) / 3,
        "sq_rel": (0 + 1 / 2 + 4 / 4) / 3,
        "rmse": ((0 + 1 + 4) / 3) ** 0.5,
        "rmse_log": (sum(ln**2) / 3) ** 0.5,
        "silog": 100 * (sum(ln**2) / 3 - (sum(ln) / 3) ** 2) ** 0.5,
        "delta_1": 1 / 3,
        "delta_2": 2 / 3,  # 1.5 is below 1.5625
        "delta_3": 2 / 3,  # 2 is above 1.953
        "official_rel": 1 / 3,
        "official_delta_1": 1 / 3,
        "official_rmse_minmax": ((0 + (1 - 1 / 3) ** 2 + (0.5 - 1) ** 2) / 3) ** 0.5,
    }
    assert found == pytest.approx(expected)


def test_depth_against_other_libraries() -> None:
    pred, truth = depths()
    found = metrics.measure("depth", pred, truth)
    p, t = torch.tensor(pred), torch.tensor(truth)
    assert found["abs_rel"] == pytest.approx(tm.mean_absolute_percentage_error(p, t).item())
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, pred))
    # its logarithm is of 1 + x
    logs = tm.mean_squared_log_error(p - 1, t - 1).item()
    assert found["rmse_log"] == pytest.approx(logs**0.5, rel=1e-6)
    assert found["silog"] == pytest.approx(100 * stats.tstd(np.log(pred / truth), ddof=0))


def test_depth_is_what_the_official_evaluation_gives() -> None:
    found = metrics.measure(
        "depth", ARRAYS["metrics/depth/pred"].ravel(), ARRAYS["metrics/depth/truth"].ravel()
    )
    official = OFFICIAL["metrics/depth"]
    assert found["official_rel"] == pytest.approx(official["rel"], abs=1e-6)
    assert found["official_delta_1"] == pytest.approx(official["delta"], abs=1e-6)
    assert found["official_rmse_minmax"] == pytest.approx(official["rmse_minmax"], abs=1e-6)
    assert found["abs_rel"] == pytest.approx(official["rel"], abs=1e-6)


def test_scale_alignment_is_the_least_squares_one() -> None:
    pred, truth = depths()
    (scale,), _ = optimize.nnls(pred[:, None], truth)
    assert metrics.aligned(pred, truth, "scale") == pytest.approx(pred * scale)


def test_affine_alignment_is_the_least_squares_one() -> None:
    pred, truth = depths()
    line = stats.linregress(pred, truth)
    assert metrics.aligned(pred, truth, "affine") == pytest.approx(
        line.slope * pred + line.intercept
    )


@pytest.mark.parametrize(
    ("align", "pred", "perfect"),
    [
        ("none", lambda t: t, True),
        ("none", lambda t: 2 * t, False),
        ("scale", lambda t: 0.1 * t, True),
        ("scale", lambda t: t + 1, False),
        ("affine", lambda t: 0.1 * t - 3, True),
        ("affine", lambda t: 1 / t, False),
    ],
)
def test_alignment_forgives_what_it_says(align: str, pred: Any, perfect: bool) -> None:
    truth = depths()[1]
    found = metrics.measure("depth", pred(truth), truth, align)
    assert (found["abs_rel"] < 1e-9) == perfect


@pytest.mark.parametrize("align", metrics.ALIGNMENTS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_prediction_has_numbers(align: str, value: float) -> None:
    truth = depths()[1]
    found = metrics.measure("depth", np.full_like(truth, value), truth, align)
    assert all(np.isfinite(number) for number in found.values())
    if align == "affine":  # the best constant is the mean
        assert found["rmse"] == pytest.approx(truth.std())


@pytest.mark.parametrize("bad", [0.0, -5.0])
def test_no_depth_counts_as_the_nearest(bad: float) -> None:
    found = metrics.measure("depth", np.array([bad, 2.0]), np.array([1.0, 2.0]))
    assert found["abs_rel"] == pytest.approx((1 - metrics.NEAREST) / 2)
    assert found["delta_3"] == 0.5


def test_aligned_depth_is_not_below_the_nearest() -> None:
    pred, truth = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.1, 0.1, 5.0])
    fitted = metrics.aligned(pred, truth, "affine")
    assert fitted[0] < 0
    fitted[0] = metrics.NEAREST
    found = metrics.measure("depth", pred, truth, "affine")
    assert found["abs_rel"] == pytest.approx(np.mean(abs(fitted - truth) / truth))


# normals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 5.0, 11.0, 20.0, 29.0, 90.0, 180.0])
def test_turned_normals_are_off_by_that_angle(angle: float) -> None:
    truth = unit_vectors(RNG.normal(size=(500, 3)))
    axis = np.cross(truth, RNG.normal(size=(500, 3)))
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    pred = Rotation.from_rotvec(axis * np.radians(angle)).apply(truth) * 3  # of any length
    found = metrics.measure("normals", pred, truth)
    assert found["mean_angle"] == pytest.approx(angle, abs=1e-4)
    assert found["median_angle"] == pytest.approx(angle, abs=1e-4)
    shares = found["within_11_25"], found["within_22_5"], found["within_30"]
    assert shares == (angle < 11.25, angle < 22.5, angle < 30)


def test_normals_against_torchmetrics() -> None:
    pred, truth = RNG.normal(size=(2, 400, 3))
    found = metrics.measure("normals", pred, truth)
    cosine = tm.cosine_similarity(torch.tensor(pred), torch.tensor(truth), "none").numpy()
    angles = np.degrees(np.arccos(cosine))
    assert found["mean_angle"] == pytest.approx(angles.mean())
    assert found["median_angle"] == pytest.approx(np.median(angles))
    assert found["within_30"] == pytest.approx((angles < 30).mean())


def test_no_direction_is_90_degrees_off() -> None:
    found = metrics.measure("normals", np.array([[0, 0, 0], [0, 0, 1.0]]), np.eye(3)[[2, 2]])
    assert found["mean_angle"] == pytest.approx(45)


def test_normals_are_what_the_official_evaluation_gives() -> None:
    colours = (ARRAYS[f"metrics/rgb/{name}"].reshape(-1, 3) for name in ("pred", "truth"))
    found = metrics.official_normals(*(colour / 127.5 - 1 for colour in colours))
    official = OFFICIAL["metrics/rgb"]
    assert found["official_l1"] == pytest.approx(official["l1"], abs=1e-6)
    assert found["official_angular"] == pytest.approx(
        official["angular_radians_on_uncentred_colours"], abs=1e-6
    )


def test_the_official_angle_is_not_the_angle() -> None:
    opposite = np.array([[0, 0, -1.0]]), np.array([[0, 0, 1.0]])
    assert metrics.measure("normals", *opposite)["mean_angle"] == pytest.approx(180)
    assert np.degrees(metrics.official_normals(*opposite)["official_angular"]) < 56


# values --------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    found = metrics.measure("values", np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    expected = {"mse": 0.25, "rmse": 0.5, "mae": 0.5, "si_mse": (0 + 0.25) / 2}
    assert found == pytest.approx(expected)


def test_values_against_scikit_learn() -> None:
    pred, truth = RNG.random((2, 300, 3))
    found = metrics.measure("values", pred, truth)
    assert found["mse"] == pytest.approx(sk.mean_squared_error(truth, pred))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, pred))
    best = optimize.minimize_scalar(lambda s: np.mean((s * pred - truth) ** 2))
    assert found["si_mse"] == pytest.approx(best.fun)
    assert metrics.values(0.2 * pred, truth)["si_mse"] == pytest.approx(best.fun)


def test_light_is_measured_as_it_is_and_as_it_is_shown() -> None:
    pred, truth = RNG.random((2, 300, 3))
    found = metrics.measure("light", linear_from_srgb(pred), linear_from_srgb(truth))
    assert found["mse_srgb"] == pytest.approx(sk.mean_squared_error(truth, pred), abs=1e-6)
    assert found["rmse_srgb"] == pytest.approx(found["mse_srgb"] ** 0.5)
    linear = sk.mean_squared_error(linear_from_srgb(truth), linear_from_srgb(pred))
    assert found["mse"] == pytest.approx(linear, abs=1e-6)


def test_light_above_white_is_cut_only_where_it_is_shown() -> None:
    found = metrics.measure("light", np.array([3.0]), np.array([1.0]))
    assert (found["rmse"], found["rmse_srgb"]) == (2, 0)


def test_pictures_are_what_the_official_evaluation_gives() -> None:
    pictures = (ARRAYS[f"metrics/rgb/{name}"].reshape(-1, 3) for name in ("pred", "truth"))
    found = metrics.measure("light", *(linear_from_srgb(picture / 255) for picture in pictures))
    assert found["official_mse"] == pytest.approx(OFFICIAL["metrics/rgb"]["mse"], abs=1e-6)
    assert found["official_l1"] == pytest.approx(OFFICIAL["metrics/rgb"]["l1"], abs=1e-6)


def test_official_pictures_have_8_bits() -> None:
    found = metrics.measure("light", np.array([0.500]), np.array([0.501]))
    steps = np.rint(srgb_from_linear(np.array([0.500, 0.501])) * 255)
    assert found["official_l1"] == pytest.approx(abs(steps[0] - steps[1]) / 255)


# labels --------------------------------------------------------------------------------------


def test_labels_by_hand() -> None:
    truth, pred = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    table = metrics.confusion(pred, truth, 4)
    assert table.tolist() == [[2, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5]
    np.testing.assert_allclose(metrics.iou(table), [2 / 3, 1 / 3, 0, np.nan])
    expected = {
        "miou": (2 / 3 + 1 / 3) / 2,
        "pixel_accuracy": 3 / 5,
        "mean_accuracy": (2 / 3 + 1 / 2) / 2,
        "official_miou": (2 / 3 + 1 / 3 + 0) / 3,
    }
    assert metrics.labels(table) == pytest.approx(expected)


def test_labels_against_other_libraries() -> None:
    pred, truth = ids()
    table = metrics.confusion(pred, truth, 150)
    assert np.array_equal(table[:, :150], sk.confusion_matrix(truth, pred, labels=range(150)))
    found = metrics.labels(table)
    there = np.unique(truth)
    jaccard = sk.jaccard_score(truth, pred, labels=there, average=None)
    np.testing.assert_allclose(metrics.iou(table)[there], jaccard)
    assert found["miou"] == pytest.approx(jaccard.mean())
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, pred))
    recall = sk.recall_score(truth, pred, labels=there, average="macro")
    assert found["mean_accuracy"] == pytest.approx(recall)
    every = tm.jaccard_index(
        torch.tensor(pred), torch.tensor(truth), "multiclass", num_classes=150
    ).item()  # over the classes of either, as the official one
    assert found["official_miou"] == pytest.approx(every, abs=1e-6)


def test_labels_are_what_the_official_evaluation_gives() -> None:
    pred, truth = ARRAYS["metrics/seg/pred"], ARRAYS["metrics/seg/truth"]
    parts = []
    for p, t in zip(pred, truth, strict=True):
        known = metrics.counted("labels", t)
        parts.append(metrics.confusion(p[known], t[known], 150))
    table = np.sum(parts, axis=0)
    np.testing.assert_allclose(metrics.iou(table), ARRAYS["metrics/seg/iou"], atol=1e-6)
    found, official = metrics.labels(table), OFFICIAL["metrics/seg"]
    assert found["official_miou"] == pytest.approx(official["mIoU"], abs=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(official["aAcc"], abs=1e-6)


def test_a_prediction_that_is_no_class_is_wrong() -> None:
    table = metrics.confusion(np.array([0, 255]), np.array([0, 0]), 3)
    assert table[0].tolist() == [1, 0, 0, 1]
    assert metrics.labels(table)["pixel_accuracy"] == 0.5
    assert metrics.labels(table)["miou"] == 0.5


def test_a_truth_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="id 200"):
        metrics.confusion(np.array([0]), np.array([200]), 150)


# what counts ---------------------------------------------------------------------------------


def test_depth_that_counts() -> None:
    truth = np.array([[0, -1, np.nan, np.inf, 0.5, 1, 2, 9]], np.float32)
    assert metrics.counted("depth", truth).tolist() == [[False] * 4 + [True] * 4]
    assert metrics.counted("depth", truth, (1, 2)).tolist() == [[False] * 5 + [True] * 2 + [False]]


def test_other_maps_that_count() -> None:
    vectors = np.array([[[0, 0, 1], [0, 0, 0], [np.nan, 0, 1]]], np.float32)
    assert metrics.counted("normals", vectors).tolist() == [[True, False, False]]
    assert metrics.counted("values", vectors).tolist() == [[True, True, False]]
    assert metrics.counted("light", vectors[..., 0]).tolist() == [[True, True, False]]
    assert metrics.counted("labels", np.array([[0, 149, 255]])).tolist() == [[True, True, False]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", metrics.KINDS)
def test_a_prediction_that_is_not_finite_is_an_error(kind: str, bad: float) -> None:
    pred = np.ones((4, 3) if kind == "normals" else 4)
    truth = pred.copy()
    pred[1] = bad
    with pytest.raises(ImageError, match="1 of 4 pixels"):
        metrics.measure(kind, pred, truth)


@pytest.mark.parametrize("name", TASKS)
def test_every_row_is_measured_by_numbers_that_there_are(name: str) -> None:
    task = TASKS[name]
    if task.labels:
        found = metrics.labels(metrics.confusion(np.array([1]), np.array([1]), 150))
    else:
        found = metrics.measure(task.measured, np.ones((5, 3)), np.ones((5, 3)))
    assert set(task.metrics) <= set(found) <= set(metrics.METRICS)


def test_every_number_is_explained() -> None:
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    assert [name for name in metrics.METRICS if f"`{name}`" not in text] == []
