"""Licences: what a header, a command or a model card states, and nothing that is not stated."""

from pathlib import Path

import pytest

from dmp_cli.importing import licences, recognition


def stated(root: Path, given: Path, **metadata: str) -> tuple[str, tuple[str, ...]]:
    (one,) = recognition.find([given], {})
    return licences.stated(one, metadata)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\ntags:\n- lora\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
        ("---\nlicense:\n- cc-by-4.0\ntags: x\n---\n", "cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: my terms\n---\n", "my terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("license: mit\n", "not stated"),
        ("# Weights\n---\nlicense: mit\n---\n", "not stated"),
        ("---\ntitle: x\n---\nlicense: mit\n", "not stated"),
        ("", "not stated"),
    ],
)
def test_a_model_card(card: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "a.bin").touch()
    (tmp_path / "README.md").write_bytes(card.encode())
    terms, notes = stated(tmp_path, tmp_path)
    assert terms == found
    assert bool(notes) == (found != "not stated")


def test_a_card_above_what_was_given_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "a.bin").touch()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert stated(tmp_path, tmp_path / "depth") == ("not stated", ())
    assert stated(tmp_path, tmp_path / "depth" / "a.bin") == ("not stated", ())


def test_the_nearest_card_counts(tmp_path: Path) -> None:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "a.bin").touch()
    (tmp_path / "depth" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert stated(tmp_path, tmp_path)[0] == "mit"
    assert stated(tmp_path, tmp_path / "depth" / "a.bin")[0] == "mit"


@pytest.mark.parametrize("key", ["dmp.license", "license", "modelspec.license"])
def test_a_header(key: str, tmp_path: Path) -> None:
    (tmp_path / "depth.bin").touch()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert stated(tmp_path, tmp_path, **{key: "bsd"}) == ("bsd", ())
    assert stated(tmp_path, tmp_path, **{key: "not stated"})[0] == "mit"


def test_a_licence_file_is_only_told_of(tmp_path: Path) -> None:
    (tmp_path / "depth.bin").touch()
    (tmp_path / "LICENSE.txt").write_text("MIT License")
    assert stated(tmp_path, tmp_path) == (
        "not stated",
        ("LICENSE.txt lies there; dmp does not read it",),
    )
