"""What many tests share: the tiny backbone of tests/parity, and `dmp` run in this process."""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dmp_cli import cli
from tests import hub as hubs
from tests.faults.process import Command, Forks

PARITY = Path(__file__).parent / "parity"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's `&` has it: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # sums in the order that tests/parity was compared in, on any machine
TASKS = ("depth", "normals", "segmentation", "albedo", "shading")


def pytest_collection_finish() -> None:
    """What is imported stays: `gc.collect`, which loading a model calls, has not to look at it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all may go, or libraries would speak of leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own settings, and nothing written outside the temporary folder."""
    monkeypatch.setenv("DMP_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("DMP_MODEL", "DMP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def apart(found: NDArray[Any] | torch.Tensor, expected: NDArray[Any]) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def write_weights(path: Path, extra: str = "", tasks: tuple[str, ...] = TASKS) -> Path:
    """A weights file with the model `tiny`: the backbone and LoRA of tests/parity."""
    lines = [
        "[models.tiny]",
        f"backbone = {{ path = {json.dumps(str(PARITY / 'sd-tiny'))} }}",
        extra,
        *(
            f"[models.tiny.tasks.{task}]\n"
            f"lora = {{ path = {json.dumps(str(PARITY / 'lora' / 'full'))} }}"
            for task in tasks
        ),
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The weights file of model `tiny`, on small pictures so that tests are quick."""
    return write_weights(tmp_path / "weights.toml", "size = 64")


def write_image(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """A smooth coloured picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures of two shapes, one of them in a folder below."""
    folder = tmp_path / "photos"
    write_image(folder / "a.png", 48, 64, 1)
    write_image(folder / "b.jpg", 64, 48, 2)
    write_image(folder / "sub" / "c.webp", 48, 64, 3)
    return folder


@pytest.fixture
def model(weights: Path) -> tuple[str, ...]:
    """The options that choose the tiny model, with one step."""
    return ("--weights", str(weights), "--model", "tiny", "--steps", "1")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubs.Hub]:
    """A server: org/tiny (a backbone, a LoRA), org/half (in fp16 only), org/decoder (tiny)."""
    if hubs.missing():
        pytest.skip(f"no {hubs.missing()} here")
    root = tmp_path_factory.mktemp("hub")
    tiny = PARITY / "sd-tiny"
    files = {str(path.relative_to(tiny)): path for path in tiny.rglob("*") if path.is_file()}
    half = {name.replace(".safetensors", ".fp16.safetensors"): path for name, path in files.items()}
    pickle = hubs.LORA.with_suffix(".bin")
    extra = {"loras/depth.safetensors": hubs.LORA, "loras/depth.bin": pickle}
    from tests import backbones  # it imports much

    decoder = backbones.make_tiny_decoder(root / "decoder")
    commits = {
        "org/tiny": hubs.commit(root, "org/tiny", files | extra),
        "org/half": hubs.commit(root, "org/half", half),
        "org/decoder": hubs.commit(root, "org/decoder", {f.name: f for f in decoder.iterdir()}),
    }
    with hubs.serve(root) as address:
        yield hubs.Hub(address, commits, root)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


Dmp = Callable[..., Ran]


@pytest.fixture
def dmp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dmp:
    """Run `dmp` with arguments, in this process; returns its exit code and what it printed."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["dmp", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Forks]]:
    """The server of forks, started when it is first asked for."""
    begun: list[Forks] = []

    def started() -> Forks:
        if not begun:
            folder = tmp_path_factory.mktemp("forks")
            begun.append(Forks(Command(folder, folder, started).environment()))
        return begun[0]

    yield started
    for server in begun:
        server.close()


@pytest.fixture(scope="session")
def typed(forks: Callable[[], Forks]) -> Path:
    """A folder for PATH whose `dmp` is a fork of that server: what shells type costs no import."""
    return forks().program.parent


@pytest.fixture
def typing(typed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH has that `dmp`."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(typed), os.environ["PATH"]]))


@pytest.fixture
def command(tmp_path: Path, forks: Callable[[], Forks]) -> Command:
    """`dmp` as a process."""
    folder = tmp_path / "process"
    folder.mkdir()
    return Command(folder, write_weights(folder / "weights.toml", "size = 64"), forks)
