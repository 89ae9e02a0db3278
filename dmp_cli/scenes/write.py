"""Writes scenes as a data set that `dmp train` and `dmp eval` read (docs/data.md)."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmp_cli import files
from dmp_cli.classes import ade20k
from dmp_cli.colour import srgb_from_linear
from dmp_cli.errors import UsageError
from dmp_cli.outputs import writers
from dmp_cli.scenes.build import build
from dmp_cli.scenes.render import Frame, render

Array = NDArray[Any]

VERSION = 1  # of the generator: raise it when the same seed gives other scenes
_ELSEWHERE = "choose another folder, or delete this one"
_AT_ONCE = 64  # scenes in flight: bounds what an interrupted run throws away


@dataclass(frozen=True)
class Order:
    """Which scenes to make. Scene i of a seed is the same, however many are made."""

    count: int
    seed: int = 0
    size: int = 256
    version: int = VERSION


def frame(order: Order, index: int) -> tuple[Frame, str]:
    """Scene `index` of a seed, and its caption."""
    rng = np.random.default_rng([order.version, order.seed, index])
    world = build(rng)
    return render(world, order.size, rng), world.caption


def write(out: Path, order: Order, workers: int = 0) -> Iterator[str]:
    """Make the scenes that are not there yet, in `workers` processes (0: one per core).

    Yields the name of each scene once it is whole. UsageError if `out` holds anything but scenes
    of the same order, ResourceError if it cannot be written.
    """
    _claim(out, order)
    names = [f"{index:06d}" for index in range(order.count)]
    known = _captions(out)
    todo = [i for i, name in enumerate(names) if name not in known]
    yield from (name for name in names if name in known)
    workers = min(workers or _cores(), max(len(todo), 1))
    metadata = out / "metadata.jsonl"
    with _pool(workers) as pool:
        for start in range(0, len(todo), _AT_ONCE):
            part = todo[start : start + _AT_ONCE]
            for index, caption in zip(part, pool.map(partial(_one, out, order), part), strict=True):
                known[names[index]] = caption
                yield names[index]
            _note_captions(metadata, known)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux alone knows which cores the process may use
        return os.cpu_count() or 1


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are gone at the end; what they have not begun is then left undone."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_signals)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C reaches the whole group of processes: the parent alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _claim(out: Path, order: Order) -> None:
    """Leave a note of what the folder holds, or compare with the one that is there."""
    try:
        str(out).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{str(out)!r} is not UTF-8", "choose another folder") from error
    note, wanted = out / "scenes.json", asdict(order)
    wanted.pop("count")
    if note.exists():
        there = _record(note, note.read_text())
        for key, value in wanted.items():
            if there.get(key) != value:
                raise UsageError(
                    f"{out} holds scenes of {key} {there.get(key)}, not {value}", _ELSEWHERE
                )
    elif out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} holds files that are no scenes of dmp", _ELSEWHERE)
    files.check_writable(out)
    files.write_bytes(note, (json.dumps(wanted) + "\n").encode())


def _record(path: Path, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{path} is damaged: {text[:40]!r} is no record", _ELSEWHERE)
    return record


def _captions(out: Path) -> dict[str, str]:
    """The captions of scenes that are whole, by name."""
    path = out / "metadata.jsonl"
    if not path.exists():
        return {}
    rows = [_record(path, line) for line in path.read_text().splitlines()]
    return {Path(row.get("file_name", "")).stem: row.get("text", "") for row in rows}


def _note_captions(path: Path, known: dict[str, str]) -> None:
    rows = [
        json.dumps({"file_name": f"images/{name}.png", "text": known[name]})
        for name in sorted(known)
    ]
    files.write_bytes(path, ("\n".join(rows) + "\n").encode())


def _one(out: Path, order: Order, index: int) -> str:
    picture, caption = frame(order, index)
    name = f"{index:06d}.png"
    maps = picture.maps
    _save(out / "images" / name, picture.image)
    _save(out / "depth" / name, np.rint(maps["depth"] * 1000).astype(np.uint16))
    _save(out / "normals" / name, _deep(maps["normals"] / 2 + 0.5))
    _save(out / "segmentation" / name, maps["segmentation"])
    _save(out / "albedo" / name, _deep(srgb_from_linear(maps["albedo"])))
    _save(out / "shading" / name, _deep(srgb_from_linear(maps["shading"])))
    return caption


def _deep(values: Array) -> Array:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 65535), np.uint16)


def _save(path: Path, values: Array) -> None:
    """A PNG of uint8 or uint16 [H, W] or [H, W, 3]; class ids get their palette."""
    ids = values.dtype == np.uint8 and values.ndim == 2
    writers.write_png(path, values, {}, ade20k().standard if ids else None)
