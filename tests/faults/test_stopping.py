"""Runs that are stopped: killed, interrupted, cut off from who reads them, or doubled."""

import fcntl
import os
import pty
import random
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from dmp_cli.signals import PATIENCE
from tests import hub as hubs
from tests.conftest import write_image
from tests.faults.outputs import inputs_noted, maps, require_whole
from tests.faults.process import DMP, TORCH, Command, Running, uncovered
from tests.faults.test_weights_files import OF_THE_HUB, entry

INT, TERM = signal.SIGINT, signal.SIGTERM
CODES = {INT: 130, TERM: 143}
FORMATS = ("--format", "png,npy,exr")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Forty pictures of two shapes, in two folders."""
    for seed in range(40):
        size = (48, 64) if seed % 3 else (64, 48)
        write_image(tmp_path / "many" / ("below" if seed % 2 else "") / f"{seed}.png", *size, seed)
    return tmp_path / "many"


# SIGKILL ----------------------------------------------------------------------------------


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 2), *(pytest.param(seed, 5, marks=pytest.mark.slow) for seed in range(1, 11))],
)
def test_kills_at_random_moments(
    command: Command, many: Path, tmp_path: Path, seed: int, kills: int
) -> None:
    """Killed again and again; then a run completes it, to the bytes of one never disturbed."""
    folder = many if kills > 2 else many / "below"
    words = ("predict", "depth,segmentation", folder, *FORMATS, *command.model)
    whole = command.fork(*words, "-o", tmp_path / "whole")
    assert whole.code == 0, whole.err
    lasted, rng, out = 0.0, random.Random(seed), tmp_path / "out"
    for turn in range(kills):
        running = command.start(*words, "-o", out)
        if turn == 0:  # one at least when files are being written
            running.prints(rng.randint(1, 60))
            lasted = time.monotonic() - running.begun + whole.seconds
        else:
            time.sleep(rng.uniform(0, lasted))
        running.send(signal.SIGKILL)
        running.end()
        if out.exists():
            require_whole(out)
    again = command.fork(*words, "-o", out)
    assert again.code == 0, again.err
    assert maps(out) == maps(tmp_path / "whole")
    assert len(maps(out)) == (40 if kills > 2 else 20) * 2 * 3 + 2  # and the legend of class ids


# Signals ----------------------------------------------------------------------------------

SLOW = """
import os, sys, time
from dmp_cli.backbone import Backbone
decode = Backbone.decode
def slow(self, latents):
    print("drawing", file=sys.stderr, flush=True)
    time.sleep(float(os.environ["SLOW"]))
    return decode(self, latents)
Backbone.decode = slow
"""


LOADING = """
import sys, time
from dmp_cli.backbone import Backbone
def slow(*words, **more):
    print("at the weights", file=sys.stderr, flush=True)
    time.sleep(60)
Backbone.load = slow
"""


def both(rarely: signal.Signals) -> list[object]:
    """Both signals, of which one is seldom tried."""
    often = {INT: TERM, TERM: INT}[rarely]
    return [often, pytest.param(rarely, marks=pytest.mark.slow)]


def require_stopped(running: Running, sent: signal.Signals, within: float = 10) -> str:
    """Send a signal; the end comes in time, with its code and without a traceback."""
    begun = time.monotonic()
    running.send(sent)
    ran = running.end(60)
    assert ran.code == CODES[sent], ran.err
    assert time.monotonic() - begun < within
    assert "Traceback" not in ran.err
    return ran.err


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", [INT, TERM])
def test_stopped_while_inputs_are_awaited(
    command: Command, tmp_path: Path, sent: signal.Signals
) -> None:
    """From a pipe into which no more is written, once it has taken a line from it."""
    awaited, kept = os.pipe()
    os.write(kept, b"a.png\n")
    running = command.start("predict", "depth", "-", "-o", tmp_path / "out", *command.model,
                            stdin=awaited)  # fmt: skip
    running.until(lambda _: fcntl.ioctl(awaited, termios.FIONREAD, bytes(4)) == bytes(4))
    require_stopped(running, sent)
    os.close(awaited)
    os.close(kept)
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", both(rarely=TERM))
def test_stopped_while_it_fetches(
    command: Command, folder: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    weights = entry(tmp_path / "w.toml", OF_THE_HUB)
    with hubs.faulty() as (address, asked):
        env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"{address}/drip"}
        running = command.start("predict", "depth", folder, "-o", tmp_path / "out", "--model", "x",
                                "--weights", weights, env=env)  # fmt: skip
        running.until(lambda _: any("GET" in line and hubs.NAME in line for line in asked))
        require_stopped(running, sent)
    assert not list(command.folder.rglob("*.safetensors"))


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", both(rarely=INT))
@pytest.mark.parametrize(
    ("patch", "said"), [(None, "loading model"), (LOADING, "at the weights")], ids=["torch", "all"]
)
def test_stopped_while_it_loads(
    command: Command, folder: Path, tmp_path: Path, sent: signal.Signals, patch: str | None,
    said: str,
) -> None:  # fmt: skip
    """While torch is imported, and then while the weights are read."""
    running = command.start("predict", "depth", folder, "-o", tmp_path / "out", *command.model,
                            patch=patch, forked=patch is not None)  # fmt: skip
    running.says(said)
    require_stopped(running, sent)
    assert maps(tmp_path / "out") == {}


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", both(rarely=INT))
def test_stopped_while_it_predicts(
    command: Command, many: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """What is in flight is written and told; the same command again does the others."""
    out = tmp_path / "out"
    words = ("predict", "depth", many, "-o", out, *FORMATS, "--batch", 4, *command.model)
    running = command.start(*words, patch=SLOW, env={"SLOW": "1"}, forked=True)
    running.prints()
    assert "of 40" in require_stopped(running, sent)
    assert not list(out.rglob(".dmp-*"))
    there = require_whole(out)
    assert 12 <= there < 120
    assert there % 12 == 0  # whole batches
    assert there == len(running.out.read_text().splitlines())
    assert there == 3 * len(inputs_noted(out))
    again = command.fork(*words)
    assert again.code == 0, again.err
    assert len(again.lines) == 120 - there
    assert require_whole(out) == 120


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", both(rarely=INT))
def test_a_batch_that_takes_too_long_is_not_waited_for(
    command: Command, many: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    assert PATIENCE <= 10
    running = command.start("predict", "depth", many, "-o", tmp_path / "out", *command.model,
                            patch=f"import dmp_cli.signals as s; s.PATIENCE = 2\n{SLOW}",
                            env={"SLOW": "40"}, forked=True)  # fmt: skip
    running.says("drawing")
    require_stopped(running, sent, within=7)
    assert not list((tmp_path / "out").rglob(".dmp-*"))


@pytest.mark.fault(25)
@pytest.mark.parametrize("sent", both(rarely=INT))
def test_the_second_signal_stops_at_once(
    command: Command, many: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    running = command.start("predict", "depth", many, "-o", tmp_path / "out", *command.model,
                            patch=SLOW, env={"SLOW": "40"}, forked=True)  # fmt: skip
    running.says("drawing")
    begun = time.monotonic()
    running.send(sent)
    while not running.ended():  # two that come at once are one
        time.sleep(0.2)
        os.kill(running.process.pid, sent)  # Popen would take its end for itself
    ran = running.end(60)
    assert time.monotonic() - begun < PATIENCE / 2
    assert ran.code in (CODES[sent], -sent)
    assert "Traceback" not in ran.err


# Streams ----------------------------------------------------------------------------------


@pytest.mark.fault(26)
def test_head_takes_one_line_and_standard_error_is_closed(
    command: Command, many: Path, tmp_path: Path
) -> None:
    words = " ".join(map(str, (*DMP, "predict depth", many, "-o", tmp_path / "out",
                               *command.model)))  # fmt: skip
    ran = subprocess.run(
        ["sh", "-c", f"({words} 2>&-; echo $? > {tmp_path}/code) | head -1"],
        env=uncovered(command.environment(LC_ALL="C", NO_COLOR="1")), capture_output=True,
        check=False, text=True, timeout=120,
    )  # fmt: skip
    assert len(ran.stdout.splitlines()) == 1
    assert ran.stderr == ""
    assert (tmp_path / "code").read_text() == "0\n"
    assert require_whole(tmp_path / "out") == 40


@pytest.mark.fault(26)
def test_a_terminal_gets_no_escape_codes_with_no_color(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    leader, follower = pty.openpty()
    (folder / "\x1b[31mbad.png").write_bytes(b"no picture")
    running = command.start(
        "predict", "depth", folder, "-o", tmp_path / "out", *command.model, stdout=follower,
        stderr=follower, env={"NO_COLOR": "1", "TERM": "xterm-256color", "LC_ALL": "C"},
        forked=True,
    )  # fmt: skip
    os.close(follower)
    screen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            screen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    assert running.end().code == 3
    assert b"\x1b" not in screen
    assert b"Traceback" not in screen
    assert screen.count(b".depth.png") == 4


@pytest.mark.fault(26)
@pytest.mark.parametrize("words", [("tasks",), ("weights", "list"), ("predict", "--help")])
def test_no_terminal_no_escape_codes(command: Command, words: tuple[str, ...]) -> None:
    ran = command.run(*words, env={"LC_ALL": "C", "TERM": "xterm", "FORCE_COLOR": ""})
    assert ran.code == 0, ran.err
    assert b"\x1b" not in ran.out
    assert ran.err == ""


# Two at once ------------------------------------------------------------------------------


@pytest.mark.fault(27)
def test_two_processes_on_one_output_folder(command: Command, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = many / "below"
    words = ("predict", "depth", folder, "-o", out, *FORMATS, *command.model)
    ended = [running.end() for running in [command.start(*words, forked=True) for _ in range(2)]]
    assert [ran.code for ran in ended] == [0, 0], ended[0].err + ended[1].err
    assert require_whole(out) == 60
    assert {record["input"] for record in inputs_noted(out)} == {
        str(path) for path in folder.glob("*.png")
    }
    again = command.run(*words, patch=TORCH)  # nothing is left to do
    assert (again.code, again.out) == (0, b"")
    assert not list(out.rglob(".dmp-*"))
