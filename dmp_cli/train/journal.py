"""The record of a run: OUT/log.jsonl, a line a step, and TensorBoard if it is asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmp_cli import files
from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.tasks import Array

LOG, BOARD = "log.jsonl", "tensorboard"


class Journal:
    """The log of one run; of a run that goes on, what came after its checkpoint is taken back."""

    def __init__(self, output: Path, step: int, tensorboard: bool) -> None:
        """`step` is how many are done. UsageError if TensorBoard is asked for and not there."""
        self._path = output / LOG
        self._board = _board(output / BOARD, step) if tensorboard else None
        lines = _until(self._path, step)
        last = [line for line in map(json.loads, lines) if line["step"] == step]
        self.validated = any("loss" not in line for line in last)  # after `step`
        files.write_bytes(self._path, b"".join(lines))

    def write(self, step: int, numbers: Mapping[str, float], prefix: str = "") -> None:
        """One line, and each number as `prefix` and name. ResourceError if the disk is full."""
        line = json.dumps({"step": step} | {prefix + key: value for key, value in numbers.items()})
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise ResourceError(
                f"{self._path} cannot be written: {error.strerror}",
                "free some space, then run the same command again",
            ) from error
        if self._board:
            for key, value in numbers.items():
                self._board.add_scalar(prefix + key, value, step)

    def show(self, step: int, name: str, pictures: list[Array]) -> None:
        """Pictures uint8 [h, w, 3] of one height, side by side, on TensorBoard."""
        if self._board:
            row = np.concatenate(pictures, axis=1)
            self._board.add_image(name, row, step, dataformats="HWC")

    @property
    def shows(self) -> bool:
        """Whether pictures are wanted."""
        return self._board is not None

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._board:
            self._board.close()


def require_tensorboard() -> None:
    """UsageError if TensorBoard is not installed."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed",
            "pip install tensorboard",
        ) from error


def _board(folder: Path, step: int) -> Any:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def _until(path: Path, step: int) -> list[bytes]:
    """The lines of a log up to a step; a last line that was cut off is left out."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() and step else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break
    return kept
