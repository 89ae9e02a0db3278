"""Maps in files against truth in files: the numbers of an image, of a run, of a trivial answer."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dmp_cli import answers, files, images, maps, metrics
from dmp_cli.answers import Answer
from dmp_cli.classes import ade20k
from dmp_cli.errors import DmpError, ImageError
from dmp_cli.maps import Reading
from dmp_cli.matching import Match
from dmp_cli.tasks import UNLABELLED, Array, Task, find

RESIZED = "prediction resized to the size of the truth"
CLIPPED = f"predicted depth below {metrics.NEAREST} m: taken as {metrics.NEAREST} m"
EMPTY = "no pixel of the truth counts: left out"
ASPECT = 1.1  # a prediction whose shape is further off is turned, cropped, or of another image


@dataclass(frozen=True)
class How:
    """What a comparison depends on, beside the files."""

    task: Task
    align: str = "none"
    limits: tuple[float, float] | None = None  # metres of the truth that count; None: all
    prediction: Reading = field(default_factory=Reading)
    truth: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Compared:
    """What became of a pair: numbers, or why there are none."""

    match: Match
    pixels: int = 0  # counted ones
    numbers: dict[str, float] = field(default_factory=dict)
    trivial: dict[str, float] = field(default_factory=dict)  # of the trivial answer
    tables: tuple[Array, ...] = ()  # of labels: their confusion, and that of the trivial answer
    notes: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""


def compare(match: Match, how: How, answer: Answer | None = None) -> Compared:
    """The numbers of one pair; what is wrong with it is a value, and names the file."""
    try:
        return _compare(match, how, answer)
    except DmpError as error:
        files = match.prediction, match.truth, match.mask, match.image
        named = str(error).startswith(tuple(str(path) for path in files if path))
        text = str(error) if named else f"{match.prediction}: {error}"
        return Compared(match, error=text, hint=error.hint)


@dataclass(frozen=True)
class _Truth:
    """A map as it is stored, the pixels [H, W] that count, and those that only the mask picks."""

    values: Array
    counted: Array
    masked: Array


def _compare(match: Match, how: How, answer: Answer | None) -> Compared:
    truth = _truth(match, how)
    pixels = int(truth.counted.sum())
    if not pixels:
        return Compared(match, notes=(EMPTY,))
    pred, notes = _prediction(match.prediction, how, truth.counted.shape)
    plain_depth = how.task.measured == "depth" and how.align == "none"
    if plain_depth and (pred[truth.counted] < metrics.NEAREST).any():
        notes += (CLIPPED,)
    numbers, table = _numbers(how, pred, truth)
    if answer is None:
        return Compared(match, pixels, numbers, tables=table, notes=notes)
    trivial, other = _numbers(how, answers.as_map(answer, truth.values, match.image), truth)
    return Compared(match, pixels, numbers, trivial, table + other, notes)


def _numbers(how: How, pred: Array, truth: _Truth) -> tuple[dict[str, float], tuple[Array, ...]]:
    """The numbers of a map, and for labels the confusion that they come from."""
    known = truth.values[truth.counted]
    if how.task.labels:
        table = metrics.confusion(pred[truth.counted], known, len(ade20k().names))
        return metrics.labels(table), (table,)
    numbers = metrics.measure(how.task.measured, pred[truth.counted], known, how.align)
    if how.task.measured == "normals":
        finite = np.isfinite(pred) & np.isfinite(truth.values)
        both = truth.masked & finite.all(axis=-1)
        numbers |= metrics.official_normals(pred[both], truth.values[both])
    return numbers, ()


def _truth(match: Match, how: How) -> _Truth:
    values = maps.stored(match.truth, how.task, how.truth)
    counted = metrics.counted(how.task.measured, maps.settled(values, how.task), how.limits)
    mask = np.ones_like(counted)
    if match.mask:
        # as grey: whatever is not black, 0 or False
        mask = maps.stored(match.mask, find("shading")) != 0
    if mask.shape != counted.shape:
        raise ImageError(
            f"{match.mask}: a mask of {_size(mask)} for a truth of {_size(counted)}",
            "give masks of the size of the truth",
        )
    counted &= mask
    if how.task.labels and (top := int(values[counted].max(initial=0))) >= len(ade20k().names):
        raise ImageError(
            f"{match.truth}: {top} is no class id",
            f"ids are 0 to {len(ade20k().names) - 1}, {UNLABELLED} where there is no class",
        )
    return _Truth(values, counted, mask)


def _prediction(path: Path, how: How, size: tuple[int, ...]) -> tuple[Array, tuple[str, ...]]:
    """The prediction at a size, as it is stored: what is no depth or no direction is an error too.

    ImageError if it is not to be read, or its aspect is another.
    """
    try:
        values = maps.stored(path, how.task, how.prediction)
    except ImageError as error:
        if how.task.metres and path.suffix.lower() == ".png":
            raise ImageError(str(error), "dmp predict --format npy writes data") from error
        raise
    if values.shape[:2] == size:
        return values, ()
    off = values.shape[0] / values.shape[1] / (size[0] / size[1])
    if not 1 / ASPECT < off < ASPECT:
        raise ImageError(
            f"{path}: {_size(values)}, too far from the shape of the truth, {size[1]}x{size[0]}",
            "give the whole map, upright, of the image that the truth is of",
        )
    return images.resize(values, (size[0], size[1]), how.task.labels), (RESIZED,)


def _size(values: Array) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"


def sums_of(match: Match, how: How) -> Array:
    """What a truth adds to the constant answer; nothing if it cannot be read: `compare` says so."""
    try:
        truth = _truth(match, how)
    except DmpError:
        return np.zeros(1)
    return answers.sums_of(how.task, truth.values[truth.counted])


# A run ------------------------------------------------------------------------------------


@dataclass
class Run:
    """The comparisons of a run, added one by one."""

    task: Task
    rows: list[Compared] = field(default_factory=list)  # those with numbers
    failed: list[Compared] = field(default_factory=list)
    tables: list[Array] = field(default_factory=list)

    def add(self, compared: Compared) -> None:
        """Take one in; one without numbers counts only if it failed."""
        if compared.error:
            self.failed.append(compared)
        if not compared.numbers:
            return
        self.rows.append(replace(compared, tables=()))
        old = self.tables or [np.zeros_like(table) for table in compared.tables]
        self.tables = [a + b for a, b in zip(old, compared.tables, strict=True)]

    def numbers(self) -> dict[str, float]:
        """Labels: of the confusion of all pixels. Others: the mean over images of their numbers."""
        return metrics.labels(self.tables[0]) if self.tables else self._mean("numbers")

    def trivial(self) -> dict[str, float]:
        """The same of the trivial answer; {} if there was none."""
        return metrics.labels(self.tables[1]) if self.tables[1:] else self._mean("trivial")

    def _mean(self, which: str) -> dict[str, float]:
        each: list[dict[str, float]] = [getattr(row, which) for row in self.rows]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}

    def worst(self, count: int) -> list[Compared]:
        """Those with the worst value of the task's first metric, the worst first."""
        name = self.task.metrics[0]
        sign = 1 if metrics.METRICS[name].higher else -1
        return sorted(self.rows, key=lambda row: sign * row.numbers[name])[:count]

    def classes(self) -> list[dict[str, str | int | float]]:
        """For labels, each class of truth or prediction: id, name, IoU, pixels there and found."""
        if not self.tables:
            return []
        table, overlap = self.tables[0], metrics.iou(self.tables[0])
        there, found = table.sum(axis=1), table.sum(axis=0)
        return [
            {
                "id": index,
                "name": name,
                "iou": float(overlap[index]),
                "pixels": int(there[index]),
                "predicted": int(found[index]),
            }
            for index, name in enumerate(ade20k().names)
            if there[index] or found[index]
        ]


def write_csv(path: Path, rows: Iterable[Compared]) -> None:
    """One line an image: name, files, counted pixels, numbers. Raises as files.write does."""
    listed = list(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = list(listed[0].numbers) if listed else []
    writer.writerow(["name", "prediction", "truth", "pixels", *names])
    for row in listed:
        pair = row.match.prediction, row.match.truth
        writer.writerow([row.match.name, *pair, row.pixels, *(row.numbers[name] for name in names)])
    files.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
