"""ADE20K: which class a drawn colour is, and how classes are named."""

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("text", "ids"), [("all", None), ("bed, 3,7", (3, 7)), ("bedroom", classes.ade20k().bedroom)]
)
def test_classes_by_name_and_id(text: str, ids: tuple[int, ...] | None) -> None:
    assert classes.parse_classes(text) == ids


@pytest.mark.parametrize("text", ["150", "bad", "", "1,,2", "-1"])
def test_unknown_classes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown class"):
        classes.parse_classes(text)
