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
from dmp_cli.urls import shown, url_of

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


@dataclass(frozen=True, slots=True)
class _Spooled:
    """A row, as it lies in the spool but for its number."""

    place: int  # among all rows
    start: int
    size: int  # bytes
    failed: bool
    classes: tuple[int, ...]  # that it shows


class Page:
    """Rows in, pages out: `path`, then `path` with -2, -3 ... once there are `per_page` rows.

    Rows are kept in a temporary file without a name, so that they may come in any order, memory is
    bounded (100 bytes a row) and a header can say how many there are. The pages appear when the
    context is left without an exception; else what stood there before is left alone. ResourceError
    or ImageError if they cannot be written.
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
        self._rows: list[_Spooled] = []

    def __enter__(self) -> Self:
        with self._told():
            beside = self.path.parent if url_of(self.path) is None else None
            if beside:
                beside.mkdir(parents=True, exist_ok=True)
            self._spool = tempfile.TemporaryFile(dir=beside, prefix=".dmp-", suffix=".part")
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

    def add(self, row: Row, place: int | None = None) -> None:
        """Write a row; ResourceError if the disk is full.

        On the pages rows are in the order of their places; without one, it comes after those that
        are there.
        """
        data = self._row(row).encode()
        start = self._rows[-1].start + self._rows[-1].size if self._rows else 0
        with self._told():
            self._spool.write(data)
            self._spool.flush()  # a full disk is told now
        place = len(self._rows) if place is None else place
        failed, classes = bool(row.error), tuple(row.classes)
        self._rows.append(_Spooled(place, start, len(data), failed, classes))

    # Rows ---------------------------------------------------------------------------------

    def _row(self, row: Row) -> str:
        head = f'<th scope="row">{self._cell(row, INPUT)}'
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
        self._rows.sort(key=lambda row: row.place)
        # the first page last: it never leads to pages that are not there
        for number in range(self._pages, 0, -1):
            before, after = template.split("$rows")
            save = partial(
                self._save, number, self._fill(before, number), self._fill(after, number)
            )
            files.write(self._file(number), save)
        self._remove_older(self._pages + 1)

    @property
    def _pages(self) -> int:
        return max(ceil(len(self._rows) / self.per_page), 1)

    def _on(self, number: int) -> list[_Spooled]:
        """The rows of a page."""
        return self._rows[(number - 1) * self.per_page : number * self.per_page]

    def _file(self, number: int) -> Path:
        return _page(self.path, number)

    def _save(self, number: int, before: str, after: str, file: IO[bytes]) -> None:
        file.write(before.encode())
        for row, spooled in enumerate(self._on(number), (number - 1) * self.per_page + 1):
            self._spool.seek(spooled.start)
            file.write(b'<tr id="r%d">' % row + self._spool.read(spooled.size))
        file.write(after.encode())

    def _fill(self, text: str, number: int) -> str:
        page = f" ({number} of {self._pages})" if self._pages > 1 else ""
        seen = Counter(one for row in self._on(number) for one in row.classes)
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
            legend=_legend(seen),
        )

    def _counts(self, number: int) -> str:
        rows = len(self._rows)
        text = "1 image" if rows == 1 else f"{rows} images"
        failed = [row for row, spooled in enumerate(self._rows, 1) if spooled.failed]
        if not failed:
            return text
        first = failed[0]
        page = (first - 1) // self.per_page + 1
        where = "" if page == number else quote(self._file(page).name)
        return f'{text}, <a class="failures" href="{where}#r{first}">{len(failed)} failed</a>'

    def _pager(self, number: int) -> str:
        last = self._pages
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
                files.remove(old)
                number += 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space or check the folder, then run it again"
            raise ResourceError(
                f"{shown(self.path)} cannot be written: {error.strerror}", hint
            ) from error


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
