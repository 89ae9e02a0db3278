"""What a run prints: results on standard output, everything else on standard error."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from dmp_cli import urls
from dmp_cli.errors import ResourceError
from dmp_cli.jobs import Result

_LONGEST = 4096  # characters of a path, on Linux


@dataclass(frozen=True)
class Talk:
    """How much is said, and in which form."""

    quiet: bool = False
    verbose: bool = False
    progress: bool = True
    as_json: bool = False
    end: str = "\n"

    def note(self, text: str) -> None:
        """A line for the user, unless they asked for quiet."""
        if not self.quiet:
            self.fail(text)

    def detail(self, text: str) -> None:
        """A line for the user who asked for more."""
        if self.verbose:
            self.note(text)

    def fail(self, text: str) -> None:
        """A line that is always shown."""
        complain(f"dmp: {plain(text)}")

    def output(self, text: str) -> None:
        """A result. Once nobody reads standard output, the run goes on without it.

        ResourceError if it cannot be written for another reason.
        """
        bar_aside = tqdm.external_write_mode(file=sys.stdout)
        try:
            with bar_aside if sys.stdout.isatty() else nullcontext():
                sys.stdout.write(text + self.end)
                sys.stdout.flush()
        except BrokenPipeError:
            _send_nowhere(sys.stdout)
        except OSError as error:
            _send_nowhere(sys.stdout)
            why = f"standard output cannot be written: {error.strerror}"
            raise ResourceError(why, "make room or send it elsewhere, then run it again") from error


def complain(line: str) -> None:
    """A line on standard error. Once that cannot be written, the run goes on without it.

    A log lies on the disk that is full, a terminal is closed: neither says anything of the maps.
    """
    try:
        tqdm.write(line, file=sys.stderr)
    except OSError:
        _send_nowhere(sys.stderr)


def _send_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def plain(text: str) -> str:
    """A text without control characters, which files of others may hold, but for ends of lines."""
    return "".join(
        char if char == "\n" or char.isprintable() or (not char.isascii() and char > "\x9f")
        else f"\\x{ord(char):02x}"
        for char in text
    )  # fmt: skip


def shown(path: Path) -> str:
    """A path as one line: names with control characters or broken bytes are escaped.

    Of one that is longer than any can be, the ends.
    """
    text = urls.shown(path)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    return text if text.isprintable() else repr(text)


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass
class Tally:
    """How far a run is."""

    total: int
    seen: int = 0  # of which the result is known
    kept: int = 0  # of those, the ones that were there already
    maps: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by input, a clip once
    start: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """Count a result."""
        self.seen += 1
        if result.errors:
            self.failed[shown(result.job.source)] += 1
        if not result.kept:
            self.maps += len(result.maps)
        elif not result.errors:
            self.kept += 1

    @property
    def rate(self) -> float:
        """Images a second that this run made."""
        done = self.seen - self.kept - self.failed.total()
        return done / max(time.monotonic() - self.start, 1e-3)

    def __str__(self) -> str:
        failed = f", {self.failed.total()} failed" if self.failed else ""
        rate, left = self.rate, self.total - self.seen
        ahead = f", {rate:.2f} images/s, {duration(left / rate)} left" if rate and left else ""
        return f"{self.seen} of {count(self.total, 'image')}{failed}{ahead}"


def duration(seconds: float) -> str:
    """`3 h 20 min`, `5 min`, `12 s`: a time as one says it."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def follow(results: Iterable[Result], tally: Tally, talk: Talk) -> int:
    """Print results as they come, move the bar, sum up; returns how many inputs failed."""
    total = tally.total
    hidden = None if talk.progress and not talk.quiet else True
    bar = tqdm(total=total, unit="image", file=sys.stderr, disable=hidden, dynamic_ncols=True)
    with bar:
        for result in results:
            if not result.done:
                bar.update()
                continue
            if bar.n == total:  # all have been seen once: now they are finished
                bar.reset()
                bar.update(tally.seen)
            tell(result, talk)
            tally.add(result)
            bar.update()
    seconds = time.monotonic() - tally.start
    failed = tally.failed.total()
    made = tally.seen - tally.kept - failed
    rate = f" ({tally.rate:.2f} images/s)" if made else ""
    there = f", {tally.kept} of them there already" if tally.kept else ""
    talk.note(
        f"{tally.seen - failed} of {count(total, 'image')}{there}, "
        f"{count(tally.maps, 'map')} in {seconds:.1f} s{rate}"
    )
    _sum_up(tally.failed, total, talk)
    return failed


def _sum_up(failed: Counter[str], total: int, talk: Talk) -> None:
    """Name the inputs that failed, a clip once for all of its frames."""
    if not failed:
        return
    named = [f"{name} ({often} frames)" if often > 1 else name for name, often in failed.items()]
    more = f", and {len(named) - 10} more" if len(named) > 10 else ""
    talk.fail(f"{failed.total()} of {total} failed: {', '.join(named[:10])}{more}")


def tell(result: Result, talk: Talk) -> None:
    """Print a result: what was written, what failed, what is odd."""
    for text in result.notes:
        talk.note(f"{shown(result.job.source)}: {text}")
    for text in _errors(result):
        talk.fail(f"failed: {shown(result.job.source)}: {text}")
    _print(result, talk)


def _errors(result: Result) -> list[str]:
    before = " (as before; --retry-failed tries it again)" if result.kept else ""
    return [error + before for error in result.errors]


def _print(result: Result, talk: Talk) -> None:
    if not talk.as_json:
        for path in () if result.kept else result.written:
            talk.output(urls.shown(path))
        return
    files = {**result.job.there, **{key: result.job.targets[key] for key in result.made}}
    frame = {} if result.job.frame is None else {"frame": result.job.frame + 1}
    record = {
        "input": urls.shown(result.job.source),
        **frame,
        "status": "failed" if result.errors else "kept" if result.kept else "done",
        "outputs": [
            {"task": task, "format": form, "path": urls.shown(path)}
            for (task, form), path in files.items()
        ],
        "errors": _errors(result),
        "notes": list(result.notes),
        "seconds": round(result.seconds, 4),
    }
    talk.output(json.dumps(record))
