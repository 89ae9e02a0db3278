"""The sRGB curve and the colour maps."""

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
