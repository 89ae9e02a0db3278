"""The store: files come in, are named, shared and taken out, and nothing lies outside it."""

import subprocess
import sys
from errno import ENOSPC
from pathlib import Path
from typing import Any

import filelock
import pytest

from dmp_cli import catalogue, store
from dmp_cli.errors import ResourceError, UsageError


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMP_HOME", str(tmp_path / "home"))


def add(model: str, task: str, content: str, keys: dict[str, dict[str, str]] | None = None) -> Path:
    with store.staging() as folder:
        (folder / "new").write_text(content)
        with store.changes(catalogue.parse) as made:
            return made.add(model, task, folder / "new", content * 64, keys or {})


def add_several() -> None:
    with store.staging() as folder, store.changes(catalogue.parse) as made:
        for model, task, content in (
            ("mine", "normals", "c"), ("new", "depth", "d"), ("mine", "normals", "b"),
            ("mine", "shading", "e"),
        ):  # fmt: skip
            (folder / content).write_text(content)
            made.add(model, task, folder / content, content * 64, {})


def share(model: str, task: str, path: Path, digest: str) -> None:
    with store.changes(catalogue.parse) as made:
        made.share(model, task, path, digest)


def tree() -> dict[str, bytes]:
    files = (path for path in store.home().rglob("*") if path.is_file())
    return {str(path.relative_to(store.home())): path.read_bytes() for path in files}


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
    share("dmp", "albedo", path, "a" * 64)
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


STAGING = """
import os, signal
from dmp_cli import store
with store.staging() as folder:
    (folder / "large").touch()
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays() -> None:
    ran = subprocess.run([sys.executable, "-c", STAGING], stdout=subprocess.PIPE, check=False)
    left = Path(ran.stdout.decode().strip())
    assert (left / "large").exists()
    with store.staging() as first, store.staging() as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.is_dir()
    assert not list(store.home().glob(".dmp-*"))


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
        with store.changes() as made:
            made.add(sys.argv[1], task, folder / "new", "0" * 64, {})
"""


@pytest.mark.parametrize("error", [OSError(ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["depth", "shading", "weights.toml"])
def test_several_come_in_all_or_none(
    at: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("mine", "depth", "a")
    add("mine", "normals", "b")
    before = tree()
    replace = Path.replace

    def cut_short(self: Path, target: Path) -> Path:
        if target.name.startswith(at):
            raise error
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut_short)
    expected = ResourceError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        add_several()
    assert tree() == before
    assert not (store.home() / "loras" / "new").exists()


def test_a_file_goes_while_no_other_process_can_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, looked = Path.unlink, []

    def watched(self: Path, **how: Any) -> None:
        if self.suffix == ".safetensors":
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(store.home() / ".lock", timeout=0).acquire()
            looked.append(self.name)
        unlink(self, **how)

    monkeypatch.setattr(Path, "unlink", watched)
    add("mine", "depth", "a")
    add("mine", "depth", "b")
    store.remove("mine", "depth")
    assert looked == ["depth-aaaaaaaa.safetensors", "depth-bbbbbbbb.safetensors"]


@pytest.mark.parametrize(
    "keys",
    [
        {"model": {"backbone": {"repo": "a/b", "revision": "x/../y"}}},
        {"model": {"unknown": "x"}}, {"task": {"steps": "many"}},
    ],
)  # fmt: skip
def test_what_could_not_be_read_back_is_not_written(keys: dict[str, Any]) -> None:
    add("mine", "depth", "a")
    before = tree()
    with pytest.raises(UsageError, match=r"weights\.toml, line"):
        add("mine", "depth", "b", keys)
    assert tree() == before


def test_text_that_is_not_utf_8() -> None:
    keys = {"model": {"summary": "from x\udcff.bin"}, "task": {"prompt": "\udcff"}}
    add("mine", "depth", "a", keys)
    entry = catalogue.load()["models"]["mine"]
    assert entry["summary"] == "from x\\udcff.bin"
    assert entry["tasks"]["depth"]["prompt"] == "\\udcff"


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


@pytest.mark.parametrize("named", ["kept", "./kept", "~/kept"])
def test_a_home_is_where_its_files_are_said_to_be(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DMP_HOME", named)
    assert store.home() == tmp_path / "kept"
    path = add("mine", "depth", "a")
    assert catalogue.load()["models"]["mine"]["tasks"]["depth"]["lora"]["path"] == str(path)
    assert store.remove("mine", "depth") == path
