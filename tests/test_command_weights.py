"""`dmp weights`: list, path, pull, verify and remove on files of this machine."""

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from dmp_cli import catalogue, hub, store
from dmp_cli.errors import ResourceError
from tests.conftest import TASKS, Dmp
from tests.hub import LORA, PARITY, SHA256


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def take_in(model: str, task: str) -> Path:
    """A LoRA in the store, as an import leaves it, on the backbone of tests/parity."""
    with store.staging() as folder:
        staged = folder / "lora.safetensors"
        shutil.copy(LORA, staged)
        keys = {"model": {"backbone": {"path": str(PARITY / "sd-tiny")}}, "task": {}}
        with store.changes(catalogue.parse) as made:
            return made.add(model, task, staged, SHA256, keys)


def damage(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


# list -------------------------------------------------------------------------------------


def test_list(dmp: Dmp) -> None:
    kept = take_in("mine", "depth")
    ran = dmp("weights", "list")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert "demo (licence: Apache-2.0)" in lines
    at = lines.index("mine (licence: not stated)")
    assert lines[at + 2].split() == ["depth", "150.62", "kB", str(kept)]
    assert [line.split()[0] for line in lines if " * " in line] == ["backbone", *TASKS]


def test_list_as_json(dmp: Dmp) -> None:
    rows = json.loads(dmp("weights", "list", "--json").out)
    found = {(row["model"], row["part"]): row for row in rows}
    assert found["demo", "depth"] == {
        "model": "demo", "part": "depth", "license": "Apache-2.0",
        "source": "packaged demo/loras/depth.safetensors",
        "bytes": found["demo", "depth"]["bytes"], "here": True, "absent": None, "default": True,
    }  # fmt: skip
    assert found["demo", "depth"]["bytes"] > 100_000
    row = found["dmp", "depth"]
    assert (row["source"], row["here"], row["default"]) == (None, False, False)
    assert "@133a221b8aa7292a167afc5127cb63fb5005638b" in found["dmp", "backbone"]["source"]


def test_a_file_that_went(dmp: Dmp, tmp_path: Path) -> None:
    take_in("mine", "depth").unlink()
    rows = json.loads(dmp("weights", "list", "--json").out)
    (row,) = [row for row in rows if (row["model"], row["part"]) == ("mine", "depth")]
    assert (row["here"], row["bytes"]) == (False, None)
    assert "no such LoRA file" in row["absent"]


# path, pull -------------------------------------------------------------------------------


def test_path(dmp: Dmp, home: Path) -> None:
    assert dmp("weights", "path").out == f"{home}\n"
    kept = take_in("mine", "depth")
    ran = dmp("weights", "path", "mine")
    assert ran.out.splitlines() == [str(PARITY / "sd-tiny"), str(kept)]
    assert dmp("weights", "path", "mine", "--task", "depth").out == ran.out
    kept.unlink()
    ran = dmp("weights", "path", "mine")
    assert (ran.code, ran.out) == (5, "")
    assert str(kept) in ran.err


def test_pull_checks_what_is_here(dmp: Dmp) -> None:
    kept = take_in("mine", "depth")
    ran = dmp("weights", "pull", "mine")
    assert (ran.code, ran.out.splitlines()) == (0, [str(PARITY / "sd-tiny"), str(kept)])
    assert "everything is here" in ran.err
    found = damage(kept)
    ran = dmp("weights", "pull", "mine")
    assert (ran.code, ran.out) == (5, "")
    assert f"{kept}: wrong sha256: expected {SHA256}, found {found}" in ran.err


def test_pull_takes_what_a_run_takes(dmp: Dmp, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = dmp("weights", "pull", "--task", "depth,normals")
    assert (ran.code, len(ran.out.splitlines())) == (0, 3)
    assert "/demo/loras/depth.safetensors" in ran.out
    monkeypatch.setenv("DMP_MODEL", "untrained")
    ran = dmp("weights", "pull")
    assert (ran.code, ran.out) == (0, "")
    assert "made by dmp" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("dmp", "--task", "depth"), 5, "'dmp' names no source of depth"),
        (("bare",), 5, "names no source of its weights"),
        (("dpm",), 2, "unknown model 'dpm'"),
        (("demo", "--task", "edges"), 2, "edges"),
        (("demo", "--dtype", "int8"), 2, "known: auto, fp16, fp32"),
        (("demo", "--weights", "absent.toml"), 2, "absent.toml: cannot be read"),
    ],
)
@pytest.mark.parametrize("verb", ["pull", "path"])
def test_what_cannot_be_pulled(
    dmp: Dmp, tmp_path: Path, verb: str, words: tuple[str, ...], code: int, told: str
) -> None:
    (tmp_path / "bare.toml").write_text("[models.bare.tasks.depth]\nscale = 2.0\n")
    given = () if "--weights" in words else ("--weights", tmp_path / "bare.toml")
    ran = dmp("weights", verb, *words, *given)
    assert (ran.code, ran.out) == (code, "")
    assert told in ran.err
    assert code != 5 or "dmp weights import PATH" in ran.err


def test_no_default_has_weights(dmp: Dmp, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text('default = ["dmp"]\n')
    ran = dmp("weights", "pull", "--weights", tmp_path / "none.toml")
    assert ran.code == 5
    assert "dmp weights import PATH" in ran.err


def test_offline_pull_of_what_is_missing(dmp: Dmp) -> None:
    ran = dmp("weights", "pull", "dmp")
    assert (ran.code, ran.out) == (5, "")
    commit = "133a221b8aa7292a167afc5127cb63fb5005638b"
    name = "unet/diffusion_pytorch_model.safetensors"
    assert f"CompVis/stable-diffusion-v1-4: {name} at revision {commit}" in ran.err
    assert "run: dmp weights pull dmp\n" in ran.err


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9))
    hub.check_room(10**9)
    with pytest.raises(ResourceError, match=r"2\.00 GB have to be fetched, and 1\.00 GB are free"):
        hub.check_room(2 * 10**9)


# verify -----------------------------------------------------------------------------------


def test_verify(dmp: Dmp) -> None:
    take_in("mine", "depth")
    ran = dmp("weights", "verify")
    assert (ran.code, ran.out) == (0, "")
    assert "11 files checked, 0 damaged; no hash is known of" in ran.err


@pytest.mark.parametrize("repair", [(), ("--repair",)])
def test_a_damaged_import(dmp: Dmp, repair: tuple[str, ...]) -> None:
    kept = take_in("mine", "depth")
    found = damage(kept)
    for model in (("mine",), ()):
        ran = dmp("weights", "verify", *model, *repair)
        assert (ran.code, ran.out) == (5, f"{kept}\n")
        assert f"{kept}: expected {SHA256}, found {found}" in ran.err
        assert "again: dmp weights import" in ran.err
    assert kept.exists()


def test_what_to_import_again(dmp: Dmp) -> None:
    kept = take_in("mine", "depth")
    data = kept.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"dmp.source": "depth/lora.bin", "dmp.source_sha256": "ab" * 32}
    text = json.dumps(header).encode()
    kept.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    ran = dmp("weights", "verify", "mine")
    assert ran.code == 5
    again = "again: dmp weights import FILE --model mine --task depth"
    assert f"import depth/lora.bin (sha256 {'ab' * 32}) {again}" in ran.err
    assert again.removeprefix("again: ") in dmp("predict", "depth", kept, "-o", "o", "--model",
                                                "mine").err  # fmt: skip


def test_an_import_that_is_lost(dmp: Dmp) -> None:
    kept = take_in("mine", "depth")
    kept.unlink()
    for model in (("mine",), ()):
        ran = dmp("weights", "verify", *model, "--repair")
        assert (ran.code, ran.out) == (5, f"{kept}\n")
        assert f"{kept}: it is not there" in ran.err
        assert "again: dmp weights import" in ran.err


@pytest.mark.parametrize("lost", ["vae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_backbone_that_is_not_whole_any_more(dmp: Dmp, tmp_path: Path, lost: str) -> None:
    """What is left of it is hashed all the same."""
    folder = tmp_path / "sd"
    shutil.copytree(PARITY / "sd-tiny", folder)
    (folder / lost).unlink()
    other = "text_encoder/model.safetensors"
    stated = f'{{ "{other}" = "{"1" * 64}" }}'
    table = f'[models.own]\nbackbone = {{ path = "{folder}", sha256 = {stated} }}\n'
    (tmp_path / "own.toml").write_text(table)
    ran = dmp("weights", "verify", "own", "--weights", tmp_path / "own.toml")
    assert (ran.code, set(ran.out.split())) == (5, {str(folder / lost), str(folder / other)})
    assert f"{folder / lost}: it is not there" in ran.err
    assert f"expected {'1' * 64}, found" in ran.err


# remove -----------------------------------------------------------------------------------


def test_remove(dmp: Dmp) -> None:
    kept = {task: take_in("mine", task) for task in ("depth", "normals")}
    ran = dmp("weights", "remove", "mine", "--task", "depth")
    assert (ran.code, ran.out) == (0, f"{kept['depth']}\n")
    assert "150.62 kB freed" in ran.err
    assert not kept["depth"].exists()
    assert kept["normals"].exists()
    assert dmp("weights", "remove", "mine").out == f"{kept['normals']}\n"
    assert dmp("weights", "remove", "mine").code == 2


def test_a_file_that_another_model_needs_stays(dmp: Dmp) -> None:
    kept = take_in("mine", "depth")
    take_in("other", "normals")
    with store.changes(catalogue.parse) as made:
        made.share("other", "depth", kept, SHA256)
    ran = dmp("weights", "remove", "mine")
    assert (ran.code, ran.out) == (0, "")
    assert "0 bytes freed" in ran.err
    assert kept.exists()


@pytest.mark.parametrize("model", ["demo", "untrained", "absent"])
def test_nothing_to_remove(dmp: Dmp, model: str) -> None:
    ran = dmp("weights", "remove", model)
    assert (ran.code, ran.out) == (2, "")
    assert model in ran.err


@pytest.mark.parametrize("verb", ["", "list", "path", "pull", "verify", "remove"])
def test_help(dmp: Dmp, verb: str) -> None:
    ran = dmp("weights", *filter(None, [verb]), "--help")
    assert ran.code == 0
    assert f"dmp weights {verb}".strip() in ran.out
