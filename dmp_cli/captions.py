"""Captions of images: metadata.jsonl or metadata.csv, as Hugging Face's ImageFolder has them.

A line is `{"file_name": "a.jpg", "text": "what it shows"}`; other keys are passed over. file_name
counts from the folder of the file. The first row of a CSV file names its columns.
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmp_cli.errors import ImageError

NAME = "metadata.jsonl"
CSV = "metadata.csv"
_FORM = 'a line is {"file_name": "a.jpg", "text": "what it shows"}'
_ROWS = "the first row names the columns: file_name,text"

Entry = dict[str, Any]


def read(folders: Sequence[Path], shots: Mapping[Path, str]) -> dict[str, str]:
    """Captions by the name that `shots` gives an image, out of each folder's file, if any.

    A file_name may also count from the last of the folders, that of the images. ImageError begins
    with the path of the file and names the line: no JSON object, no file_name, or no such image.
    """
    names = {os.path.normpath(path): name for path, name in shots.items()}
    found = {}
    for file in dict.fromkeys(folder / NAME for folder in folders):
        for number, entry in entries(file) if file.is_file() else ():
            caption = text(file, number, entry)
            paths = [
                os.path.normpath(base / entry["file_name"]) for base in (file.parent, folders[-1])
            ]
            name = next((names[path] for path in paths if path in names), None)
            if name is None:
                raise ImageError(
                    f"{file}: line {number}: no image {entry['file_name']}",
                    "file_name is the path of an image, counted from the folder of this file",
                )
            found[name] = caption or ""
    return found


def entries(file: Path) -> Iterator[tuple[int, Entry]]:
    """The entries of a .jsonl or .csv file, each with a file_name and the number of its line.

    ImageError begins with the path of the file and names the line that is not valid.
    """
    try:
        whole = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{file}: cannot be read: {error}") from error
    rows, form = (_rows, _ROWS) if file.suffix == ".csv" else (_objects, _FORM)
    for number, entry in rows(file, whole):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise ImageError(f"{file}: line {number}: no file_name", form)
        yield number, entry


def text(file: Path, number: int, entry: Entry, column: str = "text") -> str | None:
    """What an entry of a file says in a column, None if nothing; ImageError if it is no text."""
    value = entry.get(column)
    if not isinstance(value, str | None):
        raise ImageError(f"{file}: line {number}: {column} is not a string", _FORM)
    if value and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ImageError(f"{file}: line {number}: {column} is not valid Unicode", _FORM)
    return value


def _objects(file: Path, whole: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(whole.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            why = f"{error.msg} at character {error.pos + 1}"
            raise ImageError(f"{file}: line {number}: {why}", _FORM) from error
        except (ValueError, RecursionError) as error:  # a number or a depth beyond Python's limits
            raise ImageError(f"{file}: line {number}: {error}", _FORM) from error


def _rows(file: Path, whole: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(whole, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise ImageError(f"{file}: line {reader.line_num}: {error}", _ROWS) from error
