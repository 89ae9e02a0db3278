"""Signals: the first ends in order, the second at once; what hangs is ended after a while."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from dmp_cli import signals
from dmp_cli.signals import Interrupted, Stop, heeded

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@BOTH
def test_where_nothing_is_in_flight_it_is_raised_at_once(number: int) -> None:
    with pytest.raises(Interrupted) as raised, heeded():  # noqa: PT012
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert raised.value.exit_code == 128 + number


@BOTH
def test_what_is_in_flight_is_finished_first(number: int) -> None:
    done = []
    with pytest.raises(Interrupted), heeded() as stop, stop.draining():  # noqa: PT012
        os.kill(os.getpid(), number)
        assert stop()
        done.append("finished")
    assert done == ["finished"]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with heeded():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's `&` does
    try:
        with heeded() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_take_no_signals() -> None:
    found: list[Stop] = []

    def run() -> None:
        with heeded() as stop:
            found.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not found[0]()


def test_a_signal_that_a_library_swallowed_ends_it_before_work_begins() -> None:
    with pytest.raises(Interrupted), heeded() as stop:  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            pass
        with stop.draining():
            pytest.fail("began")


def ended(body: str, *numbers: int) -> tuple[int, float]:
    """How a process ended that runs `body` under `heeded`, and how long after the first signal."""
    code = (
        "import signal, sys, threading, time\nfrom dmp_cli import signals\n"
        "signals.PATIENCE = 1.0\n"
        "with signals.heeded() as stop:\n" + textwrap.indent(body, "    ")
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            start = time.monotonic()
            for number in numbers:
                child.send_signal(number)
                time.sleep(0.2)
            return child.wait(timeout=30), time.monotonic() - start
        finally:
            child.kill()


@BOTH
def test_a_second_signal_stops_at_once(number: int) -> None:
    slow = "signals.PATIENCE = 60\nwith stop.draining():\n    print('ready', flush=True)\n"
    assert ended(f"{slow}    time.sleep(30)\n", number, number)[0] == 128 + number


@BOTH
def test_what_hangs_is_ended_after_a_while(number: int) -> None:
    # a reader thread on a mount that is dead, which the interpreter would wait for
    body = "threading.Thread(target=time.sleep, args=[60]).start()\nwith stop.draining():\n"
    code, seconds = ended(f"{body}    print('ready', flush=True)\n    time.sleep(60)\n", number)
    assert code == 128 + number
    assert seconds < 20


def test_patience_is_below_what_is_promised() -> None:
    assert signals.PATIENCE < 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_program_itself_loads_ends_it_without_a_traceback(
    number: int, code: int
) -> None:
    body = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'dmp_cli.cli': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from dmp_cli.__main__ import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (code, "")
