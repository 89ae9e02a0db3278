"""The first steps of one image, which every engine shares: read, draw. Errors travel as values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dmp_cli.errors import DmpError, ImageError
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job
from dmp_cli.predict import TOO_LONG, Drawn, Predictor, Prepared


@dataclass(frozen=True)
class Item:
    """A job on its way; `error` is why it will not be written."""

    job: Job
    prepared: Prepared | None = None
    drawn: dict[str, Drawn] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


def read(predictor: Predictor, clips: Clips, job: Job) -> Item:
    """Job -> item with its picture at the network's size."""
    start = time.monotonic()
    try:
        source = job.source if job.frame is None else clips.frame(job.source, job.frame)
        prepared = predictor.prepare(source, job.prompt)
    except ImageError as error:
        return Item(job, error=line(error), seconds=time.monotonic() - start)
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
            prepared=replace(
                prepared, pictures={}, notes=prepared.notes + _of_prompt(predictor, item)
            ),
            drawn=pictures,
            seconds=item.seconds + each,
        )
        for item, prepared, pictures in zip(batch, ready, drawn, strict=True)
    ]


def _of_prompt(predictor: Predictor, item: Item) -> tuple[str, ...]:
    """A remark on the prompt of an image; of a clip, whose frames share one, once."""
    prompt = None if item.job.frame else item.job.prompt
    if not prompt or not predictor.cuts(prompt):
        return ()
    return (f"its prompt {TOO_LONG}",)


def line(error: DmpError) -> str:
    """An error and what to do about it, in one line."""
    return f"{error}; {error.hint}" if error.hint else str(error)
