"""Captions of images: metadata.jsonl, as Hugging Face's ImageFolder has it.

A line is `{"file_name": "a.jpg", "text": "what it shows"}`; other keys are passed over. file_name
counts from the folder of the file.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmp_cli.errors import ImageError

NAME = "metadata.jsonl"
_FORM = 'a line is {"file_name": "a.jpg", "text": "what it shows"}'


def read(folders: Sequence[Path], shots: Mapping[Path, str]) -> dict[str, str]:
    """Captions by the name that `shots` gives an image, out of each folder's file, if any.

    A file_name may also count from the last of the folders, that of the images. ImageError begins
    with the path of the file and names the line: no JSON object, no file_name, or no such image.
    """
    names = {os.path.normpath(path): name for path, name in shots.items()}
    found = {}
    for file in dict.fromkeys(folder / NAME for folder in folders):
        for number, entry in _entries(file) if file.is_file() else ():
            paths = [
                os.path.normpath(base / entry["file_name"]) for base in (file.parent, folders[-1])
            ]
            name = next((names[path] for path in paths if path in names), None)
            if name is None:
                raise ImageError(
                    f"{file}: line {number}: no image {entry['file_name']}",
                    "file_name is the path of an image, counted from the folder of this file",
                )
            found[name] = entry.get("text") or ""
    return found


def _entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, each with the number of its line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{file}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ImageError(f"{file}: line {number}: {error}", _FORM) from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise ImageError(f"{file}: line {number}: no file_name", _FORM)
        if not isinstance(entry.get("text"), str | None):
            raise ImageError(f"{file}: line {number}: text is not a string", _FORM)
        yield number, entry
