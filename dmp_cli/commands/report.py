"""What a run prints: results on standard output, everything else on standard error."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from dmp_cli.errors import ResourceError
from dmp_cli.jobs import Result


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
        try:
            tqdm.write(f"dmp: {plain(text)}", file=sys.stderr)
        except BrokenPipeError:
            _send_nowhere(sys.stderr)

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
    """A path as one line: names with control characters or broken bytes are escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def follow(results: Iterable[Result], total: int, talk: Talk) -> int:
    """Print results as they come, move the bar, sum up; returns how many inputs failed."""
    start = time.monotonic()
    failed: Counter[str] = Counter()
    seen = maps = 0
    hidden = None if talk.progress and not talk.quiet else True
    bar = tqdm(total=total, unit="image", file=sys.stderr, disable=hidden, dynamic_ncols=True)
    try:
        with bar:
            for result in results:
                if not result.done:
                    bar.update()
                    continue
                if bar.n == total:  # all have been seen once: now they are finished
                    bar.reset()
                    bar.update(seen)
                _tell(result, talk)
                failed[shown(result.job.source)] += bool(result.errors)
                maps += len(result.maps)
                seen += 1
                bar.update()
    except KeyboardInterrupt:
        talk.fail(f"interrupted after {seen} of {count(total, 'image')}; each map there is whole")
        raise
    seconds, done = time.monotonic() - start, seen - failed.total()
    rate = f" ({done / max(seconds, 1e-3):.2f} images/s)" if done else ""
    talk.note(f"{done} of {count(total, 'image')}, {count(maps, 'map')} in {seconds:.1f} s{rate}")
    _sum_up(+failed, total, talk)
    return failed.total()


def _sum_up(failed: Counter[str], total: int, talk: Talk) -> None:
    """Name the inputs that failed, a clip once for all of its frames."""
    if not failed:
        return
    named = [f"{name} ({often} frames)" if often > 1 else name for name, often in failed.items()]
    more = f", and {len(named) - 10} more" if len(named) > 10 else ""
    talk.fail(f"{failed.total()} of {total} failed: {', '.join(named[:10])}{more}")


def _tell(result: Result, talk: Talk) -> None:
    for text in result.notes:
        talk.note(f"{shown(result.job.source)}: {text}")
    for text in result.errors:
        talk.fail(f"failed: {shown(result.job.source)}: {text}")
    _print(result, talk)


def _print(result: Result, talk: Talk) -> None:
    if not talk.as_json:
        for path in result.written:
            talk.output(str(path))
        return
    frame = {} if result.job.frame is None else {"frame": result.job.frame + 1}
    record = {
        "input": str(result.job.source),
        **frame,
        "status": "failed" if result.errors else "done",
        "outputs": [
            {"task": task, "format": form, "path": str(result.job.targets[task, form])}
            for task, form in result.made
        ],
        "errors": list(result.errors),
        "notes": list(result.notes),
        "seconds": round(result.seconds, 4),
    }
    talk.output(json.dumps(record))
