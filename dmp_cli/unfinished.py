"""Hidden names of what is not finished, by which a later run tells what a killed process left."""

import atexit
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from dmp_cli.errors import ResourceError


def name() -> str:
    """A new name for what is not finished: of this process, by which `sweep` tells who is gone."""
    return f".dmp-{_machine()}-{os.getpid()}-{secrets.token_hex(8)}"


def sweep(folders: Iterable[Path]) -> None:
    """Remove what killed processes of this machine left unfinished in folders."""
    for folder in folders:
        with suppress(OSError):
            for path in folder.glob(f".dmp-{_machine()}-*"):
                number = path.name.split("-")[2]
                if number.isdecimal() and not alive(int(number)):
                    _remove(path)


def scratch() -> Path:
    """A folder of this process among the temporary files, gone at its end.

    What processes that were killed left there goes when it is first asked for; a process that is
    forked has a folder of its own. ResourceError if there can be none.
    """
    return _scratch(os.getpid())


@cache
def _scratch(pid: int) -> Path:
    try:
        above = Path(tempfile.gettempdir())
        sweep([above])
        own = above / name()
        own.mkdir(mode=0o700)
    except OSError as error:
        raise ResourceError(
            f"no temporary folder: {error.strerror}", "set TMPDIR to a folder with room"
        ) from error

    def remove() -> None:
        if os.getpid() == pid:
            shutil.rmtree(own, ignore_errors=True)

    atexit.register(remove)
    return own


@cache
def _machine() -> str:
    """What tells where a process number means something: a host, and of containers on it one."""
    with suppress(OSError):
        return _short(f"{socket.gethostname()} {Path('/proc/self/ns/pid').stat().st_ino}")
    return _short(socket.gethostname())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def alive(pid: int) -> bool:
    """Whether there is a process of a number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
