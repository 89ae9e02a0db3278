"""Checkpoints: what a run needs to go on as if it had never stopped. Whole or not there."""

import io
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmp_cli import files
from dmp_cli.errors import ModelError, ResourceError, UsageError
from dmp_cli.sources import LORA_NAMES

LORA, OPTIMIZER, STATE = LORA_NAMES[0], "optimizer.pt", "state.json"


@dataclass(frozen=True)
class State:
    """Where a run stands. `settings` is what decides its losses, as JSON can hold it."""

    step: int
    seconds: float
    settings: Mapping[str, Any]


def folder_of(output: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return output / "checkpoints"


def path_of(output: Path, step: int) -> Path:
    """The checkpoint of a step, there or not."""
    return folder_of(output) / f"step-{step:06d}"


def newest(output: Path) -> Path | None:
    """The checkpoint of the last step, or None."""
    found = _all(output)
    return found[-1] if found else None


def _all(output: Path) -> list[Path]:
    steps = folder_of(output).glob("step-*")
    return sorted(
        (path for path in steps if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()),
        key=lambda path: int(path.name[5:]),
    )


def save(output: Path, state: State, lora: bytes, optimizer: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint, then let go of all but the last `keep`.

    `lora` is the LoRA file as it would be written now. ResourceError if the disk is full: what
    was begun is gone then, the checkpoints before it are as they were.
    """
    path = path_of(output, state.step)
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    packed = io.BytesIO()
    torch.save(optimizer, packed)
    record = {"step": state.step, "seconds": state.seconds, "settings": state.settings}
    try:
        files.write_bytes(part / LORA, lora)
        files.write_bytes(part / OPTIMIZER, packed.getvalue())
        files.write_bytes(part / STATE, json.dumps(record, indent=1).encode())
        if path.exists():  # of a run that was cut off between this and its log
            shutil.rmtree(path)
        part.rename(path)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}", "check the folder, then run it again"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in _all(output)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load_state(checkpoint: Path) -> State:
    """The state of a checkpoint; ModelError if it is damaged."""
    try:
        record = json.loads((checkpoint / STATE).read_text())
        return State(record["step"], record["seconds"], record["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """What `save` was given as `optimizer`; ModelError if it is damaged."""
    try:
        found: dict[str, Any] = torch.load(
            checkpoint / OPTIMIZER, map_location="cpu", weights_only=True
        )
        return found
    except Exception as error:  # torch raises nearly every kind on a bad file
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: Exception) -> ModelError:
    first = str(error).strip().split("\n", maxsplit=1)[0]
    return ModelError(
        f"{checkpoint}: not a whole checkpoint: {first}",
        "delete it: the run then goes on from the checkpoint before it",
    )


def require_same(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UsageError for the first setting in which a run that goes on differs from its beginning."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new:
            raise UsageError(
                f"{checkpoint}: was trained with {key} {_shown(old)}, not {_shown(new)}",
                "go on with the same settings, begin anew with --fresh, or use another -o;\n"
                "to train what is there further, give it to --init with another -o",
            )


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def sweep(output: Path) -> None:
    """Remove what a run left unfinished that was killed while it wrote a checkpoint."""
    for part in folder_of(output).glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def clear(output: Path) -> None:
    """Remove the checkpoints of a run; ResourceError if that fails."""
    try:
        if folder_of(output).exists():
            shutil.rmtree(folder_of(output))
    except OSError as error:
        raise ResourceError(
            f"{folder_of(output)} cannot be removed: {error.strerror}", "check the folder"
        ) from error
