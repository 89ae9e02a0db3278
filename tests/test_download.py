"""When a download that breaks off is tried again, and when it is given up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmp_cli.download import download
from tests import hub as hubs
from tests.hub import DIGEST


class Sent:
    """The answer of a server that breaks off after so many bytes of DATA."""

    status_code = 200  # whatever range was asked for

    def __init__(self, length: int) -> None:
        self.length = length

    def iter_bytes(self) -> Iterator[bytes]:
        yield hubs.DATA[: self.length]


def test_a_server_that_begins_anew_each_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Success is more than there ever was, not more than the last time."""
    monkeypatch.setattr("dmp_cli.download.time.sleep", lambda seconds: None)
    whole = len(hubs.DATA)
    lengths = iter([whole * 3 // 4, 9] * 20)
    asked: list[int] = []

    @contextmanager
    def ask(offset: int) -> Iterator[Sent]:
        asked.append(offset)
        yield Sent(next(lengths))

    with pytest.raises(ConnectionError, match="the answer ended after"):
        download(tmp_path / "blob", whole, DIGEST, ask, lambda error: False, lambda number: None)
    assert len(asked) == 4


def test_a_slow_server_that_goes_on_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmp_cli.download.time.sleep", lambda seconds: None)
    part = 400_000  # less than a try should bring, more in three

    @contextmanager
    def ask(offset: int) -> Iterator[Any]:
        data = hubs.DATA[offset : offset + part]
        yield SimpleNamespace(status_code=206, iter_bytes=lambda: iter([data]))

    download(
        tmp_path / "blob", len(hubs.DATA), DIGEST, ask, lambda error: False, lambda number: None
    )
    assert (tmp_path / "blob").read_bytes() == hubs.DATA
