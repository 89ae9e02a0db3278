"""URLs as paths: each key is one path, and turns back."""

import os
import sys
from pathlib import Path

import pytest

from dmp_cli import urls
from dmp_cli.errors import UsageError
from tests.buckets import HARD_KEYS

pytest.importorskip("s3fs")
pytest.importorskip("gcsfs")


@pytest.mark.parametrize("key", HARD_KEYS)
def test_each_key_is_one_path_and_turns_back(key: str) -> None:
    url = f"s3://shots/{key}"
    path = urls.mirror(url)
    assert urls.url_of(path) == url
    assert all(len(os.fsencode(part)) <= 255 for part in path.parts)
    assert ".." not in path.parts
    assert not path.exists()
    assert path.is_relative_to(urls.mirror("s3://shots"))


def test_no_two_keys_are_one_path() -> None:
    assert len({urls.mirror(f"s3://shots/{key}") for key in HARD_KEYS}) == len(HARD_KEYS)


def test_names_and_suffixes_are_those_of_the_key() -> None:
    path = urls.mirror("s3://shots/day 1/room.v2.PNG")
    assert (path.name, path.stem, path.suffix) == ("room.v2.PNG", "room.v2", ".PNG")
    assert urls.shown(path.with_suffix(".exr")) == "s3://shots/day 1/room.v2.exr"
    assert urls.shown(urls.folder("s3://shots/out//") / "a/b.png") == "s3://shots/out/a/b.png"


@pytest.mark.parametrize("path", ["a.png", "/dev/null", "/dev/null/dmp-objects", "s3/x", "C:/x"])
def test_a_plain_path_stands_for_no_url(path: str) -> None:
    assert urls.url_of(Path(path)) is None
    assert urls.shown(Path(path)) == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos/a.png", "photos/a.png"),
        ("C:/x", "C:/x"),
        ("file:///tmp/a%20b.png", "/tmp/a b.png"),
        ("file://localhost/tmp/a.png", "/tmp/a.png"),
        ("S3://shots/A", "s3://shots/A"),
        ("gs://shots/a", "gs://shots/a"),
    ],
)
def test_place(text: str, expected: str) -> None:
    assert urls.shown(urls.place(text)) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("http://host/a.png", "http:// is not known", "s3://, gs://, file://"),
        ("abfs://c/x", "abfs:// is not known", "s3://, gs://, file://"),
        ("s3:/shots/a", "s3:/shots/a: no URL", "s3://BUCKET"),
        ("s3://", "no bucket", "s3://BUCKET/FOLDER"),
        ("s3:///key", "no bucket", "s3://BUCKET/FOLDER"),
        ("s3://a b/key", "'a b' is no bucket", "s3://BUCKET/FOLDER"),
        ("s3://AKIA:Pa55/word@shots/key", "takes no password", "AWS_PROFILE"),
        ("s3://AKIA:Pa55word@shots/key", "takes no password", "AWS_PROFILE"),
        ("gs://me:Pa55word@shots/key", "takes no password", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("file://host/a", "no file of this machine", "file:///path"),
        ("file://a", "no file of this machine", "file:///path"),
    ],
)
def test_what_is_no_place(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        urls.place(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert "Pa55" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")]
)
def test_a_missing_package_says_what_to_install(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    urls._installed.cache_clear()
    try:
        with pytest.raises(UsageError, match=f"{scheme}:// needs {package}") as caught:
            urls.place(f"{scheme}://shots/a")
    finally:
        urls._installed.cache_clear()
    assert caught.value.hint == f"pip install 'dmp-predict[{extra}]'"
