"""The contact sheet: parsed, its structure is whole whatever the names; in a browser, it works."""

import base64
import errno
import io
import json
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from PIL import Image

from dmp_cli import marks
from dmp_cli.errors import ResourceError
from dmp_cli.outputs import panels, sheet
from dmp_cli.outputs.sheet import Page, Row

EMPTY = {"meta", "img", "input", "link", "br"}
FACTS = {"Model": "demo", "Normals": "opengl"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def jpeg(colour: int = 90) -> bytes:
    return panels.thumbnail(np.full((6, 8, 3), colour, np.uint8), 8)


def row(name: str, *columns: str, **more: Any) -> Row:
    return Row(name, {column: jpeg() for column in ("input", *(columns or ("depth",)))}, **more)


class Parsed(HTMLParser):
    """Every element with its attributes and own text; fails where tags do not close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.text.append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.text:
            self.text[-1] += data

    def all(self, tag: str, name: str = "") -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of a kind, or of those with a class."""
        return [
            (attrs, text.strip())
            for (found, attrs), text in zip(self.found, self.text, strict=True)
            if found == tag and (not name or name in (attrs.get("class") or "").split())
        ]

    def texts(self, tag: str, name: str = "") -> list[str]:
        return [text for _, text in self.all(tag, name)]


def write(
    path: Path, rows: Iterable[Row], columns: tuple[str, ...] = ("depth",), **more: Any
) -> None:
    with Page(path, "photos", columns, FACTS, **more) as page:
        for one in rows:
            page.add(one)


def test_structure(tmp_path: Path) -> None:
    path = tmp_path / "contact-sheet.html"
    rows = [
        row("a.jpg", "depth", "normals", captions={"depth": "1 to 3 m"}, notes=("a note",)),
        row("sub/b.jpg", "depth", "normals"),
    ]
    write(path, rows, ("depth", "normals"))
    page = Parsed(path)
    assert page.texts("title") == page.texts("h1") == ["photos"]
    heads = [(text, attrs["scope"]) for attrs, text in page.all("th") if attrs["scope"] == "col"]
    assert heads == [("input", "col"), ("depth", "col"), ("normals", "col")]
    assert page.texts("span", "name") == ["a.jpg", "sub/b.jpg"]
    assert [attrs["id"] for attrs, _ in page.all("tr") if "id" in attrs] == ["r1", "r2"]
    assert list(zip(page.texts("dt"), page.texts("dd"), strict=True)) == list(FACTS.items())
    assert "2 images" in page.texts("p")
    assert page.texts("p", "caption") == ["1 to 3 m"]
    assert "a note" in page.texts("li")
    images = [attrs for attrs, _ in page.all("img") if attrs.get("src")]
    assert [image["alt"] for image in images[:3]] == [
        "a.jpg", "depth of a.jpg", "normals of a.jpg",
    ]  # fmt: skip
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).size == (8, 6)


def test_nothing_but_the_page_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path, [row("a.jpg", links={"input": tmp_path / "a.jpg"})] * 3, per_page=2)
    page = Parsed(path)
    addresses = [
        str(attrs[key])
        for _, attrs in page.found
        for key in ("src", "href", "srcset", "poster", "data", "action")
        if key in attrs
    ]
    assert addresses
    assert {urlsplit(address).scheme for address in addresses} <= {"data", ""}
    assert {urlsplit(address).netloc for address in addresses} == {""}
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page.rawdata + path.read_text())
    policy = next(a["content"] for a, _ in page.all("meta") if a.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")


HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "a\"b'c&d.jpg",
    '" onerror="alert(1)',
    "</table></body>.jpg",
    "line\nbreak\r.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    "gpj.\u202etxt",
    "$rows ${title} %s {0}.jpg",
    "-->]]>.jpg",
    "javascript:alert(1)",
    "a:b.jpg",
    "c:d?e#f%20g.jpg",
    "海 \U0001f600.jpg",
    "//host/a.jpg",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "page.html"
    plain = tmp_path / "plain.html"
    texts = {"notes": (name,), "captions": {"depth": name}}
    below = name.lstrip("/")
    with Page(path, name, ("depth",), {name: name}) as page:
        page.add(row(name, links={"depth": tmp_path / "sub" / below}, **texts))
        page.add(Row(name, error=name))
    with Page(plain, "x", ("depth",), {"x": "x"}) as page:
        page.add(row("x", links={"depth": tmp_path / "sub" / "x"}, notes=("x",),
                     captions={"depth": "x"}))  # fmt: skip
        page.add(Row("x", error="x"))
    found, expected = Parsed(path), Parsed(plain)
    assert [(tag, set(attrs)) for tag, attrs in found.found] == [
        (tag, set(attrs)) for tag, attrs in expected.found
    ]
    (link,) = (attrs["href"] for attrs, _ in found.all("a", "shot"))
    assert urlsplit(str(link)).scheme == urlsplit(str(link)).netloc == ""
    assert unquote_to_bytes(urlsplit(str(link)).path) == os.fsencode(f"sub/{below}")
    if name.isprintable():
        assert set(found.texts("span", "name")) == {name}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a\\nb"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("x\u202ey", "x\\u202ey"),
        ("a\0b", "a\\x00b"),
        ("海 é", "海 é"),
    ],
)
def test_what_is_unseen_is_shown_as_its_code(tmp_path: Path, name: str, shown: str) -> None:
    write(tmp_path / "page.html", [row(name)])
    assert Parsed(tmp_path / "page.html").texts("span", "name") == [shown]


def test_links_are_relative_to_the_page(tmp_path: Path) -> None:
    path = tmp_path / "out" / "page.html"
    links = {"input": tmp_path / "photos" / "a b.jpg", "depth": tmp_path / "out" / "a b.depth.png"}
    write(path, [row("a b.jpg", links=links)])
    found = [attrs["href"] for attrs, _ in Parsed(path).all("a", "shot")]
    assert found == ["../photos/a%20b.jpg", "a%20b.depth.png"]


def test_without_a_link_a_thumbnail_is_a_button(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [row("a.jpg")])
    page = Parsed(tmp_path / "page.html")
    assert len(page.all("button", "shot")) == 2
    assert page.all("a", "shot") == []


def test_failures_show_their_reason(tmp_path: Path) -> None:
    columns = ("depth", "normals")
    rows = [
        row("good.jpg", *columns),
        Row("bad.jpg", error="damaged: the file ends too early"),
        row("half.jpg", "depth", error="normals: not enough memory"),
    ]
    write(tmp_path / "page.html", rows, columns)
    page = Parsed(tmp_path / "page.html")
    wide = [attrs for attrs, _ in page.all("td") if "colspan" in attrs]
    assert [attrs["colspan"] for attrs in wide] == ["2"]
    text = (tmp_path / "page.html").read_text()
    assert text.count("damaged: the file ends too early") == 1
    assert text.count("normals: not enough memory") == 1
    assert [(attrs["href"], said) for attrs, said in page.all("a", "failures")] == [
        ("#r2", "2 failed")
    ]


def test_an_error_is_shown_though_no_map_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [row("a.jpg", error="a.depth.exr cannot be written")])
    page = Parsed(tmp_path / "page.html")
    assert len(page.all("p", "bad")) == 1
    assert "a.depth.exr cannot be written" in (tmp_path / "page.html").read_text()


def test_the_first_failure_is_found_on_another_page(tmp_path: Path) -> None:
    rows = [row("a.jpg"), row("b.jpg"), Row("c.jpg", error="empty")]
    write(tmp_path / "page.html", rows, per_page=2)
    links = [
        Parsed(tmp_path / name).all("a", "failures")[0][0]["href"]
        for name in ("page.html", "page-2.html")
    ]
    assert links == ["page-2.html#r3", "#r3"]


def test_pages_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "contact-sheet.html"
    write(path, [row(f"{i}.jpg") for i in range(7)], per_page=3)
    names = ["contact-sheet.html", "contact-sheet-2.html", "contact-sheet-3.html"]
    assert {file.name for file in tmp_path.iterdir()} == set(names)
    pages = [Parsed(tmp_path / name) for name in names]
    assert [page.texts("span", "name") for page in pages] == [
        ["0.jpg", "1.jpg", "2.jpg"], ["3.jpg", "4.jpg", "5.jpg"], ["6.jpg"],
    ]  # fmt: skip
    assert all("7 images" in page.texts("p") for page in pages)
    for name, page in zip(names, pages, strict=True):
        linked = {attrs["href"] for attrs, _ in page.all("a") if "href" in attrs}
        assert linked == set(names) - {name}
    assert [page.texts("title")[0] for page in pages][1] == "photos (2 of 3)"


def test_a_full_page_is_not_followed_by_an_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [row(f"{i}.jpg") for i in range(4)], per_page=4)
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_many_pages_have_a_short_pager(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [row(str(i)) for i in range(30)], per_page=1)
    nav = Parsed(tmp_path / "page-15.html")
    shown = [*nav.texts("nav", "pages"), *nav.texts("b")[:1]]
    assert shown == ["Page", "Page", "15"]
    assert [text for attrs, text in nav.all("a") if "class" not in attrs][:6] == [
        "1", "13", "14", "16", "17", "30",
    ]  # fmt: skip


def test_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [])
    assert "0 images" in Parsed(tmp_path / "page.html").texts("p")


def test_classes(tmp_path: Path) -> None:
    shares = {0: 0.5, 3: 0.3, 7: 0.1, 14: 0.06, 15: 0.036, 149: 0.004}
    rows = [row("a", "segmentation", "albedo", classes=shares), row("b", "albedo", classes={0: 1})]
    write(tmp_path / "page.html", rows, ("segmentation", "albedo"))
    page = Parsed(tmp_path / "page.html")
    swatches = [attrs["style"] for attrs, _ in page.all("i")]
    assert swatches[:2] == ["background:#787878", "background:#503232"]
    assert len(swatches) == 6 + 6  # of the one map, and of the legend; albedo has none
    assert page.texts("summary") == ["2 more"]
    text = (tmp_path / "page.html").read_text()
    assert "<b>wall</b> 50%" in text
    assert "<b>flag</b> &lt;1%" in text
    assert "<b>wall</b> id 0, in 2" in text
    assert "Classes on this page, and in how many images" in page.texts("h2")


def test_no_classes_no_legend(tmp_path: Path) -> None:
    write(tmp_path / "page.html", [row("a")])
    assert Parsed(tmp_path / "page.html").texts("h2") == []


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    rows = [row("a", classes={1: 0.5, 2: 0.5}), Row("b", error="x")]
    for folder in ("one", "two"):
        write(tmp_path / folder / "page.html", rows, per_page=1)
    for name in ("page.html", "page-2.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# Streaming --------------------------------------------------------------------------------


def test_nothing_is_seen_before_the_end(tmp_path: Path) -> None:
    with Page(tmp_path / "page.html", "t", ("depth",), {}, per_page=1) as page:
        for i in range(3):
            page.add(row(str(i)))
        assert not list(tmp_path.glob("page*"))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("before", [None, "what was there"])
def test_an_interrupted_run_leaves_the_old_page(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "page.html"
    if before:
        path.write_text(before)

    def interrupted() -> Iterator[Row]:
        yield row("a")
        yield row("b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted(), per_page=1)
    assert [file.name for file in tmp_path.iterdir()] == (["page.html"] if before else [])
    assert not before or path.read_text() == before


def test_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    thumbnail = os.urandom(100_000)
    tracemalloc.start()
    try:
        with Page(tmp_path / "page.html", "t", ("depth",), {}) as page:
            for i in range(300):
                page.add(Row(str(i), {"input": thumbnail, "depth": thumbnail}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert written > 75_000_000
    assert peak < 12_000_000


def test_pages_of_a_longer_run_before_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write(path, [row(str(i)) for i in range(4)], per_page=1)
    write(path, [row(str(i)) for i in range(2)], per_page=1)
    assert {file.name for file in tmp_path.iterdir()} == {"page.html", "page-2.html"}


def test_a_page_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "page-2.html").write_text("my own")
    write(tmp_path / "page.html", [row("a")])
    assert (tmp_path / "page-2.html").read_text() == "my own"


class Full:
    """A file on a full disk."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


def test_a_full_disk_is_told_with_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Full()
    monkeypatch.setattr(sheet.tempfile, "TemporaryFile", lambda **options: file)
    with (
        pytest.raises(ResourceError, match="No space left") as raised,
        Page(tmp_path / "page.html", "t", ("depth",), {}) as page,
    ):
        page.add(row("a"))
    assert "space" in raised.value.hint
    assert file.closed
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        write(tmp_path / "out" / "page.html", [])


# In a browser -----------------------------------------------------------------------------

PROBE = """<script>
addEventListener("load", async () => {
  const pause = () => new Promise(done => setTimeout(done, 20));
  const until = async expected => {
    for (let i = 0; i < 250 && state() !== expected; i++) await pause();
    return state();
  };
  const press = key => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  const state = () => location.hash + (image.naturalWidth || 0) + (view.open ? " open" : " closed");
  const said = {};
  said.decoded = all(document, ".shot img").map(one => one.complete && one.naturalWidth).join();
  said.requests = performance.getEntriesByType("resource").map(one => one.name).join(" ");
  one(document, ".shot").click();
  said.clicked = await until("#r1.input8 open");  // its file is gone: the small one
  press("ArrowRight");
  said.right = await until("#r1.depth320 open");  // its file in full
  press("ArrowDown");
  said.down = await until("#r2.depth8 open");  // no file: the small one
  press("ArrowDown");
  said.last = await until("#r2.depth8 open");  // what failed has nothing to show
  one(view, ".close").click();
  said.closed = await until("0 closed");
  field.value = "B.J"; field.dispatchEvent(new Event("input"));
  said.filtered = rows.map(row => row.hidden).join() + " " + one(document, "#shown").textContent;
  location.hash = "#r2.input"; said.address = await until("#r2.input8 open");
  const result = document.createElement("pre");
  result.textContent = JSON.stringify(said);
  document.body.replaceChildren(result);
});
</script></body>"""


@pytest.fixture
def browser(tmp_path: Path) -> list[str]:
    if CHROMIUM is None:
        pytest.skip("needs the browser Chromium: apt install chromium")
    return [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path, browser: list[str]) -> None:
    """Thumbnails decode, no request leaves the page, the large view and the filter work."""
    large = tmp_path / "out" / "a#1.depth.png"
    large.parent.mkdir()
    Image.new("RGB", (320, 240), (9, 9, 9)).save(large)
    links = {"depth": large, "input": tmp_path / "gone.png"}
    rows = [row('"a#1".jpg', links=links), Row("x.jpg", error="empty"), row("b.jpg")]
    path = tmp_path / "out" / "page.html"
    write(path, [*rows[:1], *rows[2:], rows[1]])
    path.write_text(path.read_text().replace("</body>", PROBE))
    done = subprocess.run(
        [*browser, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r"<pre>(.*)</pre>", done.stdout, re.S)
    assert found, done.stdout[-2000:]
    said = json.loads(found[1].replace("&amp;", "&"))
    assert said["decoded"] == "8,8,8,8"
    assert {urlsplit(name).scheme for name in said["requests"].split()} <= {"data", "file"}
    assert said["clicked"] == "#r1.input8 open"
    assert said["right"] == "#r1.depth320 open"
    assert said["down"] == said["last"] == "#r2.depth8 open"
    assert said["closed"] == "0 closed"
    assert said["filtered"] == "true,false,true 1 of 3"
    assert said["address"] == "#r2.input8 open"


def test_pages_are_known_before(tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    assert sheet.pages(path, 0) == sheet.pages(path, 200) == [path]
    with Page(path, "Run", ["depth"], {}) as page:
        for number in range(201):
            page.add(Row(str(number)))
    assert sorted(sheet.pages(path, 201)) == sorted(tmp_path.glob("*.html"))
    assert all(map(marks.is_page, sheet.pages(path, 201)))
