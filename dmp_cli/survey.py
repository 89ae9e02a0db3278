"""What a training set holds: maps, their sizes and values, and what is wrong with them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dmp_cli import data, maps
from dmp_cli.classes import ade20k
from dmp_cli.errors import ImageError, NoInputError
from dmp_cli.tasks import UNLABELLED, Array, Coding, Task

PERCENTILES = {"min": 0, "1%": 1, "median": 50, "99%": 99, "max": 100}
FAR = Coding().scale  # metres: depth beyond it is drawn as far as this
_UNEVEN = 0.02  # 8-bit normals are within 0.007 of unit length
_VALUES = 4_000_000  # values that percentiles are taken from, all files together


@dataclass(frozen=True)
class Sample:
    """An image and its maps by task."""

    image: Path
    pairs: Mapping[str, data.Pair]


@dataclass(frozen=True)
class Content:
    """What a folder holds by its names alone; `faults` are lines that name a file."""

    rows: tuple[Task, ...]
    samples: tuple[Sample, ...]
    missing: Mapping[str, int]  # images without a map, by task
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """What is counted in one map. `counts` are pixels."""

    size: str
    pixels: int
    values: Array  # of them percentiles are taken; the least and the greatest are among them
    counts: Mapping[str, int]
    classes: Array | None = None  # pixels of each id, int64 [256]


@dataclass(frozen=True)
class Measured:
    """One image and its maps, read. Figures are of all maps that can be read at all."""

    size: str
    figures: Mapping[str, Figures]
    refused: tuple[str, ...] = ()  # tasks whose map cannot be used
    resized: tuple[str, ...] = ()  # tasks whose map has another resolution
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskReport:
    """The maps of one task. Shares are of all pixels, in [0, 1]."""

    unit: str
    maps: int
    refused: int  # of them, those that cannot be used
    resized: int  # of them, those with another resolution than their image
    missing: int  # images without one
    kinds: Mapping[str, int]
    sizes: Mapping[str, int]
    range: Mapping[str, float]
    shares: Mapping[str, float]
    classes: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """A training set; it can be used as it is if there are no `faults`."""

    images: int
    captions: int
    sizes: Mapping[str, int]
    tasks: Mapping[str, TaskReport]
    faults: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def find(root: Path, rows: Sequence[Task], every: bool) -> Content:
    """Images and maps of the tasks; with `every`, a task without any map is a fault too.

    Raises as data.layout does: UsageError if there is no folder, NoInputError without images, or
    without maps of any task, ImageError for captions of no image.
    """
    layouts = {row: data.layout(root, row) for row in rows}
    there = [row for row, found in layouts.items() if found.maps]
    if not there:
        first = next(iter(layouts.values()))
        raise NoInputError(
            f"{root}: {len(first.without_target)} images, but no maps", data.where(root, rows[0])
        )
    kept = tuple(rows) if every else tuple(there)
    samples: dict[Path, dict[str, data.Pair]] = {}
    for row in kept:
        for image in layouts[row].without_target:
            samples.setdefault(image, {})
        for pair in layouts[row].pairs:
            samples.setdefault(pair.image, {})[row.name] = pair
    return Content(
        kept,
        tuple(Sample(image, samples[image]) for image in sorted(samples)),
        {row.name: len(layouts[row].without_target) for row in kept},
        # each once: two images of one name are found with every task
        tuple(dict.fromkeys(line for row in kept for line in _absences(root, row, layouts[row]))),
    )


def _absences(root: Path, row: Task, found: data.Layout) -> list[str]:
    if not found.maps:
        return [f"{root}: no {row.name} maps; {data.where(root, row)}"]
    lines = [f"{second}: {first} has the same name" for first, second in found.doubles]
    lines += [f"{path}: no {row.name} map for it" for path in found.without_target]
    return lines + [f"{path}: no image for it" for path in found.without_image]


def measure(sample: Sample, content: Content, how: maps.Reading) -> Measured:
    """Read an image and its maps. What cannot be used becomes a line of `faults`."""
    figures: dict[str, Figures] = {}
    faults, refused, resized, rgb = [], [], [], None
    try:
        rgb = data.read_image(sample.image)
    except ImageError as error:
        faults.append(_line(error))
    most = max(_VALUES // len(content.samples), 64)
    for row in (row for row in content.rows if row.name in sample.pairs):
        pair = sample.pairs[row.name]
        try:
            stored = maps.stored(pair.target, row, how)
            figures[row.name] = _figures(stored, row, most)
            data.require_usable(pair.target, maps.settled(stored, row), row)
            if rgb is not None:
                data.require_shape(pair, stored, rgb)
                resized += [row.name] if stored.shape[:2] != rgb.shape[:2] else []
        except ImageError as error:
            refused.append(row.name)
            faults.append(_line(error))
    size = _size(rgb) if rgb is not None else ""
    return Measured(size, figures, tuple(refused), tuple(resized), tuple(faults))


def _line(error: ImageError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)


def _size(values: Array) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"


def _figures(stored: Array, row: Task, most: int) -> Figures:
    """What is counted in a map of maps.stored; about `most` of its values are kept."""
    classes = None
    values = stored[np.isfinite(stored)]
    if row.labels:
        classes = np.bincount(stored.ravel(), minlength=256)
        known, unlabelled = len(ade20k().names), int(classes[UNLABELLED])
        beyond = int(classes[known:].sum()) - unlabelled
        counts = {"unlabelled": unlabelled, "out of range": beyond}
        return Figures(_size(stored), _pixels(stored), np.empty(0), counts, classes)
    settled = maps.settled(stored, row)
    finite = np.isfinite(settled)
    conditions = {"not finite": ~(finite if finite.ndim == 2 else finite.all(axis=-1))}
    if row.metres:
        values = settled[settled > 0]
        conditions |= {"without surface": settled == 0, f"beyond {FAR:g} m": settled > FAR}
    if row.unit_length:
        with np.errstate(over="ignore"):
            length = np.sqrt(np.square(stored).sum(axis=-1))
        surface = length >= maps.SHORTEST
        conditions |= {
            "without surface": length < maps.SHORTEST,
            "not unit length": surface & (np.abs(length - 1) > _UNEVEN),
            "facing away": surface & (stored[..., 2] < 0),
        }
    counts = {name: int(np.count_nonzero(found)) for name, found in conditions.items()}
    return Figures(_size(stored), _pixels(stored), _thinned(values, most), counts)


def _pixels(values: Array) -> int:
    return int(np.prod(values.shape[:2]))


def _thinned(values: Array, most: int) -> Array:
    """About `most` of the values, the least and the greatest among them."""
    if not values.size:
        return values
    ends = np.array([values.min(), values.max()])
    return np.concatenate([values[:: max(values.size // most, 1)], ends])


def report(content: Content, measured: Iterable[Measured]) -> Report:
    """All that was measured, summed up."""
    done = list(measured)
    reports = {row.name: _task_report(row, content, done) for row in content.rows}
    faults = [*content.faults, *(line for one in done for line in one.faults)]
    captions = sum(any(pair.prompt for pair in sample.pairs.values()) for sample in content.samples)
    sizes = Counter(one.size for one in done if one.size)
    notes = [line for row in content.rows for line in _notes(row, reports[row.name])]
    return Report(len(content.samples), captions, dict(sizes), reports, tuple(faults), tuple(notes))


def _task_report(row: Task, content: Content, done: Sequence[Measured]) -> TaskReport:
    figures = [one.figures[row.name] for one in done if row.name in one.figures]
    pixels = max(sum(one.pixels for one in figures), 1)
    values = np.concatenate([np.empty(0), *(one.values for one in figures)])
    shares = sum((Counter(one.counts) for one in figures), Counter[str]())
    suffixes = [
        sample.pairs[row.name].target.suffix.lower().removeprefix(".")
        for sample in content.samples
        if row.name in sample.pairs
    ]
    spread = np.percentile(values, list(PERCENTILES.values())) if values.size else ()
    return TaskReport(
        unit=row.unit,
        maps=len(suffixes),
        refused=sum(row.name in one.refused for one in done),
        resized=sum(row.name in one.resized for one in done),
        missing=content.missing[row.name],
        kinds=dict(Counter(suffixes)),
        sizes=dict(Counter(one.size for one in figures)),
        range={name: float(value) for name, value in zip(PERCENTILES, spread, strict=False)},
        shares={name: shares[name] / pixels for one in figures[:1] for name in one.counts},
        classes=_classes(figures, pixels),
    )


def _classes(figures: Sequence[Figures], pixels: int) -> dict[str, float]:
    """Share of each class that is there, the most frequent first."""
    totals = sum((one.classes for one in figures if one.classes is not None), np.zeros(256))
    names = ade20k().names
    order = [int(index) for index in np.argsort(-totals[: len(names)], kind="stable")]
    return {names[index]: float(totals[index]) / pixels for index in order if totals[index]}


def _notes(row: Task, found: TaskReport) -> list[str]:
    """What may be meant so, but most often is not."""
    lines = []
    if found.resized:
        number = f"{found.resized} of {found.maps}"
        lines.append(f"{row.name}: {number} maps have another resolution than their image")
    if found.shares.get("facing away", 0) > 0.5:
        lines.append(f"{row.name}: most face away from the viewer: check --axes")
    return lines
