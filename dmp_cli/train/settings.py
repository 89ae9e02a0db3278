"""What a training run is asked for, as plain values, and what of it decides the losses."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dmp_cli import maps
from dmp_cli.errors import UsageError
from dmp_cli.maps import Reading
from dmp_cli.plan import Settings
from dmp_cli.tasks import Task, parse_axes

SCHEDULES = ("cosine", "constant")
LOSSES = ("latents", "map")
PRECISIONS = ("auto", "no", "fp16", "bf16")


@dataclass(frozen=True)
class Course:
    """How a LoRA is trained. The defaults are those of the official code."""

    steps: int = 50_000
    batch: int = 8  # images of a process in one pass
    accumulate: int = 1  # passes in one step
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup: int = 0  # steps
    weight_decay: float = 1e-2
    clip: float = 1.0  # largest norm of the gradient; 0: any
    seed: int = 0
    # "latents": of the network's output at a random t (official); "map": of the map in the end
    loss: str = "latents"
    rank: int | None = None  # None: 4, or that of the LoRA it starts from
    targets: str | None = None  # as lora.chosen takes it; None: all, or those of that LoRA
    timesteps: str = "uniform"  # as parse_timesteps takes it
    min_snr: float | None = None
    flip: bool | None = None  # None: where the task allows it
    captions: bool = False
    drop_prompt: float = 0.1  # how often a prompt is left empty


@dataclass(frozen=True)
class Training:
    """One run of training: from which data and backbone, how, and where to."""

    task: str
    data: Path
    output: Path
    course: Course = field(default_factory=Course)
    model: str | None = None
    weights: str | None = None
    backbone: Path | None = None
    settings: Settings = field(default_factory=Settings)  # for inference, and so for validation
    scale: float | None = None  # metres per unit of the depth picture; None: as the model says
    normals: str | None = None  # axes that the network is to draw; None: as the model says
    reading: Reading = field(default_factory=Reading)
    skip_missing: bool = False
    init: Path | None = None
    name: str | None = None  # of the model in OUT/weights.toml; None: after the folder
    device: str = "auto"
    precision: str = "auto"
    checkpointing: bool = False  # of gradients
    workers: int = 2  # threads that read
    cache: Path | None = None  # folder of latents; None: encoded anew each time
    checkpoint_every: int = 500
    keep: int = 2  # checkpoints
    fresh: bool = False
    validation: Path | None = None
    hold_out: int = 0
    validate_every: int = 1000
    tensorboard: bool = False


def check(training: Training, task: Task) -> None:
    """UsageError for the first setting that makes no sense; nothing is opened."""
    course = training.course
    limits: dict[str, tuple[float | None, float, str]] = {
        "--steps": (course.steps, 1, "1 or more"),
        "--batch": (course.batch, 1, "1 or more"),
        "--accumulate": (course.accumulate, 1, "1 or more"),
        "--rank": (course.rank, 1, "1 or more"),
        "--warmup": (course.warmup, 0, "0 or more"),
        "--weight-decay": (course.weight_decay, 0, "0 or more"),
        "--clip": (course.clip, 0, "0 or more"),
        "--seed": (course.seed, 0, "0 or more"),
        "--workers": (training.workers, 1, "1 or more"),
        "--hold-out": (training.hold_out, 0, "0 or more"),
        "--checkpoint-every": (training.checkpoint_every, 1, "1 or more"),
        "--keep": (training.keep, 1, "1 or more"),
        "--validate-every": (training.validate_every, 1, "1 or more"),
    }
    for flag, (value, low, words) in limits.items():
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"{flag} {value} must be {words}")
    for flag, number in (("--lr", course.learning_rate), ("--min-snr", course.min_snr),
                         ("--scale", training.scale)):  # fmt: skip
        if number is not None and not 0 < number < float("inf"):
            raise UsageError(f"{flag} {number} must be a number above 0")
    _one_of("--schedule", course.schedule, SCHEDULES)
    _one_of("--mixed-precision", training.precision, PRECISIONS)
    _one_of("--loss", course.loss, LOSSES)
    if course.loss == "map":
        _check_loss_of_map(training)
    if not 0 <= course.drop_prompt <= 1:
        raise UsageError(f"--drop-prompt {course.drop_prompt} must be from 0 to 1")
    if training.validation and training.hold_out:
        raise UsageError("--validation and --hold-out cannot be used together", "give one of them")
    if course.flip and not task.flip:
        raise UsageError(
            f"--flip: a mirrored {task.name} map is wrong for a mirrored image",
            "leave --flip out for this task",
        )
    if training.name is not None and not re.fullmatch("[a-z0-9_-]+", training.name):
        raise UsageError(f"--name {training.name!r} must be of the letters a-z, 0-9, _ and -")
    if training.init and not training.init.exists():
        raise UsageError(f"--init {training.init}: no such file or folder")
    parse_axes(training.normals or "opengl")
    maps.check(training.reading)
    if training.scale is not None and not task.metres:
        raise UsageError(f"--scale does not go with {task.name}: it is for depth")
    if training.normals is not None and not task.unit_length:
        raise UsageError(f"--normals does not go with {task.name}: it is for normals")


def _check_loss_of_map(training: Training) -> None:
    course = training.course
    if training.cache:
        raise UsageError("--loss map compares pictures, and a cache has none", "leave it out")
    for flag, differs in (("--timesteps", course.timesteps != "uniform"),
                          ("--min-snr", course.min_snr is not None)):  # fmt: skip
        if differs:
            raise UsageError(
                f"{flag} does not go with --loss map", "leave it out: the steps that predict train"
            )


def _one_of(flag: str, value: str, names: Iterable[str]) -> None:
    if value not in names:
        raise UsageError(f"{flag} {value!r} must be one of {', '.join(names)}")


def parse_timesteps(text: str, count: int) -> list[int]:
    """The t to draw from: `uniform` is all `count`, `900-999` a range, `199,399,999` a list.

    UsageError for anything else, or a t that the schedule does not have.
    """
    if text == "uniform":
        return list(range(count))
    span = re.fullmatch(r"(\d+)-(\d+)", text)
    if span:
        chosen = list(range(int(span[1]), int(span[2]) + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        chosen = [int(word) for word in text.split(",")]
    else:
        chosen = []
    if not chosen or max(chosen) >= count:
        raise UsageError(
            f"--timesteps {text} must be uniform, a range such as 900-{count - 1}, "
            f"or a list such as 499,{count - 1}, of t from 0 to {count - 1}"
        )
    return chosen
