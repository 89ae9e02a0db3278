"""Running again: what is done again is what changed, and nothing is decided by a clock."""

import json
import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import test_lora as loras
from tests.conftest import write_image
from tests.faults.outputs import MANIFEST, inputs_noted, maps, require_whole
from tests.faults.process import TORCH, Command, Ended
from tests.faults.test_weights_files import entry, of_file


def paths(out: Path, *names: str) -> list[str]:
    """What is printed of images by their names."""
    return sorted(str(out / f"{name}.depth.{form}") for name in names for form in ("npy", "png"))


class Again:
    """A command that is run again and again over four pictures."""

    def __init__(self, command: Command, folder: Path, out: Path) -> None:
        self.command, self.folder, self.out = command, folder, out

    def run(self, *words: object, **how: Any) -> Ended:
        """By a fork, with more words."""
        return self.command.fork(
            "predict", "depth", self.folder, "-o", self.out, "--format", "png,npy",
            *self.command.model, *words, **how,
        )  # fmt: skip

    def does(self, *names: str, words: tuple[object, ...] = (), code: int = 0) -> None:
        """It predicts these and no others."""
        ran = self.run(*words)
        assert ran.code == code, ran.err
        assert sorted(ran.lines) == paths(self.out, *names)


@pytest.fixture
def again(command: Command, folder: Path, tmp_path: Path) -> Again:
    one = Again(command, folder, tmp_path / "out")
    one.does("0", "1", "2", "3")
    return one


@pytest.mark.fault(29)
def test_what_is_done_is_not_done_again(again: Again) -> None:
    """Without torch: that is what takes seconds."""
    before = maps(again.out)
    ran = again.command.predict(again.folder, "-o", again.out, "--format", "png,npy", patch=TORCH)
    assert (ran.code, ran.out) == (0, b""), ran.err
    assert maps(again.out) == before


@pytest.mark.fault(29)
def test_an_input_that_changed(again: Again) -> None:
    write_image(again.folder / "1.png", seed=100)
    write_image(again.folder / "new.png", seed=101)
    again.does("1", "new")
    again.does()


@pytest.mark.fault(29)
def test_an_input_that_changed_with_its_size_and_time_kept(again: Again) -> None:
    """Its hash tells."""
    path = write_image(again.folder / "4.bmp", seed=4)
    again.does("4")
    facts = path.stat()
    write_image(path, seed=5)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    again.does()
    again.does("4", words=("--checksum",))


@pytest.mark.fault(29)
def test_an_input_that_was_only_touched(again: Again) -> None:
    """Its time is another, its bytes are not."""
    os.utime(again.folder / "1.png", (1, 1))
    again.does(words=("--checksum",))


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_an_output_that_is_damaged(again: Again, damage: str) -> None:
    path = again.out / "2.depth.npy"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    ran = again.run()
    assert ran.code == 0, ran.err
    assert str(path) in ran.lines
    assert {*ran.lines} <= {*paths(again.out, "2")}
    assert path.read_bytes() == data


@pytest.mark.fault(29)
def test_an_output_of_other_bytes(again: Again) -> None:
    """Of the same size: `--checksum` tells."""
    path = again.out / "2.depth.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again.does()
    ran = again.run("--checksum")
    assert str(path) in ran.lines, ran.err
    assert path.read_bytes() == data


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    "words",
    [("--steps", 2), ("--size", 72), ("--prompt", "a room"), ("--dtype", "bf16"), ("--overwrite",)],
    ids=lambda words: words[0],
)
def test_other_settings(again: Again, words: tuple[object, ...]) -> None:
    again.does("0", "1", "2", "3", words=words)


@pytest.mark.fault(29)
def test_other_colours_do_the_pictures_again_and_not_the_numbers(again: Again) -> None:
    before = maps(again.out)
    ran = again.run("--colormap", "inferno")
    assert ran.code == 0, ran.err
    assert sorted(ran.lines) == [str(again.out / f"{i}.depth.png") for i in range(4)]
    after = maps(again.out)
    assert {name for name in after if after[name] != before[name]} == {
        f"{i}.depth.png" for i in range(4)
    }


@pytest.mark.fault(29)
def test_other_weights(again: Again, tmp_path: Path) -> None:
    """The same path with other bytes in it."""
    path = loras.saved(tmp_path / "lora.safetensors", loras.STATE)
    words = ("--model", "x", "--weights", entry(tmp_path / "w.toml", of_file(path)))
    again.does("0", "1", "2", "3", words=words)
    again.does(words=words)
    loras.saved(path, {key: value * 0.5 for key, value in loras.STATE.items()})
    again.does("0", "1", "2", "3", words=words)


@pytest.mark.fault(29)
def test_what_failed_is_told_again_and_tried_only_if_asked(again: Again) -> None:
    bad = again.folder / "bad.png"
    bad.write_bytes(b"no picture")
    for words in ((), (), ("--retry-failed",)):
        ran = again.run(*words)
        assert (ran.code, ran.out) == (3, b""), ran.err
        assert f"failed: {bad}: not an image" in ran.err
    write_image(bad, seed=7)
    again.does("bad")


@pytest.mark.fault(27, 29)
def test_a_manifest_that_is_damaged(again: Again) -> None:
    """A line cut by a kill, and lines of others: what they said is done again, no more."""
    path = again.out / MANIFEST
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if json.loads(line)["kind"] == "input")
    name = Path(json.loads(lines[last])["input"]).stem
    lines[last] = lines[last][: len(lines[last]) // 2]
    path.write_bytes(b"\xff\n[]\n{}\n" + b"".join(lines[: last + 1]))
    again.does(name)
    again.does()


# Clocks -----------------------------------------------------------------------------------

JUMPS = """
import itertools, time
jumps = itertools.cycle([0, 4e9, -1e9, 2e9])
real = time.time
time.time = lambda: real() + next(jumps)
"""


@pytest.mark.fault(41)
def test_a_clock_that_jumps(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    far = 4_083_000_000  # in 2099
    os.utime(folder / "0.png", (far, far))
    os.utime(folder / "1.png", (-far, -far))
    words = ("predict", "depth", folder, "-o", out, *command.model)
    begun = time.monotonic()
    ran = command.fork(*words, "--json", patch=JUMPS, TZ="Pacific/Kiritimati")
    assert ran.code == 0, ran.err
    lasted = time.monotonic() - begun
    assert all(0 <= record["seconds"] < lasted for record in ran.records.values())
    assert all(0 <= record["seconds"] < lasted for record in inputs_noted(out))
    again = command.fork(*words, patch=JUMPS, TZ="America/Adak")
    assert (again.code, again.out) == (0, b""), again.err
    for path in out.glob("*"):
        os.utime(path, (far, far))
    later = command.fork(*words, TZ="UTC")
    assert (later.code, later.out) == (0, b""), later.err
    assert require_whole(out) == 4


@pytest.mark.fault(41)
def test_times_are_utc(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("predict", "depth", folder, "-o", out, *command.model)
    ran = command.fork(*words, TZ="Pacific/Kiritimati")  # 14 hours ahead
    assert ran.code == 0, ran.err
    records = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines()]
    told = [str(value) for record in records for key, value in record.items()
            if key in ("time", "begun", "ended", "start", "end", "when")]  # fmt: skip
    assert told
    for text in told:
        when = datetime.fromisoformat(text)
        assert when.utcoffset() == timedelta(0)
        assert abs(when.timestamp() - time.time()) < 600
