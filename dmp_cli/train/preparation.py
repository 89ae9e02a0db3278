"""What a job needs on this machine: its files, what decides its losses, and where it begins."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmp_cli import sources
from dmp_cli.backbone import read_schedule
from dmp_cli.data import Pair
from dmp_cli.diffusion import Schedule
from dmp_cli.errors import UsageError
from dmp_cli.predict import find_backbone, sampling
from dmp_cli.sources import Source
from dmp_cli.train import checkpoints
from dmp_cli.train.checkpoints import State
from dmp_cli.train.job import Job
from dmp_cli.train.settings import parse_timesteps

RANK = 4


@dataclass(frozen=True)
class Files:
    """The files of a job on this machine: a backbone's folder and the LoRA it starts from."""

    folder: Path
    variant: str | None
    unet: str  # sha256 of its weights
    vae: str
    schedule: Schedule
    timesteps: Sequence[int]
    init: Path | None


def files_of(job: Job, half: bool) -> Files:
    """Find, fetch or make the files of a job and hash them; ModelError as of weights.py.

    UsageError for steps or t that the backbone's schedule does not have.
    """
    init = job.training.init
    start = sources.lora_file(Source(path=init)) if init else None
    folder, variant = find_backbone(job.recipe.backbone, half)
    schedule = read_schedule(folder)
    schedule.timesteps(sampling(job.recipe))
    unet, vae = (
        sources.sha256(sources.weight_file(folder, part, variant)) for part in ("unet", "vae")
    )
    timesteps = parse_timesteps(job.training.course.timesteps, len(schedule.alphas))
    return Files(folder, variant, unet, vae, schedule, timesteps, start)


def deciding(job: Job, files: Files, processes: int, precision: str) -> dict[str, Any]:
    """All that decides the losses of a run, as JSON holds it: what a resumed run must share."""
    course, recipe = job.training.course, job.recipe
    stated = asdict(course) | {
        "rank": course.rank or (None if files.init else RANK),
        "targets": course.targets or (None if files.init else "all"),
        "flip": job.flips,
        "images_per_step": course.batch * course.accumulate * processes,
        "drop_prompt": course.drop_prompt if job.prompted else 0.0,
        "task": job.task.name,
        "prediction": recipe.prediction,
        "prompt": recipe.prompt,
        "size": recipe.size,
        "mixed_precision": precision,
        "backbone": files.unet,
        "vae": files.vae,
        "schedule": _shape(files.schedule),
        "init": sources.sha256(files.init) if files.init else None,
        "reading": asdict(job.training.reading),
        "data": _digest(job.pairs, course.captions),
    }
    stated |= {"sampling": asdict(sampling(recipe))} if course.loss == "map" else {}
    stated |= {"scale": recipe.scale} if job.task.metres else {}
    stated |= {"bright": recipe.bright} if job.task.metres and recipe.bright != "far" else {}
    stated |= {"normals": recipe.normals} if job.task.unit_length else {}
    del stated["batch"], stated["accumulate"]  # their product counts
    return stated


def _shape(schedule: Schedule) -> list[float]:
    """How many t there are, and a_t at three of them; rounded, since machines sum differently."""
    alphas = schedule.alphas.tolist()
    return [len(alphas), *(round(alphas[at], 6) for at in (0, len(alphas) // 2, -1))]


def _digest(pairs: Sequence[Pair], captions: bool) -> str:
    """Of the names and sizes of all files: a copy of the data is the same data."""
    found = hashlib.sha256()
    for pair in pairs:
        sizes = [str(path.stat().st_size) for path in (pair.image, pair.target)]
        words = [pair.name, pair.image.suffix, pair.target.suffix, *sizes]
        line = "\0".join([*words, pair.prompt if captions else "", ""])
        found.update(line.encode(errors="surrogateescape"))  # a name need not be UTF-8
    return f"{len(pairs)} pairs {found.hexdigest()[:16]}"


def starting_point(job: Job, settings: dict[str, Any]) -> tuple[Path | None, State]:
    """The checkpoint that a run goes on from, if there is one, and where it stands.

    UsageError if it was trained with other settings, or if a LoRA would be overwritten.
    """
    output, fresh = job.training.output, job.training.fresh
    checkpoint = None if fresh else checkpoints.newest(output)
    if checkpoint is None:
        if (output / checkpoints.LORA).exists() and not fresh:
            raise UsageError(
                f"{output / checkpoints.LORA} is there already, without a checkpoint to go on from",
                "use --fresh to write over it, or another -o",
            )
        return None, State(0, 0.0, settings)
    state = checkpoints.load_state(checkpoint)
    checkpoints.require_same(checkpoint, state.settings, settings)
    return checkpoint, state
