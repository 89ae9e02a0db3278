"""Pillow's own test images, good, bad and hostile: one run over all of them."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dmp_cli.jobs import SUFFIXES
from tests.faults.outputs import require_whole
from tests.faults.process import Command

VERSION = "12.0.0"


@pytest.mark.network
@pytest.mark.fault(1, 2, 3, 5, 6, 7)
@pytest.mark.timeout(1800)
def test_every_image_of_pillows_tests(command: Command, tmp_path: Path) -> None:
    """No crash, no hang, every input is accounted for, and each output opens."""
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "pillow"]
    subprocess.run([*fetch, f"pillow=={VERSION}", "-d", tmp_path], check=True, capture_output=True)
    (archive,) = tmp_path.glob("pillow-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "source", filter="data")
    images = next((tmp_path / "source").glob("*/Tests/images"))
    files = [path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES]
    assert len(files) > 500
    ran = command.predict(images, "-o", tmp_path / "out", "--json", "--keep-suffix",
                          timeout=1500, measured=True)  # fmt: skip
    assert ran.code == 3, ran.err
    assert "Traceback" not in ran.err
    told = ran.out.count(b"\n")
    assert told == len(files)
    assert require_whole(tmp_path / "out") == ran.out.count(b'"status": "done"')
    assert 0 < ran.memory < 4 << 30
