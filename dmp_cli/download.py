"""A file over HTTP: resumed where it broke off, and there only once its hash is right."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

from filelock import FileLock

from dmp_cli import digests

Moved = Callable[[int], object]  # bytes that came; negative: they have to come again

_TRIES = 4
_ENOUGH = 1 << 20  # bytes: a try that brought as many was not in vain
_WINDOW = 20  # seconds in which ...
_LEAST = 20_000  # ... as many bytes must come
_BLOCK = 1 << 18


class Answer(Protocol):
    """What a server sends: a response whose body is still to be read."""

    status_code: int

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it comes."""


Ask = Callable[[int], AbstractContextManager[Answer]]  # for the bytes from an offset on


def download(
    target: Path, size: int, digest: str, ask: Ask, transient: Callable[[Exception], bool],
    moved: Moved,
) -> None:  # fmt: skip
    """Fetch `size` bytes with this hash (sha256 or git blob id) to `target`; one process at a time.

    What came before a break is kept in `target.incomplete` and not asked for again. Raises what
    `ask` does, ConnectionError for a body that ends early, TimeoutError for one that drips, and
    ValueError, after deleting it, for one that is not what was stated.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.incomplete")
    lock = target.with_name(f"{target.name}.lock")
    with FileLock(lock):
        if not target.exists():  # else another process was first
            _fill(partial, size, digest, ask, transient, moved)
            partial.replace(target)
    lock.unlink(missing_ok=True)  # only now: who waits for it finds the file


def _fill(
    partial: Path, size: int, digest: str, ask: Ask, transient: Callable[[Exception], bool],
    moved: Moved,
) -> None:  # fmt: skip
    if _size(partial) > size:
        partial.unlink()
    try:
        _persist(partial, size, ask, transient, moved)
        _check(partial, size, digest)
    except ValueError:  # what came is of no use
        partial.unlink(missing_ok=True)
        raise


def _persist(
    partial: Path, size: int, ask: Ask, transient: Callable[[Exception], bool], moved: Moved
) -> None:
    """Ask until the file has its size; some times in a row without success.

    That is measured on the most that there was: a server that begins anew makes the file shorter.
    """
    most, failed = _size(partial), 0
    while (have := _size(partial)) < size:
        try:
            _append(partial, have, size, ask, moved)
        except Exception as error:  # the HTTP library's own kinds; `transient` knows them
            now = _size(partial)
            most, failed = (now, 1) if now - most >= _ENOUGH else (most, failed + 1)
            if failed == _TRIES or not (isinstance(error, ConnectionError) or transient(error)):
                raise
            time.sleep(2 ** (failed - 1))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(partial: Path, have: int, size: int, ask: Ask, moved: Moved) -> None:
    with ask(have) as answer, partial.open("ab") as file:
        if have and answer.status_code != 206:  # it sends everything again
            file.truncate(0)
            moved(-have)
            have = 0
        _copy(answer, file, size - have, moved)
    if _size(partial) < size:
        raise ConnectionError(f"the answer ended after {_size(partial)} of {size} bytes")


def _copy(answer: Answer, file: IO[bytes], left: int, moved: Moved) -> None:
    since, came = time.monotonic(), 0
    for block in answer.iter_bytes():
        if len(block) > left:
            raise ValueError("the answer is longer than the file should be")
        file.write(block)
        moved(len(block))
        left -= len(block)
        came += len(block)
        seconds = time.monotonic() - since
        if seconds > _WINDOW:
            if came < _LEAST:
                raise TimeoutError(f"only {came} bytes came in {seconds:.0f} s")
            since, came = time.monotonic(), 0


def _check(partial: Path, size: int, digest: str) -> None:
    """ValueError if the bytes are not those that were stated."""
    hashed = digests.hasher(digest, size)
    with partial.open("rb") as file:
        while block := file.read(_BLOCK):
            hashed.update(block)
    found = hashed.hexdigest()
    if found != digest:
        kind = "sha256" if len(digest) == 64 else "hash"
        raise ValueError(f"wrong {kind}: expected {digest}, found {found}; the download is deleted")
