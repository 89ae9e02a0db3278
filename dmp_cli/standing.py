"""Standing: what the manifests of an output folder say of their runs, in numbers. No torch."""

import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dmp_cli import manifest
from dmp_cli.manifest import Line
from dmp_cli.unfinished import alive

_VARIES = re.compile(r"\S*/\S*|\d+(\.\d+)?")  # of an error: paths, sizes
_NAMES = 3  # inputs that are named for a reason
_NUMBERS = 1000  # shards not begun that are named
# More than these is no record of a run, but a broken or a hostile one
_PARTS = 1_000_000
_MANY = 10**12  # inputs, runs, numbers of processes
_AGES = 10**13  # ms

Part = tuple[int, int]  # number and count of a shard


@dataclass
class Standing:
    """A run as its manifest tells it; all numbers are of inputs, of clips of frames."""

    part: Part | None  # its shard
    total: int | None  # None: of `dmp watch`, which has no end
    kept: int  # there before it began
    host: str = ""
    pid: int = 0
    born: int | None = None  # what tells its process from a later one of the same pid
    number: int = 0
    done: int = 0  # those that were kept among them
    failed: int = 0
    tried: int = 0  # done or failed in this run
    seconds: float = 0.0  # from the first input to the last that is known, monotonic
    time: str = ""  # of the last record, UTC
    code: int | None = None  # how it ended

    def found(self, kept: int, failed: int) -> None:
        """Count inputs that were dealt with before."""
        self.kept += kept
        self.done += kept
        self.failed += failed

    @property
    def left(self) -> int | None:
        """Inputs whose end is not known; None without a total."""
        return None if self.total is None else max(self.total - self.done - self.failed, 0)

    @property
    def state(self) -> str:
        """`ended`; or without a last record `running`, `killed`, or `away` on another machine."""
        if self.code is not None:
            return "ended"
        if self.host != socket.gethostname():
            return "away"
        return "running" if _lives(self.pid, self.born) else "killed"

    @property
    def rate(self) -> float | None:
        """Inputs a second; None before the second."""
        return self.tried / self.seconds if self.seconds > 0 and self.tried > 1 else None

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None where the run is over, or nothing is known."""
        if self.left is None or not self.rate or self.state not in ("running", "away"):
            return None
        return self.left / self.rate


@dataclass
class Reason:
    """Why inputs failed: the words of the first, how many there are, and the first names."""

    words: str
    inputs: int = 0
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The runs that count, one for each shard but for those that run at once, and what failed."""

    runs: list[Standing]
    unbegun: list[int]  # the first numbers of shards of which there is no manifest
    lacking: int  # how many of those there are
    reasons: list[Reason]  # of inputs that failed last; the most frequent first
    older: int  # manifests that do not count: of shards of another number

    @property
    def going(self) -> bool:
        """Whether a run is not over."""
        return any(run.state in ("running", "away") for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether the end of every input is known; of a watch, whether it was ended."""
        whole = all(
            run.code is not None if run.left is None else run.left == 0 for run in self.runs
        )
        return whole and not self.lacking


def born(pid: int) -> int | None:
    """When a process began, in ticks since the system did; None where that is not told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19])  # proc(5): field 22, after the name
    except (OSError, ValueError, IndexError):
        return None


def _lives(pid: int, began: int | None) -> bool:
    return alive(pid) and (began is None or born(pid) in (None, began))


def read(folder: Path) -> Report | None:
    """What the manifests in a folder say; None if there is none, or none with a run.

    ResourceError for one that cannot be read.
    """
    files: dict[Path, dict[str, _Run]] = {}
    for path, record in manifest.lines(folder):
        _take(record, path, files.setdefault(path, {}))
    parts = _by_part(files.values())
    told = [(run.number, part) for part, runs in parts.items() for run in runs if run.standing]
    if not told:
        return None
    among = _among(max(told, key=lambda one: one[0])[1])
    counted = [runs for part, runs in parts.items() if _among(part) == among]
    others = [runs for part, runs in parts.items() if _among(part) != among]
    standings = sorted((run for runs in counted for run in _current(runs)), key=_order)
    begun = {run.part[0] for run in standings if run.part}
    lacking = (number for number in range(1, among + 1) if number not in begun)
    failing = (failure for runs in counted for failure in _failing(runs))
    return Report(
        standings,
        list(islice(lacking, _NUMBERS)),
        among - len(begun),
        _reasons((failure.source, failure.error) for failure in failing),
        len({run.path for runs in others for run in runs}),
    )


def _order(run: Standing) -> tuple[int, int]:
    return (run.part[0] if run.part else 0), run.number


def _among(part: Part | None) -> int:
    """How many shards there are; 0: it is not of a shard."""
    return part[1] if part else 0


@dataclass(frozen=True)
class _Failure:
    """Why an output was not made."""

    source: str
    error: str


@dataclass
class _Run:
    """What one file says of a run."""

    path: Path
    number: int
    standing: Standing | None = None  # None: its first line was torn
    forgets: bool = False  # it found no failure of a run before: their inputs are gone
    records: int = 0
    ends: dict[str, _Failure | None] = field(default_factory=dict)  # by path; None: made

    def begin(self, record: Line) -> None:
        """Take the first record. ValueError for one that makes no sense."""
        self.standing = run = _begun(record)
        self.forgets = run.total is not None and not run.failed

    def add(self, record: Line) -> None:
        """Take the record of an input."""
        failed = record["status"] != "done"
        rows = {row["path"]: row["size"] for row in record["outputs"]}
        failure = _Failure(str(record["input"]), str(record["error"]))
        at, time = _within(int(1000 * float(record["at"])), 0, _AGES) / 1000, str(record["time"])
        # one that was refused for its name has no outputs, and may have some later
        paths = (failure.source, *rows)
        again = any(self.ends.get(path) for path in paths)
        self.ends |= dict.fromkeys(paths)
        if failed:
            lacking = [path for path, size in rows.items() if size is None]
            self.ends |= dict.fromkeys(lacking if rows else [failure.source], failure)
        run = self.standing
        if run is None:
            return
        run.failed -= again
        run.tried += 1
        run.failed += failed
        run.done += not failed
        run.seconds, run.time = max(at, run.seconds), time


def _take(record: Line, path: Path, runs: dict[str, _Run]) -> None:
    """Take a record; one that is not in this form is passed over, as a torn line is."""
    try:
        kind, token = record["kind"], record["id"]
        run = runs.get(token) or _Run(path, _count(record["run"]))
        if kind == "run":
            run.begin(record)
        elif kind == "there" and run.standing:  # found later, by a watch
            run.standing.found(_count(record["kept"]), _count(record["failed"]))
        elif kind == "end" and run.standing:
            run.standing.code = _within(int(record["code"]), 0, 255)
        elif kind == "input":
            run.add(record)
        run.records += 1
        runs[token] = run
    except (LookupError, TypeError, ValueError, OverflowError):
        return


def _by_part(files: Iterable[dict[str, _Run]]) -> dict[Part | None, list[_Run]]:
    """The runs over each part, the oldest first: in a bucket each has a file, in no order.

    Of a run that several files tell of, as a copy does, the one that tells most counts.
    """
    found: dict[str, tuple[Part | None, _Run]] = {}
    for runs in files:
        known = [run.standing.part for run in runs.values() if run.standing]
        for token, run in runs.items() if known else ():
            part = run.standing.part if run.standing else known[-1]
            if token not in found or _worth(found[token][1]) < _worth(run):
                found[token] = part, run
    parts: dict[Part | None, list[_Run]] = {}
    for part, run in sorted(found.values(), key=lambda one: one[1].number):
        parts.setdefault(part, []).append(run)
    return parts


def _worth(run: _Run) -> tuple[bool, int]:
    return run.standing is not None, run.records


def _current(runs: list[_Run]) -> list[Standing]:
    """The last run over a part, and those before it that go on: two may share a folder."""
    told = [run.standing for run in runs if run.standing]
    return [run for run in told[:-1] if run.state == "running"] + told[-1:]


def _failing(runs: list[_Run]) -> Iterable[_Failure]:
    """Of the outputs of a part, those whose last record is a failure."""
    left: dict[str, _Failure] = {}
    going: set[str] = set()  # of those, the ones of a run that is not over
    for run in runs:
        if run.forgets:
            left = {path: failure for path, failure in left.items() if path in going}
        runs_on = run.standing is not None and run.standing.state == "running"
        for path, failure in run.ends.items():
            left.pop(path, None)
            going.discard(path)
            if failure:
                left[path] = failure
                going |= {path} if runs_on else set()
    return left.values()


def _begun(record: Line) -> Standing:
    """The first record of a run. ValueError for numbers that no run writes."""
    part: Any = record["shard"]
    total = None if record["total"] is None else _count(record["total"])
    kept, failed = _count(record["kept"]), _count(record["failed"])
    beginning = record.get("born")
    return Standing(
        _part(int(part[0]), int(part[1])) if part else None, total, kept, str(record["host"]),
        # to ask for process 0 or -1 asks for others than one
        _within(int(record["pid"]), 1, _MANY), None if beginning is None else int(beginning),
        _count(record["run"]), done=kept, failed=failed, time=str(record["time"]),
    )  # fmt: skip


def _part(number: int, among: int) -> Part:
    return _within(number, 1, among), _within(among, 1, _PARTS)


def _count(value: Any) -> int:
    return _within(int(value), 0, _MANY)


def _within(value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{value} is not from {least} to {most}")
    return value


def _reasons(failing: Iterable[tuple[str, str]]) -> list[Reason]:
    """Failures by what they have in common: sizes and paths in their words do not count."""
    found: dict[str, Reason] = {}
    for name, error in dict.fromkeys(failing):
        words = error.partition("\n")[0]
        reason = found.setdefault(_VARIES.sub("#", words), Reason(words))
        reason.inputs += 1
        if len(reason.names) < _NAMES:
            reason.names.append(name)
    return sorted(found.values(), key=lambda reason: -reason.inputs)
