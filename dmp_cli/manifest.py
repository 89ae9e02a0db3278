"""Manifest: what runs did in an output folder: dmp-manifest*.jsonl, a JSON line for each input.

A file is only ever appended to, one write a line, so that several runs can share it, and a kill
costs a line at most. A line that is no record is passed over. An object cannot be appended to: in a
bucket each run has a manifest of its own, which it uploads now and then.
"""

import json
import os
import secrets
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from dmp_cli import storage
from dmp_cli.digests import Hashed, Stamp
from dmp_cli.errors import DmpError, ImageError, ResourceError
from dmp_cli.urls import shown, url_of

PATTERN = "dmp-manifest*.jsonl"
_VERSION = 1
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_EVERY = 30.0  # seconds between two uploads, which take a twentieth of the time at most

Line = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What the manifest says of an output: the last that any run did to it."""

    source: str  # absolute path of the input
    read: Stamp | None  # what was read of it
    key: str  # of resume.py: all that decides the output, beside the input
    size: int | None = None  # of the file; None: it was not made
    sha256: str = ""
    error: str = ""  # why not


@dataclass(frozen=True)
class Past:
    """What all manifests of an output folder say."""

    outputs: dict[str, Made] = field(default_factory=dict)  # by path below the folder
    runs: int = 0  # the number of the last run
    weights: dict[str, Hashed] = field(default_factory=dict)  # files without stated hashes, by path


def name(shard: tuple[int, int] | None = None) -> str:
    """The manifest's file name: a run over a shard has one of its own."""
    return "dmp-manifest.jsonl" if shard is None else f"dmp-manifest.{shard[0]}-of-{shard[1]}.jsonl"


def books(folder: Path) -> list[Path]:
    """The manifests in a folder, or in what stands for a URL. ResourceError as `lines`."""
    if url_of(folder) is None:
        return sorted(folder.glob(PATTERN))
    found = storage.listing(folder, PATTERN.partition("*")[0])
    return sorted(path for path in found if path.parent == folder and path.match(PATTERN))


def lines(folder: Path) -> Iterator[tuple[Path, Line]]:
    """Every record of every manifest in a folder, in the order of each file.

    ResourceError for a manifest that cannot be read.
    """
    for path in books(folder):
        _require_plain(path)
        try:
            with storage.fetched(path) as here, here.open("rb") as file:
                for data in file:
                    record = _parsed(data)
                    if record is not None:
                        yield path, record
        except (OSError, ImageError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ResourceError(
                f"{shown(path)}: cannot be read: {why}",
                "check the file, or move it: then all is done again",
            ) from error


def _require_plain(path: Path) -> None:
    """ResourceError for a manifest that is no plain file: to read a pipe or a device never ends."""
    if not url_of(path) and path.exists() and not path.is_file():
        raise ResourceError(f"{path} is no plain file", "move it, or choose another -o")


def _parsed(data: bytes) -> Line | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # cut by a kill or a full disk, or no record at all
        return None
    return record if isinstance(record, dict) and record.get("v") == _VERSION else None


def past(folder: Path, wanted: Container[str] | None = None) -> Past:
    """What is recorded of the outputs `wanted`, paths below the folder; without them, of all.

    Of two manifests the one of the later run counts. That is by number: clocks jump.
    """
    found: dict[str, tuple[int, Made]] = {}
    weights: dict[str, Hashed] = {}
    last = 0
    for _, record in lines(folder):
        try:
            run = int(record["run"])
            last = max(last, run)
            told = _told(record, wanted) if record["kind"] == "input" else []
            if record["kind"] == "weights":
                weights |= {one.path: one for one in map(_hashed, record["files"])}
        except (KeyError, TypeError, ValueError, OverflowError):  # of another program, or edited
            continue
        for path, made in told:
            if path not in found or found[path][0] <= run:
                found[path] = run, made
    return Past({path: made for path, (_, made) in found.items()}, last, weights)


def _hashed(row: Line) -> Hashed:
    size, mtime, inode = (int(row[key]) for key in ("size", "mtime", "inode"))
    return Hashed(str(row["path"]), size, mtime, inode, str(row["sha256"]))


def _told(record: Line, wanted: Container[str] | None) -> list[tuple[str, Made]]:
    read = None
    if record["sha256"]:
        read = Stamp(int(record["size"]), int(record["mtime"]), str(record["sha256"]))
    told = []
    for row in record["outputs"]:
        if wanted is None or row["path"] in wanted:
            size = None if row["size"] is None else int(row["size"])
            key, sha = str(row["key"]), str(row["sha256"])
            error = str(record["error"])
            told.append((row["path"], Made(str(record["input"]), read, key, size, sha, error)))
    return told


class Manifest:
    """The manifest that a run appends to."""

    def __init__(self, path: Path, run: int) -> None:
        """Open it, made if need be. ResourceError if it cannot be written."""
        self._path = self._here = path
        self._run, self._due = run, 0.0
        self.token = secrets.token_hex(8)  # two runs at once may have one number
        _require_plain(path)
        if self._away:
            self._path = path.with_suffix(f".{self.token}{path.suffix}")
            self._here = storage.outgoing(path)
        try:
            self._file = os.open(self._here, _APPEND, 0o666)
            self._whole = self._ends_whole()
        except OSError as error:
            raise self._error(error) from error

    def _ends_whole(self) -> bool:
        """Whether the last line was written to its end."""
        size = os.fstat(self._file).st_size
        return size == 0 or os.pread(self._file, 1, size - 1) == b"\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._file)
        if not self._away:
            return
        with suppress(*(() if kind is None else (DmpError,))):  # it adds nothing to what failed
            self._upload()
        self._here.unlink()

    @property
    def _away(self) -> bool:
        return url_of(self._path) is not None

    def _upload(self) -> None:
        start = time.monotonic()
        try:
            storage.upload(self._here, self._path)
        except ImageError as error:
            raise ResourceError(str(error), error.hint) from error
        storage.uploaded(self._path)
        end = time.monotonic()
        self._due = end + max(_EVERY, 20 * (end - start))

    def append(self, kind: str, record: Line) -> None:
        """Add a record, in one write. ResourceError if there is no room for it."""
        told = {"v": _VERSION, "kind": kind, "run": self._run, "id": self.token, **record}
        data = json.dumps(told, separators=(",", ":")).encode() + b"\n"
        if not self._whole:  # what a kill or a full disk left of a line stays apart
            data = b"\n" + data
        try:
            self._require_there()
            written = os.write(self._file, data)
        except OSError as error:
            raise self._error(error) from error
        self._whole = written == len(data)
        if not self._whole:
            raise ResourceError(
                f"{self._here} cannot be written: no room", "free some space, then run it again"
            )
        if self._away and time.monotonic() >= self._due:
            self._upload()

    def _require_there(self) -> None:
        """ResourceError if the file is no longer that of its name: then nothing would be found.

        That is so when the output folder was moved, deleted or unmounted.
        """
        if not os.path.samestat(os.fstat(self._file), self._here.stat()):
            raise ResourceError(
                f"{self._here} is another file now", "was the folder moved? then run it again"
            )

    def _error(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"{self._here} cannot be written: {error.strerror}",
            "check the folder and its room, then run it again",
        )


def relative(folder: Path, path: Path) -> str:
    """The path of an output below the folder, as a manifest has it."""
    # by text: `relative_to` costs a second for 100,000 files
    return str(path).removeprefix(f"{folder}{os.sep}").replace(os.sep, "/")
