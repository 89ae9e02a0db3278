"""Weights that are not to be had, damaged, hostile or another's."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import hub as hubs
from tests import test_lora as loras
from tests.conftest import PARITY, TASKS, write_image
from tests.faults.process import TORCH, Command, Ended, Running
from tests.test_conversion import HEADERS, Runs, packed

TINY = PARITY / "sd-tiny"


def entry(path: Path, lora: str) -> Path:
    """A weights file whose model `x` is the tiny backbone with another LoRA."""
    path.write_text(
        f"[models.x]\nsize = 64\nsteps = 1\nbackbone = {{ path = {json.dumps(str(TINY))} }}\n"
        f"[models.x.tasks.depth]\nlora = {lora}\n"
    )
    return path


def of_file(path: Path) -> str:
    return f"{{ path = {json.dumps(str(path))} }}"


OF_THE_HUB = f'{{ repo = "org/tiny", file = "{hubs.NAME}", revision = "main" }}'

# Servers ----------------------------------------------------------------------------------

REFUSED = {
    "wrong": "wrong sha256", "long": "longer than the file", "loop": "redirects", "401": "401",
    "404": "404",
}  # fmt: skip
SLOW = {
    "short": "the answer ended after", "cuts": "without sending complete message body",
    "drip": "bytes came in 20 s", "gone": "disconnected without sending a response",
    "mute": "timed out", "429": "429", "403": "403", "500": "500",
    "closed": "disconnected without sending a response",
}  # fmt: skip


@pytest.mark.fault(30)
@pytest.mark.parametrize("faults", [REFUSED, pytest.param(SLOW, marks=pytest.mark.slow)],
                         ids=["at once", "after a while"])  # fmt: skip
def test_a_server_that_fails(command: Command, tmp_path: Path, faults: dict[str, str]) -> None:
    weights = entry(tmp_path / "w.toml", OF_THE_HUB)
    with hubs.faulty() as (address, asked):
        begun = {fault: pull(command, weights, f"{address}/{fault}") for fault in faults}
        ended = {fault: running.end() for fault, running in begun.items()}
    wrong = {fault: told for fault, ran in ended.items() if (told := unlike(ran, faults[fault]))}
    assert wrong == {}
    assert len(asked) < 30 * len(faults)
    assert not list(command.folder.rglob("*.safetensors"))


def pull(command: Command, weights: Path, address: str) -> Running:
    home = command.folder / f"hf-{address.rpartition('/')[2]}"
    env = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(home)}
    return command.start("weights", "pull", "x", "--weights", weights, env=env)


def unlike(ran: Ended, reason: str) -> str:
    """What a download that failed should have said and did not."""
    told = ("org/tiny", hubs.NAME, "main", "run: dmp weights pull", reason)
    missing = [text for text in told if text not in ran.err]
    if ran.code != 5 or missing or "Traceback" in ran.err or ran.seconds > 60:
        return f"{ran.code} after {ran.seconds:.0f} s, without {missing}: {ran.err}"
    return ""


@pytest.mark.fault(30)
def test_a_server_that_fails_once(command: Command, tmp_path: Path) -> None:
    """Cut at half, it goes on from there, or from the start where Range is ignored."""
    weights = entry(tmp_path / "w.toml", OF_THE_HUB)
    with hubs.faulty() as (address, asked):
        begun = [pull(command, weights, f"{address}/{fault}") for fault in ("cut", "deaf")]
        for running in begun:
            ran = running.end()
            assert ran.code == 0, ran.err
            (path,) = [line for line in ran.lines if line.endswith(hubs.NAME)]
            assert Path(path).read_bytes() == hubs.DATA
    half = f"bytes={len(hubs.DATA) // 2}-"
    assert len([line for line in asked if line.endswith(half)]) >= 2


@pytest.mark.fault(30)
def test_no_server(command: Command, tmp_path: Path) -> None:
    weights = entry(tmp_path / "w.toml", OF_THE_HUB)
    write_image(tmp_path / "a.png")
    ran = command.run("predict", "depth", tmp_path / "a.png", "-o", tmp_path / "out", "--model",
                      "x", "--weights", weights, patch=TORCH,
                      env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hubs.NOWHERE})  # fmt: skip
    assert unlike(ran, "cannot be reached") == ""
    assert ran.seconds < 20


# Hashes -----------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change a bit of the last byte; the link of a cache leads to its file."""
    path = path.resolve()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.fault(31)
def test_a_damaged_file_of_the_store(command: Command, folder: Path, tmp_path: Path) -> None:
    ran = command.fork("weights", "import", hubs.LORA, "--task", "depth", "--model", "mine",
                       "--backbone", TINY)  # fmt: skip
    assert ran.code == 0, ran.err
    flip(Path(ran.lines[0]))
    found = hubs.hashlib.sha256(Path(ran.lines[0]).read_bytes()).hexdigest()
    refused = command.fork("predict", "depth", folder, "-o", tmp_path / "out", "--model", "mine")
    assert (refused.code, refused.out) == (5, b"")
    assert ran.lines[0] in refused.err
    assert f"found {found}" in refused.err
    assert "expected " in refused.err


@pytest.mark.fault(31)
def test_a_damaged_file_of_the_cache(command: Command, folder: Path, tmp_path: Path) -> None:
    weights = entry(tmp_path / "w.toml", OF_THE_HUB)
    with hubs.faulty() as (address, _):
        pulled = pull(command, weights, f"{address}/well").end()
    assert pulled.code == 0, pulled.err
    (path,) = [line for line in pulled.lines if line.endswith(hubs.NAME)]
    flip(Path(path))
    ran = command.run(
        "predict", "depth", folder, "-o", tmp_path / "out", "--model", "x", "--weights", weights,
        env={"HF_HOME": str(command.folder / "hf-well")},
    )  # fmt: skip
    assert (ran.code, ran.out) == (5, b""), ran.err
    assert path in ran.err
    assert f"expected {hubs.DIGEST}, found " in ran.err


# Files that are not what they should be ---------------------------------------------------


def predict(command: Command, tmp_path: Path, path: Path, fork: bool = True) -> Ended:
    """Predict with a LoRA file."""
    write_image(tmp_path / "a.png")
    weights = entry(tmp_path / "w.toml", of_file(path))
    words = ("predict", "depth", tmp_path / "a.png", "-o", tmp_path / "out", "--model", "x",
             "--weights", weights)  # fmt: skip
    return command.fork(*words) if fork else command.run(*words, measured=True)


@pytest.mark.fault(32)
@pytest.mark.parametrize("kind", HEADERS)
def test_hostile_headers(command: Command, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HEADERS[kind])
    ran = predict(command, tmp_path, path, fork=kind != "duplicate keys")
    assert (ran.code, ran.out) == (5, b""), ran.err
    assert str(path) in ran.err
    assert "Traceback" not in ran.err
    assert 0 < ran.memory < 1 << 30


@pytest.mark.fault(33)
@pytest.mark.parametrize("name", ["lora.bin", "lora.safetensors", "lora.pt", "lora.ckpt"])
def test_a_pickle_is_refused_by_a_run(command: Command, tmp_path: Path, name: str) -> None:
    flag = tmp_path / "flag"
    (tmp_path / name).write_bytes(packed({"a": Runs(os.system, f"touch {flag}")}))
    ran = predict(command, tmp_path, tmp_path / name)
    assert (ran.code, ran.out) == (5, b""), ran.err
    assert str(tmp_path / name) in ran.err
    assert not flag.exists()


@pytest.mark.fault(33)
@pytest.mark.parametrize("hostile", [True, False])
def test_a_pickle_is_imported_without_running_it(
    command: Command, tmp_path: Path, hostile: bool
) -> None:
    flag, path = tmp_path / "flag", tmp_path / "lora.bin"
    state: dict[str, Any] = dict(loras.STATE)
    if hostile:
        state["x"] = Runs(os.system, f"touch {flag}")
    path.write_bytes(packed(state))
    words = ("weights", "import", path, "--task", "depth", "--model", "mine", "--backbone", TINY)
    ran = command.run(*words) if hostile else command.fork(*words)
    assert not flag.exists()
    if hostile:
        assert (ran.code, ran.out) == (5, b""), ran.err
        assert str(path) in ran.err
        assert not list(command.folder.rglob("*.safetensors"))
    else:
        assert ran.code == 0, ran.err
        assert Path(ran.lines[0]).suffix == ".safetensors"


OTHERS = {
    "another base": (loras.other_base, "do not fit"),
    "a key missing": (loras.without, "its up matrix is missing"),
    "a key too many": (loras.one_more, "no such projection"),
    "NaN": (loras.with_nan, "not finite"),
}


@pytest.mark.fault(34)
@pytest.mark.parametrize("kind", OTHERS)
def test_a_lora_that_does_not_fit(command: Command, tmp_path: Path, kind: str) -> None:
    damage, why = OTHERS[kind]
    state = dict(loras.STATE)
    damage(state)
    path = loras.saved(tmp_path / "other.safetensors", state)
    ran = predict(command, tmp_path, path)
    assert (ran.code, ran.out) == (5, b""), ran.err
    assert f"{path}: " in ran.err
    assert "down_blocks." in ran.err
    assert why in ran.err


@pytest.mark.fault(34)
@pytest.mark.parametrize("rank", [1, 9])
def test_a_lora_of_another_rank(command: Command, tmp_path: Path, rank: int) -> None:
    state = {
        key: torch.full((rank, value.shape[1]) if ".down." in key else (value.shape[0], rank), 0.01)
        for key, value in loras.STATE.items()
    }
    save_file(state, tmp_path / "rank.safetensors")
    ran = predict(command, tmp_path, tmp_path / "rank.safetensors")
    assert ran.code == 0, ran.err
    assert len(ran.lines) == 1


# weights.toml -----------------------------------------------------------------------------

BROKEN = {
    "no TOML": ("[models.x\n", 2, "line 1"),
    "not UTF-8": ("\udcff", 2, "w.toml"),
    "unknown key": ("[models.x]\nstep = 3\n", 2, "line 2: models.x.step"),
    "unknown table": ("[model.x]\n", 2, "line 1: model"),
    "unknown model": ("", 2, "unknown model 'x'"),
    "wrong kind": ("[models.x]\nsteps = 'many'\n", 2, "line 2: models.x.steps"),
    "no such path": ('[models.x]\nbackbone = { path = "absent" }\n'
                     '[models.x.tasks.depth]\nlora = { path = "absent" }\n', 5, "absent"),
    "links in a circle": ('[models.x]\nbackbone = { path = "circle" }\n'
                          '[models.x.tasks.depth]\nlora = { path = "circle" }\n', 5, "circle"),
    "a LoRA in a circle": (f"[models.x]\nbackbone = {{ path = {json.dumps(str(TINY))} }}\n"
                           '[models.x.tasks.depth]\nlora = { path = "circle" }\n', 5, "circle"),
}  # fmt: skip


@pytest.mark.fault(43)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_weights_file_that_is_broken(command: Command, tmp_path: Path, kind: str) -> None:
    text, code, named = BROKEN[kind]
    path = tmp_path / "w.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "circle").symlink_to("circle")
    write_image(tmp_path / "a.png")
    ran = command.run("predict", "depth", tmp_path / "a.png", "-o", tmp_path / "out", "--model",
                      "x", "--weights", path)  # fmt: skip
    assert (ran.code, ran.out) == (code, b""), ran.err
    assert named in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.fault(43)
def test_a_weights_file_that_links_to_itself(command: Command, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "w.toml").symlink_to("w.toml")
    ran = command.run("predict", ",".join(TASKS), tmp_path / "a.png", "-o", tmp_path / "out",
                      "--weights", tmp_path / "w.toml")  # fmt: skip
    assert (ran.code, ran.out) == (2, b"")
    assert str(tmp_path / "w.toml") in ran.err
    assert "Traceback" not in ran.err
