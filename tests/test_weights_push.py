"""`dmp weights push`: what it prints and refuses; what was pushed, pulled by the real client."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dmp_cli import catalogue, weights
from dmp_cli.publishing import release, upload
from tests import hub as hubs
from tests import hub_writes
from tests.conftest import PARITY, Dmp, write_image, write_weights
from tests.faults.process import uncovered
from tests.hub_writes import TOKEN, Server
from tests.releases import LORA, SHA256

MIT = 'license = "mit"\nsize = 64\nsteps = 1'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with hub_writes.serve(tmp_path / "hub") as server:
        hub_writes.connect(server, tmp_path / "hf", monkeypatch)
        monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A weights file with model tiny: depth and normals, under a licence."""
    return write_weights(tmp_path / "tiny.toml", MIT, ("depth", "normals"))


def test_it_prints_the_stanza_and_nothing_else(
    dmp: Dmp, hub: Server, file: Path, tmp_path: Path
) -> None:
    ran = dmp("weights", "push", "org/tiny", "--model", "tiny", "--weights", file)
    assert ran.code == 0
    (tmp_path / "hub.toml").write_text(ran.out)
    back = catalogue.load(tmp_path / "hub.toml")
    for recipe in weights.resolve(back, ["depth", "normals"], "tiny"):
        assert recipe.lora.revision == hub.head("org/tiny")
        assert (recipe.lora.repo, recipe.lora.sha256) == ("org/tiny", SHA256)
    assert ran.err.startswith("dmp: model tiny: depth, normals; ")
    for part in ("2 LoRAs", "new public repository org/tiny", str(hub.head("org/tiny"))):
        assert part in ran.err
    assert all(line.startswith("dmp: ") for line in ran.err.splitlines())


def test_the_same_again_prints_the_same(dmp: Dmp, hub: Server, file: Path) -> None:
    command = ("weights", "push", "org/tiny", "--model", "tiny", "--weights", file)
    first = dmp(*command)
    second = dmp(*command)
    assert (second.code, second.out) == (0, first.out)
    assert "no new commit" in second.err
    assert len(hub.commits("org/tiny")) == 2


def test_json(dmp: Dmp, hub: Server, file: Path) -> None:
    ran = dmp("weights", "push", "org/tiny", "--model", "tiny", "--weights", file, "--json", "-q")
    record = json.loads(ran.out)
    assert record["commit"] == hub.head("org/tiny")
    assert (record["created"], record["changed"], record["private"]) == (True, True, False)
    assert [one["sha256"] for one in record["files"]] == [SHA256, SHA256]
    assert [one["license"] for one in record["files"]] == ["mit", "mit"]
    assert record["stanza"].startswith("[models.tiny]")
    assert ran.err == ""


@pytest.mark.parametrize("task", ["normal", "normals", "normals,normal"])
def test_only_some_tasks_on_a_branch_in_private(
    dmp: Dmp, hub: Server, file: Path, task: str
) -> None:
    options = ("--task", task, "--revision", "v2", "--private", "--license", "MIT")
    ran = dmp("weights", "push", "org/tiny", "--model", "tiny", "--weights", file, *options)
    assert ran.code == 0
    assert "[models.tiny.tasks.normals]" in ran.out
    assert "depth" not in ran.out
    assert hub.private == {"org/tiny"}
    assert "new private repository" in ran.err
    assert "normals/pytorch_lora_weights.safetensors" in hub.files("org/tiny", "v2")
    assert hub.files("org/tiny", "main") == [".gitattributes"]


@pytest.mark.parametrize("as_json", [False, True])
def test_dry_run_sends_nothing(dmp: Dmp, hub: Server, file: Path, as_json: bool) -> None:
    options = ["--dry-run", "--json"] if as_json else ["--dry-run"]
    ran = dmp("weights", "push", "org/tiny", "--model", "tiny", "--weights", file, *options)
    assert ran.code == 0
    table = catalogue.load(file)
    expected = upload.readme(release.gather(table, "tiny", ["depth", "normals"], "org/tiny"))
    found = json.loads(ran.out)["readme"] if as_json else ran.out
    assert found.strip() == expected.strip()
    assert "nothing was sent" in ran.err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["acme"], 2, "no repository of the Hub"),
        (["org/x"], 5, "no model of the default list"),
        (["org/x", "--model", "nobody"], 2, "unknown model"),
        (["org/x", "--model", "untrained"], 2, "made by dmp itself"),
        (["org/x", "--model", "tiny", "--task", "edges"], 2, "edges"),
        (["org/x", "--model", "tiny", "--task", "albedo"], 5, "no weights for albedo"),
        (["org/x", "--model", "bare"], 2, "no licence is stated for depth"),
        (["org/x", "--model", "tiny", "--license", "gpl"], 2, "files are under mit"),
        (["other/x", "--model", "tiny"], 5, "403"),
    ],
)
def test_what_is_refused(
    dmp: Dmp, hub: Server, file: Path, words: list[str], code: int, said: str
) -> None:
    bare = write_weights(file.parent / "bare.toml", "", ("depth",)).read_text()
    file.write_text(f"{file.read_text()}\n{bare.replace('models.tiny', 'models.bare')}")
    ran = dmp("weights", "push", *words, "--weights", file)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert not list(hub.root.rglob("HEAD"))


def test_no_licence_is_named_once_there_is_the_right(dmp: Dmp, hub: Server, file: Path) -> None:
    file.write_text(file.read_text().replace('license = "mit"', 'license = "not stated"'))
    command = ("weights", "push", "org/tiny", "--model", "tiny", "--weights", file)
    assert dmp(*command).code == 2
    assert hub.asked == []
    ran = dmp(*command, "--i-have-the-right")
    assert ran.code == 0
    assert b"license: unknown" in (hub.blob("org/tiny", "main", "README.md") or b"")


@pytest.mark.parametrize("fault", ["no token", "away", "500", "cut"])
def test_one_line_and_the_next_step(
    dmp: Dmp, hub: Server, file: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    if fault == "no token":
        monkeypatch.setenv("HF_TOKEN", "")
    elif fault == "away":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.faults = {"500": {"commit": 500}, "cut": {"put": 0}}[fault]
    ran = dmp("weights", "push", "org/tiny", "--model", "tiny", "--weights", file)
    assert (ran.code, ran.out) == (5, "")
    first, second, *more = ran.err.splitlines()
    assert first.startswith("dmp: model tiny")
    assert second.startswith("dmp: org/tiny: ")
    assert more
    assert all(line.startswith("  ") for line in more)
    assert TOKEN not in ran.err


# What was pushed is what is pulled --------------------------------------------------------

CHECK = """
from pathlib import Path
import torch
from dmp_cli import lora
loaded = {"depth": {}, "normals": {}}
for name, module in unet.named_modules():
    for task, found in loaded.items():
        if hasattr(module, "lora_A"):
            assert module.scaling[task] == 1.0
            found[name] = [module.lora_A[task].weight, module.lora_B[task].weight]
shapes = {name: (up.shape[0], down.shape[1]) for name, (down, up) in loaded["depth"].items()}
expected = lora.read(Path(LORA), shapes)
for found in loaded.values():
    assert len(expected) == len(found) == 64 * 2
    pairs = [zip(expected[name], found[name], strict=True) for name in expected]
    assert all(torch.equal(ours, theirs) for pair in pairs for ours, theirs in pair)
print("same")
"""


def in_the_layout_of_diffusers(path: Path) -> Path:
    """The LoRA of tests/parity, as `dmp weights import` and `dmp train` write such files."""
    tensors = {}
    for key, value in load_file(LORA).items():
        at, to, side = re.fullmatch(r"(.+)\.processor\.(\w+)_lora\.(\w+)\.weight", key).groups()
        name = "lora_A" if side == "down" else "lora_B"
        tensors[f"unet.{at}.{to}{'.0' if to == 'to_out' else ''}.{name}.weight"] = value
    save_file(tensors, path)
    return path


def environment(address: str, home: Path) -> dict[str, str]:
    """Of a person elsewhere: without a token, without a store."""
    own = {"HF_ENDPOINT": address, "HF_HOME": str(home), "DMP_HOME": str(home / "dmp")}
    return os.environ | own | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}


def test_pushed_and_pulled(dmp: Dmp, hub: Server, tmp_path: Path, typed: Path) -> None:
    """Maps are those of the local files; and diffusers loads the files as the card says."""
    if hubs.missing():
        pytest.skip(f"no {hubs.missing()} here")
    sd = PARITY / "sd-tiny"
    parts = {str(path.relative_to(sd)): path for path in sd.rglob("*") if path.is_file()}
    commit = hubs.commit(hub.root, "org/sd", parts)
    path = in_the_layout_of_diffusers(tmp_path / "normals.safetensors")
    text = write_weights(tmp_path / "local.toml", MIT, ("depth", "normals")).read_text()
    text = text.replace("normals]\nlora = { path = ", f"normals]\nlora = {{ path = '{path}' }} # ")
    (tmp_path / "local.toml").write_text(text)
    image = write_image(tmp_path / "a.png")
    predict = ["predict", "depth,normals", image, "--format", "npy", "--model", "tiny"]
    assert dmp(*predict, "-o", tmp_path / "1", "--weights", tmp_path / "local.toml").code == 0
    ours = re.sub("backbone = .*", f'backbone = {{ repo = "org/sd", revision = "{commit}" }}', text)
    (tmp_path / "ours.toml").write_text(ours)
    push = ["weights", "push", "org/tiny", "--model", "tiny", "--weights", tmp_path / "ours.toml"]
    ran = dmp(*push)
    assert ran.code == 0
    (tmp_path / "theirs.toml").write_text(ran.out)
    readme = (hub.blob("org/tiny", "main", "README.md") or b"").decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    out = ["-o", tmp_path / "2", "--weights", tmp_path / "theirs.toml"]
    check = [sys.executable, "-c", f"LORA = {str(LORA)!r}\n{snippet}\n{CHECK}"]
    with hubs.serve(hub.root) as address:
        for words in ([typed / "dmp", *predict, *out], check):
            done = subprocess.run(
                words, env=uncovered(environment(address, tmp_path / "away")),
                capture_output=True, text=True, check=False, timeout=200,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"
    for name in ("a.depth.npy", "a.normals.npy"):
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()
