"""Zip files: what is wanted comes out, in one folder for the parts of one, and nothing climbs."""

import stat
import zipfile
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path

import pytest

from dmp_cli.errors import ModelError, ResourceError
from dmp_cli.importing import archives


def write(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def lora(name: str) -> bool:
    return name.endswith(".bin")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_only_what_is_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"x/y/1.bin": b"1", "x/2.png": b"2", "3.bin": b"3", "d/": b""})
    roots = archives.unpack([path], tmp_path / "out", lora)
    assert list(roots.values()) == [path]
    assert files(next(iter(roots))) == {"x/y/1.bin": b"1", "3.bin": b"3"}


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("DMP-20240101T000000Z-001.zip", "DMP-20240101T000000Z-002.zip", "DMP"),
        ("DMP-20240101T000000Z-1-001.zip", "DMP-20240101T000000Z-1-002.zip", "DMP"),
        ("DMP-001.zip", "DMP-002.zip", "DMP"),
    ],
)
def test_the_parts_of_a_folder_become_one(
    first: str, second: str, name: str, tmp_path: Path
) -> None:
    parts = [
        write(tmp_path / first, {"DMP/a.bin": b"a"}),
        write(tmp_path / second, {"DMP/b.bin": b"b"}),
    ]
    roots = archives.unpack(parts, tmp_path / "out", lora)
    (root,) = roots
    assert root.name == name
    assert files(root) == {"DMP/a.bin": b"a", "DMP/b.bin": b"b"}


def test_different_archives_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    both = [
        write(tmp_path / "a.zip", {"a.bin": b"1"}),
        write(tmp_path / "sub" / "a.zip", {"a.bin": b"2"}),
    ]
    roots = archives.unpack(both, tmp_path / "out", lora)
    assert [files(root) for root in roots] == [{"a.bin": b"1"}, {"a.bin": b"2"}]


@pytest.mark.parametrize(
    "name",
    ["../a.bin", "x/../../a.bin", "/a.bin", "..\\a.bin", "C:\\a.bin", "../../picture.png"],
)
def test_names_that_climb(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"ok.bin": b"", name: b"1"})
    with pytest.raises(ModelError, match="would lie outside") as raised:
        archives.unpack([path], tmp_path / "in" / "out", lora)
    assert str(path) in str(raised.value)
    assert {one.name for one in tmp_path.rglob("*") if one.is_file()} == {"a.zip"}


def test_a_link_is_not_made(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.bin")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
        file.writestr("b.bin", "b")
    (root,) = archives.unpack([tmp_path / "a.zip"], tmp_path / "out", lora)
    assert files(root) == {"b.bin": b"b"}


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 1 << 20)
    parts = [
        write(tmp_path / "a-001.zip", {"a.bin": bytes(600_000)}),
        write(tmp_path / "a-002.zip", {"b.bin": bytes(600_000), "c.png": bytes(9_000_000)}),
    ]
    archives.unpack(parts[:1], tmp_path / "one", lora)
    with pytest.raises(ModelError, match=r"a-002.zip: b.bin: more than"):
        archives.unpack(parts, tmp_path / "two", lora)


def test_the_same_member_in_two_parts(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"a-00{i}.zip", {"a.bin": b"%d" % i}) for i in (1, 2)]
    with pytest.raises(ModelError, match=r"a-002.zip: a.bin is there twice"):
        archives.unpack(parts, tmp_path / "out", lora)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    at = data.index(b"0123456789")
    return data[:at] + b"x" + data[at + 1 :]


def lying(data: bytes) -> bytes:
    """A directory that states fewer bytes than the member has."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 24] + (5).to_bytes(4, "little") + data[at + 28 :]


@pytest.mark.parametrize("damage", [cut, flipped, lying, lambda data: b"", lambda data: b"<html>"])
def test_damage(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.bin": b"0123456789" * 100}, zipfile.ZIP_STORED)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=r"a\.zip: cannot be unpacked"):
        archives.unpack([path], tmp_path / "out", lora)


@pytest.mark.parametrize(
    ("how", "why"), [(zipfile.ZIP_LZMA, "Corrupt input"), (zipfile.ZIP_BZIP2, "Invalid data")]
)
def test_damage_that_its_packer_finds(how: int, why: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.bin": b"0123456789" * 100}, how)
    data = bytearray(path.read_bytes())
    start = 30 + len("a.bin") + (9 if how == zipfile.ZIP_LZMA else 0)  # its header; then the data
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"a\.zip: cannot be unpacked: {why}"):
        archives.unpack([path], tmp_path / "out", lora)


def test_a_password(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.bin": b"1"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"cannot be unpacked.*password"):
        archives.unpack([path], tmp_path / "out", lora)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"x" * 300 + ".bin": b"1"})
    with pytest.raises(ModelError, match="cannot be unpacked: File name too long"):
        archives.unpack([path], tmp_path / "out", lora)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(ResourceError, match="No space left"):
        archives.unpack([write(tmp_path / "a.zip", {"a.bin": b"1"})], tmp_path / "out", lora)
