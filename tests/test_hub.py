"""Files of the Hub: from a real server, from faulty ones, and from the cache without any."""

import hashlib
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmp_cli.connection import scrub
from tests import hub as hubs
from tests.hub import LORA, NOWHERE, PARITY, SHA256

PARTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


FETCH = """
import json, sys
from pathlib import Path
from dmp_cli import hub, sources
from dmp_cli.errors import DmpError
what, half, fields = json.loads(sys.argv[1])
source = sources.Source(**fields)
try:
    if what == "lora":
        found = [str(sources.lora_file(source)), None]
    else:
        folder, variant = sources.backbone_folder(source, half)
        found = [str(folder), variant]
    print(json.dumps({"found": found, "cache": str(hub.cache())}))
except DmpError as error:
    print(json.dumps({"error": str(error), "hint": error.hint, "code": error.exit_code}))
sys.exit()
"""


pytestmark = pytest.mark.usefixtures("typing")


@dataclass(frozen=True)
class Client:
    """Fetches in a process of its own: huggingface_hub reads its settings as it is imported."""

    home: Path
    address: str

    def environment(self, offline: bool = False) -> dict[str, str]:
        return hubs.environment(self.home, self.address, offline) | {"PATCH": FETCH}

    def run(self, what: str, half: bool = False, offline: bool = False, **source: Any) -> Any:
        ran = subprocess.run(
            ["dmp", json.dumps([what, half, source])],
            env=self.environment(offline), capture_output=True, text=True, check=True, timeout=90,
        )  # fmt: skip
        assert ran.stderr == ""  # nothing of the client's
        return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture
def client(hub: hubs.Hub, tmp_path: Path) -> Client:
    return Client(tmp_path / "hf", hub.address)


@pytest.fixture
def lora(hub: hubs.Hub) -> dict[str, Any]:
    """The fields of a source that is there."""
    return {
        "repo": "org/tiny",
        "revision": hub.commits["org/tiny"],
        "file": "loras/depth.safetensors",
        "sha256": SHA256,
    }


def without_server(client: Client) -> Client:
    return Client(client.home, NOWHERE)


def test_lora_is_fetched_at_its_commit_and_then_kept(client: Client, lora: dict[str, Any]) -> None:
    first = client.run("lora", **lora)
    path = Path(first["found"][0])
    assert path.read_bytes() == LORA.read_bytes()
    assert lora["revision"] in path.parts
    assert path.is_relative_to(first["cache"])
    assert Path(first["cache"]).is_relative_to(client.home)
    start = time.monotonic()
    assert without_server(client).run("lora", **lora) == first
    assert time.monotonic() - start < 10  # the client's own waiting for a server takes 23
    assert without_server(client).run("lora", offline=True, **lora) == first


def test_lora_of_a_branch(client: Client, lora: dict[str, Any]) -> None:
    for revision in ("main", None):
        found = client.run("lora", **(lora | {"revision": revision}))["found"][0]
        assert lora["revision"] in Path(found).parts


def test_lora_with_a_wrong_sha256_on_the_hub(client: Client, lora: dict[str, Any]) -> None:
    failed = client.run("lora", **(lora | {"sha256": "1" * 64}))
    assert f"expected {'1' * 64}, found {SHA256}" in failed["error"]
    assert failed["code"] == 5


def test_lora_damaged_in_the_cache(client: Client, lora: dict[str, Any]) -> None:
    path = Path(client.run("lora", **lora)["found"][0])
    damaged = bytearray(LORA.read_bytes())
    damaged[-1] ^= 1
    path.resolve().write_bytes(damaged)
    failed = without_server(client).run("lora", **lora)
    assert f"expected {SHA256}, found {hashlib.sha256(damaged).hexdigest()}" in failed["error"]
    assert str(path) in failed["error"]


@pytest.mark.parametrize(
    "change",
    [{"repo": "org/absent"}, {"revision": "absent"}, {"file": "loras/absent.safetensors"},
     {"repo": "not a name"}, {"repo": "../../x/y"}],
    ids=["repo", "revision", "file", "no name", "climbs"],
)  # fmt: skip
def test_missing_on_the_hub(client: Client, lora: dict[str, Any], change: dict[str, str]) -> None:
    source = lora | change
    failed = client.run("lora", **source)
    assert failed["code"] == 5
    for part in (source["repo"], source["file"], source["revision"]):
        assert part in failed["error"]
    assert "run: dmp weights pull" in failed["hint"]
    assert "\n" not in failed["error"]
    assert not [path for path in client.home.rglob("*.safetensors") if path.exists()]


def test_offline_without_a_copy(client: Client, lora: dict[str, Any]) -> None:
    failed = client.run("lora", offline=True, **lora)
    assert failed["code"] == 5
    assert "org/tiny: loras/depth.safetensors at revision" in failed["error"]
    assert "dmp is offline" in failed["error"]
    assert "run: dmp weights pull" in failed["hint"]


def files_of(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("repo", "variant", "half", "taken"),
    [
        ("org/tiny", None, False, None),
        ("org/tiny", "fp16", True, None),
        ("org/half", "fp16", True, "fp16"),
        ("org/half", "fp16", False, "fp16"),
    ],
)
def test_backbone_is_fetched_and_then_kept(
    hub: hubs.Hub, client: Client, repo: str, variant: str | None, half: bool, taken: str | None
) -> None:
    source = {"repo": repo, "revision": hub.commits[repo], "variant": variant}
    first = client.run("backbone", half, **source)
    folder, found = first["found"]
    assert found == taken
    assert Path(folder).name == hub.commits[repo]
    middle = ".fp16" if taken else ""
    assert {f"{part}{middle}.safetensors" for part in PARTS} <= files_of(folder)
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json"} <= files_of(folder)
    assert not [name for name in files_of(folder) if name.startswith("loras/")]
    for path in PARTS:
        original = (PARITY / "sd-tiny" / f"{path}.safetensors").read_bytes()
        assert (Path(folder) / f"{path}{middle}.safetensors").read_bytes() == original
    assert client.run("backbone", half, offline=True, **source) == first


def test_backbone_needs_no_server_once_it_is_there(hub: hubs.Hub, client: Client) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]}
    first = client.run("backbone", **source)
    start = time.monotonic()
    assert without_server(client).run("backbone", **source) == first
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("pattern", ["*.safetensors", "merges.txt"])
def test_half_a_backbone_is_completed(hub: hubs.Hub, client: Client, pattern: str) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]}
    folder = client.run("backbone", **source)["found"][0]
    whole = files_of(folder)
    for path in Path(folder).rglob(pattern):
        path.resolve().unlink()
        path.unlink()
    assert files_of(folder) < whole
    assert client.run("backbone", **source)["found"][0] == folder
    assert files_of(folder) == whole


def test_backbone_that_is_not_whole_on_the_hub(hub: hubs.Hub, client: Client) -> None:
    revision = hub.commits["org/half"]
    failed = client.run("backbone", repo="org/half", revision=revision)
    assert failed["code"] == 5
    assert f"org/half@{revision}: not a whole backbone" in failed["error"]
    assert "unet/diffusion_pytorch_model.safetensors is missing" in failed["error"]


@pytest.mark.parametrize("change", [{"repo": "org/absent"}, {"revision": "absent"}])
def test_missing_backbone(hub: hubs.Hub, client: Client, change: dict[str, str]) -> None:
    source = {"repo": "org/tiny", "revision": hub.commits["org/tiny"]} | change
    failed = client.run("backbone", **source)
    assert failed["code"] == 5
    name = "unet/diffusion_pytorch_model.safetensors"
    assert f"{source['repo']}: {name} at revision {source['revision']}" in failed["error"]


# Faulty servers ---------------------------------------------------------------------------

DIGEST = hashlib.sha256(hubs.DATA).hexdigest()
SOURCE = {"repo": "org/tiny", "revision": "main", "file": hubs.NAME}
FAULTS = {
    "cuts": "peer closed connection",
    "short": "the answer ended after",
    "long": "longer than the file",
    "wrong": f"wrong sha256: expected {DIGEST}, found",
    "drip": "bytes came in 20 s",
    "loop": "redirects",
    "closed": "disconnected",
    "gone": "disconnected",
    "mute": "ReadTimeout",
    "unsure": "no commit but 'main'",
    "401": "401",
    "403": "403",
    "404": "404",
    "429": "429",
    "500": "500",
}
SLOW = ("drip", "gone", "cuts", "short", "429", "mute")  # up to 40 seconds
PINNED = ("429", "mute", "closed", "drip")


def blobs(home: Path) -> list[Path]:
    found = home.rglob("blobs/*")
    return [path for path in found if path.suffix not in (".incomplete", ".lock")]


@pytest.mark.parametrize(
    ("fault", "revision"),
    [
        pytest.param(fault, revision, marks=[pytest.mark.slow] * (fault in SLOW))
        for revision, faults in (("main", FAULTS), (hubs.COMMIT, PINNED))
        for fault in faults
    ],
)
def test_faulty_server(tmp_path: Path, fault: str, revision: str) -> None:
    start = time.monotonic()
    with hubs.faulty() as (address, asked):
        client = Client(tmp_path, f"{address}/{fault}")
        failed = client.run("lora", **(SOURCE | {"revision": revision}))
    assert failed["code"] == 5
    assert f"org/tiny: {hubs.NAME} at revision {revision} is not to be had" in failed["error"]
    assert FAULTS[fault] in failed["error"]
    assert "run: dmp weights pull" in failed["hint"]
    assert time.monotonic() - start < 60
    assert len(asked) < 50
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not blobs(tmp_path)


def test_a_mirror_that_tells_names_alone(tmp_path: Path) -> None:
    """It is asked for sizes and hashes; the Hub itself states them with the commit.

    One that answers no more HEAD requests is not asked any.
    """
    pinned = SOURCE | {"revision": hubs.COMMIT}
    for fault in ("bare", "well", "limited"):
        with hubs.faulty() as (address, _):
            found = Client(tmp_path / fault, f"{address}/{fault}").run("lora", **pinned)["found"]
        assert Path(found[0]).read_bytes() == hubs.DATA


@pytest.mark.parametrize(
    ("fault", "again"), [("cut", f"bytes={len(hubs.DATA) // 2}-"), ("deaf", "bytes="), ("busy", "")]
)
def test_a_server_that_fails_once(tmp_path: Path, fault: str, again: str) -> None:
    """A broken download goes on where it was; a server that does not listen sends all again."""
    with hubs.faulty() as (address, asked):
        found = Client(tmp_path, f"{address}/{fault}").run("lora", **SOURCE)["found"][0]
    assert Path(found).read_bytes() == hubs.DATA
    assert len([line for line in asked if line.startswith("GET") and again in line]) >= 1
    assert [path.name for path in blobs(tmp_path)] == [DIGEST]


def test_what_came_before_the_break_is_not_asked_for_again(tmp_path: Path) -> None:
    half = len(hubs.DATA) // 2
    folder = tmp_path / "hub" / "models--org--tiny" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.incomplete").write_bytes(hubs.DATA[:half])
    with hubs.faulty() as (address, asked):
        found = Client(tmp_path, f"{address}/well").run("lora", **SOURCE)["found"][0]
    assert Path(found).read_bytes() == hubs.DATA
    assert [line.split()[-1] for line in asked if "bytes=" in line] == [f"bytes={half}-"]


@pytest.mark.parametrize("left", [b"x", b"x" * (1 << 20), b"x" * (3 << 20)])
def test_a_rotten_rest_of_a_download_does_not_count(tmp_path: Path, left: bytes) -> None:
    folder = tmp_path / "hub" / "models--org--tiny" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{DIGEST}.incomplete").write_bytes(left)
    with hubs.faulty() as (address, _):
        client = Client(tmp_path, f"{address}/well")
        if len(left) <= len(hubs.DATA):
            assert "wrong sha256" in client.run("lora", **SOURCE)["error"]
        found = client.run("lora", **SOURCE)["found"][0]
    assert Path(found).read_bytes() == hubs.DATA


def test_a_name_that_leads_out_of_the_cache(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "c"
    with hubs.faulty() as (address, _):
        failed = Client(home, f"{address}/hostile").run("backbone", repo="org/tiny")
    assert failed["code"] == 5
    assert ".." in failed["error"]
    assert not [path for path in tmp_path.rglob("climbed*") if path.is_file()]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        path for path in home.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("fault", ["climbing", "unnamed"])
def test_an_etag_names_no_file(fault: str, tmp_path: Path) -> None:
    """What was checked is what is used, whatever the server calls it: so damage is seen later."""
    home = tmp_path / "a" / "b" / "c"
    with hubs.faulty() as (address, _):
        found = Client(home, f"{address}/{fault}").run("lora", **SOURCE)["found"][0]
    assert Path(found).resolve().name == DIGEST
    assert {path.name for path in blobs(home)} == {DIGEST}
    assert not list(tmp_path.rglob("climbed*"))


def test_a_hash_of_the_weights_file_that_the_hub_does_not_have(tmp_path: Path) -> None:
    """What came is deleted again: nothing half installed is found the next time."""
    with hubs.faulty() as (address, _):
        failed = Client(tmp_path, f"{address}/well").run("lora", **SOURCE, sha256="1" * 64)
    assert f"expected {'1' * 64}, found {DIGEST}" in failed["error"]
    assert not blobs(tmp_path)


@pytest.mark.parametrize("what", ["lora", "backbone"])
def test_no_server_at_all(tmp_path: Path, what: str) -> None:
    """The client by itself waits 23 seconds."""
    start = time.monotonic()
    source = SOURCE if what == "lora" else {"repo": "org/tiny", "revision": "main"}
    failed = Client(tmp_path, NOWHERE).run(what, **source)
    assert time.monotonic() - start < 5
    assert failed["code"] == 5
    assert "127.0.0.1:9 cannot be reached: Connection refused" in failed["error"]
    assert "org/tiny: " in failed["error"]
    assert "once there is a connection, run: dmp weights pull" in failed["hint"]


# Secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["401", "well", "wrong"])
def test_no_secret_is_told(tmp_path: Path, fault: str) -> None:
    token, password = "hf_" + "AbCd" * 8, "Pa55w0rd"
    with hubs.faulty() as (address, _):
        with_password = address.replace("://", f"://user:{password}@")
        client = Client(tmp_path, f"{with_password}/{fault}")
        ran = subprocess.run(
            ["dmp", json.dumps(["lora", False, SOURCE])],
            env=client.environment() | {"HF_TOKEN": token}, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
    assert ("found" in json.loads(ran.stdout)) == (fault == "well")
    for secret in (token, password):
        assert secret not in ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://user:pw@host/x failed", "GET https://host/x failed"),
        ("Bearer hf_abcdefghij is wrong", "Bearer hf_*** is wrong"),
        ("token s3cret-of-mine", "token ***"),
        ("https://host/a@b is fine", "https://host/a@b is fine"),
        ("the function hf_hub", "the function hf_hub"),
        ("403 for http://cdn/x?Signature=abc&b=c'.", "403 for http://cdn/x?...'."),
        ("secret:80 cannot be reached", "***:80 cannot be reached"),
    ],
)
def test_scrub(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://someone:secret/word@host:1")
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-mine")
    assert scrub(text) == shown
