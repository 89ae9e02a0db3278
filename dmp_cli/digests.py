"""Hashes of files: computed once a process, in threads, and compared with what is stated."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Protocol

from dmp_cli.errors import ModelError

_GIT = 40  # hexadecimal digits of a git blob id; a sha256 has 64
_BLOCK = 1 << 20

_Key = tuple[Path, int, int, int]  # size, time of change, length of the hash
_known: dict[_Key, Future[str]] = {}
_lock = Lock()


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """What they add up to."""


@dataclass(frozen=True)
class Stamp:
    """What tells one content of a file from another."""

    size: int  # bytes
    mtime: int  # ns
    sha256: str


@dataclass(frozen=True)
class Hashed:
    """The hash of a large file, and by what one knows later that the file is still as it was."""

    path: str  # absolute
    size: int  # bytes
    mtime: int  # ns
    inode: int
    sha256: str


def stamp(path: Path) -> Stamp:
    """The stamp of a file as it is now, hashed in this thread. OSError if it cannot be read."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Stamp(facts.st_size, facts.st_mtime_ns, digest)


def stamp_once(path: Path) -> Stamp:
    """The same, hashed once a process for each content: for clips, which are read frame by frame.

    OSError if it cannot be read.
    """
    facts = path.stat()
    return Stamp(facts.st_size, facts.st_mtime_ns, begin(path, "0" * 64).result())


def unchanged(path: Path, before: Stamp) -> bool:
    """Whether a file has still the size and the time of change that it was stamped with."""
    facts = path.stat()
    return (facts.st_size, facts.st_mtime_ns) == (before.size, before.mtime)


def hasher(like: str, size: int) -> Hash:
    """A hash of the kind of `like`, for `size` bytes: 64 digits are a sha256, 40 a git blob id.

    The id of a git blob is the sha1 of `blob SIZE`, a zero byte, and the bytes.
    """
    if len(like) != _GIT:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def sha256(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits. ModelError if it cannot be read."""
    return _result(path, begin(path, "0" * 64))


def hashed(paths: Iterable[Path], known: Mapping[str, Hashed]) -> tuple[Hashed, ...]:
    """The hashes of files, read only where they are not as `known`, by absolute path, says.

    ModelError for one that cannot be read.
    """
    states = {path: _state(path) for path in paths}
    new = [path for path, state in states.items() if not _holds(known.get(state[0]), state)]
    for path in new:
        begin(path, "0" * 64)
    return tuple(
        Hashed(*state, sha256(path)) if path in new else known[state[0]]
        for path, state in states.items()
    )


def _state(path: Path) -> tuple[str, int, int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "check the file") from error
    return os.path.abspath(path), facts.st_size, facts.st_mtime_ns, facts.st_ino


def _holds(known: Hashed | None, state: tuple[str, int, int, int]) -> bool:
    return known is not None and (known.path, known.size, known.mtime, known.inode) == state


def begin(path: Path, like: str) -> Future[str]:
    """The hash of a file of the kind of `like`, computed in a thread, once for each content.

    A thread for each file: hashing lets other threads run. They are daemons, so that a run that
    fails for another reason does not wait for gigabytes to be read.
    """
    try:
        facts = path.stat()
    except OSError as error:
        failed: Future[str] = Future()
        failed.set_exception(error)
        return failed
    key = (path, facts.st_size, facts.st_mtime_ns, len(like))
    with _lock:
        if key in _known:
            return _known[key]
        future = _known[key] = Future()
    digest = hasher(like, facts.st_size)
    try:
        Thread(target=_hash, args=(key, digest, future), daemon=True).start()
    except RuntimeError:  # no thread is to be had: then here
        _hash(key, digest, future)
    return future


def _hash(key: _Key, digest: Hash, future: Future[str]) -> None:
    try:
        with key[0].open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except BaseException as error:  # whoever waits for it is told, whatever it is
        with _lock:
            _known.pop(key, None)  # a second try may succeed
        future.set_exception(error)
    else:
        future.set_result(digest.hexdigest())


def _result(path: Path, future: Future[str]) -> str:
    try:
        return future.result()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}", "check the file") from error


def start(stated: Mapping[Path, Iterable[str]]) -> None:
    """Begin to hash files, so that `wrong` has less to wait for."""
    for path, hashes in stated.items():
        for expected in hashes:
            begin(path, expected)


def wrong(stated: Mapping[Path, Iterable[str]]) -> dict[Path, tuple[str, str]]:
    """(expected, found) of each file that has not the hash, or one of the hashes, stated of it."""
    start(stated)
    differing: dict[Path, tuple[str, str]] = {}
    for path, hashes in stated.items():
        for expected in hashes:
            found = _result(path, begin(path, expected))
            if found != expected:
                differing.setdefault(path, (expected, found))
    return differing
