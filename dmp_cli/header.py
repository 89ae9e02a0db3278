"""What a LoRA file says of itself: settings in the header of a safetensors file. No torch."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmp_cli.catalogue import SETTINGS, TASK_SETTINGS, Table
from dmp_cli.errors import ModelError
from dmp_cli.files import utf_8

PREFIX = "dmp."  # of the keys that are dmp's: other programs write theirs into the same header
NOT_STATED = "not stated"  # how a licence begins, here and in weights files, if none is known
ASSUMED = " (assumed)"  # after a base model that nobody stated
_LARGEST = 100_000_000  # bytes: the limit of the format
_CHECKS = SETTINGS | TASK_SETTINGS
_NUMBERS: dict[str, type] = {
    "steps": int, "timestep": int, "size": int, "guidance": float, "scale": float,
}  # fmt: skip


def read(path: Path) -> dict[str, str]:
    """dmp's own entries of a safetensors header, without their prefix; ModelError if it has none.

    The format: 8 bytes, the length of the header, little-endian; then the header as JSON, whose
    `__metadata__` maps strings to strings.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            whole = file.read(length) if length <= _LARGEST else b"null"
            header = json.loads(whole, object_pairs_hook=_unique)
        entries = header.get("__metadata__", {}) if isinstance(header, dict) else None
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(entries, dict) or not all(isinstance(v, str) for v in entries.values()):
        raise _unreadable(path, "its header is not valid")
    return {
        key.removeprefix(PREFIX): value
        for key, value in entries.items()
        if key.startswith(PREFIX)
    }  # fmt: skip


def begins(path: Path) -> bool:
    """Whether a file begins as a safetensors does; ModelError if it cannot be read at all."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: cannot be read as safetensors: {why}",
        "fetch or copy the file again; a pickle (.bin, .pt) is for `dmp weights import`",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError for a key that is there twice, since readers differ on it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice in its header")
    return found


def settings(path: Path, task: str) -> Table:
    """The settings for inference that a LoRA file states, checked as those of weights.toml are.

    Entries that are not known are left out. ModelError names the file and the key of a value
    that does not fit, or the task that the LoRA was trained for if it is not `task`.
    """
    entries = read(path)
    if entries.get("task", task) != task:
        raise ModelError(
            f"{path}: was trained for {entries['task']}, not for {task}",
            "name the LoRA of that task in the weights file",
        )
    return {
        key: _value(path, key, entries[key], _NUMBERS.get(key, str))
        for key in _CHECKS
        if key in entries
    }


def _value(path: Path, key: str, text: str, kind: type) -> Any:
    try:
        value = kind(text)
        why = _CHECKS[key](value)
    except ValueError:
        why = "must be a number"
    if why:
        raise ModelError(
            f"{path}: {PREFIX}{key} in its header is {text!r}: {why}",
            "state the key in the weights file instead, or write the LoRA anew",
        )
    return value


def text(entries: Mapping[str, Any]) -> dict[str, str]:
    """Entries as a safetensors header takes them: strings of UTF-8, with dmp's prefix."""
    return {PREFIX + key: utf_8(str(value)) for key, value in entries.items()}
