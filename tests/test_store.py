"""The store: files come in, are named, shared and taken out, and nothing lies outside it."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmp_cli import catalogue, store
from dmp_cli.errors import ResourceError, UsageError


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))


def add(model: str, task: str, content: str, keys: dict[str, dict[str, str]] | None = None) -> Path:
    with store.staging() as folder:
        (folder / "new").write_text(content)
        return store.add(model, task, folder / "new", content * 64, keys or {})


def kept() -> set[str]:
    return {path.name for path in store.home().rglob("*.safetensors")}


def test_what_is_added_is_read_with_the_packaged_file() -> None:
    path = add("dmp", "depth", "a", {"task": {"prompt": "a room"}})
    found = catalogue.load()["models"]["dmp"]
    assert found["tasks"]["depth"]["lora"] == {"path": str(path), "sha256": "a" * 64}
    assert found["tasks"]["depth"]["prompt"] == "a room"
    assert found["tasks"]["depth"]["scale"] == 8.0  # as the packaged file says
    assert path.read_text() == "a"
    assert path.is_relative_to(store.home() / "loras")
    assert {path.name for path in store.home().iterdir()} == {"loras", "weights.toml", ".lock"}


def test_a_new_file_takes_the_place_of_the_old() -> None:
    add("mine", "depth", "a", {"model": {"license": "mit"}})
    path = add("mine", "depth", "b")
    assert kept() == {path.name}
    assert catalogue.load()["models"]["mine"]["license"] == "mit"
    assert add("mine", "depth", "b") == path
    assert kept() == {path.name}


def test_a_shared_file_stays_until_nobody_names_it() -> None:
    path = add("dmp-paper", "albedo", "a")
    add("dmp", "albedo", "b")
    store.share("dmp", "albedo", path, "a" * 64)
    assert len(list((store.home() / "loras").rglob("*.safetensors"))) == 1
    assert store.remove("dmp-paper", "albedo") is None
    assert path.exists()
    assert store.remove("dmp", "albedo") == path
    assert kept() == set()
    assert "models.dmp" not in store.weights_file().read_text()
    assert store.remove("dmp", "albedo") is None


def test_a_file_outside_the_store_is_never_deleted(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    outside.touch()
    for name in (str(outside), "../outside.safetensors", "loras/../../outside.safetensors"):
        add("mine", "depth", "a")
        text = store.weights_file().read_text()
        changed = text.replace("loras/mine/depth-aaaaaaaa.safetensors", name)
        store.weights_file().write_text(changed)
        assert store.remove("mine", "depth") is None
        assert outside.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "ü", "-x"])
def test_a_name_that_could_lead_out_of_the_store(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        add(name, "depth", "a")
    assert kept() == set()
    assert not store.weights_file().exists()


def test_a_broken_weights_file_is_not_written_over() -> None:
    add("mine", "depth", "a")
    store.weights_file().write_text("[models")
    with pytest.raises(UsageError, match="cannot be read") as raised:
        add("mine", "depth", "b")
    assert str(store.weights_file()) in str(raised.value)
    assert store.weights_file().read_text() == "[models"
    assert kept() == {"depth-aaaaaaaa.safetensors"}


def test_what_a_person_wrote_into_it_stays() -> None:
    add("mine", "depth", "a")
    text = store.weights_file().read_text()
    store.weights_file().write_text(f"{text}\n# mine\n[models.dmp]\nsteps = 3\n")
    add("mine", "normals", "b")
    assert "# mine" in store.weights_file().read_text()
    assert catalogue.load()["models"]["dmp"]["steps"] == 3


def test_a_store_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ResourceError, match=str(tmp_path / "file")) as raised, store.staging():
        pass
    assert "DMP_HOME" in raised.value.hint
    with pytest.raises(ResourceError, match="cannot be written"):
        store.remove("mine", "depth")


ADDING = """
import sys
from dmp_cli import store
for task in ("depth", "normals", "albedo"):
    with store.staging() as folder:
        (folder / "new").write_text(sys.argv[1])
        store.add(sys.argv[1], task, folder / "new", "0" * 64, {})
"""


def test_several_processes_at_once() -> None:
    names = [f"m{number}" for number in range(4)]
    running = [subprocess.Popen([sys.executable, "-c", ADDING, name]) for name in names]
    assert [one.wait(60) for one in running] == [0] * 4
    found = catalogue.load()["models"]
    assert all(len(found[name]["tasks"]) == 3 for name in names)
    assert len(kept()) == 3
    assert len(list((store.home() / "loras").rglob("*.safetensors"))) == 12


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.home() == tmp_path / "home"
    monkeypatch.delenv("DMP_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store.home().name == "dmp"
