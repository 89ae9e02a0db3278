"""Prediction and truth -> numbers: what each task is measured by. numpy, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli.colour import srgb_from_linear
from dmp_cli.errors import ImageError
from dmp_cli.tasks import UNLABELLED, Array, Kind

Floats = NDArray[np.float64]

ALIGNMENTS = ("none", "scale", "affine")
NEAREST = 1e-3  # metres: a predicted depth below it, 0 and negative ones among them, is taken as it


@dataclass(frozen=True)
class Metric:
    """What a number is in, and which way is better."""

    unit: str = ""
    higher: bool = False


METRICS = {
    "abs_rel": Metric(),
    "sq_rel": Metric("metres"),
    "rmse": Metric(),
    "rmse_log": Metric("log metres"),
    "silog": Metric("log metres * 100"),
    "delta_1": Metric(higher=True),
    "delta_2": Metric(higher=True),
    "delta_3": Metric(higher=True),
    "mean_angle": Metric("degrees"),
    "median_angle": Metric("degrees"),
    "within_11_25": Metric(higher=True),
    "within_22_5": Metric(higher=True),
    "within_30": Metric(higher=True),
    "mse": Metric(),
    "mae": Metric(),
    "si_mse": Metric(),
    "mse_srgb": Metric(),
    "rmse_srgb": Metric(),
    "miou": Metric(higher=True),
    "pixel_accuracy": Metric(higher=True),
    "mean_accuracy": Metric(higher=True),
    "official_rel": Metric(),
    "official_delta_1": Metric(higher=True),
    "official_rmse_minmax": Metric(),
    "official_l1": Metric(),
    "official_mse": Metric(),
    "official_angular": Metric("radians"),
    "official_miou": Metric(higher=True),
}


def counted(measured: Kind, truth: Array, limits: tuple[float, float] | None = None) -> Array:
    """bool [H, W]: the pixels at which a truth map says something.

    Depth above 0 and, with `limits`, from the first to the second of them, in metres; normals that
    are not (0, 0, 0); ids other than 255; finite values of any map.
    """
    if measured == "labels":
        return np.asarray(truth != UNLABELLED)
    finite = np.isfinite(truth).reshape(*truth.shape[:2], -1).all(axis=-1)
    if measured == "normals":
        return np.asarray(finite & (truth != 0).any(axis=-1))
    if measured == "depth":
        near, far = limits or (0.0, np.inf)
        return np.asarray(finite & (truth > 0) & (truth >= near) & (truth <= far))
    return np.asarray(finite)


def measure(measured: Kind, pred: Array, truth: Array, align: str = "none") -> dict[str, float]:
    """The numbers of one image, for any kind but labels; `align` counts for depth.

    `pred` and `truth` are the values of the counted pixels, [N] or [N, C], one or more.
    ImageError if the prediction is not finite at one of them: it must not vanish from the mean.
    """
    if not (finite := np.isfinite(pred)).all():
        bad = int((~finite).reshape(len(pred), -1).any(axis=-1).sum())
        raise ImageError(f"the prediction is not a finite number at {bad} of {len(pred)} pixels")
    pred, truth = pred.astype(np.float64), truth.astype(np.float64)
    return depth(pred, truth, align) if measured == "depth" else KINDS[measured](pred, truth)


# depth ---------------------------------------------------------------------------------------


def aligned(pred: Floats, truth: Floats, align: str) -> Floats:
    """Depth brought to the truth: times s (`scale`), times s plus t (`affine`), by least squares.

    Fitted on depth, as the affine-invariant benchmarks do (Ranftl et al., MiDaS, TPAMI 2022,
    there on disparity; Ke et al., Marigold, CVPR 2024, on depth).
    """
    if align == "none":
        return pred
    if align == "scale":
        return pred * _least_squares(pred, truth)
    from_p, from_t = pred - pred.mean(), truth - truth.mean()
    fitted: Floats = from_p * _least_squares(from_p, from_t) + float(truth.mean())
    return fitted


def _least_squares(pred: Floats, truth: Floats) -> float:
    """The s that makes sum (s p - t)^2 smallest; 0 where every p is 0."""
    power = float(np.vdot(pred, pred))
    return float(np.vdot(pred, truth)) / power if power else 0.0


def depth(pred: Floats, truth: Floats, align: str = "none") -> dict[str, float]:
    """Metres [N] against metres [N] above 0.

    After the alignment, p is at least NEAREST. With d = ln p - ln t:
    abs_rel mean |p - t| / t, sq_rel mean (p - t)^2 / t, rmse, rmse_log root of mean d^2, delta_k
    share with max(p / t, t / p) < 1.25^k (Eigen et al., NeurIPS 2014); silog 100 times the
    standard deviation of d, root of mean d^2 - (mean d)^2, as the KITTI depth benchmark prints.

    official_*: the evaluation of DMP's authors, without alignment or NEAREST. REL and delta; RMSE
    after prediction and truth are each brought to [0, 1] by their own least and largest value
    (0 where a map is constant).
    """
    p = np.maximum(aligned(pred, truth, align), NEAREST)
    d = np.log(p) - np.log(truth)
    worse = np.maximum(p / truth, truth / p)
    raw = pred + 1e-12  # theirs: so that a depth of 0 divides
    return {
        "abs_rel": _mean(np.abs(p - truth) / truth),
        "sq_rel": _mean((p - truth) ** 2 / truth),
        "rmse": _mean((p - truth) ** 2) ** 0.5,
        "rmse_log": _mean(d**2) ** 0.5,
        "silog": 100 * float(d.std()),
        **{f"delta_{k}": _mean(worse < 1.25**k) for k in (1, 2, 3)},
        "official_rel": _mean(np.abs(pred - truth) / truth),
        "official_delta_1": _mean((raw / truth < 1.25) & (truth < 1.25 * raw)),
        "official_rmse_minmax": _mean((_spread(pred) - _spread(truth)) ** 2) ** 0.5,
    }


def _mean(values: Array) -> float:
    return float(np.mean(values, dtype=np.float64))


def _spread(values: Floats) -> Floats:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


# normals -------------------------------------------------------------------------------------


def normals(pred: Floats, truth: Floats) -> dict[str, float]:
    """Vectors [N, 3] of any length against such, in the same axes; a zero vector is 90 degrees off.

    mean_angle and median_angle in degrees, within_*: share below so many degrees (Fouhey et al.,
    ICCV 2013).
    """
    angles = np.degrees(np.arccos(np.clip(_cosine(pred, truth), -1, 1)))
    return {
        "mean_angle": _mean(angles),
        "median_angle": float(np.median(angles)),
        "within_11_25": _mean(angles < 11.25),
        "within_22_5": _mean(angles < 22.5),
        "within_30": _mean(angles < 30),
    }


def official_normals(pred: Array, truth: Array) -> dict[str, float]:
    """Vectors [N, 3] as they are drawn, by the evaluation of DMP's authors.

    L1 of 8-bit colours from 0 to 1, and the "angular" error: arccos, in radians, of the cosine of
    two colours that are not brought back to vectors around 0. All colours lie in one octant, so it
    is small whatever is compared, and no angle in space. Theirs counts every pixel, also those
    that have no direction.
    """
    colours = _eight_bits(pred / 2 + 0.5), _eight_bits(truth / 2 + 0.5)
    return {
        "official_l1": _mean(np.abs(colours[0] - colours[1])),
        "official_angular": _mean(np.arccos(np.clip(_cosine(*colours), 0, 1))),
    }


def _cosine(a: Floats, b: Floats) -> Floats:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.einsum("...i,...i->...", a, b) / np.maximum(lengths, 1e-12))


def _eight_bits(values: Array) -> Floats:
    """Values in [0, 1] as a picture of 8 bits holds them."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 255) / 255, np.float64)


# values --------------------------------------------------------------------------------------


def values(pred: Floats, truth: Floats) -> dict[str, float]:
    """Numbers [N] or [N, C] of any kind: the mean runs over pixels and channels.

    si_mse is the error that is left after the one factor, for all channels, that makes it least
    (Chen and Koltun, ICCV 2013).
    """
    squared = _mean((pred - truth) ** 2)
    return {
        "mse": squared,
        "rmse": squared**0.5,
        "mae": _mean(np.abs(pred - truth)),
        "si_mse": _mean((pred * _least_squares(pred, truth) - truth) ** 2),
    }


def light(pred: Floats, truth: Floats) -> dict[str, float]:
    """Linear light: `values`, and the same squared errors on sRGB-coded values.

    For the latter, values are cut to [0, 1]. official_*: mean squared and mean absolute difference
    of the 8-bit sRGB pictures, from 0 to 1, as the evaluation of DMP's authors has them.
    """
    p, t = (np.asarray(srgb_from_linear(np.clip(x, 0, 1)), np.float64) for x in (pred, truth))
    squared, shown = _mean((p - t) ** 2), _eight_bits(p) - _eight_bits(t)
    return {
        **values(pred, truth),
        "mse_srgb": squared,
        "rmse_srgb": squared**0.5,
        "official_mse": _mean(shown**2),
        "official_l1": _mean(np.abs(shown)),
    }


KINDS: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    "depth": depth,
    "normals": normals,
    "values": values,
    "light": light,
}


# labels --------------------------------------------------------------------------------------


def confusion(pred: Array, truth: Array, classes: int) -> NDArray[np.int64]:
    """int64 [classes, classes + 1]: how many pixels of class i were predicted as class j.

    `pred` and `truth` are the ids of the counted pixels; the last column holds predictions that
    are no class. ValueError for an id of the truth that is none: its pixels would be left out.
    """
    if (top := int(truth.max(initial=0))) >= classes:
        raise ValueError(f"the truth has the id {top}, but ids go from 0 to {classes - 1}")
    wide = classes + 1
    pairs = truth.astype(np.int64) * wide + np.minimum(pred.astype(np.int64), classes)
    return np.bincount(pairs, minlength=classes * wide).reshape(classes, wide)


def iou(table: NDArray[np.int64]) -> Floats:
    """[classes]: intersection over union, NaN for a class in neither truth nor prediction."""
    hit = np.diagonal(table)
    union = table.sum(axis=1) + table[:, : len(table)].sum(axis=0) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def labels(table: NDArray[np.int64]) -> dict[str, float]:
    """The numbers of a confusion table with at least one pixel.

    miou and mean_accuracy run over the classes of the truth. official_miou runs over the classes
    of truth or prediction, as the evaluation of DMP's authors does: a class that is only
    predicted counts as 0 there.
    """
    overlap, there = iou(table), table.sum(axis=1)
    present = there > 0
    hit = np.diagonal(table)
    return {
        "miou": _mean(overlap[present]),
        "pixel_accuracy": float(hit.sum() / there.sum()),
        "mean_accuracy": _mean(hit[present] / there[present]),
        "official_miou": float(np.nanmean(overlap)),
    }
