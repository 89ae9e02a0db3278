"""What a training run tells while it goes on, for whoever shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Begun:
    """Everything is loaded; `resumed` is the checkpoint that it goes on from."""

    step: int  # done before
    steps: int
    pairs: int
    held_out: int
    images: int  # of a step, all processes together
    parameters: int  # that are trained
    where: str
    resumed: Path | None = None


@dataclass(frozen=True)
class Cached:
    """So many of the latents of this process are in the cache."""

    done: int
    total: int


@dataclass(frozen=True)
class Stepped:
    """A step is done; `step` counts from 1."""

    step: int
    loss: float
    rate: float
    images: int


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Validated:
    """The metrics on the pairs that do not train."""

    step: int
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Stopped:
    """A signal ended it; `step` are done and in a checkpoint."""

    step: int
    signal: int


@dataclass(frozen=True)
class Finished:
    """The LoRA is written."""

    lora: Path
    weights: Path
    model: str
    step: int
    loss: float | None  # of the last step; None if there was none left to do
    seconds: float


Event = Begun | Cached | Stepped | Saved | Validated | Stopped | Finished
