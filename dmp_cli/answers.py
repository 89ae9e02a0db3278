"""Trivial answers, to see what a prediction is worth: one value everywhere, or the image itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dmp_cli import images
from dmp_cli.colour import linear_from_srgb
from dmp_cli.data import read_image
from dmp_cli.tasks import Array, Task, unit_vectors

# Depth is counted in bins, to know the median of all pixels: 1e-4 m to 1e6 m, each 0.035 % wide
_BINS = 1 << 16
_BIN = np.log(1e10) / _BINS


@dataclass(frozen=True)
class Answer:
    """One value for all pixels, a number or [C]; None: the image."""

    name: str
    value: Array | None = None


IMAGE = Answer("input image")


def sums_of(task: Task, known: Array) -> Array:
    """Sums over pixels [N] or [N, C] of a truth that, added up, give the answer of a run.

    Depth: counts in bins. Labels: counts of ids. Others: sum of each channel, then the number of
    pixels.
    """
    if task.measured == "depth":
        bins = np.log(known.astype(np.float64) / 1e-4) / _BIN
        return np.bincount(np.clip(bins, 0, _BINS - 1).astype(np.int64), minlength=_BINS)
    if task.labels:
        return np.bincount(known, minlength=256)
    values = unit_vectors(known) if task.unit_length else known
    channels = values.reshape(len(values), -1) if len(values) else np.zeros((0, 1))
    return np.append(channels.sum(axis=0, dtype=np.float64), len(values))


def constant(task: Task, sums: Iterable[Array]) -> Answer:
    """The value to give everywhere, from the `sums_of` every truth.

    Depth: the median of all pixels. Labels: the most frequent class. Normals: the mean direction.
    Others: the mean.
    """
    total = np.zeros(1)
    for part in sums:
        if part.any():
            total = total + part
    if not total.any():
        return Answer("constant", np.zeros(()))  # of no truth at all: there is nothing to compare
    if task.measured == "depth":
        middle = int(np.searchsorted(total.cumsum(), total.sum() / 2))
        return Answer("median depth", np.asarray(1e-4 * np.exp((middle + 0.5) * _BIN)))
    if task.labels:
        return Answer("most frequent class", np.asarray(total.argmax(), np.uint8))
    mean = total[:-1] / total[-1]
    if task.unit_length:
        return Answer("mean normal", unit_vectors(mean))
    return Answer("mean value", mean.squeeze())


def as_map(answer: Answer, truth: Array, image: Path | None = None) -> Array:
    """The answer as a map of the truth's shape; an image as linear light, averaged for one channel.

    ImageError if the image cannot be read.
    """
    if answer.value is not None:
        return np.broadcast_to(answer.value, truth.shape)
    if image is None:
        raise ValueError("the answer is an image, and there is none")
    light = linear_from_srgb(read_image(image) / np.float32(255))
    light = images.resize(light, (truth.shape[0], truth.shape[1]))
    return light if truth.ndim == 3 else np.asarray(light.mean(axis=-1))
