"""What the Hub holds after a push, and what happens when it refuses."""

import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dmp_cli.errors import ModelError, ResourceError, UsageError
from dmp_cli.publishing import card, release, upload
from dmp_cli.publishing.release import Release
from tests import hub_writes
from tests.hub_writes import READ_ONLY, TOKEN, Server
from tests.releases import DEPTH, LORA, SHA256, tiny


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with hub_writes.serve(tmp_path / "hub") as server:
        hub_writes.connect(server, tmp_path / "hf", monkeypatch)
        yield server


def test_files_and_card_come_in_one_commit(hub: Server, tmp_path: Path) -> None:
    found = tiny(tmp_path, "depth", "normals")
    done = upload.push(found)
    assert (done.created, done.changed, done.private, done.notes) == (True, True, False, ())
    assert done.commit == hub.head("org/tiny")
    assert hub.commits("org/tiny") == ["tiny: depth, normals", "initial commit"]
    assert set(hub.files("org/tiny")) == {
        ".gitattributes", "README.md", DEPTH, DEPTH.replace("depth", "normals"),
    }  # fmt: skip
    assert hub.blob("org/tiny", done.commit, "README.md") == upload.readme(found).encode()
    pointer = hub_writes.POINTER.format(SHA256, LORA.stat().st_size).encode()
    assert hub.blob("org/tiny", done.commit, DEPTH) == pointer
    assert hub.large("org/tiny", SHA256).read_bytes() == LORA.read_bytes()


def test_the_same_again_makes_no_commit(hub: Server, tmp_path: Path) -> None:
    first = upload.push(tiny(tmp_path))
    hub.asked.clear()
    second = upload.push(tiny(tmp_path))
    assert (second.commit, second.created, second.changed) == (first.commit, False, False)
    assert not {"put", "commit", "create"} & set(hub.asked)
    assert len(hub.commits("org/tiny")) == 2


def test_another_licence_changes_the_card_alone(hub: Server, tmp_path: Path) -> None:
    upload.push(tiny(tmp_path))
    hub.asked.clear()
    done = upload.push(release.licensed(tiny(tmp_path), "cc0-1.0", right=True))
    assert done.changed
    assert "put" not in hub.asked
    assert b"license: cc0-1.0" in (hub.blob("org/tiny", done.commit, "README.md") or b"")


def test_tasks_from_before_stay_and_are_told(hub: Server, tmp_path: Path) -> None:
    upload.push(tiny(tmp_path, "depth", "albedo"))
    done = upload.push(tiny(tmp_path, "depth"))
    assert [note for note in done.notes if note.startswith("albedo/pytorch_lora_weights")]
    assert "albedo/pytorch_lora_weights.safetensors" in hub.files("org/tiny")


@pytest.mark.parametrize("branch", ["v2", "studio/next"])
def test_a_branch_is_made(hub: Server, tmp_path: Path, branch: str) -> None:
    upload.push(tiny(tmp_path))
    before = hub.head("org/tiny")
    done = upload.push(replace(tiny(tmp_path, "depth", "normals"), branch=branch))
    assert hub.head("org/tiny", branch) == done.commit != before
    assert hub.head("org/tiny") == before
    assert not upload.push(replace(tiny(tmp_path, "depth", "normals"), branch=branch)).changed


def test_private(hub: Server, tmp_path: Path) -> None:
    done = upload.push(tiny(tmp_path), private=True)
    assert done.private
    assert hub.private == {"org/tiny"}
    assert upload.push(tiny(tmp_path), private=True).notes == ()
    hub.private.clear()
    done = upload.push(tiny(tmp_path), private=True)
    assert not done.private
    assert "is public, which --private does not change" in done.notes[0]


@pytest.mark.parametrize(
    ("readme", "stays"),
    [
        ("# Ours\n\nWritten by hand.\n", True),
        ("---\nlicense: mit\n---\n# Ours\n", True),
        ("---\nlicense: mit\n---\n", False),
        ("", False),
        (f"---\nlicense: mit\n---\n\n{card.MARK}\n\n# Old\n", False),
    ],
)
def test_a_readme_written_by_a_person_stays(
    hub: Server, tmp_path: Path, readme: str, stays: bool
) -> None:
    hub.make("org/tiny")
    hub.commit("org/tiny", "main", "by hand", {"README.md": readme.encode()})
    done = upload.push(tiny(tmp_path))
    found = hub.blob("org/tiny", done.commit, "README.md")
    assert (found == readme.encode()) is stays
    assert bool(done.notes) is stays
    assert DEPTH in hub.files("org/tiny")


def test_what_the_hub_says_of_the_card_is_told(hub: Server, tmp_path: Path) -> None:
    hub.warnings.append("an odd\nvalue")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = upload.push(tiny(tmp_path))
    assert any("an odd value" in note for note in done.notes)


@pytest.mark.parametrize("name", ["", "acme", "a/b/c", "../x/y", "a/..", "a b/c", "-a/b", "/a/b"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(UsageError, match="no repository of the Hub") as raised:
        upload.check_target(name, "main")
    assert "ORG/NAME" in raised.value.hint


@pytest.mark.parametrize("name", ["", "0123456789abcdef0123456789abcdef01234567"])
def test_names_that_are_no_branch(name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a branch"):
        upload.check_target("org/tiny", name)


# What can go wrong ------------------------------------------------------------------------

FAULTS = [
    ("info", 401, "hf auth login"),
    ("create", 401, "hf auth login"),
    ("create", 403, "a namespace of yours"),
    ("create", 429, "wait some minutes"),
    ("create", 0, "check the connection"),
    ("validate", 400, "correct what the Hub does not take"),
    ("commit", 403, "a namespace of yours"),
    ("commit", 409, "somebody else"),
    ("commit", 412, "somebody else"),
    ("commit", 413, "fewer tasks with --task"),
    ("commit", 500, "the Hub is in trouble"),
    ("batch", 413, "fewer tasks with --task"),
    ("put", 403, "a namespace of yours"),
    ("put", 503, "the Hub is in trouble"),
    ("put", 0, "check the connection"),
    ("info", 0, "check the connection"),
    ("commit", 0, "check the connection"),
]


@pytest.mark.parametrize(("step", "status", "hint"), FAULTS)
def test_a_hub_that_refuses(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, status: int, hint: str
) -> None:
    """One line, the next thing to do, nothing half there; and then it works."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.faults[step] = status
    with pytest.raises(ModelError) as raised:
        upload.push(tiny(tmp_path))
    message = str(raised.value)
    assert message.startswith("org/tiny: publishing failed: ")
    assert (f"{status} " in message) is bool(status)
    assert "\n" not in message
    assert hint in raised.value.hint
    assert TOKEN not in message + raised.value.hint
    assert len(hub.commits("org/tiny")) == (0 if step in ("info", "create") else 1)
    hub.faults.clear()
    assert upload.push(tiny(tmp_path)).changed
    assert hub.commits("org/tiny") == ["tiny: depth", "initial commit"]


@pytest.mark.parametrize(
    ("token", "repo", "status"),
    [
        (READ_ONLY, "org/tiny", 403),
        (TOKEN, "other/tiny", 403),
        ("hf_" + "n0b0dy" * 6, "org/tiny", 401),
    ],
)
def test_a_token_without_the_right(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, status: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match=f"{repo}: publishing failed: {status}") as raised:
        upload.push(replace(tiny(tmp_path), repo=repo))
    assert "hf auth login" in raised.value.hint
    assert token not in str(raised.value)
    assert not hub.folder(repo).exists()


def test_a_hub_that_says_nothing(
    tmp_path: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection, and that is all; the client by itself would wait without end."""
    monkeypatch.setattr(upload, "_PATIENCE", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(ModelError, match="publishing failed: ReadTimeout") as raised:
            upload.push(tiny(tmp_path))
    assert time.monotonic() - start < 20
    assert "check the connection" in raised.value.hint


def test_no_token(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(ModelError, match="no token for the Hub") as raised:
        upload.push(tiny(tmp_path))
    assert "hf auth login" in raised.value.hint
    assert "HF_TOKEN" in raised.value.hint
    assert hub.asked == []


def test_no_server(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://me:hf_secretsecret@127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(ModelError, match="org/tiny: nothing was published") as raised:
        upload.push(tiny(tmp_path))
    assert "secret" not in str(raised.value)
    assert "connection" in raised.value.hint


def test_a_password_in_the_address_is_not_shown(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = hub.address.replace("http://", "http://me:hush@")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    assert upload.push(tiny(tmp_path)).url == f"{hub.address}/org/tiny"


def test_offline(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        upload.push(tiny(tmp_path))
    assert hub.asked == []


def test_somebody_else_pushes_meanwhile(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs is not lost: the commit names the one that it follows."""
    hub.make("org/tiny")
    card = upload.readme

    def slow(found: Release) -> str:
        hub.commit("org/tiny", "main", "theirs", {"notes.txt": b"theirs"})
        return card(found)

    monkeypatch.setattr(upload, "readme", slow)
    with pytest.raises(ModelError, match="412") as raised:
        upload.push(tiny(tmp_path))
    assert "somebody else" in raised.value.hint
    assert hub.commits("org/tiny") == ["theirs", "initial commit"]


def test_a_full_disk_is_no_trouble_of_the_hub(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload.push(tiny(tmp_path))

    def full(*words: object, **how: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", full)
    with pytest.raises(ResourceError, match="disk is full"):
        upload.push(tiny(tmp_path))
