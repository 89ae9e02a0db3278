"""A process of several that share a run: one device, and jobs that come over a wire.

It takes ("begin", folder), then blocks ("jobs", [(number, Job), ...]), then ("end", None), as often
as there are rounds; after ("stop", None) it finishes what it has drawn. It tells ("note", text) and
("ready", (host, batch)) once, ("taken", None) for each block that it begins, ("result", (number,
Result or Waiting)), ("idle", None) after each round, and as its last word perhaps ("lost", error)
of its device alone, ("failed", error) of the run, or ("bug", traceback).
"""

import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dmp_cli.engines import flow, steps
from dmp_cli.engines.saving import Waiting
from dmp_cli.errors import DeviceError, DmpError
from dmp_cli.jobs import Job
from dmp_cli.plan import Plan
from dmp_cli.signals import PATIENCE, leave

# plan, where a line for the user goes, how many processes share the cores -> what draws
Load = Callable[[Plan, Callable[[str], None], int], steps.Network]
Message = tuple[str, Any]


def serve(wire: Connection, plan: Plan, among: int, load: Load) -> None:
    """What the process does: load the network of a plan, then round after round of jobs.

    It ends with the other end of the wire, whatever became of that: it then finishes what it has
    drawn, within the seconds that a signal leaves.
    """
    _settle()
    inbox = _Inbox(wire)
    try:
        network = load(plan, lambda text: wire.send(("note", text)), among)
        wire.send(("ready", (network.host, network.batch)))
        while (folder := inbox.begun()) is not None:
            _round(wire, inbox, network, folder)
    except ConnectionError:  # nobody is there to be told
        return
    except Exception as error:
        _tell_end(wire, error)


def _settle() -> None:
    """Results alone go to standard output, and this process has none to print."""
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them, dmp says itself


def _round(wire: Connection, inbox: "_Inbox", network: steps.Network, folder: Path) -> None:
    ahead = network.batch + network.host.plan.readers  # no more: others may be faster
    with closing(flow.written(network, inbox.jobs(), folder, inbox.is_over, ahead)) as made:
        for one in made:
            job = one.result.job if isinstance(one, Waiting) else one.job
            wire.send(("result", (inbox.number(job), one)))
    inbox.running = False
    wire.send(("idle", None))


def _tell_end(wire: Connection, error: Exception) -> None:
    message: Message = ("bug", traceback.format_exc())
    if isinstance(error, DeviceError):
        message = ("lost", error)
    elif isinstance(error, DmpError):
        message = ("failed", error)
    try:
        wire.send(message)
    except ConnectionError:  # nobody is there to be told
        return


class _Inbox:
    """What came over the wire: read by a thread, so that whoever writes need not wait."""

    def __init__(self, wire: Connection) -> None:
        self.running = False  # a round
        self._wire, self._over = wire, False
        self._waiting: SimpleQueue[Message] = SimpleQueue()
        self._doing: dict[int, tuple[int, Job]] = {}  # by the identity of the job
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                message = self._wire.recv()
                self._over = self._over or message[0] == "stop"
                self._waiting.put(message)
        except (EOFError, OSError):
            pass  # the other end is gone, in order or not
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody wants more: end in order, but at once if that was to be done before already."""
        if self._over and self.running:
            leave(1)
        self._over = True
        late = threading.Timer(PATIENCE, leave, [1])
        late.daemon = True
        late.start()
        self._waiting.put(("gone", None))

    def is_over(self) -> bool:
        """Whether to take and draw no more."""
        return self._over

    def begun(self) -> Path | None:
        """Wait for a round; its folder for what waits. None when there will be none."""
        kind, value = "", None
        while kind not in ("begin", "gone"):
            kind, value = self._waiting.get()
        self.running = kind == "begin"
        return value

    def jobs(self) -> Iterator[Job]:
        """The jobs of a round, as they come."""
        while (message := self._waiting.get())[0] == "jobs":
            self._wire.send(("taken", None))
            for number, job in message[1]:
                self._doing[id(job)] = number, job
                yield job

    def number(self, job: Job) -> int:
        """The number that a job of the round came with, once."""
        return self._doing.pop(id(job))[0]
