"""Zip files, as Google Drive makes them of a folder -> the files in them that are wanted."""

import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path, PurePosixPath

from dmp_cli.errors import ModelError, ResourceError

LARGEST = 2 << 30  # bytes of one member, and of what is unpacked in all
_STAMP = re.compile(r"(-\d{8}T\d{6}Z)?(-\d+)?-\d{3}$|-\d{8}T\d{6}Z$")  # what Drive appends

_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    UnicodeDecodeError,
)  # fmt: skip


def is_archive(path: Path) -> bool:
    """Whether a file is to be unpacked, by its name."""
    return path.suffix.lower() == ".zip"


def unpack(
    archives: Sequence[Path], folder: Path, wanted: Callable[[str], bool]
) -> dict[Path, Path]:
    """Unpack the members whose file name is `wanted`; the folder of each archive, by that folder.

    The parts of one folder (`x-20240101T000000Z-001.zip`, `-002`) go into one. ModelError names
    the archive and the member that is too large, would lie outside, or is damaged.
    """
    roots: dict[Path, Path] = {}
    seen: dict[tuple[Path, str], Path] = {}
    room = LARGEST
    for archive in archives:
        name = _STAMP.sub("", archive.stem) or archive.stem
        root = seen.setdefault((archive.parent, name), folder / f"{len(seen)}" / name)
        roots.setdefault(root, archive)
        root.mkdir(parents=True, exist_ok=True)
        try:
            room -= _members(archive, root, wanted, room)
        except _DAMAGED as bad:
            raise _refused(archive, f"cannot be unpacked: {bad}") from bad
        except OSError as error:
            if error.errno in (ENOSPC, EDQUOT):
                raise ResourceError(
                    f"{archive}: cannot be unpacked: {error.strerror}",
                    f"free some space for {folder.parent}, or set $DMP_HOME to another folder",
                ) from error
            why = error.strerror or error  # that of bz2 has no number
            raise _refused(archive, f"cannot be unpacked: {why}") from error
    return roots


def _members(archive: Path, root: Path, wanted: Callable[[str], bool], room: int) -> int:
    """Unpack one archive; the bytes that it took."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        _check_names(archive, members)
        chosen = [one for one in members if _regular(one) and wanted(Path(one.filename).name)]
        for member in chosen:
            room -= member.file_size
            if room < 0:
                raise _refused(
                    archive, f"{member.filename}: more than {LARGEST >> 30} GB would be unpacked"
                )
            target = root / PurePosixPath(member.filename)
            if target.exists():
                raise _refused(archive, f"{member.filename} is there twice")
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as source, target.open("xb") as out:
                shutil.copyfileobj(source, out, 1 << 20)  # never more than its stated size
        return sum(member.file_size for member in chosen)


def _regular(member: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)
    return not member.is_dir() and kind in (0, stat.S_IFREG)


def _check_names(archive: Path, members: Iterable[zipfile.ZipInfo]) -> None:
    """ModelError for a member that leads out of the folder, wanted or not."""
    for member in members:
        name = PurePosixPath(member.orig_filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", str(name)):
            raise _refused(archive, f"{member.orig_filename!r} would lie outside of the folder")


def _refused(archive: Path, why: str) -> ModelError:
    return ModelError(
        f"{archive}: {why}", "fetch the archive again, or unpack it yourself and import the folder"
    )
