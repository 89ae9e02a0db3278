"""ADE20K: which class a drawn colour is, and how classes are named."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from dmp_cli import classes
from dmp_cli.errors import UsageError

RNG = np.random.default_rng(0)


def test_every_class_but_two_is_told_apart() -> None:
    found = classes.nearest_class(classes.ade20k().drawn[None])[0]
    assert np.flatnonzero(found != np.arange(150)).tolist() == [48, 51]


def test_lab_is_that_of_opencv_for_every_colour() -> None:
    import cv2

    green, blue = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    for red in range(256):
        rgb = np.stack([np.full_like(green, red), green, blue], axis=-1).astype(np.uint8)
        assert np.array_equal(classes.lab8(rgb), cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB))


def test_left_out_classes_are_never_found_but_for_the_black_one() -> None:
    rgb = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = set(np.unique(classes.nearest_class(rgb, (3, 7))).tolist())
    assert found <= {0, 3, 7}


def directly(rgb: NDArray[np.uint8], kept: tuple[int, ...] | None) -> NDArray[np.intp]:
    """The nearest class by the distances to all of them."""
    palette = classes.ade20k().drawn.copy()
    if kept is not None:
        palette[[index not in kept for index in range(150)]] = 0
    apart = classes.lab8(rgb)[..., None, :].astype(int) - classes.lab8(palette)
    return np.asarray((apart**2).sum(axis=-1).argmin(axis=-1))


@pytest.mark.parametrize("kept", [None, (3, 7), classes.ade20k().bedroom])
def test_the_nearest_is_that_of_all_distances(kept: tuple[int, ...] | None) -> None:
    drawn = classes.ade20k().drawn.astype(int)[:, None]
    near = np.clip(drawn + RNG.integers(-9, 10, (150, 20, 3)), 0, 255).astype(np.uint8)
    anywhere = RNG.integers(0, 256, (150, 20, 3), np.uint8)
    for rgb in (near, anywhere, near[::2, ::-1], np.concatenate([near, anywhere])):
        np.testing.assert_array_equal(classes.nearest_class(rgb, kept), directly(rgb, kept))


def test_distances_are_computed_once_for_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    nearest = classes._nearest

    def counted(colours: NDArray[np.uint32], centres: NDArray[np.float32]) -> NDArray[np.uint8]:
        asked.extend(colours.tolist())
        return nearest(colours, centres)

    monkeypatch.setattr(classes, "_nearest", counted)
    classes._palette.cache_clear()
    rgb = RNG.integers(0, 256, (50, 40, 3), np.uint8)
    for picture in (rgb, rgb[::-1], np.concatenate([rgb, rgb // 2])):
        classes.nearest_class(picture)
    both = np.concatenate([rgb, rgb // 2]).reshape(-1, 3)
    assert len(asked) == len(set(asked)) == len(np.unique(both, axis=0))


def test_threads_share_what_is_known() -> None:
    classes._palette.cache_clear()
    pictures = [RNG.integers(0, 256, (90, 80, 3), np.uint8) for _ in range(4)] * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(classes.nearest_class, pictures))
    for ids, rgb in zip(found[:4], pictures, strict=False):
        np.testing.assert_array_equal(ids, directly(rgb, None))
    for index, ids in enumerate(found):
        np.testing.assert_array_equal(ids, found[index % 4])


@pytest.mark.parametrize(
    ("text", "ids"), [("all", None), ("bed, 3,7", (3, 7)), ("bedroom", classes.ade20k().bedroom)]
)
def test_classes_by_name_and_id(text: str, ids: tuple[int, ...] | None) -> None:
    assert classes.parse_classes(text) == ids


@pytest.mark.parametrize("text", ["150", "bad", "", "1,,2", "-1"])
def test_unknown_classes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown class"):
        classes.parse_classes(text)
