"""Pictures -> a movie with the right colours, read back by PyAV alone; what cannot be one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from dmp_cli.errors import ImageError, UsageError
from dmp_cli.outputs import movie
from tests.clips import number, picture

RATE = Fraction(25)


def read(path: Path) -> list[Any]:
    """Frames as a player shows them that goes by the tags, which must be there."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    for frame in frames:
        tags = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
        assert tags == (1, 1, 1, 1), "BT.709, limited range (ITU-T H.273)"
        assert frame.format.name == "yuv420p"
    return [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), Fraction(75, 16), 60])
def test_frames_in_order_at_their_rate(tmp_path: Path, rate: Any) -> None:
    path = tmp_path / "deep" / "a.mp4"
    movie.write(path, map(picture, range(40)), Fraction(rate))
    assert [number(pixels) for pixels in read(path)] == list(range(40))
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == rate
        assert float(file.duration or 0) / 1e6 == pytest.approx(40 / rate, rel=0.01)
    assert [file.name for file in path.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("size", [(64, 128), (720, 1280)])
def test_colours(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    colours = [(200, 30, 40), (20, 180, 60), (30, 50, 210), (128, 128, 128),
               (255, 255, 255), (0, 0, 0), (220, 200, 30), (90, 140, 160)]  # fmt: skip
    pixels = np.repeat(np.array(colours, np.uint8), width // 8, 0)[None].repeat(height, 0)
    movie.write(tmp_path / "a.mp4", [pixels] * 3, RATE)
    found = read(tmp_path / "a.mp4")[1][height // 2, width // 16 :: width // 8]
    assert np.abs(found - colours).max() <= 4


@pytest.mark.parametrize("size", [(63, 96), (64, 95), (63, 95), (1, 1), (2, 300)])
def test_odd_sizes_are_padded(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[-1:], pixels[:, -1:] = 200, 200
    movie.write(tmp_path / "a.mp4", [pixels], RATE)
    (found,) = read(tmp_path / "a.mp4")
    assert found.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(found[-1] - 200).max() < 16
    assert np.abs(found[:, -1] - 200).max() < 16
    assert size[0] < 10 or found[:40, :60].max() < 12


def test_pictures_by_path(tmp_path: Path) -> None:
    paths = [tmp_path / f"{at}.png" for at in range(3)]
    for at, path in enumerate(paths):
        Image.fromarray(picture(at)).quantize(8).save(path)  # a palette, as of segmentation
    movie.write(tmp_path / "a.mp4", paths, RATE)
    found = read(tmp_path / "a.mp4")
    assert [number(pixels) for pixels in found] == [0, 1, 2]
    assert np.abs(found[0][4:12, 4:20] - (220, 40, 40)).max() < 16


def test_quality(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(5)]
    sizes = []
    for quality in (10, 30, 51):
        movie.write(tmp_path / "a.mp4", noise, RATE, quality=quality)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_text_and_place_of_the_index(tmp_path: Path) -> None:
    text = {"Task": "depth", "Weights-SHA256": "ab" * 32, "Source": "café.mp4"}
    movie.write(tmp_path / "a.mp4", [picture(1)], RATE, text)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert text.items() <= file.metadata.items()
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "it plays before it is there whole"


def test_memory_is_bounded(tmp_path: Path) -> None:
    alive = most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    def pictures() -> Iterator[Any]:
        nonlocal alive, most
        for at in range(60):
            one = Counted((64, 96, 3), np.uint8)
            one[...] = picture(at)
            alive += 1
            most = max(most, alive)
            yield one

    movie.write(tmp_path / "a.mp4", pictures(), RATE)
    assert most <= 2


# What cannot be a movie -------------------------------------------------------------------


@pytest.mark.parametrize("as_files", [False, True])
def test_sizes_that_differ(tmp_path: Path, as_files: bool) -> None:
    pictures: list[Any] = [picture(0), picture(1), picture(2)[:-2]]
    if as_files:
        for at, pixels in enumerate(pictures):
            pictures[at] = tmp_path / f"frame{at}.png"
            Image.fromarray(pixels).save(pictures[at])
    name = "frame2.png" if as_files else "picture 3"
    with pytest.raises(ImageError, match=rf"{name} is 96x62, those before it 96x64"):
        movie.write(tmp_path / "a.mp4", pictures, RATE)
    assert not (tmp_path / "a.mp4").exists()
    assert not list(tmp_path.glob(".dmp-*"))


def test_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no picture"):
        movie.write(tmp_path / "a.mp4", [], RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [None, b"", b"no picture"])
def test_picture_that_cannot_be_read(tmp_path: Path, data: bytes | None) -> None:
    bad = tmp_path / "bad.png"
    if data is not None:
        bad.write_bytes(data)
    with pytest.raises(ImageError, match=r"bad\.png: "):
        movie.write(tmp_path / "a.mp4", [picture(0), bad], RATE)
    assert not (tmp_path / "a.mp4").exists()


def test_too_large_for_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a\.mp4 cannot be written"):
        movie.write(tmp_path / "a.mp4", [np.zeros((2, 20_000, 3), np.uint8)], RATE)
    assert list(tmp_path.iterdir()) == []


def test_name_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ImageError, match=r"a\.mp4 cannot be written"):
        movie.write(tmp_path / "a.mp4", [picture(0)], RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 60_000])
def test_disk_full(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for a full disk, wherever in the writing it is met."""
    code = (
        "import resource, signal, sys; from fractions import Fraction; from pathlib import Path\n"
        "import numpy as np; from dmp_cli.errors import ResourceError\n"
        "from dmp_cli.outputs import movie\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: movie.write(Path(sys.argv[1]), [noise, noise[::-1]] * 50, Fraction(25))\n"
        "except ResourceError as error: print(error.hint)"
    )
    # the limit is not for what measures coverage
    environment = {key: value for key, value in os.environ.items() if "COV" not in key}
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.mp4"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (ran.stdout.strip(), ran.stderr) == ("check the folder, then run it again", "")
    assert list(tmp_path.iterdir()) == []


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match="video needs PyAV"):
        movie.write(tmp_path / "a.mp4", [picture(0)], RATE)


# Order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expected",
    [["F 1.png", "f9.png", "f9.5.png", "f10.png"], ["003.png", "10.png", "x.png"]],
)
def test_order_of_pictures(expected: list[str]) -> None:
    for names in (expected, expected[::-1]):
        assert [path.name for path in movie.in_order(map(Path, names))] == expected
