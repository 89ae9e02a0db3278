"""benchmarks/host.py: a whole run with a stand-in for the network, whose figures can be trusted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmp_cli.tasks import TASKS
from tests.faults.process import uncovered

COUNT = 100_000
MORE = 40  # MB: what the allocator keeps and gives back moves by as much
SCRIPT = Path(__file__).parent.parent / "benchmarks" / "host.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Drawings of all tasks and five inputs, one of them damaged."""
    down, across = np.mgrid[-1:1:512j, -1:1:512j].astype(np.float32)
    drawn = np.stack([down, across, np.full_like(down, 0.5)])
    np.savez(tmp_path / "drawings.npz", **dict.fromkeys(TASKS, drawn))
    (tmp_path / "in").mkdir()
    for index in range(5):
        Image.new("RGB", (64, 64), (index * 40, 90, 200)).save(tmp_path / f"in/{index}.jpg")
    (tmp_path / "in" / "2.jpg").write_bytes(b"no image")
    return tmp_path


def test_every_stage_of_a_run_is_measured(folder: Path) -> None:
    words = ["predict", ",".join(TASKS), "in", "-o", "out", "--model", "demo", "--size", "64"]
    command = [sys.executable, str(SCRIPT), ".", "--side", "64", "--child", *words]
    ran = subprocess.run(
        command, cwd=folder, env=uncovered(os.environ) | {"T0": str(time.time())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 3, ran.stderr
    assert "failed: in/2.jpg" in ran.stderr
    figures = json.loads(ran.stdout)
    assert figures["images"] == 5
    stages = {"hash", "read", "look", "encode", "write", "record", "report"}
    stages |= {f"decode {name}" for name in TASKS}
    assert {name for name, seconds in figures["stages"].items() if seconds > 0} >= stages
    assert figures["rate"] > 0 < figures["start"]
    assert figures["memory"][0] <= figures["peak"] * 1.05
    files = {path.name for path in (folder / "out").glob("*.png")} - {"labels.png"}
    assert files == {f"{index}.{name}.png" for index in (0, 1, 3, 4) for name in TASKS}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_100_000_images(tmp_path: Path) -> None:
    """What is held after the last image is what was held after the first 10,000."""
    words = ("--images", "0", "--tiny", str(COUNT), "--json")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout)  # images a second are to be read, not promised: machines differ
    for line in ran.stdout.splitlines():
        figures = json.loads(line)
        assert figures["images"] == COUNT
        assert figures["start"] < 10  # seconds to the first image, without a network to load
        after = figures["memory"][1:]
        assert len(after) == COUNT // 10_000 - 1
        assert max(*after, figures["last"]) < after[0] + MORE
