"""URLs of objects (s3://, gs://) as paths, so that all code of dmp goes on with paths.

That of an object lies below a file, where nothing can be: what forgets to fetch it fails, and reads
no other file. It is the same in every process and on every machine, and is turned back by its name.
"""

import importlib.util
import re
import urllib.request
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from dmp_cli.errors import UsageError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}  # scheme -> what reads it, as fsspec has it
CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
}
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_MIRROR = Path("/dev/null/dmp-objects")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

# What stands in a path for what no name of a file can be. Other names stay as they are
_MARK = "%!"
_NAMES = {"": f"{_MARK}empty", ".": f"{_MARK}dot", "..": f"{_MARK}dots"}
_PARTS = {_MARK: f"{_MARK}mark", "\0": f"{_MARK}nul"}
_MORE = f"{_MARK}more"  # the name goes on below
_LONGEST = 200  # bytes of a name
_END = 12  # characters that stay together: a suffix, and neither `.` nor `..` is a name


def is_url(text: str) -> bool:
    """Whether a text is a URL; `C://x` is not."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text))


def place(text: str) -> Path:
    """The path of what a user named: a file or folder, or a URL. UsageError for another scheme."""
    if not is_url(text):
        if scheme := next((name for name in PACKAGES if text.startswith(f"{name}:/")), None):
            raise UsageError(f"{text}: no URL", f"write {scheme}://BUCKET/FOLDER")
        return Path(text)
    scheme, rest = text.split("://", 1)
    if scheme.lower() != "file":
        return mirror(text)
    host, path = urlsplit(text).netloc, rest[rest.find("/") :]
    if host not in ("", "localhost") or "/" not in rest:
        raise UsageError(f"{text}: no file of this machine", "write file:///path")
    return Path(urllib.request.url2pathname(path))


def folder(text: str) -> Path:
    """As `place`, for a folder: a slash at its end means nothing."""
    return place(text.rstrip("/") if is_url(text) and not text.endswith(":///") else text)


def mirror(text: str) -> Path:
    """The path that stands for a URL; `url_of` turns it back. UsageError if it is none of ours."""
    scheme, bucket, key = split(text)
    names = [part for name in key.split("/") for part in _escaped(name)] if key else []
    return _MIRROR.joinpath(scheme, bucket, *names)


def url_of(path: Path) -> str | None:
    """The URL that a path stands for; None for a path that is one."""
    text = path.as_posix()
    if not text.startswith(_MIRROR.as_posix() + "/"):
        return None
    scheme, _, rest = text[len(_MIRROR.as_posix()) + 1 :].partition("/")
    bucket, slash, key = rest.replace(f"{_MORE}/", "").partition("/")
    return f"{scheme}://{bucket}{slash}{'/'.join(map(_plain, key.split('/')))}"


def url(path: Path) -> str:
    """As `url_of`, of a path that is known to stand for one."""
    found = url_of(path)
    if found is None:
        raise ValueError(f"{path} stands for no URL")
    return found


def shown(path: Path) -> str:
    """A path as the user wrote it."""
    return url_of(path) or str(path)


def split(text: str) -> tuple[str, str, str]:
    """Scheme, bucket and key; UsageError, without a password that may stand in it."""
    scheme, rest = text.split("://", 1)
    scheme = scheme.lower()
    bucket, _, key = rest.partition("/")
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in (*PACKAGES, "file"))
        raise UsageError(f"{scheme}:// is not known", f"those that are: {known}")
    if "@" in bucket or ":" in bucket:
        raise UsageError(f"a {scheme}:// URL takes no password", CREDENTIALS[scheme])
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{text}: {bucket!r} is no bucket", f"write {scheme}://BUCKET/FOLDER")
    if not _installed(PACKAGES[scheme]):
        extra = f"pip install 'dmp-predict[{_EXTRAS[scheme]}]'"
        raise UsageError(f"{scheme}:// needs {PACKAGES[scheme]}", extra)
    return scheme, bucket, key


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _escaped(name: str) -> list[str]:
    """A name between slashes of a key as names of files, several if it is too long for one."""
    if name in _NAMES:
        return [_NAMES[name]]
    for special, mark in _PARTS.items():
        name = name.replace(special, mark)
    pieces = [""]
    length = 0
    for char in name:
        length += len(char.encode(errors="surrogateescape"))
        if length > _LONGEST:
            pieces.append("")
            length = len(char.encode(errors="surrogateescape"))
        pieces[-1] += char
    if len(pieces) > 1 and len(pieces[-1]) < _END:
        pieces[-2:] = [pieces[-2][:-_END], pieces[-2][-_END:] + pieces[-1]]
    return [piece + _MORE for piece in pieces[:-1]] + pieces[-1:]


def _plain(name: str) -> str:
    for special, mark in _NAMES.items():
        if name == mark:
            return special
    return re.sub(f"{_MARK}(mark|nul)", lambda found: {"mark": _MARK, "nul": "\0"}[found[1]], name)
