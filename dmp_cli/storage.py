"""Objects of buckets: found, fetched to be read, uploaded once written. Paths as in urls.py."""

import hashlib
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from dmp_cli import unfinished
from dmp_cli.cloud import BUCKET_GONE, asking, client, code_of
from dmp_cli.errors import UsageError
from dmp_cli.urls import mirror, split, url_of
from dmp_cli.urls import url as url_for


@dataclass(frozen=True)
class Stat:
    """What a bucket tells of an object."""

    size: int  # bytes
    mtime: int  # ns, of whole seconds: a listing may tell parts of them, and other answers do not


@dataclass(frozen=True)
class Found:
    """An object, and its path below the root that it was found under."""

    path: Path
    below: Path
    stat: Stat


@dataclass
class _Held:
    """The file of an object that is fetched, and how many use it."""

    file: Path
    gate: threading.Lock = field(default_factory=threading.Lock)  # who comes first fetches it
    users: int = 0


_lock = threading.Lock()
_held: dict[Path, _Held] = {}
_seen: dict[Path, Stat] = {}  # what this process found
_sent: dict[Path, tuple[int, str]] = {}  # size and sha256 of what was uploaded, until asked for


# What there is ----------------------------------------------------------------------------


def find(url: str, recursive: bool = True) -> list[Found]:
    """The objects that a URL means: one, those of a folder, or those of a pattern; sorted.

    Names that begin with a dot are left out, unless the pattern or the URL itself has one.
    UsageError if there is no such object or folder, ResourceError if the server cannot say.
    """
    scheme, bucket, key = split(url)
    root = f"{scheme}://{bucket}"
    url = f"{root}/{key}" if key else root  # its scheme in small letters
    inside, pattern = key.rstrip("/"), re.compile("")
    with asking(url):
        if key and not key.endswith("/") and (stat := _stat(url)):
            return [_itself(root, key, stat)]
        rows = _listed(scheme, f"{bucket}/{inside}".rstrip("/"), recursive)
        if not rows and (magic := re.search(r"[*?[]", key)):
            inside, _, start = key[: magic.start()].rpartition("/")
            pattern = _pattern(url, key)
            deep = "**" in key or "/" in key[magic.start() :]
            rows = _listed(scheme, f"{bucket}/{inside}".rstrip("/"), deep, start)
    hidden = bool(pattern.pattern) and "/." in f"/{key[len(inside) :].lstrip('/')}"
    above = mirror(f"{root}/{inside}" if inside else root)
    found = []
    for name, stat in sorted(rows.items()):
        below = name[len(inside) + bool(inside) :]
        if pattern.match(name) and (hidden or "/." not in f"/{below}"):
            path = mirror(f"{root}/{name}")
            found.append(Found(path, path.relative_to(above), stat))
    _know({one.path: one.stat for one in found})
    if key and not rows and not pattern.pattern:
        raise UsageError(f"{url}: no such object or folder", "check the URL; quote a pattern")
    return found


def _itself(root: str, key: str, stat: Stat) -> Found:
    """An object that is named by itself; its name may be several names of files."""
    path = mirror(f"{root}/{key}")
    _know({path: stat})
    name = mirror(f"{root}/{key.rpartition('/')[2]}")
    return Found(path, name.relative_to(mirror(root)), stat)


def _know(rows: dict[Path, Stat], only_below: Path | None = None) -> None:
    """Keep what was found; with `only_below`, a folder, forget what else was known below it."""
    with _lock:
        if only_below:
            for gone in [one for one in _seen if only_below in one.parents and one not in rows]:
                del _seen[gone]
        _seen.update(rows)


def _pattern(url: str, key: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    try:
        return re.compile(glob_translate(key))
    except (ValueError, re.error) as error:
        raise UsageError(f"{url}: {error}", "`**` stands alone between slashes") from error


def listing(path: Path, start: str = "") -> dict[Path, Stat]:
    """What lies below the path of a folder, in one listing; nothing if there is no such folder.

    With `start`, only what begins so there. ResourceError if that cannot be told.
    """
    url = url_for(path)
    scheme, bucket, key = split(url)
    with asking(url):
        rows = _listed(scheme, f"{bucket}/{key}".rstrip("/"), True, start)
    found = {mirror(f"{scheme}://{bucket}/{name}"): stat for name, stat in rows.items()}
    _know(found, only_below=None if start else path)  # what was deleted meanwhile is unknown now
    return found


def stat(path: Path) -> Stat | None:
    """What is known of an object, as it was found by this process, else asked for; None: gone.

    ResourceError if that cannot be told.
    """
    if known := _seen.get(path):
        return known
    url = url_for(path)
    with asking(url):
        return _stat(url)


def _stat(url: str) -> Stat | None:
    scheme = url.split(":", 1)[0]
    try:
        row = client(scheme).info(url)
    except FileNotFoundError as error:
        if code_of(error) == BUCKET_GONE:
            raise
        return None
    return _facts(row) if row["type"] == "file" else None


def _listed(scheme: str, root: str, recursive: bool, start: str = "") -> dict[str, Stat]:
    """Key -> facts of the objects below BUCKET/FOLDER whose names there begin with `start`."""
    system, bucket = client(scheme), root.split("/", 1)[0]
    try:
        if recursive or (start and scheme == "s3"):  # gcsfs lists everything all the same
            depth = None if recursive else 1
            rows = system.find(root, detail=True, prefix=start, maxdepth=depth).values()
        else:
            rows = system.ls(root, detail=True)
    except FileNotFoundError as error:
        if "/" not in root or code_of(error) == BUCKET_GONE:
            raise
        return {}
    names = {row["name"]: row for row in rows if row["type"] == "file"}
    return {
        name[len(bucket) + 1 :]: _facts(row)
        for name, row in names.items()
        if name.startswith(f"{root}/") and not name.endswith("/")
    }


def _facts(row: dict[str, Any]) -> Stat:
    when = row.get("LastModified") or row.get("mtime") or row.get("updated")
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    seconds = int(when.timestamp()) if when else 0
    return Stat(int(row["size"] or 0), seconds * 10**9)


# To and fro -------------------------------------------------------------------------------


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A file of this machine with what lies under a path, for the time of the block.

    A path that stands for no URL is that file. Threads that ask for the same object share it.
    ImageError if this one cannot be had, ResourceError if none can.
    """
    if url_of(path) is None:
        yield path
        return
    file = hold(path)
    try:
        yield file
    finally:
        release(path)


def hold(path: Path) -> Path:
    """As `fetched`, until `release`; the file stays while there is another that holds it."""
    if url_of(path) is None:
        return path
    with _lock:
        held = _held.get(path) or _held.setdefault(path, _Held(outgoing(path)))
        held.users += 1
    try:
        with held.gate:  # others wait for the first, and find the file
            if not held.file.exists():
                _fetch(path, held.file)
    except BaseException:
        release(path)
        raise
    return held.file


def release(path: Path) -> None:
    """The end of a `hold`."""
    if url_of(path) is None:
        return
    with _lock:
        held = _held[path]
        held.users -= 1
        if not held.users:
            del _held[path]
            held.file.unlink(missing_ok=True)


def _fetch(path: Path, file: Path) -> None:
    """Bring an object to a file, with its time of change."""
    url = url_for(path)
    temporary = outgoing(file)
    try:
        with asking(url, reading=True):
            facts = _seen.get(path) or _stat(url)  # before: what comes is as old as that, or newer
            client(url.split(":", 1)[0]).get_file(url, str(temporary))
            if facts:
                os.utime(temporary, ns=(facts.mtime, facts.mtime))
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The bytes of an object, the first `most` of them. ImageError and ResourceError as `fetched`.

    One that is empty has none, whatever is asked for.
    """
    url = url_for(path)
    with asking(url, reading=True):
        system = client(url.split(":", 1)[0])
        try:
            data: bytes = system.cat_file(url, start=None if most is None else 0, end=most)
        except OSError as error:
            if code_of(error) not in ("InvalidRange", "416"):
                raise
            return b""
    return data


def upload(file: Path, path: Path) -> None:
    """Bring a file to where a path stands for. The object is there whole or not at all.

    The libraries try again, with growing waits, when a server is busy or does not answer.
    ImageError if this one key cannot be, ResourceError if none could be.
    """
    url = url_for(path)
    with asking(url, writing=True):
        with file.open("rb") as content:
            facts = os.fstat(content.fileno()).st_size, hashlib.file_digest(content, "sha256")
        client(url.split(":", 1)[0]).put_file(str(file), url)
    _seen.pop(path, None)
    _sent[path] = facts[0], facts[1].hexdigest()


def uploaded(path: Path) -> tuple[int, str]:
    """Size and sha256 of what this process uploaded to a path last; to be asked for once."""
    return _sent.pop(path)


def delete(path: Path) -> None:
    """Delete an object; the errors of `upload`."""
    url = url_for(path)
    with asking(url, writing=True):
        client(url.split(":", 1)[0]).rm_file(url)
    _seen.pop(path, None)


def outgoing(path: Path) -> Path:
    """A name on this machine, free, for what is to be uploaded to a path, or was fetched from it.

    Its suffix is kept: it tells the server, and some libraries, what the file holds.
    """
    return unfinished.scratch() / f"{secrets.token_hex(8)}{path.suffix[:16]}"


def hidden_folder() -> Path:
    """A new folder on this machine for what cannot be kept beside objects."""
    return Path(tempfile.mkdtemp(dir=unfinished.scratch()))


def forget() -> None:
    """Know nothing of any object, as a new process does."""
    with _lock:
        _seen.clear()
        _sent.clear()
