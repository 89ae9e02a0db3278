"""`dmp` as a process of its own: started, limited, signalled, and what it took."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from threading import Timer
from typing import IO, Any

from tests.faults import server

DMP = (sys.executable, "-m", "dmp_cli")
MAIN = "import sys; sys.argv[0] = 'dmp'; from dmp_cli.__main__ import main; main()"
TORCH = "import sys; sys.modules['torch'] = None"  # a patch: to import it is an error now
PEAK = """
import atexit, os, re
def peak():
    with open("/proc/self/status") as told, open(os.environ["PEAK"], "w") as file:
        file.write(re.search(r"VmHWM:\\s+(\\d+)", told.read())[1])
atexit.register(peak)
"""
# What a machine may say that runs these tests, and what would change how dmp runs
_UNSET = ("DMP_MODEL", "DMP_WEIGHTS", "NO_COLOR", "HF_TOKEN", "HF_ENDPOINT", "RANK", "WORLD_SIZE",
          "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "LOCAL_RANK")  # fmt: skip


def uncovered(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, what makes no process measure coverage: that takes it seconds."""
    return {name: environment[name] for name in environment if not name.startswith("COVERAGE")}


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it took."""

    code: int  # negative: the signal that ended it
    out: bytes
    err: str
    seconds: float = 0.0
    cpu: float = 0.0  # seconds
    memory: int = 0  # bytes resident at most, of a fork or with `measured`

    @property
    def lines(self) -> list[str]:
        """Standard output, a path a line."""
        return os.fsdecode(self.out).splitlines()

    @property
    def records(self) -> dict[str, Any]:
        """The records of `--json` by the name of their input."""
        found = [json.loads(line) for line in self.out.splitlines()]
        return {Path(record["input"]).name: record for record in found}


@dataclass
class Command:
    """`dmp` with a home of its own, on the CPU, offline, with the tiny model."""

    folder: Path  # for its home and what it prints
    weights: Path
    forks: Callable[[], "Forks"]
    count: int = field(default=0)

    @property
    def model(self) -> tuple[str, ...]:
        return ("--weights", str(self.weights), "--model", "tiny", "--steps", "1")

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
        own = {
            "DMP_HOME": str(self.folder / "home"), "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        return kept | own | changes

    def start(self, *words: object, env: Mapping[str, str] | None = None, **how: Any) -> "Running":
        """Start `dmp WORDS`; `env` is added to its environment, `how` goes to Popen.

        Five of `how` do not: `before`, the words of a program that starts it, `patch`, Python to
        run first, for faults that nothing outside can cause, `measured`, to know its memory,
        `forked`, to have it as a fork, through a program that passes signals on, and `covered`, to
        have coverage measured without that, which takes seconds.
        """
        patch = how.pop("patch", None)
        if how.pop("measured", False):
            patch = f"{patch or ''}\n{PEAK}"
        start = DMP if patch is None else (sys.executable, "-c", f"{patch}\n{MAIN}")
        changes = dict(env or {})
        covered = how.pop("covered", False)
        if how.pop("forked", False):
            start, changes["PATCH"] = (str(self.forks().program),), patch or ""
        command = [*how.pop("before", ()), *start, *map(str, words)]
        self.count += 1
        out, err, peak = (self.folder / f"{self.count}.{name}" for name in ("out", "err", "peak"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            streams = {"stdout": stdout, "stderr": stderr, "stdin": subprocess.DEVNULL}
            given = self.environment(PEAK=str(peak), **changes)
            given = given if covered else uncovered(given)  # a fork has it from the server
            process = subprocess.Popen(command, env=given, **(streams | how))
        return Running(process, out, err, peak)

    def run(self, *words: object, timeout: float = 120, **how: Any) -> Ended:
        """Run `dmp WORDS` to its end, which is SIGKILL after `timeout` seconds."""
        return self.start(*words, **how).end(timeout)

    def predict(self, *words: object, **how: Any) -> Ended:
        """`dmp predict depth WORDS` with the tiny model."""
        return self.run("predict", "depth", *words, *self.model, **how)

    def fork(self, *words: object, patch: str = "", timeout: int = 60, **env: str) -> Ended:
        """`dmp WORDS` in a process forked from one that has imported torch: saves its seconds.

        `patch` is Python to run first, as in `start`.
        """
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        order = {
            "argv": ["dmp", *map(str, words)], "patch": patch, "timeout": timeout,
            "env": self.environment(**env), "cwd": str(Path.cwd()),
        }  # fmt: skip
        with open(os.devnull) as none, out.open("wb") as stdout, err.open("wb") as stderr:  # noqa: PTH123
            told = self.forks().ask(order, (none, stdout, stderr))
        return Ended(out=out.read_bytes(), err=err.read_text(errors="replace"), **told)


@dataclass(frozen=True)
class Running:
    """A `dmp` that has been started."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    peak: Path  # for its memory
    begun: float = field(default_factory=time.monotonic)

    def until(self, ready: Callable[["Running"], bool], timeout: float = 60) -> None:
        """Wait until something is so; RuntimeError if the process ends before."""
        stop = time.monotonic() + timeout
        while not ready(self):
            if self.ended() or time.monotonic() > stop:
                os.kill(self.process.pid, SIGKILL)
                self.end()
                raise RuntimeError(f"it never came to that:\n{self.err.read_text()}")
            time.sleep(0.02)

    def ended(self) -> bool:
        """Whether it has ended; `end` tells how."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, how) is not None

    def send(self, number: int) -> None:
        """A signal, though it may have ended: Popen would look, and `end` could not any more."""
        os.kill(self.process.pid, number)

    def says(self, text: str) -> None:
        """Wait until standard error has a text."""
        self.until(lambda one: text in one.err.read_text(errors="replace"))

    def prints(self, count: int = 1) -> None:
        """Wait for as many lines on standard output."""
        self.until(lambda one: one.out.read_bytes().count(b"\n") >= count)

    def end(self, timeout: float = 120) -> Ended:
        """Wait for its end, which is SIGKILL after `timeout` seconds."""
        timer = Timer(timeout, os.kill, (self.process.pid, SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(self.process.pid, 0)  # Popen would not tell what it took
        finally:
            timer.cancel()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        memory = int(self.peak.read_text()) << 10 if self.peak.exists() else 0
        return Ended(
            self.process.returncode, self.out.read_bytes(), self.err.read_text(errors="replace"),
            time.monotonic() - self.begun, usage.ru_utime + usage.ru_stime, memory,
        )  # fmt: skip


# A client of the server as a program: signals reach the fork, and it ends as the fork does
PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, sys
passed = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, passed)
order = {{
    "argv": ["dmp", *sys.argv[1:]], "patch": os.environ.pop("PATCH", ""), "timeout": 240,
    "env": dict(os.environ), "cwd": os.getcwd(),
}}
with socket.socket(socket.AF_UNIX) as server, server.makefile() as answer:
    server.connect({place!r})
    text = json.dumps(order).encode() + b"\\n"
    socket.send_fds(server, [text[:1]], [0, 1, 2])
    server.sendall(text[1:])
    pid = json.loads(answer.readline())["pid"]
    for number in passed:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
    code = json.loads(answer.readline())["code"]
if code < 0:
    if -code in passed:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Forks:
    """The process of server.py."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = TemporaryDirectory(prefix="dmp-")  # a socket's path has to be short
        self._place = str(Path(self._folder.name) / "socket")
        self.program = Path(self._folder.name) / "dmp"  # forks one with its own streams
        self.program.write_text(PROGRAM.format(python=sys.executable, place=self._place))
        self.program.chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, server.__file__, self._place], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "listening\n":
            raise RuntimeError("the server of forks has ended")

    def ask(self, order: dict[str, Any], streams: Sequence[IO[Any]]) -> dict[str, Any]:
        """Fork a `dmp` with these standard streams; its exit code, seconds and memory."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._place)
            text = json.dumps(order).encode() + b"\n"
            socket.send_fds(client, [text[:1]], [stream.fileno() for stream in streams])
            client.sendall(text[1:])
            *_, told = map(json.loads, client.makefile())
        return dict(told)

    def close(self) -> None:
        """End it."""
        self._server.communicate()
        self._folder.cleanup()
