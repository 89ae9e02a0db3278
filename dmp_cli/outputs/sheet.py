"""The contact sheet: images and their maps as thumbnails on pages that hold all they show."""

import base64
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib import resources
from math import ceil
from pathlib import Path
from string import Template
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from dmp_cli import files, marks
from dmp_cli.classes import ade20k
from dmp_cli.errors import ResourceError
from dmp_cli.tasks import TASKS

INPUT = "input"  # the first column
PER_PAGE = 200  # images
MANY = 4  # classes that are shown without unfolding
# what would break a line, turn the direction of what follows, or is no character at all
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One image: what was made of it, column by column (`input` or the name of a task).

    A column without a picture shows `error`, each line of it on its own; where none is missing, it
    stands below the name. A link is a file as this process names it; the large
    view shows it if a browser can, so give it a picture rather than data where there are both.
    """

    name: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # JPEG
    links: Mapping[str, Path] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[int, float] = field(default_factory=dict)  # ADE20K id -> share of the pixels
    notes: Sequence[str] = ()
    error: str = ""


@dataclass
class _Part:
    """The rows of one page, as they lie in the spool."""

    start: int
    rows: int = 0
    classes: Counter[int] = field(default_factory=Counter)  # id -> images that show it


class Page:
    """Rows in, pages out: `path`, then `path` with -2, -3 ... once there are `per_page` rows.

    Rows are kept in a temporary file without a name, so that memory is bounded and a header can
    say how many there are. The pages appear when the context is left without an exception; else
    what stood there before is left alone. ResourceError or ImageError if they cannot be written.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        columns: Sequence[str],
        facts: Mapping[str, str],
        per_page: int = PER_PAGE,
    ) -> None:
        self.path, self.title, self.facts, self.per_page = path, title, facts, per_page
        self.columns = (INPUT, *columns)
        self._parts = [_Part(0)]
        self._rows = 0
        self._failed: list[int] = []  # numbers of rows

    def __enter__(self) -> Self:
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._spool = tempfile.TemporaryFile(
                dir=self.path.parent, prefix=".dmp-", suffix=".part"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._told(), self._spool:
            if kind is None:
                self._finish()

    def add(self, row: Row) -> None:
        """Write a row; ResourceError if the disk is full."""
        if self._parts[-1].rows == self.per_page:
            self._parts.append(_Part(self._spool.tell()))
        self._rows += 1
        if row.error:
            self._failed.append(self._rows)
        with self._told():
            self._spool.write(self._row(row).encode())
            self._spool.flush()  # a full disk is told now
        part = self._parts[-1]
        part.rows += 1
        part.classes.update(dict.fromkeys(row.classes, 1))

    # Rows ---------------------------------------------------------------------------------

    def _row(self, row: Row) -> str:
        head = f'<tr id="r{self._rows}"><th scope="row">{self._cell(row, INPUT)}'
        head += f'<span class="name">{_text(row.name)}</span>{_notes(row)}'
        maps = [column in row.pictures for column in self.columns[1:]]
        if row.error and not any(maps):
            return f'{head}</th><td colspan="{len(maps)}">{_missing(row)}</td></tr>\n'
        if row.error and all(maps):  # of a file that is not shown here
            head += _missing(row)
        cells = "".join(f"<td>{self._cell(row, column)}</td>" for column in self.columns[1:])
        return f"{head}</th>{cells}</tr>\n"

    def _cell(self, row: Row, column: str) -> str:
        label = f'<span class="label">{_text(column)}</span>'
        if column not in row.pictures:
            return label + _missing(row) if column != INPUT else ""
        picture = base64.b64encode(row.pictures[column]).decode()
        alt = _text(row.name if column == INPUT else f"{column} of {row.name}")
        image = f'<img src="data:image/jpeg;base64,{picture}" alt="{alt}" decoding="async">'
        caption = row.captions.get(column)
        below = f'<p class="caption">{_text(caption)}</p>' if caption else ""
        if column in TASKS and TASKS[column].labels:
            below += _classes(row.classes)
        return label + self._shot(column, row.links.get(column), image) + below

    def _shot(self, column: str, link: Path | None, image: str) -> str:
        about = f'class="shot" data-column="{_text(column)}"'
        if link is None:
            return f'<button type="button" {about}>{image}</button>'
        return f'<a {about} href="{_address(link, self.path.parent)}">{image}</a>'

    # Pages --------------------------------------------------------------------------------

    def _finish(self) -> None:
        template = resources.files("dmp_cli.outputs").joinpath("sheet.html").read_text("utf-8")
        # the first page last: it never leads to pages that are not there
        for number in range(len(self._parts), 0, -1):
            before, after = template.split("$rows")
            save = partial(
                self._save, number, self._fill(before, number), self._fill(after, number)
            )
            files.write(self._file(number), save)
        self._remove_older(len(self._parts) + 1)

    def _file(self, number: int) -> Path:
        return _page(self.path, number)

    def _save(self, number: int, before: str, after: str, file: IO[bytes]) -> None:
        ends = [part.start for part in self._parts[1:]] + [self._spool.seek(0, os.SEEK_END)]
        left = ends[number - 1] - self._spool.seek(self._parts[number - 1].start)
        file.write(before.encode())
        while left:
            left -= file.write(self._spool.read(min(left, 1 << 20)))
        file.write(after.encode())

    def _fill(self, text: str, number: int) -> str:
        page = f" ({number} of {len(self._parts)})" if len(self._parts) > 1 else ""
        return Template(text).substitute(
            title=_text(self.title) + page,
            heading=_text(self.title),
            counts=self._counts(number),
            columns=len(self.columns),
            head="".join(f'<th scope="col">{_text(column)}</th>' for column in self.columns),
            facts="".join(
                f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>"
                for key, value in self.facts.items()
            ),
            pages=self._pager(number),
            legend=_legend(self._parts[number - 1].classes),
        )

    def _counts(self, number: int) -> str:
        text = "1 image" if self._rows == 1 else f"{self._rows} images"
        if not self._failed:
            return text
        first = self._failed[0]
        page = (first - 1) // self.per_page + 1
        where = "" if page == number else quote(self._file(page).name)
        return f'{text}, <a class="failures" href="{where}#r{first}">{len(self._failed)} failed</a>'

    def _pager(self, number: int) -> str:
        last = len(self._parts)
        if last == 1:
            return ""
        near = sorted({1, last, *range(max(number - 2, 1), min(number + 2, last) + 1)})
        items = []
        for before, page in zip([0, *near], near, strict=False):
            items += ["<span>...</span>"] if page > before + 1 else []
            link = f'<a href="{_address(self._file(page), self.path.parent)}">{page}</a>'
            items += [f'<b aria-current="page">{page}</b>' if page == number else link]
        return f'<nav class="pages" aria-label="Pages">Page {" ".join(items)}</nav>'

    def _remove_older(self, number: int) -> None:
        """Pages of an earlier run that had more of them."""
        with self._told():
            while marks.is_page(old := self._file(number)):
                old.unlink()
                number += 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space or check the folder, then run it again"
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}", hint) from error


def pages(path: Path, rows: int) -> list[Path]:
    """The files that so many rows go to."""
    return [_page(path, number) for number in range(1, max(ceil(rows / PER_PAGE), 1) + 1)]


# Pieces -----------------------------------------------------------------------------------


def _page(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def _text(text: str) -> str:
    """Any text, names of files too, for HTML and its attributes; what is unseen as its code."""

    def code(found: re.Match[str]) -> str:
        byte = ord(found[0]) - 0xDC00  # PEP 383: how Python carries a byte that is not UTF-8
        if 0x80 <= byte <= 0xFF:
            return f"\\x{byte:02x}"
        return found[0].encode("unicode_escape").decode()

    return escape(_UNSEEN.sub(code, text))


def _address(file: Path, folder: Path) -> str:
    """A relative address, from the bytes of the name: any name is one, and none has a scheme."""
    return quote(os.fsencode(Path(os.path.relpath(file, folder)).as_posix()))


def _missing(row: Row) -> str:
    if not row.error:
        return '<p class="missing">no map</p>'
    reason = "\n".join(map(_text, row.error.splitlines()))
    return f'<p class="missing bad"><strong>Failed</strong>{reason}</p>'


def _notes(row: Row) -> str:
    if not row.notes:
        return ""
    return f'<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in row.notes)}</ul>'


def _swatch(number: int, after: str) -> str:
    colour = bytes(ade20k().standard[number]).hex()
    name = _text(ade20k().names[number])
    return (
        f'<li title="{name}: id {number}"><i style="background:#{colour}"></i><b>{name}</b> '
        f"{after}</li>"
    )


def _classes(shares: Mapping[int, float]) -> str:
    def percent(share: float) -> str:
        return f"{share:.0%}" if share >= 0.005 else "&lt;1%"

    order = sorted(shares, key=lambda number: (-shares[number], number))
    items = [_swatch(number, percent(shares[number])) for number in order]
    first, rest = "".join(items[:MANY]), "".join(items[MANY:])
    listed = f'<ul class="classes">{first}</ul>' if first else ""
    more = f"<summary>{len(items) - MANY} more</summary>"
    return listed + (f'<details>{more}<ul class="classes">{rest}</ul></details>' if rest else "")


def _legend(images: Mapping[int, int]) -> str:
    if not images:
        return ""
    items = (_swatch(number, f"id {number}, in {images[number]}") for number in sorted(images))
    heading = "<h2>Classes on this page, and in how many images</h2>"
    return f'{heading}\n<ul class="classes">{"".join(items)}</ul>'
