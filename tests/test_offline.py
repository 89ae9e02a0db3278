"""The whole life of files of the Hub, with the real command: fetched, kept, damaged, mended."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmp_cli.connection import away
from tests import hub as hubs
from tests.conftest import Dmp, Ran, write_image

NO_SOCKETS = """
import os, sys
def hook(event, words):
    if event == "socket.bind" and words[1][:2] == ("::1", 0):
        return  # urllib3, as it is imported: whether this machine knows IPv6
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        with open(os.environ["OPENED"], "a") as file: file.write(event + "\\n")
        raise OSError(f"{event} in a process that opens no socket")
sys.addaudithook(hook)
"""


pytestmark = pytest.mark.usefixtures("typing")


@dataclass(frozen=True)
class Machine:
    """A home of its own, and a weights file whose model `hub` comes from org/tiny."""

    folder: Path
    address: str
    weights: Path

    def dmp(
        self, *words: object, sockets: bool = True, offline: bool = False, forked: bool = True
    ) -> Ran:
        """Run `dmp`; with `sockets=False`, which cannot be forked, to open one is an error."""
        environment = hubs.environment(self.folder / "hf", self.address, offline)
        environment |= {"DMP_HOME": str(self.folder / "dmp"), "OMP_NUM_THREADS": "1"}
        if not sockets:
            (self.folder / "hook").mkdir(exist_ok=True)
            (self.folder / "hook" / "sitecustomize.py").write_text(NO_SOCKETS)
            environment |= {"PYTHONPATH": str(self.folder / "hook"), "OPENED": str(self.opened)}
        start = ("dmp",) if sockets and forked else (sys.executable, "-m", "dmp_cli")
        ran = subprocess.run(
            [*start, *map(str, words)], env=environment, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    @property
    def opened(self) -> Path:
        """What was opened, if anything was."""
        return self.folder / "opened"

    def predict(self, *words: object, **how: bool) -> Ran:
        image = self.folder / "a.png"
        if not image.exists():
            write_image(image)
        given = ("--weights", self.weights, "--model", "hub", "--steps", "1", "--format", "npy",
                 "--overwrite")  # fmt: skip
        return self.dmp("predict", "depth", image, "-o", self.folder / "out", *given, *words, **how)

    def map(self) -> bytes:
        return (self.folder / "out" / "a.depth.npy").read_bytes()


def entry(revision: str | None, sha256: str | None = hubs.SHA256) -> str:
    at = f', revision = "{revision}"' if revision else ""
    stated = f', sha256 = "{sha256}"' if sha256 else ""
    return (
        f'[models.hub]\nsize = 64\nbackbone = {{ repo = "org/tiny"{at} }}\n'
        f'[models.hub.tasks.depth]\nlora = {{ repo = "org/tiny"{at}, '
        f'file = "loras/depth.safetensors"{stated} }}\n'
    )


@pytest.fixture
def machine(hub: hubs.Hub, tmp_path: Path) -> Machine:
    weights = tmp_path / "hub.toml"
    weights.write_text(entry(hub.commits["org/tiny"]))
    return Machine(tmp_path, hub.address, weights)


def nowhere(machine: Machine) -> Machine:
    return Machine(machine.folder, hubs.NOWHERE, machine.weights)


def test_from_an_empty_machine_to_a_mended_one(machine: Machine, dmp: Dmp, weights: Path) -> None:
    """Fetched by a run, used without a server, damaged, refused, mended, used again."""
    ran = machine.predict()
    assert ran.code == 0, ran.err
    assert "fetching 12 files, 4." in ran.err
    assert f"MB, of org/tiny into {machine.folder / 'hf'}" in ran.err
    expected = machine.map()
    image, here = machine.folder / "a.png", machine.folder / "here"
    how = ("--weights", weights, "--model", "tiny", "--steps", "1", "--format", "npy")
    assert dmp("predict", "depth", image, "-o", here, *how).code == 0
    assert (here / "a.depth.npy").read_bytes() == expected  # as from files of this machine

    plane = nowhere(machine)
    ran = plane.predict(sockets=False)
    assert (ran.code, plane.opened.exists()) == (0, False), ran.err
    assert plane.map() == expected

    of_hub = ("hub", "--weights", machine.weights)
    folder = Path(plane.dmp("weights", "path", *of_hub).out.split()[0])
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(unet.read_bytes())
    data[-1] ^= 1
    unet.resolve().write_bytes(data)
    ran = plane.predict()
    assert ran.code == 5
    assert f"{unet}: wrong hash: expected {unet.resolve().name}, found " in ran.err
    fix = f"dmp weights verify hub --task depth --weights {machine.weights} --repair"
    assert f"run: {fix}" in ran.err

    found = plane.dmp("weights", "verify", *of_hub, sockets=False)
    assert (found.code, found.out.split(), plane.opened.exists()) == (5, [str(unet)], False)
    on_the_plane = plane.dmp(*fix.split()[1:])
    assert (on_the_plane.code, unet.exists()) == (5, True)  # nothing is deleted without a server
    mended = machine.dmp(*fix.split()[1:])
    assert (mended.code, mended.out) == (0, ""), mended.err
    ran = plane.predict()
    assert (ran.code, plane.map()) == (0, expected)


def test_a_branch_that_moves(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """A run takes what is here; `pull` is what brings the branch up to date."""
    if hubs.missing():
        pytest.skip(f"no {hubs.missing()} here")
    root = tmp_path_factory.mktemp("moving")
    tiny = hubs.PARITY / "sd-tiny"
    files = {str(path.relative_to(tiny)): path for path in tiny.rglob("*") if path.is_file()}
    first = hubs.commit(root, "org/tiny", files | {"loras/depth.safetensors": hubs.LORA})
    (tmp_path / "hub.toml").write_text(entry(None, None))
    pull, where = (
        ("weights", verb, "hub", "--weights", tmp_path / "hub.toml") for verb in ("pull", "path")
    )
    with hubs.serve(root) as address:
        machine = Machine(tmp_path, address, tmp_path / "hub.toml")
        pulled = machine.dmp(*pull)
        assert f"/{first}" in pulled.out
        assert (len(pulled.out.splitlines()), "fetching 12 files" in pulled.err) == (2, True)
        second = hubs.commit(root, "org/tiny", {"NEWS": tiny / "model_index.json"})
        assert f"/{first}" in machine.dmp(*where, sockets=False).out
        assert f"/{second}" in machine.dmp(*pull).out
        assert f"/{second}" in machine.dmp(*where, sockets=False).out
    assert first != second
    gone = nowhere(machine)
    assert gone.dmp(*pull, offline=True).out == machine.dmp(*where).out
    assert gone.dmp("weights", "remove", "hub", "--weights", machine.weights).code == 2
    both = tmp_path / "both.toml"
    both.write_text(entry(None, None) + entry(None, None).replace("models.hub", "models.too"))
    ran = gone.dmp("weights", "remove", "hub", "--hub-cache", "--weights", both)
    assert f"revision {second} stays" in ran.err
    assert gone.dmp(*where).code == 0
    ran = gone.dmp("weights", "remove", "hub", "--hub-cache", "--weights", machine.weights)
    assert (ran.code, "freed" in ran.err) == (0, True)
    assert gone.dmp(*where).code == 5


def lose(path: Path) -> None:
    path.resolve().unlink()
    path.unlink()


@pytest.mark.parametrize("what", ["damaged", "lost", "the tokenizer", "lost adapter"])
def test_repair_fetches_that_file_alone(hub: hubs.Hub, tmp_path: Path, what: str) -> None:
    """Of a backbone that is here in half precision only, of which the server has both."""
    weights = tmp_path / "hub.toml"
    commit = hub.commits["org/half"]
    weights.write_text(
        entry(hub.commits["org/tiny"]).replace(
            f'repo = "org/tiny", revision = "{hub.commits["org/tiny"]}" }}',
            f'repo = "org/half", revision = "{commit}", variant = "fp16" }}',
        )
    )
    machine = Machine(tmp_path, hub.address, weights)
    of_hub = ("hub", "--weights", weights)
    pulled = machine.dmp("weights", "pull", *of_hub)
    assert pulled.code == 0, pulled.err
    folder, adapter = map(Path, pulled.out.split())
    assert folder.name == commit
    path = {
        "damaged": folder / "tokenizer" / "vocab.json",
        "lost": folder / "vae" / "diffusion_pytorch_model.fp16.safetensors",
        "the tokenizer": folder / "tokenizer",
        "lost adapter": adapter,
    }[what]
    if what == "damaged":
        path.resolve().write_bytes(b"{}")
    elif what == "lost adapter":
        path.resolve().unlink()
    else:
        for each in sorted(path.iterdir()) if path.is_dir() else [path]:
            lose(each)
    found = nowhere(machine).dmp("weights", "verify", *of_hub, sockets=False)
    assert (found.code, found.out.split()) == (5, [str(path)]), found.err
    mended = machine.dmp("weights", "verify", *of_hub, "--repair")
    assert (mended.code, mended.out) == (0, ""), mended.err
    files = len(list(path.iterdir())) if path.is_dir() else 1
    assert f"fetching {files} file" in mended.err
    assert not [one for one in folder.rglob("*.safetensors") if ".fp16." not in one.name]
    assert nowhere(machine).dmp("weights", "verify", *of_hub).code == 0


def test_the_cache_of_a_model_that_only_the_store_knows(hub: hubs.Hub, tmp_path: Path) -> None:
    """Its entry goes with its last LoRA, and with it what says which revision it needed."""
    (tmp_path / "none.toml").write_text("")
    machine = Machine(tmp_path, hub.address, tmp_path / "none.toml")
    store = tmp_path / "dmp"
    kept = store / "loras" / "mine" / "depth-00000000.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(hubs.LORA.read_bytes())
    commit = hub.commits["org/tiny"]
    (store / "weights.toml").write_text(
        f'[models.mine]\nbackbone = {{ repo = "org/tiny", revision = "{commit}" }}\n'
        f'[models.mine.tasks.depth]\nlora = {{ path = "loras/mine/{kept.name}" }}\n'
    )
    pulled = machine.dmp("weights", "pull", "mine")
    assert pulled.code == 0, pulled.err
    folder = Path(pulled.out.split()[0])
    ran = machine.dmp("weights", "remove", "mine", "--hub-cache", sockets=False)
    assert (ran.code, ran.out) == (0, f"{kept}\n"), ran.err
    assert not folder.exists()
    assert "4." in ran.err
    assert "MB freed" in ran.err


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE", "refused", "silent"])
def test_what_is_missing_is_told_at_once(tmp_path: Path, how: str) -> None:
    """Within three seconds: at most two for a connection, and without torch, whose import alone
    takes more than one of the processor.
    """
    weights = tmp_path / "hub.toml"
    weights.write_text(entry("0" * 40))
    with silent() if how == "silent" else refused() as address:
        machine = Machine(tmp_path, address, weights)
        words = ("--offline",) if how == "--offline" else ()
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        ran = machine.predict(*words, offline=how == "HF_HUB_OFFLINE", forked=False)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    assert ran.code == 5
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert busy < 1
    idle_machine = os.getloadavg()[0] < (os.cpu_count() or 1)
    assert wall < (3 if idle_machine else 15)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert f"org/tiny: {name} at revision {'0' * 40} is not on this machine" in ran.err
    assert f"run: dmp weights pull hub --task depth --weights {weights}" in ran.err
    assert ("dmp is offline" in ran.err) == ("OFFLINE" in how.upper())
    assert len(ran.err.splitlines()) == 2
    assert not (tmp_path / "out").exists()


@contextmanager
def refused() -> Iterator[str]:
    yield hubs.NOWHERE


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes no connection and refuses none: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(server.getsockname())
            waiting.append(one)
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            for one in waiting:
                one.close()


def test_a_proxy_is_what_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in os.environ if key.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
    why = away("https://hub.invalid")
    assert why == "127.0.0.1:9 cannot be reached: Connection refused"
    monkeypatch.setenv("NO_PROXY", "hub.invalid")
    assert "hub.invalid:443 cannot be reached" in (away("https://hub.invalid") or "")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:abc")
    monkeypatch.delenv("NO_PROXY")
    for address in ("https://hub.invalid", "http://[::1", "127.0.0.1:80", "http://u:se/cret@host"):
        assert away(address) == "an address of HF_ENDPOINT, HTTP_PROXY or HTTPS_PROXY is not valid"


def test_training_offline(machine: Machine) -> None:
    data = machine.folder / "data"
    ran = machine.dmp("data", "scenes", data, "--count", "2", "--size", "64", "--seed", "1")
    assert ran.code == 0, ran.err
    how = ("--weights", machine.weights, "--model", "hub", "--offline", "--steps", "1")
    ran = machine.dmp("train", "depth", data, "-o", machine.folder / "lora", *how, sockets=False)
    assert (ran.code, machine.opened.exists()) == (5, False)
    assert f"run: dmp weights pull hub --weights {machine.weights}" in ran.err


def test_the_list_opens_no_socket(machine: Machine) -> None:
    ran = machine.dmp("weights", "list", "--json", "--weights", machine.weights, sockets=False)
    assert (ran.code, machine.opened.exists()) == (0, False)
    rows = [row for row in json.loads(ran.out) if row["model"] == "hub"]
    assert [(row["part"], row["here"]) for row in rows] == [("backbone", False), ("depth", False)]
