"""Damaged pictures: bytes of a good one changed at random places."""

from collections.abc import Callable, Iterator

import numpy as np

from dmp_cli import images
from dmp_cli.errors import ImageError

LIMIT = 1_000_000  # pixels that a test reads at most


def mutations(good: bytes, turns: int, header: int, seed: int) -> Iterator[bytes]:
    """`turns` times up to five bytes changed, every second time in the first `header` bytes."""
    rng = np.random.default_rng(seed)
    for turn in range(turns):
        data = bytearray(good)
        start = min(len(data), header) if turn % 2 else len(data)
        for at in rng.integers(0, start, rng.integers(1, 6)):
            data[at] = rng.integers(256)
        yield bytes(data)


def require_pixels_or_an_error(
    read: Callable[[bytes], images.Pixels], good: bytes, turns: int, header: int, seed: int
) -> None:
    """Read `turns` mutations of a picture: each gives pixels or an ImageError."""
    for data in mutations(good, turns, header, seed):
        try:
            pixels = read(data).rgb
        except ImageError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
        assert 0 < pixels.size <= 3 * LIMIT
