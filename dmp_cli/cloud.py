"""The clients of buckets, by fsspec, and what they raise as errors of dmp. Knows no paths."""

import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from dmp_cli.connection import scrub
from dmp_cli.errors import DmpError, ImageError, ResourceError
from dmp_cli.urls import CREDENTIALS

# What fails every object of a run alike, and what fails one, as S3 calls it and Google
BUCKET_GONE = "NoSuchBucket"
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_INVALID = "Invalid Credentials"
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # no server answers so
_OF_THE_KEY = {"KeyTooLongError", "InvalidURI", "InvalidObjectName", "InvalidObjectState"}


def client(scheme: str) -> Any:
    """The one client of this process for a scheme, for all of its threads.

    Endpoint, credentials and how often it tries again are its own matter, and its variables'.
    """
    return _opened(scheme, os.getpid())


@cache
def _opened(scheme: str, _pid: int) -> Any:
    import fsspec

    for library in ("s3fs", "gcsfs"):  # or what they warn of goes to standard error
        logging.getLogger(library).addHandler(logging.NullHandler())
    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def forget() -> None:
    """Have no client any more: the next is of the environment as it is then."""
    _opened.cache_clear()


@cache
def _raised(scheme: str) -> tuple[type[Exception], ...]:
    """What the libraries raise when a server, or the way to it, is at fault."""
    from http.client import HTTPException

    from aiohttp import ClientError as OfTheWire

    of_all = OSError, OfTheWire, HTTPException
    if scheme == "s3":
        from botocore.exceptions import BotoCoreError, ClientError

        return *of_all, BotoCoreError, ClientError, UnicodeError
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError

    # ValueError: of an answer that is no JSON, and of a request that the server calls invalid
    return *of_all, GoogleAuthError, HttpError, ChecksumError, ValueError


@contextmanager
def asking(url: str, reading: bool = False, writing: bool = False) -> Iterator[None]:
    """What a library raises within, as an error of dmp.

    It names the URL, but for what fails one input that is read: whoever tells of it names it.
    """
    scheme = url.split(":", 1)[0]
    try:
        yield
    except DmpError:
        raise
    except _raised(scheme) as error:
        raise _error_of(error, url, reading, writing) from error


def _error_of(error: Exception, url: str, reading: bool, writing: bool) -> DmpError:
    scheme, _, bucket = url.split("/", 3)[:3]
    root, code, name = f"{scheme}//{bucket}", code_of(error), type(error).__name__
    why = scrub(" ".join(str(error).split()))[:300] or name
    known = CREDENTIALS[scheme.removesuffix(":")]
    found: DmpError
    if _is_of_this_machine(error):
        found = ResourceError(
            f"temporary files in {tempfile.gettempdir()}: {why}",
            "set TMPDIR to a folder with room, then run it again",
        )
    elif isinstance(error, FileNotFoundError) and reading and code != BUCKET_GONE:
        found = ImageError("no such object")
    elif code == BUCKET_GONE or isinstance(error, FileNotFoundError):
        found = ResourceError(f"{root}: no such bucket", "check its name and the endpoint")
    elif any(word in name for word in ("Credential", "Profile", "Auth", "Refresh")):
        found = ResourceError(f"{root}: no credentials: {why}", known)
    elif isinstance(error, UnicodeError) or code in _OF_THE_KEY:
        found = ImageError(f"{url!r} is no name of an object: {why}", "rename the input")
    elif _is_denied(error) and reading and code not in _REFUSED and _INVALID not in why:
        found = ImageError("access denied", "check what the credentials permit")
    elif _is_denied(error):
        told = f"{url if writing else root}: access denied"
        found = ResourceError(f"{told}: {why}", f"check what the credentials permit, or {known}")
    else:
        found = ResourceError(
            f"{url}: the server does not answer as it should: {why}",
            "check the endpoint and the connection, then run it again",
        )
    return found


def _is_of_this_machine(error: Exception) -> bool:
    """Whether it is of a file on this machine, of which only temporary ones are in use here."""
    if not isinstance(error, OSError):
        return False
    name = error.filename if isinstance(error.filename, str) else ""
    below = name.startswith(os.path.join(tempfile.gettempdir(), ""))
    return below or error.errno in _OF_THE_DISK


def _is_denied(error: Exception) -> bool:
    """Whether an object may not be read or written; Google's client raises no PermissionError."""
    if isinstance(error, PermissionError):
        return True
    return getattr(error, "code", None) in (401, 403) or str(error).startswith("Forbidden")


def code_of(error: BaseException) -> str:
    """What S3 calls an error."""
    for one in (error, error.__cause__):
        if isinstance(answer := getattr(one, "response", None), dict):
            return str(answer.get("Error", {}).get("Code", ""))
    return ""
