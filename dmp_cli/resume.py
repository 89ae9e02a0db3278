"""Resume: what decides an output, which jobs are left by the manifest, and the record of a job."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dmp_cli import digests, hub, manifest, sources, storage, tasks
from dmp_cli.digests import Hashed, Stamp
from dmp_cli.errors import ImageError
from dmp_cli.host import Host
from dmp_cli.jobs import SIDE_BY_SIDE, Job, Result
from dmp_cli.manifest import Made, Past
from dmp_cli.outputs import export
from dmp_cli.sources import Source
from dmp_cli.urls import url_of
from dmp_cli.weights import Recipe, prompted

Target = tuple[str, str]  # task and format

_COMMIT = re.compile("[0-9a-f]{40}")


# What decides an output --------------------------------------------------------------------


@dataclass(frozen=True)
class Deciding:
    """All that decides the outputs of a run beside their inputs, as short keys.

    What only decides where or how fast it runs (device, batch, engine, an automatic dtype) is not
    among it.
    """

    host: Host
    backbone: str  # its identity
    loras: Mapping[str, str]  # by task
    inputs: str = ""  # of the whole run, where a file depends on all of them
    hashed: tuple[Hashed, ...] = ()  # files of weights of which no hash is stated
    _keys: dict[tuple[Any, ...], str] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, host: Host, jobs: Sequence[Job], known: Mapping[str, Hashed] | None = None
    ) -> "Deciding":
        """Of a run. Hashes weights where no hash is stated; ModelError if they are not whole.

        A file that is as it was when it was hashed, by `known`, is not read.
        """
        first = next(iter(host.recipes.values()))
        loras = {task: _lora(recipe.lora) for task, recipe in host.recipes.items()}
        every = _all_of(jobs) if host.plan.output.range == "run" else ""
        backbone, hashed = _backbone(first.backbone, known or {})
        return cls(host, backbone, loras, every, hashed)

    def key(self, job: Job, target: Target) -> str:
        """What decides a target of a job: equal keys and inputs, equal files."""
        task, form = target
        several: tuple[str, ...] = (task,)
        if task == SIDE_BY_SIDE or (form == "exr" and self._merged):
            several = job.tasks(self.host.plan.tasks)
        known = (target, several, job.prompt)
        if known not in self._keys:
            facts = [self._of_task(name, job.prompt) for name in several]
            look = [self._of_file(name, form, beside=task == SIDE_BY_SIDE) for name in several]
            text = json.dumps([form, facts, look], sort_keys=True)
            self._keys[known] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._keys[known]

    def failed(self, key: str) -> str:
        """The key of a target that was not made: what was refused may pass with other limits."""
        return f"{key} {self.host.plan.max_pixels}"

    @property
    def _merged(self) -> bool:
        return self.host.plan.output.merged

    def _of_task(self, name: str, prompt: str | None) -> dict[str, Any]:
        plan, recipe, row = self.host.plan, self.host.recipes[name], tasks.find(name)
        facts: dict[str, Any] = {
            "task": name, "backbone": self.backbone, "lora": self.loras[name],
            "settings": prompted(recipe, prompt).settings,
            "background": plan.background, "exposure": plan.exposure,
        }  # fmt: skip
        if plan.dtype != "auto":
            facts["dtype"] = plan.dtype
        if row.metres:
            facts |= {"scale": recipe.scale, "bright": recipe.bright}
        if row.unit_length:
            facts |= {"normals": recipe.normals, "axes": plan.axes}
        if row.labels:
            facts["classes"] = plan.classes or recipe.classes
        return facts

    def waits(self, target: Target) -> bool:
        """Whether the file of a target can be written only when all maps of the run are known."""
        plan, (task, form) = self.host.plan, target
        names = plan.tasks if task == SIDE_BY_SIDE else (task,)
        return any(export.waits(tasks.find(name), form, plan.output) for name in names)

    def _of_file(self, name: str, form: str, beside: bool) -> dict[str, Any]:
        """Of `Output`, what changes the file of a task in a format, or its place in a panel."""
        look, row = self.host.plan.output, tasks.find(name)
        if form == "exr":
            return {"layout": look.exr_layout, "compression": look.exr_compression}
        facts: dict[str, Any] = {}
        if row.labels and form == "png" and not beside:
            facts["ids"] = look.seg_format
        if row.metres and form in ("png", "png16", "tiff16"):
            facts["range"] = look.range
            if form == "png" and look.range == "auto":  # which is that for pictures
                facts["range"] = "image"
            shown = ("colormap", "invert") if form == "png" else ("depth_unit",)
            facts |= {key: getattr(look, key) for key in shown}
        if export.waits(row, form, look):
            facts["inputs"] = self.inputs
        return facts


def _all_of(jobs: Sequence[Job]) -> str:
    """A hash of which inputs a run has, by name, size and time of change."""
    digest = hashlib.sha256()
    for job in jobs:
        stat = _stat(job.source)
        facts = [job.name, job.frame, job.prompt, *(stat or ())]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _stat(path: Path) -> tuple[int, int] | None:
    """Size and time of change of an input; None for what is not there."""
    if url_of(path):
        known = storage.stat(path)
        return (known.size, known.mtime) if known else None
    try:
        facts = os.stat(path)  # noqa: PTH116  half the time of pathlib, for 100,000 files
    except (OSError, ValueError):
        return None
    return facts.st_size, facts.st_mtime_ns


def _lora(source: Source) -> str:
    if source.made:
        return f"made {source.made}"
    return source.sha256 or digests.sha256(sources.lora_file(source))


def _backbone(source: Source, known: Mapping[str, Hashed]) -> tuple[str, tuple[Hashed, ...]]:
    """Its identity, and the files that had to be hashed for it."""
    if source.made:
        return f"made {source.made}", ()
    if source.repo:
        folder = None if _COMMIT.fullmatch(source.revision or "") else _snapshot(source)
        return f"{source.repo}@{folder.name if folder else source.revision}", ()
    stated: Mapping[str, str] = source.digests
    hashed: tuple[Hashed, ...] = ()
    if not stated:
        paths = [*sources.backbone_stated(source, half=False)]
        paths += sources.backbone_stated(source, half=True)
        hashed = digests.hashed(dict.fromkeys(paths), known)
        root = Path(os.path.abspath(source.path or ""))
        stated = {Path(one.path).relative_to(root).as_posix(): one.sha256 for one in hashed}
    return hashlib.sha256(json.dumps(sorted(stated.items())).encode()).hexdigest(), hashed


def is_unknown(backbone: Source) -> bool:
    """Whether what a backbone is cannot be told before it is fetched: a branch, not here yet."""
    moves = backbone.repo and not _COMMIT.fullmatch(backbone.revision or "")
    return bool(moves) and _snapshot(backbone) is None


def _snapshot(source: Source) -> Path | None:
    return hub.snapshot(source.repository, [])


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
        return _stat(self.job.source)

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
            size = (_stat(path) or (None,))[0]
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
