"""A run that nobody watches: signs of life, when it gives up, what flows through pipes."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import manifest
from dmp_cli.commands import night
from dmp_cli.commands.pulse import beating
from dmp_cli.commands.report import Talk, Tally, duration
from dmp_cli.engines import flow, steps
from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.jobs import Job, Result
from tests.conftest import Dmp, write_image

# Signs of life ----------------------------------------------------------------------------


def test_without_a_terminal_a_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMP_HEARTBEAT", "0.01")
    tally = Tally(5)
    tally.add(Result(Job(Path("a.png"), {})))
    tally.add(Result(Job(Path("b.png"), {}), errors=("empty",)))
    with beating(lambda: tally, Talk()):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert lines[0].startswith("dmp: 2 of 5 images, 1 failed, ")
    assert lines[0].endswith(" left")
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_slow_run_says_that_it_lives(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = steps.draw

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return draw(*arguments)

    monkeypatch.setattr(steps, "draw", slow)
    monkeypatch.setenv("DMP_HEARTBEAT", "0.1")
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert ran.code == 0
    assert "dmp: 0 of 3 images\n" in ran.err
    quiet = dmp("predict", "depth", photos, "-o", tmp_path / "other", "-q", *model)
    assert (quiet.code, quiet.err) == (0, "")


@pytest.mark.parametrize("text", ["no", "0", "-1", "nan", "inf"])
def test_an_interval_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMP_HEARTBEAT", text)
    with pytest.raises(UsageError, match="DMP_HEARTBEAT"), beating(lambda: "", Talk()):
        pass


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4, "4 s"), (89, "89 s"), (120, "2 min"), (5399, "90 min"), (12000, "3 h 20 min")],
)
def test_times_are_said_as_one_says_them(seconds: float, words: str) -> None:
    assert duration(seconds).replace("1 h 30 min", "90 min") == words


def test_an_interval_that_is_none_is_refused_before_anything_else(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMP_HEARTBEAT", "no")
    out = tmp_path / "out"
    for words in (("predict", "depth", photos), ("watch", "depth", photos)):
        ran = dmp(*words, "-o", out, *model)
        assert (ran.code, out.exists()) == (2, False)
        assert "DMP_HEARTBEAT" in ran.err


# An engine that fails, or that is failed ----------------------------------------------------


def ends(out: Path) -> list[int]:
    """The exit codes that the manifest tells."""
    return [line["code"] for _, line in manifest.lines(out) if line["kind"] == "end"]


def test_jobs_without_a_result_are_no_success(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = night.drawn
    monkeypatch.setattr(night, "drawn", lambda *given: (one for one in islice(drawn(*given), 1)))
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert ran.code == 6
    assert "2 images came to no result" in ran.err
    assert ends(tmp_path / "out") == [6]


def test_an_engine_ends_in_order_where_results_cannot_be_told(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    completed = flow.completed

    def watched(*given: Any) -> Any:
        try:
            yield from completed(*given)
        finally:
            closed.append(sys.exc_info()[0] is GeneratorExit)

    def full(self: Talk, text: str) -> None:
        raise ResourceError("standard output cannot be written", "make room")

    monkeypatch.setattr(flow, "completed", watched)
    monkeypatch.setattr(Talk, "output", full)
    ran = dmp("predict", "depth", photos, "-o", tmp_path / "out", *model)
    assert ran.code == 6
    assert closed == [True]
    assert ends(tmp_path / "out") == [6]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_log_on_a_full_disk_ends_nothing(
    photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    (photos / "bad.png").write_text("no image")
    words = [*map(str, ("predict", "depth", photos, "-o", tmp_path / "out")), *model]
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [typed / "dmp", *words],
            stdout=subprocess.PIPE, stderr=full, text=True, check=False,
        )  # fmt: skip
        none = subprocess.run(
            [sys.executable, "-m", "dmp_cli", "predict", "none", "x", "-o", tmp_path / "other"],
            stdout=subprocess.PIPE, stderr=full, check=False,
        )  # fmt: skip
    assert (ran.returncode, len(ran.stdout.splitlines())) == (3, 3)
    assert none.returncode == 2


# Giving up --------------------------------------------------------------------------------


def bad(folder: Path, count: int) -> Path:
    """Files that are no images, and one after them that is."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.png").write_text("no image")
    write_image(folder / "z.png")
    return folder


@pytest.mark.parametrize(("options", "most"), [(("--fail-fast",), 1), (("--max-errors", "3"), 3)])
def test_a_run_ends_after_too_many_failures(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...], options: tuple[str, ...], most: int
) -> None:
    folder, out = bad(tmp_path / "in", 40), tmp_path / "out"
    ran = dmp("predict", "depth", folder, "-o", out, "--json", *options, *model)
    assert ran.code == 3
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert most <= len(rows) < 40  # and what was in flight
    assert f"ended after {len(rows)} failed input" in ran.err
    assert not (out / "z.depth.png").exists()
    again = dmp("predict", "depth", folder, "-o", out, *model)
    assert again.code == 3
    assert (out / "z.depth.png").exists()
    assert again.err.count("(as before; --retry-failed tries it again)") == len(rows)


def test_enough_room_for_failures_changes_nothing(
    dmp: Dmp, tmp_path: Path, model: tuple[str, ...]
) -> None:
    folder = bad(tmp_path / "in", 3)
    ran = dmp("predict", "depth", folder, "-o", tmp_path / "out", "--max-errors", "4", *model)
    assert ran.code == 3
    assert "ended after" not in ran.err
    assert (tmp_path / "out/z.depth.png").exists()


# Pipes ------------------------------------------------------------------------------------


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("find")), reason="no jq or find here")
def test_find_and_jq(photos: Path, tmp_path: Path, model: tuple[str, ...], typed: Path) -> None:
    strange = write_image(photos / "sub/new\nline.png")
    (photos / "bad.png").write_text("no image")
    command = (
        f"set -o pipefail; find . -type f -print0 | {typed}/dmp predict depth - -0 --json "
        f"-o {tmp_path}/out {shlex.join(model)} | jq -r '[.status, .input] | @json'"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=photos, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    rows = {name: status for status, name in map(json.loads, done.stdout.splitlines())}
    assert rows == {
        "a.png": "done", "b.jpg": "done", "sub/c.webp": "done", "bad.png": "failed",
        f"sub/{strange.name}": "done",
    }  # fmt: skip
    assert (tmp_path / "out/sub/new\nline.depth.png").exists()


def test_results_come_as_they_are_done_and_no_faster_than_they_are_read(
    tmp_path: Path, model: tuple[str, ...], typed: Path
) -> None:
    for i in range(60):
        write_image(tmp_path / f"in/{i:02d}.png", 16, 16, i)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    child = subprocess.Popen(
        [typed / "dmp", "predict", "depth", tmp_path / "in", "--json",
         "-o", tmp_path / "out", "--size", "16", *model],
        stdout=writing, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writing)
    with open(reading, "rb", buffering=0) as stream:  # noqa: PTH123
        start = stream.read(20)  # waits for the first record
        there = 0
        while there < (there := len(list((tmp_path / "out").glob("*.png")))):
            time.sleep(1)  # nobody reads: the pipe is full after a few records
        rows = [json.loads(line) for line in (start + stream.readall()).splitlines()]
    assert child.wait(timeout=60) == 0
    assert 0 < there < 60
    assert [row["status"] for row in rows] == ["done"] * 60


def test_records_of_what_was_there_already(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    dmp("predict", "depth", photos / "a.png", "-o", out, *model)
    ran = dmp("predict", "depth", photos, "-o", out, "--json", *model)
    rows = {Path(row["input"]).name: row for row in map(json.loads, ran.out.splitlines())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "kept", "b.jpg": "done", "c.webp": "done",
    }  # fmt: skip
    assert rows["a.png"]["outputs"] == [
        {"task": "depth", "format": "png", "path": os.fspath(out / "a.depth.png")}
    ]
    assert dmp("predict", "depth", photos, "-o", out, *model).out == ""


def test_a_dry_run_names_only_what_is_left(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    dmp("predict", "depth", photos / "a.png", "-o", out, *model)
    before = (out / "dmp-manifest.jsonl").read_bytes()
    ran = dmp("predict", "depth", photos, "-o", out, "--dry-run", *model)
    assert ran.out.split() == [f"{out}/b.depth.png", f"{out}/sub/c.depth.png"]
    assert "1 of 3 images there already" in ran.err
    assert (out / "dmp-manifest.jsonl").read_bytes() == before
