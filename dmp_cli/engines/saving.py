"""The last step of one image: its maps -> its files. What waits for the whole run is kept aside."""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import dmp_cli
from dmp_cli import files, images, tasks
from dmp_cli.engines.steps import Item, line
from dmp_cli.errors import ImageError
from dmp_cli.jobs import SIDE_BY_SIDE, Glance, Job, Result
from dmp_cli.outputs import export, legend, panels, writers
from dmp_cli.predict import Array, Predictor

INPUT = "input"  # stands for a task where the input itself is shown
PANEL = 512  # pixels of the height at which a picture is shown beside others


@dataclass(frozen=True)
class Waiting:
    """A result some of whose files wait for what the whole run covers.

    `aside` is an .npz with the maps, and the small pictures of the others.
    """

    result: Result
    span: export.Span | None
    aside: Path


@dataclass
class _Saving:
    """The files of one job on their way."""

    predictor: Predictor
    job: Job
    shown: dict[str, Array] = field(default_factory=dict)  # small pictures, by task
    made: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[tuple[str, export.Layer]] = field(default_factory=list)
    waiting: dict[str, Array] = field(default_factory=dict)  # maps
    span: export.Span | None = None
    captions: dict[str, str] = field(default_factory=dict)
    classes: dict[int, float] = field(default_factory=dict)

    def add(self, name: str, values: Array) -> None:
        """Write a map in all formats that can be written by now."""
        task, look = tasks.find(name), self.predictor.plan.output
        self.notes += export.remarks(task, values)
        covered = export.span(task, values)
        for form in look.formats:
            if form == "exr":
                layer, told = export.layer(task, values, look.exr_layout)
                self.layers.append((name, layer))
                self.notes += told
            elif not export.waits(task, form, look):
                self._save(name, form, values, covered)
        if task.metres and look.range == "run":
            self.waiting[name], self.span = values, covered
        else:
            self._show(name, values, covered)

    def complete(self, name: str, values: Array, covered: export.Span | None) -> None:
        """Write what waited, now that the span of the run is known."""
        for form in self.predictor.plan.output.formats:
            if export.waits(tasks.find(name), form, self.predictor.plan.output):
                self._save(name, form, values, covered)
        self._show(name, values, covered)

    def _save(self, name: str, form: str, values: Array, covered: export.Span | None) -> None:
        path, look = self.job.targets[name, form], self.predictor.plan.output
        text = origin(self.predictor, self.job, [name])
        shown = export.view(look, covered)
        self.notes += export.save(path, form, tasks.find(name), values, shown, text)
        self.made.append((name, form))

    def _show(self, name: str, values: Array, covered: export.Span | None) -> None:
        look, task = self.predictor.plan.output, tasks.find(name)
        if look.thumbnail or look.side_by_side:
            view = replace(export.view(look, covered), ids="color")
            picture = task.preview(values, view)
            self.shown[name] = _small(picture.pixels, task.labels)
            if "near" in picture.text:
                near, far = (float(picture.text[key].split()[0]) for key in ("near", "far"))
                self.captions[name] = f"{near:.3g} to {far:.3g} m"
            if task.labels:
                self.classes = legend.seen(values)

    def save_layers(self) -> None:
        """Write the EXR files: one for each task, or one for all."""
        files: dict[Path, list[tuple[str, export.Layer]]] = {}
        for name, layer in self.layers:
            files.setdefault(self.job.targets[name, "exr"], []).append((name, layer))
        for path, layers in files.items():
            text = origin(self.predictor, self.job, [name for name, _ in layers])
            export.save_exr(path, [layer for _, layer in layers], self.predictor.plan.output, text)
            self.made += [(name, "exr") for name, _ in layers]

    def save_panels(self) -> None:
        """Write the picture of the input beside its maps, if it was asked for."""
        path = self.job.targets.get((SIDE_BY_SIDE, "png"))
        if path and len(self.shown) > 1:
            order = [name for name in (INPUT, *self.predictor.plan.tasks) if name in self.shown]
            picture = panels.side_by_side([(name, self.shown[name]) for name in order], PANEL)
            text = origin(self.predictor, self.job, order[1:])
            writers.write_png(path, picture, text)
            self.made.append((SIDE_BY_SIDE, "png"))

    def result(self, seconds: float, notes: tuple[str, ...]) -> Result:
        """What became of the job so far."""
        glance = None
        if side := self.predictor.plan.output.thumbnail:
            small = {name: panels.thumbnail(picture, side) for name, picture in self.shown.items()}
            glance = Glance(small, self.captions, self.classes)
        return Result(
            self.job,
            tuple(self.made),
            tuple(self.errors),
            (*notes, *self.notes),
            seconds,
            glance,
        )


@contextmanager
def _errors_of(saving: _Saving, name: str) -> Iterator[None]:
    """What fails here is a line of the result; the rest of the image goes on."""
    try:
        yield
    except ImageError as error:
        saving.errors.append(line(error))
    except MemoryError:
        saving.errors.append(f"{name}: not enough memory for a map of this size")


def write(predictor: Predictor, folder: Path, item: Item) -> Result | Waiting:
    """Item -> its files, and the result of the job. ResourceError if no file could be written.

    What waits for the span of the run goes to `folder` meanwhile.
    """
    start = time.monotonic()
    if item.prepared is None:
        return Result(item.job, errors=(item.error,), seconds=item.seconds)
    saving = _Saving(predictor, item.job)
    if item.prepared.shown is not None:
        saving.shown[INPUT] = item.prepared.shown
    for task in predictor.plan.tasks:
        with _errors_of(saving, task):
            saving.add(task, predictor.finish(task, item.drawn[task], item.prepared))
    with _errors_of(saving, "exr"):
        saving.save_layers()
    aside = None
    with _errors_of(saving, SIDE_BY_SIDE):
        if saving.waiting:
            aside = _set_aside(saving, folder)
        else:
            saving.save_panels()
    result = saving.result(item.seconds + time.monotonic() - start, item.prepared.notes)
    return Waiting(result, saving.span, aside) if aside else result


def finish(predictor: Predictor, covered: export.Span | None, waiting: Waiting | Result) -> Result:
    """Write what waited for the span of the whole run."""
    if isinstance(waiting, Result):
        return waiting
    start = time.monotonic()
    before = waiting.result
    saving = _Saving(predictor, before.job)
    if before.glance:
        saving.captions |= before.glance.captions
        saving.classes |= before.glance.classes
    with np.load(waiting.aside) as kept:
        arrays = dict(kept)
    waiting.aside.unlink()
    for key, values in arrays.items():
        kind, _, name = key.partition(" ")
        if kind == "picture":
            saving.shown[name] = values
        else:
            with _errors_of(saving, name):
                saving.complete(name, values, covered)
    with _errors_of(saving, SIDE_BY_SIDE):
        saving.save_panels()
    after = saving.result(before.seconds + time.monotonic() - start, before.notes)
    return replace(after, made=before.made + after.made, errors=before.errors + after.errors)


def _set_aside(saving: _Saving, folder: Path) -> Path:
    """Keep the maps that wait, and small pictures of the others, in a file."""
    path = folder / f"{secrets.token_hex(8)}.npz"
    kept: dict[str, Any] = {f"picture {name}": values for name, values in saving.shown.items()}
    kept |= {f"map {name}": values for name, values in saving.waiting.items()}
    files.write(path, lambda file: np.savez(file, **kept))
    saving.shown.clear()
    return path


def _small(picture: Array, nearest: bool) -> Array:
    """A picture [H, W] or [H, W, 3], not higher than panels have it."""
    height, width = picture.shape[:2]
    if height <= PANEL:
        return picture
    return images.resize(picture, (PANEL, max(round(width * PANEL / height), 1)), nearest)


def origin(predictor: Predictor, job: Job, names: Sequence[str]) -> dict[str, str]:
    """Where maps come from, as written into their file."""
    recipes = [predictor.recipes[name] for name in names]
    frame = "" if job.frame is None else f" frame {job.frame + 1}"
    text = {
        "Software": f"dmp {dmp_cli.__version__}",
        "Task": ",".join(names),
        "Model": recipes[0].model,
        "Backbone": str(recipes[0].backbone),
        "Source": job.source.name + frame,
    }
    for recipe in recipes:
        before = "" if len(recipes) == 1 else f"{recipe.task}."
        settings = f"{recipe.settings} dtype={predictor.placement.dtype_name!r}"
        text[f"{before}Weights-SHA256"] = predictor.digests[recipe.task]
        text[f"{before}Settings"] = settings
    return text
