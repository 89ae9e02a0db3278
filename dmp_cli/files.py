"""A file is there whole or not at all: how dmp writes whatever it writes."""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dmp_cli.errors import ImageError, ResourceError


def write(path: Path, save: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a temporary name, then rename it: a file that exists is whole.

    ImageError if this one name cannot be written, ResourceError if none could be.
    """
    temporary = path.parent / f".dmp-{secrets.token_hex(8)}.part"  # a pid is not unique
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                save(file)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise _write_error(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once, as `write` does."""

    def save(file: IO[bytes]) -> None:
        file.write(data)

    write(path, save)


def hidden_folder(beside: Path) -> Path:
    """A new folder `.dmp-...` in a folder, made if need be. ResourceError if that fails."""
    folder = beside / f".dmp-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be made: {error.strerror}", "choose another -o"
        ) from error
    return folder


def _write_error(path: Path, error: Exception) -> ImageError | ResourceError:
    number = error.errno if isinstance(error, OSError) else None
    of_the_name = (errno.ENAMETOOLONG, errno.EISDIR, errno.EILSEQ, errno.EEXIST, errno.ENOTDIR)
    if number is None or number in (*of_the_name, errno.ELOOP, errno.EINVAL):
        return ImageError(f"{path} cannot be written: {error}")
    hint = "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
    return ResourceError(
        f"{path} cannot be written: {os.strerror(number or 0)}", f"{hint}, then run it again"
    )


def check_writable(folder: Path) -> None:
    """Make an output folder and a file in it; ResourceError if that fails."""
    if folder.exists() and not folder.is_dir():
        raise ResourceError(f"output folder {folder} is a file", "choose another -o")
    probe = folder / f".dmp-{secrets.token_hex(8)}.probe"
    try:
        write(probe, lambda file: file.flush())
        probe.unlink(missing_ok=True)
    except (ImageError, ResourceError) as error:
        why = str(error).removeprefix(str(probe))
        raise ResourceError(f"output folder {folder}{why}", "choose another -o") from error
