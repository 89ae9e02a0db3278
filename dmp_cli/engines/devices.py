"""Several devices of this machine: a process for each, and one queue of jobs for all."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from dmp_cli.engines import crew, flow, local, steps, worker
from dmp_cli.engines.crew import Note, Worker
from dmp_cli.engines.saving import Waiting
from dmp_cli.errors import ResourceError
from dmp_cli.host import Host
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Plan

_TICK = 0.2  # seconds until a signal is seen
_FRAMES = 32  # of a clip that go to one worker: to begin in the middle costs decoding


@contextmanager
def opened(
    plan: Plan, note: Note, names: Sequence[str], load: worker.Load = local.load
) -> Iterator[Callable[..., Iterator[Result]]]:
    """Load the network of a plan on each of several devices, and give what takes jobs.

    That is called as flow.stream is after its network, and gives results as they are done, in any
    order. A device may be named twice. What a worker that is lost had in its hands is done by the
    others. Raises what loading raises in a worker, and ResourceError if one ends in it.
    """
    workers: list[Worker] = []
    try:
        note(f"{len(names)} workers: {', '.join(names)}")
        with crew.undisturbed():
            for name in names:
                workers.append(crew.start(plan, name, len(names), load))
        host = crew.loaded(workers, note)
        here = replace(plan, writers=plan.writers * len(names))  # for what waits for the end
        yield partial(_stream, workers, replace(host, plan=here), note)
    finally:
        crew.end(workers)


def _stream(
    workers: list[Worker],
    host: Host,
    note: Note,
    jobs: Sequence[Job],
    aside: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    with flow.kept_aside(host.plan, jobs, aside) as folder:
        run = _Run(workers, jobs, folder, note)
        try:
            made = flow.counted(run.results(stopped), len(jobs), stopped)
            yield from flow.completed(host, made, stopped)
        finally:
            crew.quiet(workers)


@dataclass
class _Run:
    """The jobs of a run on their way over several workers, by their numbers."""

    workers: list[Worker]
    jobs: Sequence[Job]
    folder: Path
    note: Note
    next: int = 0  # that nobody has got yet
    returned: deque[list[int]] = field(default_factory=deque)  # blocks that a lost worker had
    suspects: deque[int] = field(default_factory=deque)  # begun by a lost worker: to be done alone
    struck: set[int] = field(default_factory=set)  # that ever were suspects

    def results(self, stopped: Callable[[], bool]) -> Iterator[Result | Waiting]:
        """Results as they come. ResourceError once no worker is left for the rest."""
        stopping = False
        while True:
            if not stopping and stopped():
                stopping = True
                for one in self.workers:
                    one.tell("stop")
            if not stopping:
                self._give()
            busy = {one.wire: one for one in self.workers if one.busy}
            if not busy:
                break
            for wire in wait(list(busy), _TICK):
                yield from self._hear(busy[cast(Connection, wire)], stopping)
        if not stopping and (rest := self._rest()):
            raise ResourceError(
                f"every worker is lost, with {rest} of {len(self.jobs)} images to do",
                "see above what became of them, then run it again",
            )

    def _rest(self) -> int:
        """How many jobs nobody has."""
        return len(self.jobs) - self.next + sum(map(len, self.returned)) + len(self.suspects)

    def _give(self) -> None:
        """See that each worker has a block waiting; when there are none left, suspects, alone.

        One that was told the end of its round takes no more in it: it has to be idle first.
        """
        for one in self.workers:
            if one.busy and one.ended:
                continue
            if not one.waiting and (block := self._block(one.batch)):
                self._send(one, block)
            elif not one.busy and self.suspects:
                self._send(one, [self.suspects.popleft()])
                self._end_round(one)
            elif one.busy and not self._left():
                self._end_round(one)

    def _left(self) -> bool:
        return bool(self.returned) or self.next < len(self.jobs)

    def _end_round(self, one: Worker) -> None:
        if not one.ended:
            one.tell("end")
            one.ended = True

    def _block(self, batch: int) -> list[int]:
        """The next jobs: a batch of them, so that batches are as on one device.

        Of a clip several. Nothing when there are none left.
        """
        if self.returned:
            return self.returned.popleft()
        start, end = self.next, min(self.next + batch, len(self.jobs))
        while end < len(self.jobs) and end - start < _FRAMES and self._goes_on(end):
            end = min(end + batch, len(self.jobs))
        self.next = end
        return list(range(start, end))

    def _goes_on(self, number: int) -> bool:
        """Whether a job is a frame of the clip of the job before it."""
        before, job = self.jobs[number - 1], self.jobs[number]
        return job.frame is not None and job.source == before.source

    def _send(self, one: Worker, block: list[int]) -> None:
        if not one.busy:
            one.busy, one.ended = True, False
            one.tell("begin", self.folder)
        one.waiting.append(block)
        one.tell("jobs", [(number, self.jobs[number]) for number in block])

    def _hear(self, one: Worker, stopping: bool) -> Iterator[Result | Waiting]:
        kind, value = one.hear()
        if kind == "taken":
            one.doing.update(one.waiting.popleft())
        elif kind == "result":
            one.doing.discard(value[0])
            yield value[1]
        elif kind == "idle":
            one.busy = False
            one.waiting.clear()  # where it was stopped
        elif kind in ("lost", "gone"):
            self.workers.remove(one)
            fate = one.dismiss(crew.EXIT)
            yield from self._without(one, str(value or fate), stopping)

    def _without(self, one: Worker, why: str, stopping: bool) -> Iterator[Result]:
        """Go on without a worker: what it had begun is done alone, or fails if it was before."""
        self.note(f"the worker of {one.name} is lost ({why}); {len(self.workers)} left")
        if stopping:
            return
        self.returned.extend(one.waiting)
        for number in sorted(one.doing):
            if number in self.struck:
                error = f"a second worker was lost over it ({why}); see whether it is too large"
                job = self.jobs[number]
                yield Result(job, errors=(error,), read=steps.stamped(job))
            else:
                self.struck.add(number)
                self.suspects.append(number)
