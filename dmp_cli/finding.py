"""What arguments name: files, folders, patterns and URLs -> files of pictures and clips."""

import glob
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dmp_cli import storage
from dmp_cli.errors import UsageError
from dmp_cli.inputs import clip
from dmp_cli.urls import place, url_of

PICTURES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"}
    | {".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SUFFIXES = PICTURES | {".exr", ".hdr"}
CLIPS = clip.SUFFIXES
_TAKEN = SUFFIXES | CLIPS

Note = Callable[[str], None]  # where a line about something skipped goes


@dataclass(frozen=True, slots=True)
class Input:
    """A file to predict, and its path below the root that it was found under."""

    path: Path
    below: Path
    frame: int | None = None  # of a clip, from 0 on


def expand(text: str, recursive: bool, note: Note, skipped: list[Path]) -> Iterator[Input]:
    """The files that an argument names: a file, a folder, a pattern, or a URL of one of these.

    Files without an image suffix go to `skipped`. UsageError for an argument that is not there.
    """
    path = place(text)
    if url_of(path):
        yield from _of_bucket(text, recursive, skipped)
        return
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"{text!r}: not a path: {error}") from error
    if there and path.is_dir():
        yield from _walk(path, recursive, note, skipped)
    elif there:
        if regular(path, note):
            yield Input(path, Path(path.name))
    elif any(mark in text for mark in "*?["):
        yield from _match(text, note, skipped)
    else:
        raise UsageError(f"{text}: no such file or folder", "check the path; quote a pattern")


def _of_bucket(url: str, recursive: bool, skipped: list[Path]) -> Iterator[Input]:
    """Image files of a bucket; one that is named itself is taken whatever its suffix."""
    named = place(url)
    for found in storage.find(url, recursive):
        suffix = found.path.suffix.lower()
        if suffix in _TAKEN or found.path == named:
            yield Input(found.path, found.below)
        else:
            skipped.append(found.path)


def _match(text: str, note: Note, skipped: list[Path]) -> Iterator[Input]:
    """Files of a pattern, their root being what stands before its first wildcard."""
    parts = Path(text).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:fixed]), [*parts[fixed:], *(["*"] if parts[-1] == "**" else [])]
    try:  # unlike glob.glob, pathlib follows no links below `**`, which may form a loop
        paths = sorted(root.glob(os.path.join(*rest)))
    except ValueError as error:
        raise UsageError(f"{text}: {error}", "`**` stands alone between slashes") from error
    hidden = any(part.startswith(".") and part != ".." for part in rest)
    for path in paths:
        below = path.relative_to(root)
        if not hidden and any(part.startswith(".") and part != ".." for part in below.parts):
            continue
        image = path.suffix.lower() in _TAKEN
        if (path.is_dir() and not image) or not regular(path, note):
            continue
        if image:
            yield Input(path, Path(path.name) if ".." in below.parts else below)
        else:
            skipped.append(path)


def _walk(root: Path, recursive: bool, note: Note, skipped: list[Path]) -> Iterator[Input]:
    """Image files below a folder in sorted order; hidden ones and links to folders are left out."""

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise UsageError(f"{root}: cannot be read: {error.strerror}") from error
        note(f"skipped {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=refuse):
        below = Path(folder).relative_to(root)
        folders.sort()
        for name in [name for name in folders if Path(name).suffix.lower() in SUFFIXES]:
            if not name.startswith("."):
                regular(Path(folder, name), note)
            folders.remove(name)
        folders[:] = [name for name in folders if not name.startswith(".") and recursive]
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(folder, name)
            if path.suffix.lower() not in _TAKEN:
                skipped.append(path)
            elif regular(path, note):
                yield Input(path, below / name)


def regular(path: Path, note: Note) -> bool:
    """Whether it is a plain file; what is not there counts, so that reading it can say so."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return True
    if not stat.S_ISREG(mode):
        note(f"skipped {path}: not a regular file")
    return stat.S_ISREG(mode)
