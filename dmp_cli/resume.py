"""Resume: which jobs are left by the manifest, and the record of a job."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dmp_cli import digests, manifest, storage
from dmp_cli.catalogue import DECODER
from dmp_cli.deciding import Deciding, Target, stat_of
from dmp_cli.digests import Stamp
from dmp_cli.errors import ImageError
from dmp_cli.jobs import Job, Result
from dmp_cli.manifest import Made, Past
from dmp_cli.urls import url_of
from dmp_cli.weights import Recipe, prompted

# What is left ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """How much of what was done before is to be believed."""

    checksum: bool = False  # compare hashes instead of sizes and times
    overwrite: bool = False  # do all again
    retry_failed: bool = False


@dataclass(frozen=True)
class Left:
    """What a run has to do yet."""

    todo: list[Job]  # with the targets that have to be made
    kept: list[Job]  # every target is there
    failed: list[tuple[Job, str]]  # as before, and nothing is changed since; as in `todo`


def left(jobs: Sequence[Job], past: Past, deciding: Deciding, out: Path, asked: Asked) -> Left:
    """Sort jobs by what the manifest and the files say of them.

    What shows the span of the whole run is made again for all of it, if any of it is.
    """
    found = Left([], [], [])
    if not past.outputs:
        return Left(list(jobs), [], [])
    there = storage.listing(out) if url_of(out) else None  # or each output would be asked for
    stamps: dict[Path, Stamp | None] = {}
    for job in jobs:
        state = _State(job, past, out, asked.checksum, there, stamps)
        targets, error = _missing(state, deciding)
        if targets and (error is None or asked.retry_failed):
            found.todo.append(_part(job, targets))
        elif targets:
            found.failed.append((_part(job, targets), error or ""))
        else:
            found.kept.append(job)
    if any(deciding.waits(target) for job in found.todo for target in job.targets):
        return _together(jobs, found, deciding)
    return found


def _part(job: Job, targets: Mapping[Target, Path]) -> Job:
    """The job with these targets left to make, and the others there."""
    if len(targets) == len(job.targets):  # as it is, it takes less memory
        return job
    there = {key: path for key, path in job.targets.items() if key not in targets}
    return replace(job, targets=targets, there=there)


def _together(jobs: Sequence[Job], found: Left, deciding: Deciding) -> Left:
    """The same, with the files of all jobs that wait for the end of a run among what is left."""
    failed = {(job.source, job.frame) for job, _ in found.failed}
    missing = {(job.source, job.frame): job.targets for job in found.todo}
    again = Left([], [], found.failed)
    for job in jobs:
        one = job.source, job.frame
        own = missing.get(one, {})
        targets = {key: path for key, path in job.targets.items()
                   if key in own or deciding.waits(key)}  # fmt: skip
        if one not in failed:
            if targets:
                again.todo.append(_part(job, targets))
            else:
                again.kept.append(job)
    return again


def _missing(state: "_State", deciding: Deciding) -> tuple[dict[Target, Path], str | None]:
    """The targets that have to be made, and the error if all that is missing failed before."""
    job = state.job
    missing: dict[Target, Path] = {}
    errors: list[str | None] = []
    for target, path in job.targets.items():
        key = deciding.key(job, target)
        made = state.made(path)
        if made is None or not made.key.startswith(key) or not state.same_input(made):
            missing[target] = path
            errors.append(None)
        elif made.size is None:
            missing[target] = path
            errors.append(made.error if made.key == deciding.failed(key) else None)
        elif not state.is_there(path, made):
            missing[target] = path
            errors.append(None)
    if not errors or None in errors:
        return missing, None
    return missing, errors[0]


@dataclass(frozen=True)
class _State:
    """A job beside what is recorded of it."""

    job: Job
    past: Past
    out: Path
    checksum: bool
    there: Mapping[Path, storage.Stat] | None  # all objects of OUT, if it is in a bucket
    stamps: dict[Path, Stamp | None]  # by input, for the frames of a clip have one

    def made(self, path: Path) -> Made | None:
        return self.past.outputs.get(manifest.relative(self.out, path))

    @cached_property
    def _now(self) -> tuple[int, int] | None:
        return stat_of(self.job.source)

    @property
    def _stamp(self) -> Stamp | None:
        source = self.job.source
        if source not in self.stamps:
            try:
                with storage.fetched(source) as file:
                    self.stamps[source] = digests.stamp(file)
            except (OSError, ImageError):
                self.stamps[source] = None
        return self.stamps[source]

    def same_input(self, made: Made) -> bool:
        """Whether the input is what it was: by place, size and time, or else by its hash.

        A file that was only touched, or moved, is not predicted again.
        """
        if self._now is None or made.read is None or self._now[0] != made.read.size:
            return False
        same = self._now[1] == made.read.mtime and made.source == source_of(self.job)
        if same and not self.checksum:
            return True
        return self._stamp is not None and self._stamp.sha256 == made.read.sha256

    def is_there(self, path: Path, made: Made) -> bool:
        """Whether the file of an output is the one that was written."""
        if self.there is None:
            size = (stat_of(path) or (None,))[0]
        else:
            known = self.there.get(path)
            size = known.size if known else None
        if size is None or size != made.size:
            return False
        if not self.checksum:
            return True
        try:
            with storage.fetched(path) as file:
                return digests.stamp(file).sha256 == made.sha256
        except (OSError, ImageError):
            return False


def source_of(job: Job) -> str:
    """An input as a manifest names it."""
    return url_of(job.source) or os.path.abspath(job.source)


# The record of a job -----------------------------------------------------------------------


def record(result: Result, deciding: Deciding, out: Path) -> dict[str, Any]:
    """What the manifest is to say of a result."""
    job, host, read = result.job, deciding.host, result.read
    recipes: Mapping[str, Recipe] = host.recipes
    names = job.tasks(host.plan.tasks)
    frame = {} if job.frame is None else {"frame": job.frame + 1}
    return {
        "input": source_of(job), **frame,
        "size": read.size if read else None,
        "mtime": read.mtime if read else None,
        "sha256": read.sha256 if read else None,
        "status": "failed" if result.errors else "done",
        "error": "\n".join(result.errors),
        "outputs": [_output(target, result, deciding, out) for target in job.targets],
        "model": next(iter(recipes.values())).model,
        "backbone": deciding.backbone,
        **({DECODER: deciding.decoder[-1]} if deciding.decoder else {}),
        "weights": {name: deciding.loras[name] for name in names},
        "settings": {name: prompted(recipes[name], job.prompt).settings for name in names},
        "dtype": result.dtype, "device": result.device,
        "seconds": round(result.seconds, 4),
    }  # fmt: skip


def _output(target: Target, result: Result, deciding: Deciding, out: Path) -> dict[str, Any]:
    task, form = target
    path, key = result.job.targets[target], deciding.key(result.job, target)
    stamp = result.stamps.get(path) if target in result.made else None
    return {
        "task": task, "format": form, "path": manifest.relative(out, path),
        "key": key if stamp else "" if result.again else deciding.failed(key),
        "size": stamp.size if stamp else None, "sha256": stamp.sha256 if stamp else "",
    }  # fmt: skip
