"""Arrivals: which files of folders are complete and new since the last look. Paths and states only.

By looking again and again: notices of the system (inotify) are not on network file systems, and
tell of no file that was written on another machine.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dmp_cli.finding import CLIPS, SUFFIXES, Input

STEADY = 1.0  # seconds without a change, after which a file is complete
MOST = 1000  # files that one look gives
_TAKEN = SUFFIXES | CLIPS

_State = tuple[int, int, int, int]  # size, time of content, inode, time of the inode


@dataclass(frozen=True, slots=True)
class _Seen:
    path: str
    below: str
    state: _State


class Arrivals:
    """The folders and what is known of their files: two numbers each, for those that are there."""

    def __init__(
        self, roots: Iterable[Path], recursive: bool, ours: Callable[[Path], bool]
    ) -> None:
        """`ours` says which files are none of the inputs, as the outputs of dmp."""
        self._roots, self._recursive, self._ours = tuple(roots), recursive, ours
        self._known: dict[int, int] = {}  # hash of a path -> of the state that was given out
        self._waiting: dict[int, tuple[int, float]] = {}  # ... -> state, when it was first seen
        self.changed = False  # whether the last look saw something that the one before did not
        self.troubles: dict[str, str] = {}  # folders that the last look could not read, and why

    @property
    def waiting(self) -> int:
        """How many files were not complete at the last look."""
        return len(self._waiting)

    def look(self, now: float) -> list[Input]:
        """The files that are complete and have changed since they were given; MOST at once.

        `now` is of a monotonic clock. A file that is empty waits until it is not.
        """
        known: dict[int, int] = {}
        waiting: dict[int, tuple[int, float]] = {}
        ready: list[Input] = []
        self.changed, self.troubles = False, {}
        for seen in self._files():
            name, state = hash(seen.path), hash(seen.state)
            if name in known or name in waiting:  # by two of the folders
                continue
            if self._known.get(name) == state or self._ours(Path(seen.path)):
                known[name] = state
                continue
            before, since = self._waiting.get(name, (None, now))
            if before != state:
                since, self.changed = now, True
            steady = now - since >= STEADY or (before == state and _moved_in(seen.state))
            if seen.state[0] and steady and len(ready) < MOST:
                known[name] = state
                ready.append(Input(Path(seen.path), Path(seen.below)))
                continue
            waiting[name] = state, since
            if name in self._known:
                known[name] = self._known[name]
        if self.troubles:  # what a share that is gone held comes back with it
            known = {**self._known, **known}
        self._known, self._waiting = known, waiting
        return ready

    def _files(self) -> Iterator[_Seen]:
        for root in self._roots:
            for folder, folders, names in os.walk(root, onerror=self._trouble):
                folders[:] = [one for one in sorted(folders) if self._enters(one)]
                below = os.path.relpath(folder, root)
                for name in sorted(names):
                    if name.startswith(".") or os.path.splitext(name)[1].lower() not in _TAKEN:  # noqa: PTH122  for each file of each look
                        continue
                    path = os.path.join(folder, name)
                    state = _state(path)
                    if state:
                        yield _Seen(path, os.path.normpath(os.path.join(below, name)), state)

    def _enters(self, folder: str) -> bool:
        hidden, suffix = folder.startswith("."), os.path.splitext(folder)[1].lower()  # noqa: PTH122
        return self._recursive and not hidden and suffix not in SUFFIXES

    def _trouble(self, error: OSError) -> None:
        self.troubles[os.fsdecode(error.filename)] = error.strerror or str(error)


def _state(path: str) -> _State | None:
    """The state of a plain file; None for what is none, or gone again."""
    try:
        facts = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns


def _moved_in(state: _State) -> bool:
    """Whether an inode was changed long after the content: by a rename, or at the end of a copy.

    A program that writes changes both at once. On Windows the second time means something else.
    """
    return os.name == "posix" and state[3] - state[1] >= STEADY * 1e9
