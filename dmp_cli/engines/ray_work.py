"""What the workers of engines.ray_data do: read, draw, write.

A row on the way holds one pickled value: to the network a batch, from there on an image. Errors are
such values too. Files are written by the workers, on storage that all machines share.
"""

import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dmp_cli.engines import saving, steps
from dmp_cli.engines.stream import batches
from dmp_cli.errors import DmpError, ResourceError
from dmp_cli.host import Host
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Job

Row = dict[str, Any]  # of Ray Data: {"held": bytes}
Numbered = tuple[int, Job]


@dataclass(frozen=True)
class Work:
    """What each worker is told."""

    host: Host
    here: str  # the working folder: paths may be relative to it
    aside: Path
    threads: str | None  # as the user set OMP_NUM_THREADS; Ray sets it to what a task reserves
    share: int


@dataclass(frozen=True)
class Drawn:
    """An image from the network on, and what the network's worker tells of itself."""

    number: int  # of the job
    host: Host
    notes: tuple[str, ...]
    what: Any  # an Item; once written a Result, or a Waiting


class Gate:
    """An actor that every batch passes before it is drawn, so that a run can be ended in order."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._closed = False

    def enter(self, numbers: list[int]) -> bool:
        """Whether to draw these; what was begun before its worker was lost may begin again."""
        if not self._closed:
            self._begun.update(numbers)
        return self._begun.issuperset(numbers)

    def close(self) -> set[int]:
        """Let nothing new pass; what did so far."""
        self._closed = True
        return self._begun


def _held(function: Callable[[Any], Any], row: Row) -> Row:
    """`function` of what a row holds. What it raises is held then, and goes past the others."""
    held = pickle.loads(row["held"])
    if not isinstance(held, Exception):
        try:
            held = function(held)
        except Exception as error:
            held = _with_trace(error)
    return {"held": pickle.dumps(held)}


def _with_trace(error: Exception) -> Exception:
    """An error to be raised elsewhere; a bug with its traceback, which is left behind."""
    if not isinstance(error, DmpError):
        error.add_note(f"in a worker of Ray:\n{traceback.format_exc()}")
    return error


@cache
def _clips(max_pixels: int) -> Clips:
    """The open clips of this process: its next task may be for the frames that follow."""
    return Clips(max_pixels)


def _settle(work: Work) -> None:
    """Be where the driver is."""
    try:
        os.chdir(work.here)
    except OSError as error:
        raise ResourceError(
            f"{work.here}: {error.strerror} on {os.uname().nodename}",
            "all machines of a cluster need the same folders; docs/ray.md",
        ) from error


def read(work: Work, row: Row) -> Row:
    """A batch of numbered jobs -> their items, read."""

    def group_of(group: list[Numbered]) -> list[tuple[int, steps.Item]]:
        _settle(work)
        clips = _clips(work.host.plan.max_pixels)
        return [(number, steps.read(work.host, clips, job)) for number, job in group]

    return _held(group_of, row)


class Predict:
    """An actor: a network that is loaded once."""

    def __init__(self, work: Work, gate: Any) -> None:
        self._gate = gate
        self._notes: list[str] = []
        self._failed: Exception | None = None
        os.environ.pop("OMP_NUM_THREADS", None)  # torch reads it when it is imported
        if work.threads:
            os.environ["OMP_NUM_THREADS"] = work.threads
        try:
            _settle(work)
            from dmp_cli.engines import local

            share = 1 if work.threads else work.share
            self._network = local.load(work.host.plan, self._notes.append, share)
        except Exception as error:
            self._failed = _with_trace(error)

    def __call__(self, row: Row) -> Iterator[Row]:
        """A batch that was read -> its images, drawn; none if the run is to end."""
        held = self._failed or pickle.loads(row["held"])
        if not isinstance(held, Exception):
            try:
                for one in self._draw(held):
                    yield {"held": pickle.dumps(one)}
            except Exception as error:
                held = _with_trace(error)
        if isinstance(held, Exception):
            yield {"held": pickle.dumps(held)}

    def _draw(self, read: list[tuple[int, steps.Item]]) -> Iterator[Drawn]:
        import ray

        if not ray.get(self._gate.enter.remote([number for number, _ in read])):
            return
        network, notes = self._network, tuple(self._notes)
        groups = batches(
            read,
            lambda one: steps.key(network.host, one[1]),
            lambda: network.batch,
            len(read) + 1,
        )
        for group in groups:
            drawn = steps.draw(network, [item for _, item in group])
            for (number, _), item in zip(group, drawn, strict=True):
                yield Drawn(number, network.host, notes, item)


def write(work: Work, row: Row) -> Row:
    """An image that was drawn -> what became of it."""

    def one_of(one: Drawn) -> Drawn:
        _settle(work)
        return replace(one, what=saving.write(one.host, work.aside, one.what))

    return _held(one_of, row)
