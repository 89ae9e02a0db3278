"""Parts that break: a thread, the network, the device. Nothing outside can break them, so each
process is started with a patch of that one part.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import apart, write_image
from tests.faults.process import Command

# Breaks at the third image, when others are under way
BUG = """
import dmp_cli.engines.{module} as module
good, calls = module.{name}, []
def broken(*words, **more):
    calls.append(0)
    if len(calls) == 3: raise ZeroDivisionError("a bug in {name}")
    return good(*words, **more)
module.{name} = broken
"""
PARTS = {"reader": ("steps", "read"), "device": ("steps", "draw"), "writer": ("saving", "write")}


@pytest.mark.fault(28)
@pytest.mark.parametrize("part", PARTS)
def test_a_bug_in_a_thread_ends_the_run(
    command: Command, folder: Path, tmp_path: Path, part: str
) -> None:
    for seed in range(4, 30):
        write_image(folder / f"{seed}.png", seed=seed)
    module, name = PARTS[part]
    words = ("predict", "depth", folder, "-o", tmp_path / "out", "--format", "npy", *command.model)
    begin = command.run if part == "writer" else command.fork
    ran = begin(*words, patch=BUG.format(module=module, name=name), timeout=60)
    assert ran.code == 1, ran.err
    assert f"ZeroDivisionError: a bug in {name}" in ran.err
    for path in (tmp_path / "out").glob("*.npy"):
        assert np.load(path).shape == (48, 64)
    assert not list((tmp_path / "out").glob(".dmp-*"))


# The picture whose pixels are all 0 makes NaN of what the network draws: always, or in half
# precision alone. It is told by its latents, which are all the same then.
NAN = """
import torch
from dmp_cli.backbone import Backbone
encode, decode = Backbone.encode, Backbone.decode
marked = []
def encoded(self, pixels):
    marked[:] = [bool((one == -1).all()) for one in pixels]
    return encode(self, pixels)
def decoded(self, latents):
    drawn = decode(self, latents)
    if {when}:
        for one, bad in zip(drawn, marked):
            if bad: one[0, :, ::2] = {value}
    return drawn
Backbone.encode, Backbone.decode = encoded, decoded
"""


def with_a_black_one(folder: Path) -> Path:
    """The pictures of a folder and among them one that is black."""
    Image.new("RGB", (64, 48)).save(folder / "1black.png")
    return folder


@pytest.mark.fault(35)
@pytest.mark.parametrize("value", ["float('nan')", "float('inf')"])
@pytest.mark.parametrize("batch", [1, 8])
def test_an_image_that_is_not_finite_fails_alone(
    command: Command, folder: Path, tmp_path: Path, value: str, batch: int
) -> None:
    with_a_black_one(folder)
    out = tmp_path / "out"
    ran = command.fork(
        "predict", "depth", folder, "-o", out, "--json", "--format", "npy,png", "--batch", batch,
        *command.model, patch=NAN.format(when="True", value=value),
    )  # fmt: skip
    assert ran.code == 3, ran.err
    status = {name: record["status"] for name, record in ran.records.items()}
    assert status == {"1black.png": "failed", **{f"{i}.png": "done" for i in range(4)}}
    assert "not finite" in ran.records["1black.png"]["errors"][0]
    assert {path.name for path in out.glob("*.npy")} == {f"{i}.depth.npy" for i in range(4)}
    assert all(np.isfinite(np.load(path)).all() for path in out.glob("*.npy"))


@pytest.mark.fault(35)
def test_what_overflows_in_half_precision_is_drawn_again_in_float32(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    with_a_black_one(folder)
    half = "next(self._vae.parameters()).dtype != torch.float32"
    words = ("predict", "depth", folder, "--format", "npy", "--batch", 8, *command.model)
    truth, plain, out = (tmp_path / name for name in ("truth", "plain", "out"))
    assert command.fork(*words, "-o", truth, "--dtype", "fp32").code == 0
    assert command.fork(*words, "-o", plain, "--dtype", "bf16").code == 0
    ran = command.fork(*words, "-o", out, "--dtype", "bf16", "--json",
                       patch=NAN.format(when=half, value="float('nan')"))  # fmt: skip
    assert ran.code == 0, ran.err
    assert {path.name for path in out.glob("*.npy")} == {path.name for path in truth.glob("*.npy")}
    found, expected = (np.load(at / "1black.depth.npy") for at in (out, truth))
    assert np.isfinite(found).all()
    assert apart(found, expected) < 0.1  # of the same weights, rounded
    for seed in range(4):
        one, other = (np.load(at / f"{seed}.depth.npy") for at in (out, plain))
        assert np.array_equal(one, other)


MEMORY = """
import os, torch
from dmp_cli.backbone import Backbone
encode = Backbone.encode
def full(self, pixels):
    with open(os.environ["SIZES"], "a") as file: print(len(pixels), file=file)
    if len(pixels) > int(os.environ["MOST"]): raise {error}
    return encode(self, pixels)
Backbone.encode = full
"""
ERRORS = (
    "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
    "MemoryError()",
    'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")',
)


@pytest.mark.fault(37)
@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_batch_for_good(
    command: Command, folder: Path, tmp_path: Path, error: str
) -> None:
    for seed in range(4, 20):
        write_image(folder / f"{seed}.png", seed=seed)
    sizes = tmp_path / "sizes"
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", "--batch", 8, *command.model,
        patch=MEMORY.format(error=error), SIZES=str(sizes), MOST="2",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert Counter(ran.lines) == Counter(map(str, (tmp_path / "out").glob("*.png")))
    assert len(ran.lines) == 20
    assert [int(size) for size in sizes.read_text().split()] == [8, 4, 2, 2, 2, 2, *[2] * 6]


@pytest.mark.fault(37)
def test_out_of_memory_for_a_single_image_fails_it(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    ran = command.fork(
        "predict", "depth", folder, "-o", tmp_path / "out", "--batch", 2, *command.model,
        patch=MEMORY.format(error=ERRORS[0]), SIZES=str(tmp_path / "sizes"), MOST="0",
    )  # fmt: skip
    assert ran.code == 3
    assert ran.err.count("out of memory on cpu") == 4
    assert "Traceback" not in ran.err


LOST = """
import torch
from dmp_cli.backbone import Backbone
encode, calls = Backbone.encode, []
def lost(self, pixels):
    calls.append(0)
    if len(calls) > 3: raise torch.AcceleratorError("CUDA error: device lost")
    return encode(self, pixels)
Backbone.encode = lost
"""


@pytest.mark.fault(38)
def test_a_lost_accelerator_ends_the_run(command: Command, folder: Path, tmp_path: Path) -> None:
    for seed in range(4, 30):
        write_image(folder / f"{seed}.png", seed=seed)
    words = ("predict", "depth", folder, "-o", tmp_path / "out", "--format", "npy", *command.model)
    ran = command.fork(*words, patch=LOST)
    assert ran.code == 6, ran.err
    assert "CUDA error: device lost" in ran.err
    assert "Traceback" not in ran.err
    written = list((tmp_path / "out").glob("*.npy"))
    assert 0 < len(written) <= 3  # what was drawn before; what was written of it is whole
    assert {*ran.lines} <= {*map(str, written)}
    assert all(np.load(path).shape == (48, 64) for path in written)
    again = command.fork(*words)
    assert again.code == 0, again.err
    assert len(list((tmp_path / "out").glob("*.npy"))) == 30


@pytest.mark.fault(39)
def test_no_accelerator(command: Command, folder: Path, tmp_path: Path) -> None:
    words = ("predict", "depth", folder, "-o", tmp_path / "out", *command.model)
    ran = command.fork(*words, "--device", "cuda")
    assert (ran.code, ran.out) == (6, b"")
    assert "--device cuda: " in ran.err
    assert "finds no such device here" in ran.err
    assert not list((tmp_path / "out").rglob("*.png"))
    auto = command.fork(*words)
    assert auto.code == 0, auto.err
    assert len(re.findall("no accelerator found", auto.err)) == 1
