"""Which text prompts which image: a .txt beside it, a column of metadata, captions made before."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dmp_cli import captions
from dmp_cli.errors import ImageError, ResourceError, UsageError
from dmp_cli.jobs import Job

TXT = "txt"  # stands for a .txt beside each image where a column is named
CAPTIONS = "captions.jsonl"  # in the output folder
_LARGEST = 1_000_000  # bytes of a .txt
_OTHER = "choose another -o, or mend the file"


@dataclass(frozen=True)
class Found:
    """The jobs with the texts of their images, None where there is none, and where was looked."""

    jobs: list[Job]
    place: str  # as in "no text in ..."
    looked: str  # the same at length


def find(todo: Sequence[Job], where: str) -> Found:
    """The texts of images: a .txt beside each if `where` is TXT, else that column of metadata.

    The .txt is `a.jpg.txt`, else `a.txt`. The metadata is metadata.jsonl or metadata.csv in the
    folder of an image, or above it up to the root that it was found under; the nearest that has
    a text for it wins. UsageError names a file that cannot be used, or one without the column.
    """
    if not where.strip():
        raise UsageError("--prompt-from names nothing", "txt, or a column of metadata.jsonl: text")
    try:
        return _beside(todo) if where == TXT else _listed(todo, where)
    except ImageError as error:  # one line that is wrong makes all that it says doubtful
        raise UsageError(str(error), error.hint) from error


def require_some(found: Found) -> None:
    """UsageError if not one image has a text."""
    if all(job.prompt is None for job in found.jobs):
        raise UsageError(
            f"--prompt-from: no image has a text in {found.place}",
            f"{found.looked}; --prompt gives all images one text",
        )


def images(todo: Iterable[Job]) -> list[Job]:
    """A job for each image; for each clip that of its first frame here."""
    return list({job.source: job for job in reversed(list(todo))}.values())[::-1]


def fill(todo: Iterable[Job], texts: Mapping[Path, str]) -> list[Job]:
    """The jobs, those without a text with that of their image."""
    return [
        replace(job, prompt=texts.get(job.source)) if job.prompt is None else job for job in todo
    ]


def tidy(text: str) -> str:
    """A text in one line, without space at its ends."""
    return " ".join(text.split())


# Texts that lie there ---------------------------------------------------------------------


def _beside(todo: Sequence[Job]) -> Found:
    texts = {}
    for job in images(todo):
        names = (f"{job.source.name}.txt", f"{job.source.stem}.txt")
        file = next(filter(Path.is_file, (job.source.with_name(name) for name in names)), None)
        if file:
            texts[job.source] = _content(file)
    first = todo[0].source
    looked = f"looked for {first.with_name(first.name)}.txt and {first.stem}.txt, and so for each"
    return Found(fill(todo, texts), "a .txt file", looked)


def _content(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST:
            raise UsageError(f"{file}: more than {_LARGEST} bytes are no prompt", "shorten it")
        return tidy(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}", "a .txt is UTF-8") from error


def _listed(todo: Sequence[Job], column: str) -> Found:
    looked: dict[Path, _Table] = {}
    texts = {}

    @cache
    def tables(folder: Path) -> list[_Table]:
        files = (folder / name for name in (captions.NAME, captions.CSV))
        found = [_table(file, column) for file in files if file.is_file()]
        looked.update({table.file: table for table in found})
        return found

    shots = images(todo)
    for job in shots:
        for folder in _folders(job):
            told = [table.text(job.source) for table in tables(folder)]
            known = [text for text in told if text is not None]
            if known:
                texts[job.source] = known[0]
                break
    _require_column(looked.values(), column)
    return Found(fill(todo, texts), *_place(list(looked), shots))


def _folders(job: Job) -> Sequence[Path]:
    """The folder of an image and those above it, up to the root that it was found under."""
    return list(job.source.parents)[: max(len(Path(job.name).parts), 1)]


@dataclass(frozen=True)
class _Table:
    """A file of metadata: the texts of one column by file_name, and the columns that there are."""

    file: Path
    columns: tuple[str, ...]
    texts: Mapping[str, str | None]

    def text(self, image: Path) -> str | None:
        """What it says of an image below its folder; of a data set, also without `images/`."""
        from dmp_cli.naming import IMAGE_FOLDERS  # it brings libraries that help does not need

        below = image.relative_to(self.file.parent)
        shorter = Path(*below.parts[1:]) if below.parts[0] in IMAGE_FOLDERS else below
        return next((self.texts[str(name)] for name in (below, shorter)
                     if str(name) in self.texts), None)  # fmt: skip


def _table(file: Path, column: str) -> _Table:
    columns: dict[str, None] = {}
    texts = {}
    for number, entry in captions.entries(file):
        columns |= dict.fromkeys(entry)
        text = captions.text(file, number, entry, column)
        texts[os.path.normpath(entry["file_name"])] = None if text is None else tidy(text)
    return _Table(file, tuple(columns), texts)


def _require_column(tables: Iterable[_Table], column: str) -> None:
    """UsageError if there are tables, and none of them has the column."""
    read = list(tables)
    if not read or (column != "file_name" and any(column in table.columns for table in read)):
        return
    first = next((table for table in read if table.columns), read[0])
    there = ", ".join(name for name in first.columns if name != "file_name")
    raise UsageError(
        f"--prompt-from: {first.file} has no column {column!r} of texts",
        f"columns there: {there or 'none'}; for a .txt beside each image: --prompt-from {TXT}",
    )


def _place(files: Sequence[Path], shots: Sequence[Job]) -> tuple[str, str]:
    """Where was looked, in a few words and at length."""
    if files:
        return _few(files), "a file_name is the path of an image, counted from that file's folder"
    folders = dict.fromkeys(folder for job in shots for folder in _folders(job))
    return f"{captions.NAME} or {captions.CSV}", f"there is none in {_few(list(folders))}"


def _few(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")


# Captions that were made ------------------------------------------------------------------


def kept(file: Path, todo: Iterable[Job], model: str) -> dict[Path, str]:
    """The captions that a run before this one wrote: of the same model, of files as they are now.

    A line that says neither model nor size is taken too: somebody has written it. A last line that
    was not finished is cut off. UsageError for a file that is not in this form.
    """
    if not file.is_file():
        return {}
    _mend(file)
    by_name = {job.name: job.source for job in todo}
    found = {}
    try:
        for number, entry in captions.entries(file):
            text = captions.text(file, number, entry)
            source = by_name.get(entry["file_name"])
            if source and text is not None and _holds(entry, source, model):
                found[source] = tidy(text)
    except ImageError as error:
        raise UsageError(str(error), _OTHER) from error
    return found


def keep(file: Path, job: Job, model: str, text: str) -> None:
    """Add a caption to a file, in one write. ResourceError if that fails."""
    entry = {"file_name": job.name, "text": text, "model": model, **_state(job.source)}
    line = json.dumps(entry).encode() + b"\n"
    try:
        with file.open("ab") as out:
            out.write(line)
    except OSError as error:
        raise ResourceError(
            f"{file} cannot be written: {error.strerror}", "make room, then run it again"
        ) from error


def _holds(entry: captions.Entry, source: Path, model: str) -> bool:
    """Whether a line is still true of an image, by what it states of it."""
    now = {"model": model, **_state(source)}
    return all(entry.get(key, value) == value for key, value in now.items())


def _state(source: Path) -> dict[str, int]:
    try:
        state = source.stat()
    except OSError:  # gone: whoever reads it says so
        return {}
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns}


def _mend(file: Path) -> None:
    """Cut off the last line if it was not finished."""
    try:
        with file.open("r+b") as both:
            data = both.read()
            rest = data.rpartition(b"\n")[2]
            if rest and not _whole(rest):
                both.truncate(len(data) - len(rest))
            elif rest:
                both.write(b"\n")
    except OSError as error:
        raise ResourceError(f"{file} cannot be written: {error.strerror}", _OTHER) from error


def _whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
