"""Much at once, with little: memory, file descriptors, and very many inputs, or none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_image
from tests.faults.outputs import require_whole
from tests.faults.process import TORCH, Command

# What the process may have of memory of its own beside what it has by then, in MB
LIMIT = """
import resource
for line in open("/proc/self/status"):
    if line.startswith("VmData"): own = int(line.split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (own + (%d << 20),) * 2)
"""


@pytest.mark.fault(40)
@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_large_images_and_little_memory(command: Command, tmp_path: Path, count: int) -> None:
    """Each takes 36 MB as pixels, 48 MB as depth, and some 200 MB while it is written."""
    folder = tmp_path / "in"
    first = write_image(folder / "0.jpg", 3000, 4000)
    for number in range(1, count):
        (folder / f"{number}.jpg").hardlink_to(first)
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", "--size", 64, *command.model,
        patch=LIMIT % 1200, timeout=280,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert len(ran.lines) == count
    with Image.open(tmp_path / "out/0.depth.png") as image:
        assert image.size == (4000, 3000)


@pytest.mark.fault(40)
def test_an_image_that_memory_does_not_reach_for(command: Command, tmp_path: Path) -> None:
    """It fails, and the others do not."""
    folder = tmp_path / "in"
    Image.fromarray(np.zeros((9000, 10_000, 3), np.uint8)).save(folder.with_name("large.png"))
    for seed in range(3):
        write_image(folder / f"{seed}.png", seed=seed)
    folder.with_name("large.png").rename(folder / "large.png")
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", *command.model, patch=LIMIT % 256
    )
    assert ran.code == 3, ran.err
    assert f"failed: {folder / 'large.png'}: " in ran.err
    assert "memory" in ran.err
    assert "Traceback" not in ran.err
    assert require_whole(tmp_path / "out") == 3


@pytest.mark.fault(42)
def test_64_file_descriptors(command: Command, tmp_path: Path) -> None:
    for seed in range(100):
        write_image(tmp_path / "in" / f"{seed}.png", seed=seed)
    ran = command.fork(
        "predict", "depth", tmp_path / "in", "-o", tmp_path / "out", "--format", "png,npy,exr",
        "--batch", 8, *command.model,
        patch="import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (64, 64))",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert require_whole(tmp_path / "out") == 300


@pytest.mark.fault(42)
@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_very_many_inputs_are_found_and_planned(
    command: Command, tmp_path: Path, count: int
) -> None:
    folder = tmp_path / "in"
    for number in range(count):
        if number % 1000 == 0:
            below = folder / f"{number // 1000:03}"
            below.mkdir(parents=True)
        (below / f"{number:06}.png").touch()
    ran = command.predict(folder, "-o", tmp_path / "out", "--dry-run", patch=TORCH)
    assert ran.code == 0, ran.err
    assert ran.out.count(b".depth.png\n") == count
    assert ran.cpu < 1 + count / 5_000
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(42)
def test_an_empty_folder(command: Command, tmp_path: Path) -> None:
    (tmp_path / "in/below").mkdir(parents=True)
    ran = command.predict(tmp_path / "in", "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (4, b"")
    assert f"no image found in {tmp_path / 'in'}" in ran.err
    assert not (tmp_path / "out").exists()
