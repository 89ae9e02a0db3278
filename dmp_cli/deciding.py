"""Deciding: all that decides the outputs of a run beside their inputs, as short keys."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmp_cli import decoders, digests, hub, sources, storage, tasks
from dmp_cli.digests import Hashed
from dmp_cli.host import Host
from dmp_cli.jobs import SIDE_BY_SIDE, Job
from dmp_cli.outputs import export
from dmp_cli.sources import Source
from dmp_cli.urls import url_of
from dmp_cli.weights import prompted

Target = tuple[str, str]  # task and format

_COMMIT = re.compile("[0-9a-f]{40}")


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
    decoder: tuple[str, ...] = ()  # hashes of a tiny one, its weights' last; (): the VAE's own
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
        decoder = decoders.identity(first.decoder) if first.decoder else ()
        return cls(host, backbone, loras, every, hashed, decoder)

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
        if self.decoder:
            facts["tiny_decoder"] = self.decoder
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
        stat = stat_of(job.source)
        facts = [job.name, job.frame, job.prompt, *(stat or ())]
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def stat_of(path: Path) -> tuple[int, int] | None:
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
