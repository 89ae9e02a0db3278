"""What the tests of faults share."""

from pathlib import Path

import pytest

from tests.conftest import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four pictures, 0.png to 3.png."""
    for seed in range(4):
        write_image(tmp_path / "in" / f"{seed}.png", seed=seed)
    return tmp_path / "in"
