"""The first steps of one image, which every engine shares: read, draw. Errors travel as values."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dmp_cli import digests, images, storage
from dmp_cli.digests import Stamp
from dmp_cli.errors import DmpError, ImageError
from dmp_cli.files import in_words
from dmp_cli.host import TOO_LONG, Again, Drawn, Host, Prepared
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job

Room = Callable[[int], AbstractContextManager[None]]  # of as many pixels, while they are held

_FRAME = 3840 * 2160  # pixels that a frame of a clip is taken for: its size is not in a header
_BLIND = 1 << 30  # bytes that are read of a file of which nothing is known


class Network(Protocol):
    """What draws: a Predictor, or what stands in for one in a measurement."""

    host: Host
    batch: int  # images at once; it may become smaller
    at_once: int  # batches: 2 where one is fetched while a device computes the next

    def draw(self, batch: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Drawn]]:
        """What the network draws for images of equal shape: by task, for each image."""

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt is longer than the network takes."""


def without_limit(pixels: int) -> AbstractContextManager[None]:
    """Room for any number of pixels."""
    del pixels
    return nullcontext()


@dataclass(frozen=True)
class Item:
    """A job on its way; `error` is why it will not be written."""

    job: Job
    prepared: Prepared | None = None
    drawn: dict[str, Drawn] = field(default_factory=dict)
    error: str = ""
    again: bool = False  # of the error, as of an ImageError
    seconds: float = 0.0
    read: Stamp | None = None


def read(host: Host, clips: Clips, job: Job, room: Room = without_limit) -> Item:
    """Job -> item with its picture at the network's size, and the stamp of what was read.

    While the picture is held at full size, it is within `room`.
    """
    start = time.monotonic()
    stamp = None
    try:
        with storage.fetched(job.source) as file:
            with _as_image_error():
                pixels, whole = _pixels(host, file, job), job.frame is None
                stamp = digests.stamp(file) if whole else digests.stamp_once(file)
            with room(pixels):
                source = clips.frame(job.source, job.frame) if job.frame is not None else file
                prepared = host.prepare(source, job.prompt)
                del source
            with _as_image_error():
                changed = not digests.unchanged(file, stamp)
        if changed:
            raise ImageError("changed while it was read", "run it again", again=True)
    except ImageError as error:
        seconds = time.monotonic() - start
        return Item(job, error=line(error), again=error.again, seconds=seconds, read=stamp)
    return Item(job, prepared, seconds=time.monotonic() - start, read=stamp)


def stamped(job: Job) -> Stamp | None:
    """The stamp of the input of a job that is not read here; None if it cannot be had."""
    try:
        with storage.fetched(job.source) as file:
            return digests.stamp(file) if job.frame is None else digests.stamp_once(file)
    except (OSError, ImageError):  # without it, the next run tries the input again
        return None


def _pixels(host: Host, file: Path, job: Job) -> int:
    """What a job is taken to hold while it is read; what cannot be told may be the largest.

    ImageError for a file without a header that is known and too large to be read to be sure.
    """
    if job.frame is not None:
        return _FRAME
    stated = images.pixels_stated(file)
    if stated is None and file.stat().st_size > _BLIND:
        raise ImageError(f"not an image: {in_words(file.stat().st_size)} without a known header")
    return host.plan.max_pixels if stated is None else stated


@contextmanager
def _as_image_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


def draw(network: Network, batch: Sequence[Item]) -> list[Item]:
    """Items of equal key -> the same with what the network drew; failed items pass through."""
    start = time.monotonic()
    ready = [item.prepared for item in batch if item.prepared]
    if not ready:
        return list(batch)
    drawn = network.draw(ready, batch[0].job.tasks(network.host.plan.tasks))
    each = (time.monotonic() - start) / len(ready) / network.at_once  # they share the device
    items = []
    for item, prepared, pictures in zip(batch, ready, drawn, strict=True):
        notes = prepared.notes + _of_prompt(network, item) + _of_again(pictures)
        left = replace(prepared, pictures={}, notes=notes)
        items.append(replace(item, prepared=left, drawn=pictures, seconds=item.seconds + each))
    return items


def key(host: Host, item: Item) -> object:
    """What the items of a batch have in common: the shapes of their pictures, and their tasks.

    None for an item that failed: the network has nothing to do for it.
    """
    return (item.prepared.shape, item.job.tasks(host.plan.tasks)) if item.prepared else None


def _of_prompt(network: Network, item: Item) -> tuple[str, ...]:
    """A remark on the prompt of an image; of a clip, whose frames share one, once."""
    prompt = None if item.job.frame else item.job.prompt
    if not prompt or not network.cuts(prompt):
        return ()
    return (f"its prompt {TOO_LONG}",)


def _of_again(pictures: Mapping[str, Drawn]) -> tuple[str, ...]:
    """A remark on what was drawn a second time."""
    names = [task for task, picture in pictures.items() if isinstance(picture, Again)]
    if not names:
        return ()
    return (f"{', '.join(names)}: not finite in half precision, drawn again in fp32",)


def line(error: DmpError) -> str:
    """An error and what to do about it, in one line."""
    return f"{error}; {error.hint}" if error.hint else str(error)
