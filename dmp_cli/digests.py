"""Hashes of files: computed once a process, in threads, and compared with what is stated."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
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
    Thread(target=_hash, args=(key, digest, future), daemon=True).start()
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
