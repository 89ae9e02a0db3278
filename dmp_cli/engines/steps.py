"""The steps of one image that every engine shares: read, draw, write. Errors travel as values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dmp_cli
from dmp_cli import colour, tasks, writers
from dmp_cli.errors import DmpError, ImageError
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Plan
from dmp_cli.predict import Array, Drawn, Predictor, Prepared


@dataclass(frozen=True)
class Item:
    """A job on its way; `error` is why it will not be written."""

    job: Job
    prepared: Prepared | None = None
    drawn: dict[str, Drawn] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


def read(predictor: Predictor, job: Job) -> Item:
    """Job -> item with its picture at the network's size."""
    start = time.monotonic()
    try:
        prepared = predictor.prepare(job.source)
    except ImageError as error:
        return Item(job, error=_line(error), seconds=time.monotonic() - start)
    return Item(job, prepared, seconds=time.monotonic() - start)


def draw(predictor: Predictor, batch: Sequence[Item]) -> list[Item]:
    """Items of equal shape -> the same with what the network drew; failed items pass through."""
    start = time.monotonic()
    ready = [item.prepared for item in batch if item.prepared]
    if not ready:
        return list(batch)
    drawn = predictor.draw(ready)
    each = (time.monotonic() - start) / len(ready)
    return [
        replace(
            item,
            prepared=replace(prepared, pictures={}),
            drawn=pictures,
            seconds=item.seconds + each,
        )
        for item, prepared, pictures in zip(batch, ready, drawn, strict=True)
    ]


def write(predictor: Predictor, item: Item) -> Result:
    """Item -> its files, and the result of the job. ResourceError if no file could be written."""
    start = time.monotonic()
    if item.prepared is None:
        return Result(item.job, errors=(item.error,), seconds=item.seconds)
    written, errors = [], []
    for task in predictor.plan.tasks:
        try:
            full = predictor.finish(task, item.drawn[task], item.prepared)
            for form in predictor.plan.formats:
                written.append(_save(predictor, item.job, task, full, form))
        except ImageError as error:
            errors.append(_line(error))
        except MemoryError:
            errors.append(f"{task}: not enough memory for a map of this size")
    seconds = item.seconds + time.monotonic() - start
    return Result(item.job, tuple(written), tuple(errors), item.prepared.notes, seconds)


def _save(predictor: Predictor, job: Job, task: str, full: Array, form: str) -> Path:
    path = job.targets[task, form]
    if form == "npy":
        writers.write_npy(path, full)
        return path
    picture = tasks.find(task).preview(full, _view(predictor.plan))
    text = provenance(predictor, task) | {"Source": job.source.name} | dict(picture.text)
    writers.write_png(path, picture.pixels, text, picture.palette)
    return path


def _view(plan: Plan) -> tasks.View:
    return tasks.View(colour.colormap(plan.colormap), plan.invert, plan.range)


def provenance(predictor: Predictor, task: str) -> dict[str, str]:
    """Where a map comes from, as written into its file."""
    recipe = predictor.recipes[task]
    return {
        "Software": f"dmp {dmp_cli.__version__}",
        "Task": task,
        "Model": recipe.model,
        "Backbone": str(recipe.backbone),
        "Weights-SHA256": predictor.digests[task],
        "Settings": f"{recipe.settings} dtype={predictor.placement.dtype_name!r}",
    }


def _line(error: DmpError) -> str:
    return f"{error}; {error.hint}" if error.hint else str(error)
