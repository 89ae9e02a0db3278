"""`dmp train` as a user types it: streams, exit codes, interruption, several processes."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from dmp_cli.errors import ResourceError
from dmp_cli.train import checkpoints
from dmp_cli.train import trainer as trainers
from tests.conftest import Dmp
from tests.training import SIZE, small_backbone, write_pairs

LORA = "pytorch_lora_weights.safetensors"
SHORT = ("--size", SIZE, "--steps", 2, "--batch", 1, "--device", "cpu", "--sampling-steps", 1)


@pytest.fixture(autouse=True)
def _accelerate() -> Iterator[None]:
    """accelerate keeps device and precision for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "data", 3)


def words(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def test_standard_output_is_the_path_and_it_predicts_at_once(
    dmp: Dmp, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "My Depth"
    ran = dmp("train", "depth", data, "-o", out, "--model", "untrained", "--scale", 2,
              "--hold-out", 1, *SHORT)  # fmt: skip
    assert (ran.code, ran.out) == (0, f"{out / LORA}\n")
    assert (
        "2 pairs for depth; backbone made by dmp (tiny); the model will be called my-d" in ran.err
    )
    assert "maps of this LoRA mean nothing" in ran.err
    assert "step 2: abs_rel " in ran.err
    assert f"--weights {out}/weights.toml --model my-depth" in ran.err
    seen = dmp("predict", "depth", data / "images", "-o", tmp_path / "maps", "-v", "--format",
               "npy", "--weights", out / "weights.toml", "--model", "my-depth")  # fmt: skip
    assert seen.code == 0
    assert f"steps=1 spacing='leading' prediction='v_prediction' final='z' size={SIZE}" in seen.err
    assert 0 < np.load(tmp_path / "maps/0.depth.npy").max() < 4  # twice the unit, not 8 times


def test_json(dmp: Dmp, data: Path, tmp_path: Path) -> None:
    ran = dmp("train", "albedo", data, "-o", tmp_path / "out", "--model", "untrained", "--json",
              "-q", "--name", "mine", "--hold-out", 1, *SHORT)  # fmt: skip
    record = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert record["lora"] == str(tmp_path / "out" / LORA)
    assert (record["model"], record["task"], record["steps"]) == ("mine", "albedo", 2)
    assert record["validation"]["rmse_srgb"] > 0
    assert np.isfinite(record["loss"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train", "dpeth", "DATA"), 2, "did you mean depth?"),
        (("train", "depth", "ABSENT"), 2, "no such folder"),
        (("train", "depth", "EMPTY"), 4, "no image found"),
        (("train", "shading", "LONELY"), 4, "1 images, but no shading maps"),
        (("train", "normals", "DATA", "--flip"), 2, "a mirrored normals map is wrong"),
        (("train", "depth", "DATA", "--model", "dpm"), 2, "unknown model 'dpm'"),
        (("train", "depth", "DATA", "--backbone", "EMPTY"), 5, "not a whole backbone"),
        (("train", "depth", "DATA", "--cache", "c", "--cache-latents"), 2, "cannot be used toge"),
        (("train", "depth", "DATA", "--lr", "0"), 2, "--lr 0.0 must be a number above 0"),
        (("train", "depth", "DATA", "--init", "EMPTY"), 5, "holds none of"),
        (("train", "depth", "DATA", "-o", "FILE"), 6, "is a file"),
        (("train", "depth", "DATA", "--unit", "0"), 2, "a unit of 0.0"),
        (("train", "depth", "DATA", "--name", "demo"), 2, "--name demo: dmp has a model of that"),
        (("train", "albedo", "DATA", "--scale", "4"), 2, "--scale does not go with albedo"),
    ],
)
def test_what_cannot_be(
    dmp: Dmp, data: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write_pairs(tmp_path / "lonely", 1)
    for path in (tmp_path / "lonely/shading").iterdir():
        path.unlink()
    places = {"DATA": data, "ABSENT": tmp_path / "absent", "EMPTY": tmp_path / "empty",
              "FILE": tmp_path / "file", "LONELY": tmp_path / "lonely"}  # fmt: skip
    given = [str(places.get(word, word)) for word in arguments]
    output = [] if "-o" in given else ["-o", str(tmp_path / "out")]
    ran = dmp(*given, *output, "--device", "cpu")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_an_error_in_the_middle_says_what_is_kept(
    dmp: Dmp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.save

    def full(output: Path, state: Any, *rest: Any) -> Path:
        if state.step == 2:
            raise ResourceError("x cannot be written: No space left on device", "free some space")
        return real(output, state, *rest)

    monkeypatch.setattr(checkpoints, "save", full)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT, "--checkpoint-every", 1)  # fmt: skip
    assert ran.code == 6
    assert "No space left" in ran.err
    assert f"the last checkpoint is {tmp_path}/out/checkpoints/step-000001" in ran.err
    monkeypatch.setattr(checkpoints, "save", real)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT)  # fmt: skip
    assert ran.code == 0
    assert f"going on from {tmp_path}/out/checkpoints/step-000001" in ran.err


def test_a_batch_that_is_not_finite(
    dmp: Dmp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainers.objective.losses
    nan = torch.tensor([float("nan")])
    monkeypatch.setattr(trainers.objective, "losses", lambda *args: real(*args) * nan)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT)  # fmt: skip
    assert ran.code == 5
    assert f"step 1: the loss is not finite, on {data}/images/" in ran.err


@pytest.mark.parametrize(("more", "said"), [((), "command"), (("--fresh",), "command without --f")])
def test_a_run_that_was_stopped_says_what_goes_on(
    dmp: Dmp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainers.Trainer, "agreed", lambda *_: signal.SIGTERM)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT, *more)  # fmt: skip
    assert (ran.code, ran.out) == (143, "")
    assert f"stopped after step 0: the same {said}" in ran.err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_one_speaks(
    dmp: Dmp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT)  # fmt: skip
    assert ran.code == 0
    assert bool(ran.out) == bool(ran.err) == (rank == "0")


def test_without_a_terminal_a_line_now_and_then(
    dmp: Dmp, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmp_cli.commands.train._QUIET_SECONDS", -1)
    ran = dmp("train", "depth", data, "-o", tmp_path / "out", "--backbone", small_backbone(),
              *SHORT, "--cache-latents")  # fmt: skip
    assert "dmp: latent 5 of 6\n" in ran.err
    assert "dmp: step 1 of 2: loss 0." in ran.err
    assert "images/s" in ran.err


def command(data: Path, out: Path, *more: object) -> list[str]:
    return words(
        sys.executable, "-m", "dmp_cli", "train", "depth", data, "-o", out, "--device", "cpu",
        "--backbone", small_backbone(), "--size", SIZE, "--batch", 1, *more,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_process(
    data: Path, tmp_path: Path, number: signal.Signals, typed: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [typed / "dmp", *command(data, out, "--steps", 100_000)[3:]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    printed, told = process.communicate(timeout=30)
    steps = len((out / "log.jsonl").read_text().splitlines())
    assert (process.returncode, printed) == (128 + number, b"")
    kept = out / f"checkpoints/step-{steps:06d}"
    assert f"stopped after step {steps}: {kept} is written; the same command" in told.decode()
    assert [path.name for path in (out / "checkpoints").iterdir()] == [kept.name]


def test_a_disk_that_is_full_for_real(data: Path, tmp_path: Path) -> None:
    """No file may be larger than 50 kB: the optimizer's is the first that would be."""
    code = (
        "import resource, sys; from dmp_cli import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); cli.main()"
    )
    out = tmp_path / "out"
    arguments = command(data, out, "--steps", 2, "--rank", 6)[3:]
    environment = {key: value for key, value in os.environ.items() if "COV" not in key}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert ran.returncode == 6, ran.stderr
    assert "cannot be written: File too large" in ran.stderr
    assert list((out / "checkpoints").iterdir()) == []


def test_a_terminal_has_a_bar_within_its_width(data: Path, tmp_path: Path, typed: Path) -> None:
    more = ("--steps", 3, "--cache-latents", "--hold-out", 1)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with (tmp_path / "stdout").open("wb") as plain:
        process = subprocess.Popen(
            [typed / "dmp", *command(data, tmp_path / "out", *more)[3:]],
            stdout=plain, stderr=follower,
        )  # fmt: skip
    os.close(follower)
    screen = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            screen += os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    assert process.wait(60) == 0
    assert (tmp_path / "stdout").read_text() == f"{tmp_path}/out/{LORA}\n"
    bars = [line for line in screen.decode().replace("\n", "\r").split("\r") if "loss" in line]
    assert any("3/3" in bar and "images/s" in bar for bar in bars)
    assert max(len(bar) for bar in bars) <= 80
    assert "4/4" in screen.decode()


@pytest.mark.slow
def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """`accelerate launch`: half the batch in each gives the losses and LoRA of the whole.

    On the CPU, accelerate starts several processes only when told of GPUs.
    """
    more = ("--steps", 4, "--checkpoint-every", 2, "--validation", data)
    launch = words(
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2,
        "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", 1, "-m", "dmp_cli",
    )  # fmt: skip
    out = {"one": tmp_path / "one", "two": tmp_path / "two"}
    subprocess.run([*command(data, out["one"], *more), "--batch", "4"], check=True)
    ran = subprocess.run(
        [*launch, *command(data, out["two"], *more)[3:], "--batch", "2", "--cache-latents"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == f"{out['two'] / LORA}\n"
    logs = {
        name: [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for name, folder in out.items()
    }
    for one, two in zip(logs["one"], logs["two"], strict=True):
        for key in one.keys() - {"seconds"}:
            assert two[key] == pytest.approx(one[key], rel=1e-3), key
    whole, halves = (load_file(folder / LORA) for folder in out.values())
    assert max(float((whole[key] - halves[key]).abs().max()) for key in whole) < 1e-4
