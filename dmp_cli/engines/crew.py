"""The processes of a run over several devices: started, loaded, told, heard and ended.

Each has a wire of its own and no lock is shared, so that one that dies takes nothing with it.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

from dmp_cli.engines import worker
from dmp_cli.errors import ResourceError
from dmp_cli.host import Host
from dmp_cli.plan import Plan
from dmp_cli.signals import PATIENCE

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT = 2.0  # seconds for a process that has nothing more to do

Note = Callable[[str], None]


@dataclass
class Worker:
    """A process, and what it has to do."""

    name: str  # of its device
    process: SpawnProcess
    wire: Connection
    batch: int = 0  # images at once; 0 until it has loaded
    waiting: deque[list[int]] = field(default_factory=deque)  # blocks of jobs it has not begun
    doing: set[int] = field(default_factory=set)  # jobs it has begun, by number
    busy: bool = False  # in a round
    ended: bool = False  # told that the round has no more jobs

    def tell(self, kind: str, value: object = None) -> None:
        """Send a message. One that is gone is found out by `hear`, after its last words."""
        with suppress(ConnectionError):
            self.wire.send((kind, value))

    def hear(self) -> worker.Message:
        """Its next message; ("gone", None) after the last. Raises what ends the run.

        That is the DmpError of a worker, or RuntimeError with the traceback of a bug.
        """
        kind, value = self.last()
        if kind == "failed":
            raise value
        if kind == "bug":
            raise RuntimeError(f"a bug in the worker of {self.name}:\n\n{value}")
        return kind, value

    def last(self) -> worker.Message:
        """The same, without raising."""
        try:
            message: worker.Message = self.wire.recv()
        except (EOFError, OSError):
            return "gone", None
        return message

    def dismiss(self, patience: float) -> str:
        """Wait for its end, or else kill it; how it ended, in words."""
        self.wire.close()
        self.busy = False
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off SIGINT and SIGTERM to the end of the block, in which processes are started.

    Those never see the signals that a terminal sends to all: they stay blocked in them.
    """
    resource_tracker.ensure_running()  # whose start would unblock them
    came: list[int] = []
    ours = threading.current_thread() is threading.main_thread()
    heeded = {number: signal.getsignal(number) for number in _SIGNALS if ours}
    for number, handler in heeded.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: came.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in heeded.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def start(plan: Plan, name: str, among: int, load: worker.Load) -> Worker:
    """A process that begins to load, one of so many, with its share of threads and pixels."""
    cores = max(1, (os.cpu_count() or 1) // among)
    readers, writers = min(plan.readers, cores), min(plan.writers, cores)
    share = plan.in_flight // among
    own = replace(plan, device=name, readers=readers, writers=writers, in_flight=share)
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.serve, args=(theirs, own, among, load))
    try:
        process.start()
    finally:
        theirs.close()
    return Worker(name, process, ours)


def loaded(workers: Sequence[Worker], note: Note) -> Host:
    """Wait until all are ready; the host of one. What several say is noted once.

    Raises what loading raises in one of them, and ResourceError if one ends in it.
    """
    told: set[str] = set()
    hosts: list[Host] = []
    while pending := {one.wire: one for one in workers if not one.batch}:
        for wire in wait(list(pending)):
            one = pending[cast(Connection, wire)]
            kind, value = one.hear()
            if kind == "note" and value not in told:
                told.add(value)
                note(value)
            elif kind == "ready":
                host, one.batch = value
                hosts.append(host)
            elif kind == "lost":
                raise value
            elif kind == "gone":
                raise ResourceError(
                    f"the worker of {one.name} ended while it loaded the model "
                    f"({one.dismiss(EXIT)})",
                    "see whether there is memory for a model on each device",
                )
    return hosts[0]


def quiet(workers: Sequence[Worker]) -> None:
    """Wait until nothing is in flight, and nobody is told; one that takes too long is killed."""
    last = time.monotonic() + PATIENCE
    for one in workers:
        if one.busy:
            one.tell("stop")
    while busy := {one.wire: one for one in workers if one.busy}:
        left = max(0.0, last - time.monotonic())
        for wire in wait(list(busy), left):
            one = busy[cast(Connection, wire)]
            one.busy = one.last()[0] not in ("idle", "lost", "failed", "bug", "gone")
        if not left:
            break
    for one in workers:
        if one.busy:
            one.process.kill()


def end(workers: Sequence[Worker]) -> None:
    """End the processes: one that still loads at once, the others by themselves.

    One in the middle of a round, which nobody quieted, is given the time to write what it has.
    """
    last = time.monotonic() + PATIENCE
    for one in workers:
        one.wire.close()
        if not one.batch:
            one.process.kill()
    for one in workers:
        one.dismiss(max(last - time.monotonic(), EXIT) if one.busy else EXIT)
