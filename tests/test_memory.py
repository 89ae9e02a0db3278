"""What a run holds: memory bounded by pixels, no threads when it is over, and when one hangs."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli import images, jobs
from dmp_cli.engines import local, saving, steps
from dmp_cli.host import Host
from dmp_cli.plan import Output, Plan, Settings
from tests.conftest import write_image, write_weights
from tests.faults.process import Command, Ended, Forks

PIXELS = Plan(("depth",)).in_flight
# What a pixel at full size takes at most, while a JPEG is read or a map of depth becomes a PNG:
# measured with 12 and 40 million pixels. Without a limit, four of 40 million take 1.9 GB
BYTES = 28


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, forks: Callable[[], Forks]) -> int:
    """Bytes that `dmp predict depth` takes with a picture that takes none."""
    folder = tmp_path_factory.mktemp("small")
    command = Command(folder, write_weights(folder / "weights.toml", "size = 64"), forks)
    image, out = write_image(folder / "in/0.png"), folder / "out"
    ended = command.fork("predict", "depth", image, "-o", out, *command.model)
    assert ended.code == 0
    assert ended.memory
    return ended.memory


def many(folder: Path, count: int, height: int, width: int) -> Path:
    """A folder with copies of a JPEG."""
    first = write_image(folder / "0.jpg", height, width)
    for number in range(1, count):
        shutil.copy(first, folder / f"{number}.jpg")
    return folder


def predicted(command: Command, folder: Path, *words: object) -> Ended:
    out = command.folder / "out"
    ended = command.fork("predict", "depth", folder, "-o", out, *words, *command.model,
                         timeout=1500)  # fmt: skip
    assert ended.code == 0, ended.err
    assert len(ended.lines) == len(list(folder.iterdir()))
    return ended


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("count", "height", "width"),
    [
        (7, 3000, 4000),
        pytest.param(4, 5000, 8000, marks=pytest.mark.slow),  # at once: 160 million
        pytest.param(200, 3000, 4000, marks=[pytest.mark.slow, pytest.mark.timeout(1600)]),
    ],
)
def test_memory_is_bounded_by_pixels(
    command: Command, tmp_path: Path, small: int, count: int, height: int, width: int
) -> None:
    ended = predicted(command, many(tmp_path / "in", count, height, width))
    assert ended.memory - small < PIXELS * BYTES


@pytest.mark.fault(40)
@pytest.mark.parametrize(("in_flight", "most"), [(1000, 1), (2 * 192 * 256, 2), (PIXELS, 4)])
def test_readers_and_writers_hold_what_fits(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int, most: int
) -> None:
    """Of six pictures, so many are at full size at once."""
    photos = many(tmp_path / "in", 6, 192, 256)
    now, seen, lock = [0], [], threading.Lock()

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            with lock:
                now[0] += 1
                seen.append(now[0])
            time.sleep(0.2)
            try:
                return function(*arguments)
            finally:
                with lock:
                    now[0] -= 1

        return call

    monkeypatch.setattr(Host, "prepare", counted(Host.prepare))
    monkeypatch.setattr(Host, "finish", counted(Host.finish))
    plan = Plan(
        ("depth",), model="tiny", weights=str(weights), settings=Settings(steps=1),
        in_flight=in_flight,
    )  # fmt: skip
    found = jobs.find([str(photos)], tmp_path / "out", print)
    todo = jobs.plan_targets(found, tmp_path / "out", plan.tasks, Output())
    assert [result.errors for result in local.run(plan, todo, print)] == [()] * 6
    assert len(seen) == 12
    assert max(seen) <= most
    assert max(seen) >= min(most, 2)


# Pixels by the header ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "ppm", "avif"])
def test_pixels_are_known_from_the_header(tmp_path: Path, suffix: str) -> None:
    assert images.pixels_stated(write_image(tmp_path / f"a.{suffix}", 50, 70)) == 3500


def test_pixels_of_an_exr_are_those_of_its_larger_window(tmp_path: Path) -> None:
    import OpenEXR

    path = tmp_path / "a.exr"
    OpenEXR.File({}, {"RGB": np.zeros((50, 70, 3), np.float32)}).write(str(path))
    assert images.pixels_stated(path) == 3500


def test_pixels_of_a_deep_tiff(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.zeros((50, 70, 3), np.uint16), photometric="rgb")
    assert images.pixels_stated(tmp_path / "a.tif") == 3500


@pytest.mark.parametrize("data", [b"", b"no picture", b"v/1\x01", b"II*\0", b"\x89PNG\r\n\x1a\n"])
def test_what_has_no_header_states_no_pixels(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert images.pixels_stated(tmp_path / "a.png") is None
    assert images.pixels_stated(tmp_path / "gone.png") is None


def test_pixels_of_a_bomb_are_stated_without_unpacking_them(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    assert images.pixels_stated(tmp_path / "a.png") == 81_000_000


# Threads ----------------------------------------------------------------------------------


@pytest.fixture
def run(weights: Path, photos: Path, tmp_path: Path) -> Callable[[], Iterator[jobs.Result]]:
    """Starts a run over six pictures."""
    for seed in range(3):
        write_image(photos / f"{seed}.png", seed=seed)
    plan = Plan(("depth",), model="tiny", weights=str(weights), settings=Settings(steps=1))
    found = jobs.find([str(photos)], tmp_path / "out", print)
    todo = jobs.plan_targets(found, tmp_path / "out", plan.tasks, Output())
    return lambda: local.run(plan, todo, print)


def left(before: int) -> int:
    """How many threads are left after a moment."""
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    return threading.active_count() - before


def test_a_run_that_nobody_follows_to_its_end_leaves_no_thread(
    run: Callable[[], Iterator[jobs.Result]],
) -> None:
    before = threading.active_count()
    results = run()
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert left(before) == 0


@pytest.mark.fault(28)
@pytest.mark.parametrize("step", ["read", "draw", "write"])
def test_a_bug_leaves_no_thread_while_its_traceback_is_held(
    run: Callable[[], Iterator[jobs.Result]], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    room = saving if step == "write" else steps
    function, calls = getattr(room, step), []

    def broken(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("a bug")
        return function(*arguments, **named)

    monkeypatch.setattr(room, step, broken)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="a bug") as held:
        list(run())
    assert held.tb is not None
    assert left(before) == 0


# What hangs -------------------------------------------------------------------------------


@pytest.mark.fault(25)
@pytest.mark.parametrize("twice", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_signal_ends_a_run_though_a_reader_hangs(
    command: Command, tmp_path: Path, twice: bool
) -> None:
    """A pipe in the place of a file that was found is never read to its end: as a disk is gone."""
    folder = many(tmp_path / "in", 4, 48, 64)
    dmp = command.start("predict", "depth", folder, "-o", tmp_path / "out", *command.model,
                        forked=True)  # fmt: skip
    dmp.says("loading model")
    (folder / "2.jpg").unlink()
    os.mkfifo(folder / "2.jpg")
    dmp.until(lambda _: len(list((tmp_path / "out").glob("*.png"))) == 2)
    dmp.send(signal.SIGINT)
    start = time.monotonic()
    if twice:
        time.sleep(0.5)
        dmp.send(signal.SIGINT)
    ended = dmp.end(30)
    assert ended.code == 130
    assert time.monotonic() - start < (3 if twice else 12)
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert not list((tmp_path / "out").glob("**/*.part"))
