"""What a LoRA file says of itself: read, checked, and below flags and weights file."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dmp_cli import header, weights
from dmp_cli.errors import ModelError
from dmp_cli.plan import Settings

TOLD = {
    "task": "depth", "prediction": "epsilon", "prompt": "a room", "guidance": 3.0, "size": 64,
    "scale": 2.5, "steps": 2, "spacing": "trailing", "final": "y0", "rank": 4,
}  # fmt: skip


def written(path: Path, **entries: Any) -> Path:
    save_file({"a": torch.zeros(2)}, path, {"format": "pt"} | header.text(entries))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", **TOLD, other="x")
    known = {key: value for key, value in TOLD.items() if key not in ("task", "rank")}
    assert header.settings(path, "depth") == known
    assert header.read(path)["rank"] == "4"


def test_other_files_say_nothing(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert header.settings(tmp_path / "a.safetensors", "depth") == {}


def test_a_lora_of_another_task_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", task="normals")
    with pytest.raises(ModelError, match="was trained for normals, not for depth"):
        header.settings(path, "depth")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("size", "big", "must be a number"), ("size", "-8", "whole number"),
        ("scale", "nan", "above 0"), ("guidance", "0", "above 0"), ("steps", "1.5", "a number"),
        ("prediction", "v", "one of"), ("normals", "up", "unknown axes"), ("sampler", "", "one of"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_names_file_and_key(
    tmp_path: Path, key: str, value: str, why: str
) -> None:
    path = written(tmp_path / "a.safetensors", **{key: value})
    with pytest.raises(ModelError, match=rf"a\.safetensors: dmp\.{key} .*{why}"):
        header.settings(path, "depth")


def framed(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\1", framed(b"{"), framed(b"[]"), framed(b"{}", 1 << 62),
        framed(b'{"__metadata__": 5}'), framed(b'{"__metadata__": {"dmp.size": 5}}'),
        framed(b"[" * 100_000), framed(b"\xff\xfe"), framed(b'{"a": {}, "a": {}}'),
    ],
    ids=["empty", "cut", "broken", "list", "huge", "number", "no text", "deep", "bytes", "twice"],
)  # fmt: skip
def test_a_file_that_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.safetensors: cannot be read as safetensors"):
        header.settings(path, "depth")


# In a recipe ------------------------------------------------------------------------------


def recipe(path: Path, entry: dict[str, Any], flags: Settings) -> weights.Recipe:
    table = {"models": {"m": entry | {"backbone": {"path": "/sd"}}}}
    table["models"]["m"].setdefault("tasks", {}).setdefault("depth", {})["lora"] = {
        "path": str(path)
    }
    (found,) = weights.resolve(table, ["depth"], "m", flags)
    return weights.completed(found)


@pytest.mark.parametrize(
    ("entry", "flags", "expected"),
    [
        ({}, Settings(), {"size": 64, "steps": 2, "prompt": "a room", "guidance": 3.0}),
        ({"size": 32}, Settings(), {"size": 32, "steps": 2}),
        ({"size": 32, "tasks": {"depth": {"size": 16}}}, Settings(), {"size": 16}),
        ({"size": 32, "tasks": {"depth": {"size": 16}}}, Settings(size=8), {"size": 8}),
        ({"tasks": {"depth": {"scale": 1.0}}}, Settings(), {"scale": 1.0}),
        ({}, Settings(prompt=""), {"prompt": "", "scale": 2.5}),
        ({"timestep": 7}, Settings(), {"timestep": 7, "sampler": "ddim"}),
        ({"prediction": "sample"}, Settings(), {"prediction": "epsilon"}),
        ({"tasks": {"depth": {"prediction": "sample"}}}, Settings(), {"prediction": "epsilon"}),
        ({}, Settings(prediction="sample"), {"prediction": "sample"}),
    ],
)
def test_flag_over_task_over_model_over_the_file(
    tmp_path: Path, entry: dict[str, Any], flags: Settings, expected: dict[str, Any]
) -> None:
    found = recipe(written(tmp_path / "a.safetensors", **TOLD), entry, flags)
    assert {key: getattr(found, key) for key in expected} == expected


def test_a_lora_that_does_not_say_what_it_predicts_leaves_it_to_the_entry(tmp_path: Path) -> None:
    found = recipe(written(tmp_path / "a.safetensors"), {"prediction": "sample"}, Settings())
    assert found.prediction == "sample"


def test_bytes_that_are_no_text_are_written_escaped(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", backbone="sd-\udcff")
    assert header.read(path)["backbone"] == "sd-\\udcff"


def test_a_prompt_alone_has_the_official_guidance(tmp_path: Path) -> None:
    found = recipe(written(tmp_path / "a.safetensors", prompt="a room"), {}, Settings())
    assert (found.prompt, found.guidance) == ("a room", 2.0)


def test_a_lora_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such LoRA file"):
        recipe(tmp_path / "absent.safetensors", {}, Settings())


def test_nothing_of_it_needs_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dmp_cli import header\n"
        "assert header.settings(Path(sys.argv[1]), 'depth')['prompt'] == 'a room'\n"
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    path = written(tmp_path / "a.safetensors", **TOLD)
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
