"""A file that exists is whole; what cannot be written is told, and leaves nothing behind."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmp_cli import files
from dmp_cli.errors import ImageError, ResourceError
from dmp_cli.outputs import writers


def fail(error: BaseException) -> Callable[[Any], None]:
    def save(file: Any) -> None:
        file.write(b"half of it")
        raise error

    return save


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), OSError(5, "x")])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_failed_write_leaves_nothing(
    tmp_path: Path, error: BaseException, before: bytes | None
) -> None:
    path = tmp_path / "x.png"
    if before:
        path.write_bytes(before)
    with pytest.raises((KeyboardInterrupt, RuntimeError, ResourceError)):
        files.write(path, fail(error))
    assert [file.name for file in tmp_path.iterdir()] == (["x.png"] if before else [])
    assert not before or path.read_bytes() == before


def test_temporary_names_of_equal_processes_differ(tmp_path: Path) -> None:
    """Two containers on one folder may well have one process id, and do the same things."""
    code = (
        "import os, sys, pathlib; from dmp_cli import files\n"
        "os.getpid, folder = lambda: 7, pathlib.Path(sys.argv[1])\n"
        "files.write(folder / 'x', lambda file: print(*(p.name for p in folder.glob('.*'))))"
    )
    command = [sys.executable, "-c", code, tmp_path]
    names = [subprocess.check_output(command, text=True).strip() for _ in range(2)]
    assert all(name.startswith(".dmp-") and name.endswith(".part") for name in names)
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("name", "why", "hint"),
    [
        ("n" * 252 + ".png", "File name too long", "the name is too long: rename the input"),
        ("a\0b.png", "no name of a file", "rename the input"),
        ("\ud800.png", "no name of a file", "rename the input"),
    ],
)
def test_a_name_that_cannot_be_is_the_images_fault(
    tmp_path: Path, name: str, why: str, hint: str
) -> None:
    with pytest.raises(ImageError, match=f"cannot be written: {why}$") as raised:
        writers.write_npy(tmp_path / name, np.zeros(3))
    assert raised.value.hint.startswith(hint)
    assert ".dmp-" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_a_writer_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such type"):
        files.write(tmp_path / "x.png", fail(ValueError("no such type")))
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be written: encoder error -2"):
        files.write(tmp_path / "x.png", fail(OSError("encoder error -2")))


def test_a_folder_under_the_name_is_the_images_fault(tmp_path: Path) -> None:
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(ImageError, match=r"x\.npy cannot be written: Is a directory$") as raised:
        writers.write_npy(tmp_path / "x.npy", np.zeros(3))
    assert raised.value.hint == "a folder has this name: choose another -o"


@pytest.mark.parametrize("name", ["-x.npy", "a\nb.npy", os.fsdecode(b"caf\xe9.npy"), "海.npy"])
def test_odd_names_are_written(tmp_path: Path, name: str) -> None:
    writers.write_npy(tmp_path / name, np.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == [name]


CODES = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "EMFILE"]


@pytest.mark.parametrize("code", CODES)
def test_what_hits_every_file_is_the_surroundings_fault(tmp_path: Path, code: str) -> None:
    number = getattr(errno, code)
    with pytest.raises(ResourceError, match="cannot be written") as raised:
        files.write(tmp_path / "x.png", fail(OSError(number, os.strerror(number))))
    assert ("space" in raised.value.hint) == (code in {"ENOSPC", "EDQUOT"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk(tmp_path: Path) -> None:
    def save(file: Any) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(ResourceError, match="No space left"):
        files.write(tmp_path / "x.png", save)
    assert list(tmp_path.iterdir()) == []


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_check_writable_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ResourceError, match="is a file"):
        files.check_writable(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores the mode of a folder")
def test_check_writable_of_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ResourceError, match="Permission denied"):
        files.check_writable(tmp_path)


def test_a_file_where_a_folder_should_be_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").touch()
    for name in ("sub/a.npy", "sub/below/a.npy"):
        with pytest.raises(ImageError, match=r"a\.npy cannot be written: [A-Z]") as raised:
            writers.write_npy(tmp_path / name, np.zeros(3))
        assert "a file has the name of a folder" in raised.value.hint


def test_write_shows_no_final_name_before_its_end(tmp_path: Path) -> None:
    seen = []
    files.write(tmp_path / "x.png", lambda file: seen.extend(tmp_path.glob("x*")))
    assert seen == []
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
