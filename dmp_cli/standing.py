"""Standing: what the manifests of an output folder say of their runs, in numbers. No torch."""

import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmp_cli import manifest
from dmp_cli.manifest import Line
from dmp_cli.unfinished import alive

_VARIES = re.compile(r"\S*/\S*|\d+(\.\d+)?")  # of an error: paths, sizes
_NAMES = 3  # inputs that are named for a reason


@dataclass
class Standing:
    """A run as its manifest tells it; all numbers are of inputs, of clips of frames."""

    part: tuple[int, int] | None  # number and count of its shard
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
    unbegun: list[int]  # numbers of shards of which there is no manifest
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
        return whole and not self.unbegun


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
    books: dict[Path, _Book] = {}
    for path, record in manifest.lines(folder):
        books.setdefault(path, _Book()).add(record)
    told = [book for book in books.values() if book.runs]
    if not told:
        return None
    newest = max(told, key=lambda book: book.number)
    counted = [book for book in told if book.among == newest.among]
    runs = sorted((run for book in counted for run in book.current()), key=_order)
    begun = {run.part[0] for run in runs if run.part}
    numbers = range(1, newest.among + 1) if newest.among else ()
    return Report(
        runs,
        [number for number in numbers if number not in begun],
        _reasons(
            (known.source, known.error) for book in counted for known in book.failing.values()
        ),
        len(told) - len(counted),
    )


def _order(run: Standing) -> tuple[int, int]:
    return (run.part[0] if run.part else 0), run.number


@dataclass(frozen=True)
class _Failure:
    """Why an output was not made."""

    token: str  # of the run
    source: str
    error: str


class _Book:
    """One manifest: its runs by their token, and the outputs whose last record is a failure."""

    def __init__(self) -> None:
        self.runs: dict[str, Standing] = {}
        self.failing: dict[str, _Failure] = {}  # by path

    @property
    def number(self) -> int:
        return max(run.number for run in self.runs.values())

    @property
    def among(self) -> int:
        """How many shards there are; 0: it is not of a shard."""
        part = next(iter(self.runs.values())).part
        return part[1] if part else 0

    def add(self, record: Line) -> None:
        """Take a record; one that is not in this form is passed over, as a torn line is."""
        try:
            kind, token = record["kind"], record["id"]
            if kind == "run":
                self._begin(token, _begun(record))
            elif kind == "there":  # found later, by a watch
                self.runs[token].found(int(record["kept"]), int(record["failed"]))
            elif kind == "end":
                self.runs[token].code = int(record["code"])
            elif kind == "input":
                self._input(token, record)
        except (KeyError, TypeError, ValueError, OverflowError):
            return

    def _begin(self, token: str, run: Standing) -> None:
        """A run that found no failure of a run before speaks of none: their inputs are gone."""
        if run.total is not None and not run.failed:
            for path, known in list(self.failing.items()):
                before = self.runs.get(known.token)
                if before is None or before.state != "running":
                    del self.failing[path]
        self.runs[token] = run

    def _input(self, token: str, record: Line) -> None:
        failed = record["status"] != "done"
        rows = {row["path"]: row["size"] for row in record["outputs"]}
        failure = _Failure(token, str(record["input"]), str(record["error"]))
        at, time = float(record["at"]), str(record["time"])
        # one that was refused for its name has no outputs, and may have some later
        forgotten = [self.failing.pop(path, None) for path in (failure.source, *rows)]
        if failed:
            lacking = [path for path, size in rows.items() if size is None]
            self.failing |= dict.fromkeys(lacking if rows else [failure.source], failure)
        run = self.runs.get(token)
        if run is None:  # its first line was torn
            return
        run.failed -= any(known and known.token == token for known in forgotten)
        run.tried += 1
        run.failed += failed
        run.done += not failed
        run.seconds, run.time = max(at, run.seconds), time

    def current(self) -> Iterator[Standing]:
        """The last run, and those before it that are not over: two may share a folder."""
        *before, last = self.runs.values()
        yield from (run for run in before if run.state == "running")
        yield last


def _begun(record: Line) -> Standing:
    part: Any = record["shard"]
    total = None if record["total"] is None else int(record["total"])
    kept, failed = int(record["kept"]), int(record["failed"])
    beginning = record.get("born")
    return Standing(
        (int(part[0]), int(part[1])) if part else None, total, kept, str(record["host"]),
        int(record["pid"]), None if beginning is None else int(beginning), int(record["run"]),
        done=kept, failed=failed, time=str(record["time"]),
    )  # fmt: skip


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
