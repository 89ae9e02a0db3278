"""The sRGB curve and the colour maps."""

import matplotlib
import numpy as np
import pytest

from dmp_cli import colour

ENDS = {
    "Spectral": ((158, 1, 66), (94, 79, 162)),
    "viridis": ((68, 1, 84), (253, 231, 37)),
    "inferno": ((0, 0, 4), (252, 255, 164)),
    "magma": ((0, 0, 4), (252, 253, 191)),
    "turbo": ((48, 18, 59), (122, 4, 3)),
}


@pytest.mark.parametrize("name", ENDS)
def test_colormap_has_its_published_ends(name: str) -> None:
    colours = colour.colormap(name)
    assert colours is not None
    assert colours.shape == (256, 3)
    assert colours.dtype == np.uint8
    assert (tuple(colours[0]), tuple(colours[-1])) == ENDS[name]


def test_every_colormap_is_listed() -> None:
    assert set(colour.COLORMAPS) == {*ENDS, "grey"}
    assert colour.colormap("grey") is None


def test_srgb_there_and_back() -> None:
    light = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(
        colour.linear_from_srgb(colour.srgb_from_linear(light)), light, atol=1e-6
    )
    assert colour.srgb_from_linear(np.array([0.2140411], np.float32))[0] == pytest.approx(
        0.5, abs=1e-5
    )


@pytest.mark.parametrize("name", [name for name in colour.COLORMAPS if name != "grey"])
def test_colormaps_equal_the_published_tables(name: str) -> None:
    published = matplotlib.colormaps[name](np.arange(256))[:, :3]
    assert np.array_equal(colour.colormap(name), np.rint(published * 255))


def test_the_colour_of_no_value_is_in_no_colormap() -> None:
    for name in ENDS:
        assert not (colour.colormap(name) == colour.MARK).all(axis=-1).any()  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 3)])
def test_marks(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32)
    pixels = np.zeros(shape, np.uint8)
    assert colour.marked(pixels, values) is pixels
    values[1, 2] = np.nan
    found = colour.marked(pixels, values)
    assert found.shape == (3, 4, 3)
    assert np.argwhere(found.any(axis=-1)).tolist() == [[1, 2]]
    assert tuple(found[1, 2]) == colour.MARK
    assert not pixels.any()
