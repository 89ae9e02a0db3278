"""A file is there whole or not at all: how dmp writes whatever it writes, objects too."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from dmp_cli import storage, unfinished
from dmp_cli.errors import ImageError, ResourceError
from dmp_cli.urls import shown, url_of

_RENAME = "rename the input"
_FILE_IN_THE_WAY = "a file has the name of a folder that is needed: choose another -o"
# What is wrong with one name and not with the disk, and what to do about it
_OF_THE_NAME = {
    errno.ENAMETOOLONG: "the name is too long: rename the input, or choose another -o",
    errno.EISDIR: "a folder has this name: choose another -o",
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EILSEQ: f"the file system takes no such name: {_RENAME}",
    errno.EINVAL: f"the file system takes no such name: {_RENAME}",
    errno.ELOOP: "links lead in a circle: choose another -o",
}


def write(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a temporary name, then rename it: a file that exists is whole.

    What stands for a URL is uploaded instead. ImageError if this one name cannot be written,
    ResourceError if none could be.
    """
    _check_name(path)
    try:
        if url_of(path) is None:
            _write_here(path, save)
        else:
            _write_away(path, save)
    except OSError as error:
        raise _write_error(path, error) from error


def _write_here(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    temporary = path.parent / f"{unfinished.name()}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            save(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_away(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    temporary = storage.outgoing(path)
    try:
        with temporary.open("xb") as file:
            save(file)
        storage.upload(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_name(path: Path) -> None:
    """ImageError for what no file can be called: with a NUL, or characters that are none."""
    try:
        ends_early = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        ends_early = True
    if ends_early:
        raise ImageError(f"{shown(path)!r} cannot be written: no name of a file", _RENAME)


def utf_8(text: str) -> str:
    """Text with what is not UTF-8, as names of files and arguments may be, written as `\\udcff`."""
    return text.encode(errors="backslashreplace").decode()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once, as `write` does."""

    def save(file: IO[bytes]) -> None:
        file.write(data)

    write(path, save)


def hidden_folder(beside: Path) -> Path:
    """A new folder `.dmp-...` in a folder, made if need be. ResourceError if that fails.

    In what stands for a URL there can be none: then it is among the temporary files.
    """
    if url_of(beside) is not None:
        return storage.hidden_folder()
    folder = beside / unfinished.name()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be made: {error.strerror}", "choose another -o"
        ) from error
    return folder


def _write_error(path: Path, error: OSError) -> ImageError | ResourceError:
    number = error.errno
    why = error.strerror or str(error)  # an OSError that a library made has no number
    if number is None or number in _OF_THE_NAME:
        return ImageError(
            f"{shown(path)} cannot be written: {why}", _OF_THE_NAME.get(number or 0, "")
        )
    hint = "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    if url_of(path) is not None:
        hint += " of temporary files (TMPDIR)"
    return ResourceError(
        f"{shown(path)} cannot be written: {os.strerror(number)}", f"{hint}, then run it again"
    )


def check_writable(folder: Path) -> None:
    """Make an output folder and a file in it; ResourceError if that fails."""
    if url_of(folder) is not None:
        _check_bucket(folder)
        return
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"output folder {folder} is a file", "choose another -o")
    probe = folder / f"{unfinished.name()}.probe"
    try:
        write(probe, lambda file: file.flush())
        probe.unlink(missing_ok=True)
    except (ImageError, ResourceError) as error:
        why = str(error).removeprefix(str(probe))
        raise ResourceError(f"output folder {folder}{why}", "choose another -o") from error


def _check_bucket(folder: Path) -> None:
    probe = folder / ".dmp-probe"
    try:
        write(probe, lambda file: file.flush())
    except (ImageError, ResourceError) as error:
        why = str(error).replace(shown(probe), shown(folder))
        raise ResourceError(f"output folder {why}", error.hint) from error
    with suppress(ImageError, ResourceError):  # who may write need not be allowed to delete
        storage.delete(probe)


def exists(path: Path) -> bool:
    """Whether there is a file or folder, or the object that a path stands for."""
    return path.exists() if url_of(path) is None else storage.stat(path) is not None


def remove(path: Path) -> None:
    """Delete a file, or the object that a path stands for. OSError, or ImageError of an object."""
    if url_of(path) is None:
        path.unlink()
    else:
        storage.delete(path)


def in_words(number: int) -> str:
    """Bytes in words, `3.44 GB`, as the Hub counts them."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= each:
            return f"{number / each:.2f} {unit}"
    return f"{number} bytes"
