"""Maps of pairs that do not train, predicted as `dmp predict` does, against their truth."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dmp_cli import colour, data, images, maps, metrics
from dmp_cli.classes import ade20k
from dmp_cli.data import Pair
from dmp_cli.maps import Reading
from dmp_cli.predict import Predictor
from dmp_cli.tasks import Array, Task, View

_HEIGHT = 256  # of the pictures to look at


@dataclass(frozen=True)
class Judged:
    """The numbers of one pair; for labels the confusion that the numbers of all come from."""

    numbers: dict[str, float] = field(default_factory=dict)
    table: Array | None = None
    pictures: tuple[Array, ...] = ()  # image, prediction, truth


def truth_of(pair: Pair, task: Task, reading: Reading) -> Array:
    """The true map of a pair; ImageError if it cannot be used."""
    truth = maps.read(pair.target, task, reading)
    data.require_usable(pair.target, truth, task)
    return truth


def require_measurable(pair: Pair, task: Task, reading: Reading) -> None:
    """ImageError if image or map of a pair cannot be read, or if they do not belong together."""
    data.require_shape(pair, truth_of(pair, task, reading), data.read_image(pair.image))


def judge(
    predictor: Predictor, pair: Pair, task: Task, reading: Reading, look: bool = False
) -> Judged:
    """Predict a pair's map at full size and measure it; with `look`, pictures of it too.

    ImageError if a file cannot be read, or what is predicted is not finite.
    """
    truth = truth_of(pair, task, reading)
    rgb = data.read_image(pair.image)
    found = predictor(rgb)
    size = truth.shape[0], truth.shape[1]
    predicted = images.resize(found, size, nearest=task.labels)
    pictures = _pictures(task, rgb, predicted, truth) if look else ()
    counted = metrics.counted(task.measured, truth)
    if not counted.any():
        return Judged(pictures=pictures)
    known, guess = truth[counted], predicted[counted]
    if task.labels:
        return Judged({}, metrics.confusion(guess, known, len(ade20k().names)), pictures)
    return Judged(metrics.measure(task.measured, guess, known), None, pictures)


def summed_up(judged: Iterable[Judged]) -> dict[str, float]:
    """Of labels the numbers of all pixels together, else the mean over the pairs of each number."""
    rows = list(judged)
    tables = [row.table for row in rows if row.table is not None]
    if tables:
        return metrics.labels(np.sum(tables, axis=0))
    each = [row.numbers for row in rows if row.numbers]
    names = each[0] if each else {}
    return {name: float(np.mean([numbers[name] for numbers in each])) for name in names}


def _pictures(task: Task, rgb: Array, predicted: Array, truth: Array) -> tuple[Array, ...]:
    """Image, prediction and truth, uint8 [_HEIGHT, w, 3], in colours of one range."""
    span = None
    if task.metres:
        surface = truth[truth > 0]
        near, far = np.percentile(surface, (1, 99)) if surface.size else (0.0, 1.0)
        span = float(near), float(max(far, near + 1e-3))
    view = View(colour.colormap("Spectral"), range=span)
    height, width = truth.shape[:2]
    size = _HEIGHT, max(round(_HEIGHT * width / height), 1)
    shown = [images.fit(rgb, size)]
    for values in (predicted, truth):
        picture = task.preview(values, view)
        pixels = picture.pixels
        if picture.palette is not None:  # ids past the palette have no class: black
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(picture.palette)] = picture.palette
            pixels = palette[pixels]
        colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
        shown.append(images.resize(np.ascontiguousarray(colours), size, nearest=True))
    return tuple(shown)
