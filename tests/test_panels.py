"""Pictures to look at: small enough, the right colours, and every shape of picture has a place."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dmp_cli.outputs import panels

Pixels = NDArray[np.uint8]


def flat(height: int, width: int, colour: tuple[int, int, int] = (200, 40, 10)) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (128, 96)),
        (640, 480, (96, 128)),
        (20, 30, (30, 20)),  # never enlarged
        (1, 1, (1, 1)),
        (1, 5000, (128, 1)),
        (5000, 1, (1, 128)),
    ],
)
@pytest.mark.parametrize("grey", [False, True])
def test_thumbnail_fits(height: int, width: int, expected: tuple[int, int], grey: bool) -> None:
    pixels = flat(height, width)
    image = opened(panels.thumbnail(pixels[..., 0] if grey else pixels, 128))
    assert (image.format, image.size) == ("JPEG", expected)
    assert image.mode == ("L" if grey else "RGB")
    off = np.asarray(image).astype(int) - (200 if grey else np.array([200, 40, 10]))
    assert np.abs(off).max() <= 4


def test_thumbnail_keeps_edges_of_colour() -> None:
    """Classes and normals differ in colour more than in brightness: no halved chroma."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2], pixels[:, 1::2] = (255, 0, 0), (0, 130, 0)
    error = np.abs(np.asarray(opened(panels.thumbnail(pixels, 64))).astype(int) - pixels)
    assert error.mean() < 8


def test_thumbnail_of_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    assert opened(panels.thumbnail(noise, 400)).size == (400, 400)


def test_thumbnail_of_an_array_that_is_not_contiguous() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 60, 80), dtype=np.uint8)
    view = pixels.transpose(1, 2, 0)[::-1]
    assert panels.thumbnail(view, 40) == panels.thumbnail(view.copy(), 40)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (6, 3, 2), (7, 3, 3)]
)
def test_side_by_side_wraps(count: int, columns: int, rows: int) -> None:
    """Each picture is there whole, in its own colour and in reading order."""
    colours = [(30 * i + 40, 255 - 30 * i, 90) for i in range(count)]
    named = [(f"map {i}", flat(60, 80, colour)) for i, colour in enumerate(colours)]
    sheet = panels.side_by_side(named, height=120)
    assert sheet.dtype == np.uint8
    corners = []
    for colour in colours:
        y, x = np.nonzero((sheet == colour).all(axis=-1))
        assert (np.ptp(y) + 1, np.ptp(x) + 1, y.size) == (120, 160, 120 * 160)
        corners.append((int(y.min()), int(x.min())))
    assert corners == sorted(corners)
    assert len({x for _, x in corners}) == columns
    assert len({y for y, _ in corners}) == rows


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (1, 1, (96, 96)),
        (1, 5000, (1, 192)),
        (5000, 1, (96, 1)),
        (400, 100, (96, 24)),
        (100, 400, (48, 192)),
    ],
)
def test_side_by_side_of_any_shape(height: int, width: int, shown: tuple[int, int]) -> None:
    sheet = panels.side_by_side([("input", flat(height, width)), ("depth", flat(1, 1))], height=96)
    assert sheet.shape[1] >= 2 * 96 / 3
    # the other one may be as high, never in the left half
    y, x = np.nonzero((sheet[:, : sheet.shape[1] // 2] == (200, 40, 10)).all(axis=-1))
    assert (np.ptp(y) + 1, np.ptp(x) + 1) == shown


def test_side_by_side_names_each_picture() -> None:
    """The strip above a picture holds ink, and other ink for another name; none without a name."""
    strips = [
        panels.side_by_side([(name, flat(100, 100))], height=280)[:20, :, 0]
        for name in ("depth", "normals", "")
    ]
    assert strips[0].max() > 150
    assert strips[1].max() > 150
    assert (strips[0] != strips[1]).any()
    assert (strips[2] == panels.BACKGROUND[0]).all()


def test_a_long_name_stays_above_its_picture() -> None:
    sheet = panels.side_by_side([("a name\nof many words " * 9, flat(64, 64)), ("b", flat(64, 64))])
    strip = sheet[: 512 // 14]
    middle = sheet.shape[1] // 2
    assert (strip[:, middle - 4 : middle + 4] == panels.BACKGROUND).all()


def test_cut() -> None:
    assert panels.cut("depth", 500, 20) == "depth"
    short = panels.cut("a very long name", 80, 20)
    assert short.endswith("...")
    assert panels.font(20).getlength(short) <= 80
    assert panels.cut("two\nlines", 500, 20) == "two lines"


def test_grey_and_colour_mix() -> None:
    sheet = panels.side_by_side([("input", flat(8, 8)), ("shading", flat(8, 8)[..., 0])], height=64)
    assert (sheet == (200, 200, 200)).all(axis=-1).any()


def test_no_picture() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        panels.side_by_side([])
