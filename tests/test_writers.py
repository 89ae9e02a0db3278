"""Arrays -> files, read back by other libraries than the one that wrote them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from dmp_cli import writers

TEXT = {"Software": "dmp", "Source": "Häuser\nam Meer 海.png", "near": "0.5 m"}


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 3)])
def test_write_png(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(6).integers(0, 256, shape, dtype=np.uint8)
    writers.write_png(tmp_path / "new" / "x.png", pixels[::-1], TEXT)
    with Image.open(tmp_path / "new" / "x.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == ("L" if len(shape) == 2 else "RGB")
        np.testing.assert_array_equal(picture, pixels[::-1])
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        assert picture.text == TEXT


def test_write_png_with_a_palette(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    palette = rng.integers(0, 256, (150, 3), dtype=np.uint8)
    ids = rng.integers(0, 150, (24, 32), dtype=np.uint8)
    writers.write_png(tmp_path / "x.png", ids, {}, palette)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(picture, ids)
        np.testing.assert_array_equal(picture.convert("RGB"), palette[ids])


@pytest.mark.parametrize("kind", ["f4", "u1"])
def test_write_npy(tmp_path: Path, kind: str) -> None:
    values = np.arange(24).reshape(4, 6).astype(kind).T
    writers.write_npy(tmp_path / "x.npy", values)
    found = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_limit_of_file_size(tmp_path: Path, kind: str) -> None:
    """A real failure in the middle of a file."""
    code = (
        "import resource, sys, pathlib, numpy as np; from dmp_cli import errors, writers\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "try: writers.write_npy(path, pixels) if path.suffix == '.npy' else "
        "writers.write_png(path, pixels, {})\n"
        "except errors.ResourceError as error: print(error)"
    )
    path = tmp_path / f"x.{kind}"
    environment = {key: value for key, value in os.environ.items() if "COV" not in key}
    ran = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert ran.stdout == f"{path} cannot be written: File too large\n", ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    writers.write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8), {"Source": name})
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Source"] == "caf\\udce9.jpg"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_npy_is_what_numpy_reads(tmp_path: Path, order: Any, dtype: type) -> None:
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype, order=order)
    writers.write_npy(tmp_path / "a.npy", values)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == dtype
    assert np.array_equal(found, values)
