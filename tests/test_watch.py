"""`dmp watch`: what counts as complete, what is predicted, restarts, and how it ends."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmp_cli import arrivals, finding, manifest, signals
from dmp_cli.arrivals import STEADY, Arrivals
from tests.conftest import Dmp, Ran, write_image

# Which files are complete --------------------------------------------------------------------


def fresh(path: Path, data: bytes = b"data") -> Path:
    """A file as a program has just written it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def look(incoming: Path) -> Callable[[float], list[str]]:
    """The names of what a look at a time gives."""
    seen = Arrivals([incoming], recursive=True, ours=lambda path: path.name.startswith("own"))
    return lambda now: [str(item.below) for item in seen.look(now)]


Look = Callable[[float], list[str]]


def test_a_file_is_complete_after_two_looks_without_a_change(incoming: Path, look: Look) -> None:
    fresh(incoming / "a.png")
    assert look(0.0) == []
    assert look(STEADY / 2) == []
    assert look(STEADY) == ["a.png"]
    assert look(100.0) == []


def test_one_look_is_not_enough_however_late(incoming: Path, look: Look) -> None:
    assert look(0.0) == []
    fresh(incoming / "a.png")
    assert look(100.0) == []
    assert look(101.0) == ["a.png"]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_file_that_grows_waits_for_its_end(incoming: Path, look: Look, change: str) -> None:
    path = fresh(incoming / "a.png")
    for now in range(5):
        if change == "size":
            with path.open("ab") as file:
                file.write(b"more")
        else:
            os.utime(path, (1e9 + now + 1e9, 1e9 + now + 1e9))
        assert look(float(now)) == []
    assert look(5.0) == ["a.png"]


def test_an_empty_file_waits_until_it_is_not(incoming: Path, look: Look) -> None:
    path = fresh(incoming / "a.png", b"")
    assert [look(float(now)) for now in range(5)] == [[]] * 5
    path.write_bytes(b"data")
    assert look(5.0) == []
    assert look(6.0) == ["a.png"]


def test_only_changes_call_for_a_look_soon(incoming: Path) -> None:
    """A file that stays empty would else be looked at for ever."""
    path = fresh(incoming / "a.png", b"")
    seen = Arrivals([incoming], recursive=True, ours=lambda path: False)
    changed = []
    for now in range(4):
        if now == 2:
            path.write_bytes(b"data")
        seen.look(float(now))
        changed.append(seen.changed)
    assert changed == [True, False, True, False]


@pytest.mark.skipif(os.name != "posix", reason="the time of an inode means something else")
def test_what_was_renamed_in_is_complete_after_two_looks(incoming: Path, look: Look) -> None:
    path = fresh(incoming.parent / "part")
    os.utime(path, (1e9, 1e9))
    path.rename(incoming / "a.png")
    assert look(0.0) == []
    assert look(0.1) == ["a.png"]


def test_a_file_that_changed_is_given_again(incoming: Path, look: Look) -> None:
    path = fresh(incoming / "a.png")
    look(0.0)
    assert look(1.0) == ["a.png"]
    path.write_bytes(b"other")
    assert look(2.0) == []
    assert look(3.0) == ["a.png"]


def test_a_clock_that_is_wrong_changes_nothing(incoming: Path, look: Look) -> None:
    path = fresh(incoming / "a.png")
    os.utime(path, (4e9, 4e9))  # in 2096
    assert look(0.0) == []
    assert look(1.0) == ["a.png"]


def test_folders_that_are_made_later_are_seen(incoming: Path, look: Look) -> None:
    assert look(0.0) == []
    fresh(incoming / "new/deep/a.png")
    assert look(1.0) == []
    assert look(2.0) == ["new/deep/a.png"]


def test_a_folder_that_is_gone_for_a_while(tmp_path: Path) -> None:
    """As a share of a network: what it held is not new when it is back."""
    folder = tmp_path / "share"
    fresh(folder / "a.png")
    seen = Arrivals([folder], recursive=True, ours=lambda path: False)
    assert (seen.look(0.0), seen.troubles) == ([], {})
    assert len(seen.look(1.0)) == 1
    folder.rename(tmp_path / "away")
    assert seen.look(2.0) == []
    assert seen.troubles == {str(folder): "No such file or directory"}
    (tmp_path / "away").rename(folder)
    assert [seen.look(float(now)) for now in (3, 4, 5)] == [[], [], []]
    assert seen.troubles == {}


def test_what_is_gone_is_forgotten(incoming: Path) -> None:
    """Memory is that of the files that are there."""
    seen = Arrivals([incoming], recursive=True, ours=lambda path: False)
    for number in range(50):
        path = fresh(incoming / f"{number}.png")
        seen.look(number * 10.0)
        seen.look(number * 10.0 + 1)
        path.unlink()
    seen.look(1000.0)
    assert (len(seen._known), len(seen._waiting)) == (0, 0)


def test_many_come_in_portions(incoming: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST", 3)
    for number in range(7):
        fresh(incoming / f"{number}.png")
    look(0.0)
    assert [look(now) for now in (1.0, 1.1, 1.2, 1.3)] == [
        ["0.png", "1.png", "2.png"], ["3.png", "4.png", "5.png"], ["6.png"], [],
    ]  # fmt: skip


def test_it_finds_what_predict_finds(incoming: Path) -> None:
    for name in ("a.png", "b.JPG", "sub/c.webp", ".hidden.png", ".git/d.png", "notes.txt", "e.mp4",
                 "sub/.f.png", "x.exr", "broken\udcff.png", "none", "new\nline.png"):  # fmt: skip
        fresh(incoming / name)
    (incoming / "folder.png").mkdir()
    fresh(incoming / "folder.png/in.png")
    os.mkfifo(incoming / "pipe.png")
    (incoming / "loop").symlink_to(incoming)
    (incoming / "link.png").symlink_to(incoming / "a.png")
    (incoming / "dangling.png").symlink_to(incoming / "nowhere.png")
    for recursive in (True, False):
        seen = Arrivals([incoming], recursive, ours=lambda path: False)
        seen.look(0.0)
        found = {(item.path, item.below) for item in seen.look(1.0)}
        expected = finding.expand(str(incoming), recursive, lambda text: None, [])
        there = {(item.path, item.below) for item in expected if item.path.exists()}
        assert found == there
        assert len(found) == (8 if recursive else 7)


def test_two_folders_one_in_the_other_give_a_file_once(incoming: Path) -> None:
    fresh(incoming / "sub/a.png")
    seen = Arrivals([incoming, incoming / "sub"], recursive=True, ours=lambda path: False)
    seen.look(0.0)
    assert [item.below for item in seen.look(1.0)] == [Path("sub/a.png")]


# The command -----------------------------------------------------------------------------------


class Watch:
    """`dmp watch` in this process: `play` runs beside it, and a signal ends it after that."""

    def __init__(self, dmp: Dmp, folder: Path, out: Path, model: tuple[str, ...]) -> None:
        self.dmp, self.folder, self.out, self.model = dmp, folder, out, model
        self.before = self.sorted = 0  # records of inputs, and of inputs that were there

    def lines(self, kind: str = "input") -> list[dict[str, Any]]:
        """The records."""
        if not self.out.exists():
            return []
        return [line for _, line in manifest.lines(self.out) if line["kind"] == kind]

    def wait(self, count: int) -> None:
        """Until there are so many new records of inputs."""
        limit = time.monotonic() + 60
        while len(self.lines()) < self.before + count and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(self.lines()) == self.before + count

    def settle(self) -> None:
        """Until it has sorted what was there."""
        limit = time.monotonic() + 60
        while len(self.lines("there")) == self.sorted and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(self.lines("there")) > self.sorted

    def run(
        self, play: Callable[["Watch"], None], *words: object, number: int = signal.SIGTERM
    ) -> Ran:
        self.before, self.sorted = len(self.lines()), len(self.lines("there"))
        begun = len(self.lines("run"))
        trouble: list[BaseException] = []

        def act() -> None:
            try:
                while len(self.lines("run")) == begun:
                    time.sleep(0.05)
                play(self)
                time.sleep(0.5)  # what should not happen has time to
            except BaseException as error:
                trouble.append(error)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        ran = self.dmp("watch", "depth", self.folder, "-o", self.out, *self.model, *words)
        thread.join()
        if trouble:
            raise trouble[0]
        return ran


@pytest.fixture
def watch(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> Watch:
    monkeypatch.setattr(signals, "PATIENCE", 1e6)  # of a process that is not only dmp's
    monkeypatch.setattr(arrivals, "STEADY", 0.5)  # each picture is written at once
    return Watch(dmp, photos, tmp_path / "out", model)


def names(lines: list[dict[str, Any]], status: str = "done") -> list[str]:
    return sorted(Path(line["input"]).name for line in lines if line["status"] == status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_there_and_what_comes_is_predicted_once(watch: Watch, number: int) -> None:
    def play(watch: Watch) -> None:
        watch.wait(3)
        write_image(watch.folder / "later/deep/d.png", seed=5)
        watch.wait(4)

    ran = watch.run(play, number=number)
    assert ran.code == 128 + number
    assert names(watch.lines()) == ["a.png", "b.jpg", "c.webp", "d.png"]
    assert sorted(ran.out.splitlines()) == sorted(map(str, watch.out.rglob("*.depth.png")))
    assert "4 images predicted" in ran.err
    assert watch.lines("end")[-1]["code"] == 128 + number
    assert watch.dmp("status", watch.out).code == 0
    # predict finds it done, and so does a watch
    assert watch.dmp("predict", "depth", watch.folder, "-o", watch.out, *watch.model).out == ""
    ran = watch.run(Watch.settle)
    assert (ran.out, len(watch.lines())) == ("", 4)
    assert "4 images there already" in ran.err


def test_what_changed_is_predicted_again_and_what_was_touched_is_not(watch: Watch) -> None:
    def play(watch: Watch) -> None:
        watch.wait(3)
        os.utime(watch.folder / "b.jpg", (1e9, 1e9))
        write_image(watch.folder / "a.png", seed=9)
        watch.wait(4)

    watch.run(play)
    assert names(watch.lines()) == ["a.png", "a.png", "b.jpg", "c.webp"]


def test_what_failed_is_tried_again_only_when_it_changed(watch: Watch) -> None:
    (watch.folder / "bad.png").write_bytes(b"no picture")
    (watch.folder / "empty.png").touch()
    ran = watch.run(lambda watch: watch.wait(4))
    assert ran.code == 143
    assert names(watch.lines(), "failed") == ["bad.png"]
    assert "failed: " in ran.err
    assert "1 file not complete" in ran.err
    assert watch.dmp("status", watch.out).code == 3
    ran = watch.run(Watch.settle)
    assert "1 input failed before" in ran.err
    assert len(watch.lines()) == 4

    def mend(watch: Watch) -> None:
        write_image(watch.folder / "bad.png")
        watch.wait(1)

    watch.run(mend)
    assert names(watch.lines()[4:]) == ["bad.png"]
    assert watch.dmp("status", watch.out).code == 0


def test_of_two_names_that_clash_one_fails_alone(watch: Watch) -> None:
    def play(watch: Watch) -> None:
        watch.wait(3)
        write_image(watch.folder / "a.jpg", seed=7)
        watch.wait(4)
        write_image(watch.folder / "e.png", seed=8)
        watch.wait(5)

    ran = watch.run(play)
    assert names(watch.lines(), "failed") == ["a.jpg"]
    assert "a.depth.png is that of " in ran.err
    before = (watch.out / "a.depth.png").read_bytes()
    # so it is after a restart, though a.jpg comes first by name
    watch.run(lambda watch: watch.wait(1))
    assert names(watch.lines()[5:], "failed") == ["a.jpg"]
    assert (watch.out / "a.depth.png").read_bytes() == before
    # and once the other is gone the name is free
    (watch.folder / "a.png").unlink()
    watch.run(lambda watch: watch.wait(1))
    assert names(watch.lines()[6:]) == ["a.jpg"]


def test_of_two_that_come_at_once_one_fails(watch: Watch) -> None:
    write_image(watch.folder / "a.bmp")
    watch.run(lambda watch: watch.wait(4))
    assert names(watch.lines()) == ["a.bmp", "b.jpg", "c.webp"]


def test_outputs_in_the_folder_are_no_inputs(watch: Watch) -> None:
    watch.out = watch.folder
    watch.run(lambda watch: watch.wait(3))
    ran = watch.run(Watch.settle)
    assert len(watch.lines()) == 3
    assert "3 images there already" in ran.err


def test_it_gives_up_after_too_many_failures(watch: Watch) -> None:
    (watch.folder / "bad.png").write_bytes(b"no picture")
    ran = watch.dmp(
        "watch", "depth", watch.folder, "-o", watch.out, *watch.model, "--fail-fast", "--json"
    )
    assert ran.code == 3
    assert "ended after 1 failed input" in ran.err
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["status"] for one in records].count("failed") == 1


REFUSED = [
    ("--files-from", "list"), ("-0",), ("--contact-sheet",), ("--video",), ("--fps", "3"),
    ("--dry-run",), ("--shard", "1/2"), ("--overwrite",), ("--prompt-from", "txt"),
    ("--caption",), ("--range", "run"), ("--engine", "none"), ("--engine", "ray"), ("--range", "x"),
]  # fmt: skip


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_options_that_make_no_sense_are_refused_by_name(
    dmp: Dmp, photos: Path, tmp_path: Path, model: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ran = dmp("watch", "depth", photos, "-o", tmp_path / "out", *model, *words)
    assert ran.code == 2
    assert ran.err.startswith(f"dmp: {words[0]}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [((), "no folder to watch"), (("missing",), "missing: no such folder"),
     (("photos/a.png",), "a.png: a file"), (("-",), "-: no such folder"),
     (("s3://bucket/x",), "only folders"), (("depth",), "depth is a task"),
     (("a\nb",), "no such folder")],
)  # fmt: skip
def test_what_is_no_folder_is_refused(
    dmp: Dmp, photos: Path, model: tuple[str, ...], monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(photos.parent)
    ran = dmp("watch", "depth", *words, "-o", "out", *model)
    assert ran.code == 2
    assert told in ran.err


def test_a_bucket_to_write_to_is_refused(dmp: Dmp, photos: Path, model: tuple[str, ...]) -> None:
    ran = dmp("watch", "depth", photos, "-o", "s3://bucket/maps", *model)
    assert ran.code == 2
    assert "s3://bucket/maps: not with dmp watch" in ran.err


def test_a_folder_before_the_task_is_told(dmp: Dmp, photos: Path, tmp_path: Path) -> None:
    ran = dmp("watch", photos, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "the task comes first" in ran.err


def test_a_process_that_idles_ends_promptly(watch: Watch, typed: Path) -> None:
    """And one that is killed leaves a manifest that the next goes on from."""
    command = [typed / "dmp", "watch", "depth", watch.folder, "-o", watch.out, *watch.model]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watch.wait(3)
    (run,) = watch.lines("run")
    os.kill(run["pid"], signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert watch.dmp("status", watch.out).code == 8
    ended: list[float] = []

    def play(watch: Watch) -> None:
        watch.settle()
        ended.append(time.monotonic())

    watch.run(play)
    assert time.monotonic() - ended[0] < 10  # as promised, though nothing would ever have come
    assert len(watch.lines()) == 3
