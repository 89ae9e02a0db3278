"""The manifest: what is read of it, whatever stands in it, and that lines are whole."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import manifest
from dmp_cli.errors import ResourceError
from dmp_cli.manifest import Manifest

ROW = {
    "task": "depth",
    "format": "png",
    "path": "a.depth.png",
    "key": "k",
    "size": 7,
    "sha256": "s",
}


def record(**other: Any) -> dict[str, Any]:
    facts = {"input": "/in/a.png", "size": 3, "mtime": 5, "sha256": "r", "error": ""}
    return {**facts, "status": "done", "outputs": [ROW], **other}


def written(folder: Path, *records: dict[str, Any], run: int = 1, name: str = "") -> Path:
    path = folder / (name or manifest.name())
    with Manifest(path, run) as book:
        for one in records:
            book.append("input", one)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written(tmp_path, record(), run=4)
    past = manifest.past(tmp_path, {"a.depth.png"})
    made = past.outputs["a.depth.png"]
    assert past.runs == 4
    assert (made.source, made.key, made.size, made.sha256) == ("/in/a.png", "k", 7, "s")
    assert made.read is not None
    assert (made.read.size, made.read.mtime, made.read.sha256) == (3, 5, "r")
    assert manifest.past(tmp_path, {"b.depth.png"}).outputs == {}
    assert set(manifest.past(tmp_path).outputs) == {"a.depth.png"}


def test_the_last_word_counts(tmp_path: Path) -> None:
    failed = {**ROW, "size": None, "sha256": ""}
    written(tmp_path, record(), record(outputs=[failed], error="no room", status="failed"))
    made = manifest.past(tmp_path).outputs["a.depth.png"]
    assert (made.size, made.error) == (None, "no room")


@pytest.mark.parametrize(
    ("first", "second", "key"), [(1, 2, "shard"), (2, 1, "whole"), (3, 3, "whole")]
)
def test_of_two_manifests_the_later_run_counts(
    tmp_path: Path, first: int, second: int, key: str
) -> None:
    """By the number of the run, whatever the clock said; alike, the file that is read last."""
    written(tmp_path, record(outputs=[{**ROW, "key": "whole"}]), run=first)
    name = manifest.name((1, 2))
    written(tmp_path, record(outputs=[{**ROW, "key": "shard"}]), run=second, name=name)
    assert manifest.past(tmp_path).outputs["a.depth.png"].key == key
    assert manifest.past(tmp_path).runs == max(first, second)


BAD = {
    "torn": b'{"v":1,"kind":"input","run":1,"inp',
    "no json": b"hello",
    "not UTF-8": b'{"v":1,"kind":"input","run":"\xff"}',
    "a list": b"[1, 2]",
    "of another version": b'{"v":9,"kind":"input","run":1}',
    "of another program": b'{"image":"a.png","score":1}',
    "nothing in it": b"{}",
    "deep": b"[" * 100_000,
    "no number of a run": b'{"v":1,"kind":"input","run":"x","outputs":[]}',
    "an infinite run": b'{"v":1,"kind":"input","run":1e999}',
    "a long number": b'{"v":1,"kind":"input","run":' + b"9" * 5000 + b"}",
    "outputs of numbers": b'{"v":1,"kind":"input","run":1,"sha256":"","error":"","outputs":[3]}',
    "a path that is a list": b'{"v":1,"kind":"input","run":1,"sha256":"","outputs":[{"path":[]}]}',
    "zeros": b"\0" * 4096,
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_line_that_is_no_record_is_passed_over(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, record())
    with path.open("ab") as file:
        file.write(BAD[kind] + b"\n")
    written(tmp_path, record(outputs=[{**ROW, "path": "b.depth.png"}]))
    assert set(manifest.past(tmp_path).outputs) == {"a.depth.png", "b.depth.png"}


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_after_a_torn_line_the_next_stands_apart(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, record())
    os.truncate(path, path.stat().st_size - cut)
    written(tmp_path, record(outputs=[{**ROW, "path": "b.depth.png"}]))
    there = {"b.depth.png", "a.depth.png"} if cut == 1 else {"b.depth.png"}  # only its end is cut
    assert set(manifest.past(tmp_path).outputs) == there


@pytest.mark.parametrize(
    "name", ["sub/ä.depth.png", "new\nline.depth.png", "broken\udcff.depth.png"]
)
def test_any_name_comes_back(tmp_path: Path, name: str) -> None:
    written(tmp_path, record(input=f"/in/{name}", outputs=[{**ROW, "path": name}]))
    assert manifest.past(tmp_path, {name}).outputs[name].source == f"/in/{name}"
    assert len((tmp_path / manifest.name()).read_bytes().splitlines()) == 1


def test_lines_of_many_at_once_are_whole(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with Manifest(tmp_path / manifest.name(), number) as book:
            for i in range(50):
                book.append("input", record(outputs=[{**ROW, "path": f"{number}-{i}"}] * 20))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / manifest.name()).read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == 200
    assert len(manifest.past(tmp_path).outputs) == 200


def test_a_manifest_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / manifest.name()).mkdir()
    for use in (lambda: manifest.past(tmp_path), lambda: Manifest(tmp_path / manifest.name(), 1)):
        with pytest.raises(ResourceError, match=manifest.name()) as raised:
            use()
        assert raised.value.hint


@pytest.mark.parametrize("gone", ["deleted", "moved", "replaced"])
def test_a_folder_that_is_gone_under_a_run_is_told(tmp_path: Path, gone: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Manifest(out / manifest.name(), 1) as book:
        book.append("run", {})
        if gone == "deleted":
            shutil.rmtree(out)
        else:
            out.rename(tmp_path / "other")
        if gone == "replaced":
            out.mkdir()
            (out / manifest.name()).touch()
        with pytest.raises(ResourceError, match=r"another file now|No such file"):
            book.append("input", {})
