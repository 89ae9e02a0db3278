"""SIGINT and SIGTERM: the first ends a run in order, the second at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 9.0  # seconds for what is in flight; ten are promised


class Interrupted(BaseException):
    """A signal came where nothing is in flight. No Exception, so that nothing takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def heed_early() -> None:
    """From now on SIGTERM ends the program in order, as SIGINT does, unless it is ignored."""
    pid = os.getpid()

    def take(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != pid:  # a fork, which has nothing to put in order
            leave(128 + number)
        raise Interrupted(number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, take)


class Stop:
    """Whether a run is to end before it is done, and why."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came
        self._asked = self._draining = False
        self._came, self._over = threading.Lock(), threading.Event()
        self._came.acquire()

    def __call__(self) -> bool:
        """Whether to end."""
        return self._asked

    def ask(self) -> None:
        """End the run in order, though no signal came."""
        self._asked = True

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.number:
            raise Interrupted(self.number)

    def watch(self) -> None:
        """Wait for a signal, then end the process unless the run has ended by then."""
        self._came.acquire()
        if not self._over.wait(PATIENCE):
            leave(128 + self.number)

    def end(self) -> None:
        """The run has ended: let `watch` go."""
        self._over.set()
        if not self.number:
            self._came.release()

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Within, a signal is only noted, and raised at the end: what is in flight is finished."""
        self.check()
        self._draining = True
        try:
            yield
        finally:
            self._draining = False
        self.check()

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals."""
        del frame
        if self.number:
            leave(128 + number)
        self.number, self._asked = number, True
        self._came.release()  # no thread is begun here: the signal may have come within that
        if not self._draining:
            raise Interrupted(number)


def leave(code: int) -> None:
    """End the process at once, whatever its threads wait for; what has a final name is whole."""
    os._exit(code)


@contextmanager
def heeded(numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[Stop]:
    """Take the signals within. Elsewhere than in the main thread there are none to take."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    threading.Thread(target=stop.watch, daemon=True).start()
    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells with & set it
            before[number] = signal.signal(number, stop.take)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.end()
