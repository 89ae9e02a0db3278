"""A line now and then on standard error where no bar is drawn: a night job's log shows it lives."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from dmp_cli.commands.report import Talk
from dmp_cli.errors import UsageError

EVERY = 60.0  # seconds; $DMP_HEARTBEAT for another time


@contextmanager
def beating(state: Callable[[], object], talk: Talk) -> Iterator[None]:
    """Within, say every minute how far the run is, unless a terminal shows a bar."""
    seconds = interval()
    if talk.quiet or (talk.progress and sys.stderr.isatty()):
        yield
        return
    over = Event()

    def beat() -> None:
        while not over.wait(seconds):
            talk.note(str(state()))

    Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def interval() -> float:
    """Seconds between two lines. UsageError if $DMP_HEARTBEAT names none."""
    text = os.environ.get("DMP_HEARTBEAT", str(EVERY))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"DMP_HEARTBEAT is {text!r}, not seconds", "unset it, or name a number")
    return seconds
