"""`dmp status`: what the manifests say, in numbers and in exit codes."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import manifest, standing, urls
from dmp_cli.manifest import Manifest
from tests import buckets
from tests.conftest import Dmp

GONE = 2**22 - 1  # a process that is not there


class Book:
    """A run as a test writes it down."""

    def __init__(
        self, out: Path, number: int = 1, part: tuple[int, int] | None = None, name: str = ""
    ) -> None:
        if urls.url_of(out) is None:
            out.mkdir(exist_ok=True)
        self.book = Manifest(out / (name or manifest.name(part)), number)
        self.part, self.inputs = part, 0

    def begin(self, total: int | None, **other: Any) -> "Book":
        """The first record."""
        pid = os.getpid()
        facts = {
            "total": total, "kept": 0, "failed": 0, "shard": list(self.part) if self.part else None,
            "host": socket.gethostname(), "pid": pid, "born": standing.born(pid), "time": "T0",
        }  # fmt: skip
        self.book.append("run", facts | other)
        return self

    def add(self, count: int, error: str = "", seconds: float = 1.0) -> "Book":
        """Inputs that were done, or failed."""
        for _ in range(count):
            self.inputs += 1
            name = f"{self.part or ''}{self.inputs}"
            row = {"path": f"{name}.depth.png", "size": None if error else 7}
            self.book.append("input", {
                "input": f"/in/{name}.png", "status": "failed" if error else "done",
                "error": error, "outputs": [row], "time": "T1", "at": self.inputs * seconds,
            })  # fmt: skip
        return self

    def end(self, code: int) -> "Book":
        """The last record."""
        self.book.append("end", {"code": code, "seconds": 9.0})
        return self


def told(dmp: Dmp, out: Path) -> tuple[int, dict[str, Any]]:
    ran = dmp("status", out, "--json")
    return ran.code, json.loads(ran.out)


AWAY = {"host": "other.example"}
LOST = {"pid": GONE, "born": 5}
ENDS = [
    ("done", {}, 10, 0, 0, 0, "done"),
    ("failed", {}, 8, 2, 3, 3, "but for those that failed"),
    ("gave up", {}, 4, 2, 3, 8, "ended before it was done"),
    ("interrupted", {}, 4, 0, 130, 8, "interrupted (exit 130)"),
    ("a full disk", {}, 4, 0, 6, 8, "surroundings"),
    ("a bug", {}, 4, 0, 1, 8, "bug"),
    ("running", {}, 4, 1, None, 7, "running, process"),
    ("away", AWAY, 4, 1, None, 7, "running on other.example"),
    ("killed", LOST, 4, 1, None, 8, "killed, last heard of at T1"),
    ("killed at the end", LOST, 10, 0, None, 0, "killed"),
    ("another process has its number", {"born": 5}, 4, 0, None, 8, "killed"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "done", "failed", "end", "code", "words"),
                         [row[1:] for row in ENDS], ids=[row[0] for row in ENDS])  # fmt: skip
def test_how_a_run_stands(
    dmp: Dmp, tmp_path: Path, facts: dict[str, Any], done: int, failed: int,
    end: int | None, code: int, words: str,
) -> None:  # fmt: skip
    book = Book(tmp_path).begin(10, **facts).add(done).add(failed, "no good")
    if end is not None:
        book.end(end)
    if "born" in facts and standing.born(os.getpid()) is None:
        pytest.skip("this system does not tell when a process began")
    ran = dmp("status", tmp_path)
    assert ran.code == code
    assert words in ran.out.splitlines()[0]
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    again, record = told(dmp, tmp_path)
    assert again == record["code"] == code
    assert (record["done"], record["failed"], record["left"]) == (done, failed, 10 - done - failed)
    assert record["going"] == (code == 7)


def test_rate_and_time_left_are_of_the_monotonic_clock(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path).begin(1000, kept=100, time="2099-01-01").add(10, seconds=2.0)
    _, record = told(dmp, tmp_path)
    assert (record["done"], record["kept"], record["left"]) == (110, 100, 890)
    assert record["rate"] == 0.5
    assert record["seconds_left"] == 1780
    out = dmp("status", tmp_path).out
    assert "left 890, 0.50 images/s, 30 min left" in out
    assert "done 110 of 1000, 100 of them there before" in out


def test_failures_are_grouped_by_reason(dmp: Dmp, tmp_path: Path) -> None:
    book = Book(tmp_path).begin(9).add(2)
    for side in (9000, 8000, 7000, 6000):
        book.add(1, f"{side}x{side}: too many pixels\nsecond line")
    book.add(1, "empty file").add(1, "out/a.png cannot be written").end(3)
    _, record = told(dmp, tmp_path)
    assert [reason["inputs"] for reason in record["reasons"]] == [4, 1, 1]
    first = record["reasons"][0]
    assert first["words"] == "9000x9000: too many pixels"
    assert first["names"] == ["/in/3.png", "/in/4.png", "/in/5.png"]
    assert "    ..." in dmp("status", tmp_path).out


def test_what_was_done_later_has_not_failed(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path).begin(2).add(1, "empty").add(1).end(3)
    Book(tmp_path, 2).begin(2, kept=1).add(1).end(0)
    code, record = told(dmp, tmp_path)
    assert (code, record["done"], record["failed"], record["reasons"]) == (0, 2, 0, [])


def test_of_several_runs_the_last_counts_and_those_that_go_on(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path).begin(5).add(3).end(130)
    Book(tmp_path, 2).begin(50).add(2)
    Book(tmp_path, 3).begin(7, kept=3).add(1).end(0)
    code, record = told(dmp, tmp_path)
    assert code == 7
    assert [run["number"] for run in record["runs"]] == [2, 3]
    assert (record["total"], record["done"]) == (57, 6)


def test_shards_are_counted_together(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path, 1, (1, 4)).begin(9).add(9).end(0)  # of another number of parts, before
    Book(tmp_path, 2, (1, 3)).begin(10).add(10).end(0)
    Book(tmp_path, 2, (2, 3)).begin(10).add(4, seconds=0.5)
    code, record = told(dmp, tmp_path)
    assert code == 7
    assert (record["total"], record["done"], record["left"]) == (20, 14, 6)
    assert (record["unbegun"], record["rate"], record["seconds_left"]) == ([3], 2.0, 3.0)
    out = dmp("status", tmp_path).out
    assert "not begun: 1 part: 3" in out
    assert "in all\n  done 14 of 20\n" in out
    assert "not counted: 1 manifest" in out
    Book(tmp_path, 4, (2, 3)).begin(10, kept=4).add(6).end(0)
    Book(tmp_path, 3, (3, 3)).begin(0).end(0)
    shutil.copy(tmp_path / manifest.name((1, 3)), tmp_path / "kept")
    book = tmp_path / manifest.name((2, 3))
    lines = book.read_text().splitlines(keepends=True)
    book.write_text("".join(line for line in lines if json.loads(line)["run"] == 4))
    assert told(dmp, tmp_path)[0] == 0


def test_a_watch_has_no_total(dmp: Dmp, tmp_path: Path) -> None:
    book = Book(tmp_path).begin(None).add(3)
    book.book.append("there", {"kept": 5, "failed": 1})
    code, record = told(dmp, tmp_path)
    assert code == 7
    assert (record["total"], record["left"], record["done"], record["failed"]) == (None, None, 8, 1)
    book.end(143)
    code, record = told(dmp, tmp_path)
    assert (code, record["complete"]) == (3, True)


@pytest.mark.parametrize(
    "line", ['{"v":1,"kind":"run"}', '{"v":1,"kind":"end","id":"x"}', "torn {", "[]",
             '{"v":1,"kind":"input","id":"x","status":"done","outputs":5}',
             '{"v":1,"kind":"run","id":"x","total":1e999,"kept":0,"failed":0,"shard":null}'],
)  # fmt: skip
def test_lines_that_are_no_records_are_passed_over(dmp: Dmp, tmp_path: Path, line: str) -> None:
    book = Book(tmp_path).begin(2).add(1)
    with (tmp_path / manifest.name()).open("a") as file:
        file.write(line + "\n")
    book.add(1).end(0)
    assert told(dmp, tmp_path)[0] == 0


def test_names_that_hold_anything_are_shown(dmp: Dmp, tmp_path: Path) -> None:
    book = Book(tmp_path).begin(1)
    row = {"path": "a", "size": None}
    facts = {"input": "/in/\x1b[31m\udcff.png", "status": "failed", "error": "bad \x07"}
    book.book.append("input", {**facts, "outputs": [row], "time": "", "at": 1})
    ran = dmp("status", tmp_path)
    assert "\x1b" not in ran.out
    assert "\x07" not in ran.out
    assert r"\x1b[31m\udcff.png" in ran.out


NONSENSE = [
    {"pid": -1}, {"pid": 0}, {"pid": 10**13}, {"total": -5}, {"kept": -1}, {"failed": -1},
    {"total": 10**13}, {"shard": [1, 10**15]}, {"shard": [1, 1_000_001]}, {"shard": [0, 4]},
    {"shard": [5, 4]}, {"shard": [-1, -1]}, {"shard": [1]}, {"run": -1},
]  # fmt: skip


@pytest.mark.parametrize("facts", NONSENSE, ids=str)
def test_a_run_with_numbers_that_none_has_is_passed_over(
    dmp: Dmp, tmp_path: Path, facts: dict[str, Any]
) -> None:
    Book(tmp_path).begin(**{"total": 5} | facts)
    assert dmp("status", tmp_path).code == 4
    Book(tmp_path, 2).begin(2).add(2).end(0)
    code, record = told(dmp, tmp_path)
    assert (code, len(record["runs"]), record["done"], record["total"]) == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [("there", {"kept": -3, "failed": 0}), ("there", {"kept": 0, "failed": -1}),
     ("end", {"code": -9}), ("end", {"code": 256})]
    + [("input", {"input": "a", "status": "done", "error": "", "outputs": [], "time": "", "at": at})
       for at in (-1, float("nan"), float("inf"), 1e300)],
)  # fmt: skip
def test_a_record_with_numbers_that_none_has_is_passed_over(
    dmp: Dmp, tmp_path: Path, kind: str, facts: dict[str, Any]
) -> None:
    book = Book(tmp_path).begin(None).add(3)
    before = told(dmp, tmp_path)
    book.book.append(kind, facts)
    assert told(dmp, tmp_path) == before


def test_a_host_forges_no_line(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path).begin(5, host="a\npart 1 of 1: done\ud800", time="\nT").add(1)
    ran = dmp("status", tmp_path)
    assert (ran.code, len(ran.out.splitlines())) == (7, 3)
    assert r"running on a\x0apart 1 of 1: done\ud800, or lost" in ran.out
    assert json.loads(dmp("status", tmp_path, "--json").out)["runs"][0]["host"][1] == "\n"


def test_parts_that_are_not_begun_are_not_all_named(dmp: Dmp, tmp_path: Path) -> None:
    Book(tmp_path, part=(2, 1_000_000)).begin(1).add(1).end(0)
    code, record = told(dmp, tmp_path)
    assert (code, record["lacking"], len(record["unbegun"])) == (8, 999_999, 1000)
    assert record["unbegun"][:3] == [1, 3, 4]
    assert "not begun: 999999 parts: 1, 3, 4, " in dmp("status", tmp_path).out


# Several files of one part ----------------------------------------------------------------


@pytest.mark.parametrize("names", ["ab", "ba"])
@pytest.mark.parametrize("part", [None, (1, 1)])
def test_runs_with_a_file_each_are_of_one_part(
    dmp: Dmp, tmp_path: Path, names: str, part: tuple[int, int] | None
) -> None:
    """As in a bucket, where the names of the files tell nothing of their order."""
    first, second = (f"dmp-manifest.{name}.jsonl" for name in names)
    Book(tmp_path, 1, part, first).begin(5).add(1).add(2, "no good").end(130)
    assert told(dmp, tmp_path)[0] == 8
    again = Book(tmp_path, 2, part, second).begin(5, kept=1, failed=1)
    again.inputs = 1
    again.add(1).add(1, "worse")  # of what had failed
    again.inputs = 3
    again.add(2).end(3)
    code, record = told(dmp, tmp_path)
    assert (code, len(record["runs"]), record["total"]) == (3, 1, 5)
    assert [(reason["words"], reason["inputs"]) for reason in record["reasons"]] == [("worse", 1)]


def test_a_bucket_is_done_once_a_run_is_resumed(dmp: Dmp, monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets.serve() as server:
        buckets.use(server[0], monkeypatch)
        url = f"{buckets.Bucket(*server).url}/out"
        for number, kept, code in ((1, 0, 130), (2, 2, 0)):
            run = Book(urls.mirror(url), number)
            with run.book:
                run.begin(5, kept=kept)
                run.inputs = kept
                run.add(3 if kept else 2).end(code)
            ran = dmp("status", url, "--json")
            assert ran.code == (0 if kept else 8), ran.err
        record = json.loads(ran.out)
    assert (len(record["runs"]), record["total"], record["done"]) == (1, 5, 5)


@pytest.mark.parametrize("copy", ["dmp-manifest.old.jsonl", "dmp-manifest.bak.jsonl"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_copy_of_a_manifest_counts_nothing_twice(
    dmp: Dmp, tmp_path: Path, copy: str, stale: bool
) -> None:
    book = Book(tmp_path).begin(5).add(2).add(1, "no good")
    if stale:
        shutil.copy(tmp_path / manifest.name(), tmp_path / copy)
    book.add(2).end(3)
    if not stale:
        shutil.copy(tmp_path / manifest.name(), tmp_path / copy)
    code, record = told(dmp, tmp_path)
    assert (code, len(record["runs"]), record["total"]) == (3, 1, 5)
    assert (record["done"], record["failed"], record["reasons"][0]["inputs"]) == (4, 1, 1)
    assert "in all" not in dmp("status", tmp_path).out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_standard_output_on_a_full_disk_is_exit_6(tmp_path: Path, options: tuple[str, ...]) -> None:
    Book(tmp_path).begin(1).add(1).end(0)
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "dmp_cli", "status", tmp_path, *options],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 6
    assert "standard output cannot be written: No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(("name", "code"), [("missing", 2), ("file", 2), ("empty", 4), ("cut", 4)])
def test_where_there_is_nothing_to_tell(dmp: Dmp, tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / manifest.name()).write_text('{"v":1,"kind":"ru')
    ran = dmp("status", tmp_path / name)
    assert (ran.code, ran.out) == (code, "")
    assert name in ran.err
    assert "-o of a run" in ran.err


def test_it_loads_nothing_and_is_quick(tmp_path: Path) -> None:
    """Counted in time of the processor: a tenth of what 100,000 records may take."""
    Book(tmp_path).begin(10_000).add(10_000)
    code = (
        "import sys, time, dmp_cli.cli as cli\n"
        "sys.argv = ['dmp', 'status', sys.argv[1]]\n"
        "start = time.process_time()\n"
        "try: cli.main()\n"
        "except SystemExit as ended: print(ended.code)\n"
        "print(time.process_time() - start)\n"
        "print({'torch', 'PIL', 'huggingface_hub', 'diffusers'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    *_, ended, seconds, modules = ran.stdout.splitlines()
    assert (ended, modules) == ("7", "set()")  # by the process of this test
    assert float(seconds) < 1


def test_a_run_says_that_it_runs_and_how_it_ended(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmp_cli.engines import steps

    states: list[str] = []
    draw = steps.draw

    def looked(*arguments: Any) -> Any:
        report = standing.read(tmp_path / "out")
        assert report is not None
        states.extend(run.state for run in report.runs)
        time.sleep(0.01)
        return draw(*arguments)

    monkeypatch.setattr(steps, "draw", looked)
    (photos / "bad.png").write_bytes(b"no picture")
    assert dmp("predict", "depth", photos, "-o", tmp_path / "out", *model).code == 3
    assert set(states) == {"running"}
    code, record = told(dmp, tmp_path / "out")
    assert (code, record["total"], record["done"], record["failed"]) == (3, 4, 3, 1)
    assert record["reasons"][0]["names"] == [str(photos / "bad.png")]
    assert record["runs"][0]["rate"] > 0
    # a run over what is done leaves the word of the one before
    before = (tmp_path / "out" / manifest.name()).read_bytes()
    assert dmp("predict", "depth", photos, "-o", tmp_path / "out", *model).code == 3
    assert (tmp_path / "out" / manifest.name()).read_bytes() == before
    # unless that is true no longer
    (photos / "bad.png").unlink()
    assert dmp("predict", "depth", photos, "-o", tmp_path / "out", *model).code == 0
    code, record = told(dmp, tmp_path / "out")
    assert (code, record["total"], record["done"], record["failed"]) == (0, 3, 3, 0)
    assert record["reasons"] == []


def test_a_run_that_others_finished_is_done(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    plain = ("predict", "depth", photos, "-o", tmp_path, *model)
    assert dmp(*plain).code == 0
    Book(tmp_path, 2).begin(3, kept=1).end(130)
    assert told(dmp, tmp_path)[0] == 8
    assert dmp(*plain).code == 0
    code, record = told(dmp, tmp_path)
    assert (code, record["done"], record["kept"]) == (0, 3, 3)


def test_what_was_refused_for_its_name_and_done_later_has_not_failed(
    dmp: Dmp, tmp_path: Path
) -> None:
    book = Book(tmp_path).begin(None).add(1)
    facts = {"input": "/in/2.png", "time": "T1", "at": 2}
    failed = {**facts, "status": "failed", "error": "a clash", "outputs": []}
    for _ in range(2):
        book.book.append("input", failed)
    assert [reason["inputs"] for reason in told(dmp, tmp_path)[1]["reasons"]] == [1]
    assert told(dmp, tmp_path)[1]["failed"] == 1
    book.add(1).end(143)
    code, record = told(dmp, tmp_path)
    assert (code, record["failed"], record["done"], record["reasons"]) == (0, 0, 2, [])


def test_a_part_without_images_is_done(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    """It says so in a manifest, or it would look as if it were forgotten."""
    out = tmp_path / "out"
    for number in range(1, 9):
        ran = dmp("predict", "depth", photos, "-o", out, "--shard", f"{number}/8", *model)
        assert ran.code == 0, ran.err
    code, record = told(dmp, out)
    assert (code, record["total"], record["done"], record["unbegun"]) == (0, 3, 3, [])
