"""Buckets for tests: moto's server of S3 on loopback, and servers that fail."""

import base64
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "s3cret-of-mine"}
# Names of objects that no file has, or that something takes for another
HARD_KEYS = [
    "a.png", "x/b.png", "x//c.png", "/d.png", "x/../d.png", "x/./e.png", "..", ".", "x/", "//",
    "q?r=1#2.png", "q%20z%2F.png", "%!mark.png", "%!", "%!dot", "%!more/a", "a%", "!", "nul\0.png",
    "l" * 1024, "%!" * 300, "ü" * 500 + "/a.png", "…/日本.png", "new\nline.png", "back\\slash",
    " ", "*[a]?.png", "a" * 200 + ".", "a" * 199 + "...", "a" * 200 + "..", "dmp-objects/s3/x",
]  # fmt: skip
_numbers = itertools.count(1)


def environment(address: str) -> dict[str, str]:
    """The variables by which s3fs and boto find a server, and no settings of whoever runs this."""
    return KEYS | {
        "AWS_ENDPOINT_URL": address,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this process up to use a server, and to know nothing of another."""
    from dmp_cli import cloud, storage

    for name, value in environment(address).items():
        monkeypatch.setenv(name, value)
    storage.forget()
    cloud.forget()


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of moto, filled and read behind the server's back."""

    address: str
    asked: list[str]  # by everybody: `GET /bucket/key`
    name: str = field(default_factory=lambda: f"shots-{next(_numbers)}")

    def __post_init__(self) -> None:
        self._store.create_bucket(self.name, "us-east-1")

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def _store(self) -> Any:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]

    def write(self, key: str, data: bytes) -> None:
        self._store.put_object(self.name, key, data)

    def fill(self, keys: Iterable[str]) -> None:
        """Objects that hold their own names."""
        for key in keys:
            self.write(key, key.encode())

    def read(self, key: str) -> bytes:
        found: bytes = self._store.get_object(self.name, key).value
        return found

    def kind(self, key: str) -> str:
        """The content type that was stated for an object."""
        return str(self._store.get_object(self.name, key).metadata["Content-Type"])

    def names(self) -> list[str]:
        return sorted(self._store.buckets[self.name].keys)


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split('"')
        if len(words) > 1:  # or it tells that the server has begun
            self.asked.append(words[1].removeprefix("\x1b").lstrip("[0123456789;m"))


@contextmanager
def serve() -> Iterator[tuple[str, list[str]]]:
    """Run moto's server in this process; yields its address, and what it is asked for."""
    from moto.server import ThreadedMotoServer

    log, logger = _Log(), logging.getLogger("werkzeug")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}", log.asked
    finally:
        server.stop()
        logger.removeHandler(log)


def error(code: str) -> bytes:
    """What S3 answers with."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()


@contextmanager
def faulty(*answers: int, body: bytes = b"", cut: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, the last for ever; its address, what was asked.

    With `cut` each body ends so many bytes before its length, and the connection with it.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            code = answers[min(len(asked), len(answers) - 1)]
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.send_header("ETag", '"0"')
            self.send_header("Content-Length", str(len(body) + cut))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
                self.close_connection = bool(cut)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with _started(Handler) as address:
        yield address, asked


@contextmanager
def google() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The part of Google's JSON API that gcsfs asks for, with the bucket `shots`; its objects."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = urlsplit(self.path)
            asked = dict(parse_qsl(parts.query))
            found = re.fullmatch(r"(/\w+)?/storage/v1/b/shots/o(?:/(.+))?", parts.path)
            name = unquote(found[2] or "") if found else ""
            if found and self.command == "POST":
                self._put(body)
            elif found and not name:
                start = asked.get("prefix", "")
                self._send(200, {"items": [_row(key, objects) for key in sorted(objects)
                                           if key.startswith(start)]})  # fmt: skip
            elif name not in objects:
                self._send(404, {"error": {"code": 404, "message": "Not Found"}})
            elif self.command == "DELETE":
                del objects[name]
                self._send(204, b"")
            elif asked.get("alt") == "media":
                last = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
                data = objects[name]
                self._send(206 if last else 200, data[: int(last[1]) + 1] if last else data)
            else:
                self._send(200, _row(name, objects))

        def _put(self, body: bytes) -> None:
            """A body of two parts: what the object is called, and what it holds."""
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("'\"")
            ends = b"--" + boundary.encode()
            facts, data = (part.partition(b"\n\n")[2] for part in body.split(ends)[1:3])
            name = json.loads(facts)["name"]
            objects[name] = data.removesuffix(b"\n")
            self._send(200, _row(name, objects))

        def _send(self, code: int, answer: Any) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with _started(Handler) as address:
        yield address, objects


def _row(name: str, objects: dict[str, bytes]) -> dict[str, str]:
    digest = base64.b64encode(hashlib.md5(objects[name]).digest()).decode()
    return {"name": name, "bucket": "shots", "size": str(len(objects[name])), "md5Hash": digest,
            "updated": "2026-01-02T03:04:05.678Z"}  # fmt: skip


@contextmanager
def _started(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
