"""Servers of buckets that fail: what is told, of which kind, and that no secret is."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from dmp_cli import cloud, files, storage, urls
from dmp_cli.errors import DmpError, ImageError, ResourceError, UsageError
from tests import buckets

pytest.importorskip("s3fs")

OBJECT = "s3://shots/in/a.png"


def do(what: str, named: str = OBJECT) -> Any:
    path = urls.mirror(named)
    if what == "find":
        return storage.find(named.removesuffix("a.png"))
    if what == "put":
        return files.write_bytes(path, b"x")
    with storage.fetched(path) as file:
        return file.read_bytes()


@pytest.mark.parametrize("what", ["find", "get", "put"])
def test_a_busy_server_is_asked_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets.faulty(503, 200) as (address, asked):
        buckets.use(address, monkeypatch)
        if what == "find":  # an empty answer
            with pytest.raises(UsageError, match="no such object"):
                do(what)
        else:
            do(what)
    assert len(asked) in (2, 3)


@pytest.mark.parametrize(
    ("fault", "what", "kind", "message", "hint"),
    [
        ("500", "get", ResourceError, "s3://shots/in/a.png: the server does not", "run it again"),
        ("500", "put", ResourceError, "s3://shots/in/a.png: the server does not", "run it again"),
        ("500", "find", ResourceError, "s3://shots/in/: the server does not", "run it again"),
        ("AccessDenied", "get", ImageError, "access denied", "permit"),
        ("AccessDenied", "put", ResourceError, "s3://shots/in/a.png: access denied", "permit"),
        ("AccessDenied", "find", ResourceError, "s3://shots: access denied", "permit"),
        ("InvalidAccessKeyId", "get", ResourceError, "s3://shots: access denied", "AWS_PROFILE"),
        ("ExpiredToken", "put", ResourceError, "access denied", "AWS_PROFILE"),
        ("SignatureDoesNotMatch", "find", ResourceError, "access denied", "AWS_PROFILE"),
        ("NoSuchBucket", "get", ResourceError, "s3://shots: no such bucket", "its name"),
        ("NoSuchBucket", "put", ResourceError, "s3://shots: no such bucket", "its name"),
        ("KeyTooLongError", "put", ImageError, "is no name of an object", "rename"),
        ("NoSuchKey", "get", ImageError, "no such object", ""),
        ("cut", "get", ResourceError, "the server does not answer as it should", "connection"),
        ("html", "find", ResourceError, "the server does not answer as it should", "endpoint"),
        ("away", "get", ResourceError, "the server does not answer as it should", "endpoint"),
        ("away", "put", ResourceError, "the server does not answer as it should", "endpoint"),
        ("none", "get", ResourceError, "s3://shots: no credentials", "AWS_PROFILE"),
        ("none", "put", ResourceError, "s3://shots: no credentials", "AWS_PROFILE"),
        ("profile", "find", ResourceError, "s3://shots: no credentials", "AWS_PROFILE"),
    ],
)
def test_a_server_that_fails(
    fault: str, what: str, kind: type[DmpError], message: str, hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    code, body = {"500": (500, b""), "html": (200, b"<html>"), "cut": (200, b"half")}.get(
        fault, (404 if fault.startswith("NoSuch") else 403, buckets.error(fault))
    )
    with buckets.faulty(code, body=body, cut=4 if fault == "cut" else 0) as (address, _):
        buckets.use(address if fault != "away" else "http://127.0.0.1:9", monkeypatch)
        if fault in ("none", "profile"):
            for name in buckets.KEYS:
                monkeypatch.delenv(name)
        if fault == "profile":
            monkeypatch.setenv("AWS_PROFILE", "of-nobody")
        storage._seen[urls.mirror(OBJECT)] = storage.Stat(1, 0)  # so that one is asked for it
        with pytest.raises(kind) as caught:
            do(what)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert buckets.KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value) + caught.value.hint


# Google -----------------------------------------------------------------------------------

THERE = "gs://shots/in/a.png"


@pytest.mark.parametrize(
    ("fault", "what", "kind", "message", "hint"),
    [
        ("500", "get", ResourceError, f"{THERE}: the server does not", "run it again"),
        ("500", "put", ResourceError, f"{THERE}: the server does not", "run it again"),
        ("500", "find", ResourceError, "gs://shots/in/: the server does not", "run it again"),
        ("403", "get", ImageError, "access denied", "permit"),
        ("403", "put", ResourceError, f"{THERE}: access denied", "permit"),
        ("403", "find", ResourceError, "gs://shots: access denied", "permit"),
        ("401", "get", ImageError, "access denied", "permit"),
        ("Invalid Credentials", "get", ResourceError, "gs://shots: access denied", "gcloud auth"),
        ("invalid", "find", ResourceError, "gs://shots/in/: the server does not", "endpoint"),
        ("404", "get", ImageError, "no such object", ""),
        ("404", "put", ResourceError, "gs://shots: no such bucket", "its name"),
        ("cut", "get", ResourceError, f"{THERE}: the server does not", "connection"),
        ("cut", "find", ResourceError, "gs://shots/in/: the server does not", "connection"),
        ("html", "find", ResourceError, "gs://shots/in/: the server does not", "endpoint"),
        ("html", "put", ResourceError, f"{THERE}: the server does not", "endpoint"),
        ("away", "get", ResourceError, f"{THERE}: the server does not", "endpoint"),
    ],
)
def test_google_that_fails(
    fault: str, what: str, kind: type[DmpError], message: str, hint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    retry = pytest.importorskip("gcsfs.retry")
    # it waits a second, then two, then four
    monkeypatch.setattr(retry, "asyncio", SimpleNamespace(sleep=at_once))
    number = {"Invalid Credentials": 401, "invalid": 400, "cut": 200, "html": 200}
    body = {"html": b"<html>", "cut": b'{"half": '}.get(
        fault, json.dumps({"error": {"message": fault}}).encode()
    )
    code = number.get(fault) or (500 if fault == "away" else int(fault))
    with buckets.faulty(code, body=body, cut=4 if fault == "cut" else 0) as (address, _):
        reached = "http://127.0.0.1:9" if fault == "away" else address
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", reached)
        cloud.forget()
        storage.forget()
        storage._seen[urls.mirror(THERE)] = storage.Stat(1, 0)
        with pytest.raises(kind) as caught:
            do(what, THERE)
    cloud.forget()
    assert message in str(caught.value)
    assert hint in caught.value.hint


async def at_once(_: float) -> None:
    """No wait."""
