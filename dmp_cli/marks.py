"""Which files dmp itself wrote, by their first bytes, where a name alone does not tell."""

import os
from pathlib import Path

from dmp_cli import storage
from dmp_cli.errors import ImageError
from dmp_cli.urls import url_of

MARK = b"dmp:Task"  # in the header of every EXR file that dmp writes: the tasks of its layers
LEGEND = "ADE20K (SceneParse150): ids 0 to 149"  # how the legend of class ids begins
LEGENDS = ("labels.json", "labels.png")
PAGE = b'content="dmp contact sheet"'  # a page of ours has it near its start


def layers(path: Path) -> tuple[str, ...]:
    """The tasks whose maps dmp wrote into an EXR file, by its header; none if it is not dmp's."""
    if path.suffix.lower() != ".exr":
        return ()
    _, found, after = _start(path, 1 << 16).partition(MARK + b"\0string\0")
    length = int.from_bytes(after[:4], "little")  # an attribute: name, type, length, value
    return tuple(after[4 : 4 + length].decode(errors="replace").split(",")) if found else ()


def is_legend(path: Path) -> bool:
    """Whether it is a legend of class ids that dmp wrote, as a table or as a picture."""
    return path.name in LEGENDS and LEGEND.encode() in _start(path, 128)


def is_page(path: Path) -> bool:
    """Whether it is a page of a contact sheet."""
    return path.suffix == ".html" and PAGE in _start(path, 300)


def foreign(path: Path) -> bool:
    """Whether there is a file under this name that is neither layers, nor legend, nor page."""
    if url_of(path):
        there = storage.stat(path) is not None
    else:  # os.path takes names that are too long, which are told when they are written
        there = os.path.isfile(path) or os.path.islink(path)  # noqa: PTH113, PTH114
    return there and not (layers(path) or is_legend(path) or is_page(path))


def _start(path: Path, length: int) -> bytes:
    """Its first bytes; none of what cannot be read: that is not known to be dmp's."""
    try:
        if url_of(path):
            return storage.read_bytes(path, length)
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(length)
    except (OSError, ValueError, ImageError):
        return b""
