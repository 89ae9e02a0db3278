"""The last step of one image: its maps -> its files. What waits for the whole run is kept aside."""

import secrets
import time
import zipfile
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
from dmp_cli.outputs.sheet import INPUT
from dmp_cli.predict import Array, Predictor
from dmp_cli.tasks import Task
from dmp_cli.weights import prompted


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
        """Write a map in all formats that can be written by now; one that fails stops no other."""
        task, look = tasks.find(name), self.predictor.plan.output
        self.notes += export.remarks(task, values)
        covered = export.span(task, values) if self._ranged(task) else None
        if "exr" in look.formats:
            layer, told = export.layer(task, values, look.exr_layout)
            self.layers.append((name, layer))
            self.notes += told
        if export.set_aside(task, look):
            self.waiting[name], self.span = values, covered
        else:
            self._show(name, values, covered)
        for form in look.formats:
            if form != "exr" and not export.waits(task, form, look):
                self._save(name, form, values, covered)

    def _ranged(self, task: Task) -> bool:
        """Whether something is made of a map for which its percentiles must be known."""
        look = self.predictor.plan.output
        formats = {"png", "png16", "tiff16"} & {*look.formats}
        return task.metres and bool(look.thumbnail or look.side_by_side or formats)

    def complete(self, name: str, values: Array, covered: export.Span | None) -> None:
        """Write what waited, now that the span of the run is known."""
        self._show(name, values, covered)
        for form in self.predictor.plan.output.formats:
            if export.waits(tasks.find(name), form, self.predictor.plan.output):
                self._save(name, form, values, covered)

    def _save(self, name: str, form: str, values: Array, covered: export.Span | None) -> None:
        path, look = self.job.targets[name, form], self.predictor.plan.output
        text = origin(self.predictor, self.job, [name])
        shown = export.view(look, covered)
        with errors_of(self.errors, name):
            self.notes += export.save(path, form, tasks.find(name), values, shown, text)
            self.made.append((name, form))

    def _show(self, name: str, values: Array, covered: export.Span | None) -> None:
        look, task = self.predictor.plan.output, tasks.find(name)
        if not (look.thumbnail or look.side_by_side):
            return
        small = images.resize(values, panels.lowered(*values.shape[:2]), nearest=task.labels)
        picture = task.preview(small, replace(export.view(look, covered), ids="color"))
        self.shown[name] = picture.pixels
        if "near" in picture.text:
            near, far = (float(picture.text[key].split()[0]) for key in ("near", "far"))
            self.captions[name] = f"{near:.3g} to {far:.3g} m"
        if task.labels:
            self.classes = legend.seen(values)

    def save_layers(self) -> None:
        """Write the EXR files: one for each task, or one for all."""
        by_path: dict[Path, list[tuple[str, export.Layer]]] = {}
        for name, layer in self.layers:
            by_path.setdefault(self.job.targets[name, "exr"], []).append((name, layer))
        for path, named in by_path.items():
            names, layers = [name for name, _ in named], [layer for _, layer in named]
            text = origin(self.predictor, self.job, names)
            with errors_of(self.errors, "exr"):
                export.save_exr(path, layers, self.predictor.plan.output, text)
                self.made += [(name, "exr") for name in names]

    def save_panels(self) -> None:
        """Write the picture of the input beside its maps, if it was asked for."""
        path = self.job.targets.get((SIDE_BY_SIDE, "png"))
        if not path or len(self.shown) < 2:
            return
        order = [name for name in (INPUT, *self.predictor.plan.tasks) if name in self.shown]
        with errors_of(self.errors, SIDE_BY_SIDE):
            picture = panels.side_by_side([(name, self.shown[name]) for name in order])
            writers.write_png(path, picture, origin(self.predictor, self.job, order[1:]))
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
def errors_of(errors: list[str], name: str) -> Iterator[None]:
    """What fails here is a line of the result; the rest of the image goes on."""
    try:
        yield
    except ImageError as error:
        errors.append(line(error))
    except MemoryError:
        errors.append(f"{name}: not enough memory for a map of this size")


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
        with errors_of(saving.errors, task):
            saving.add(task, predictor.finish(task, item.drawn[task], item.prepared))
    saving.save_layers()
    aside = None
    if saving.waiting:
        with errors_of(saving.errors, ", ".join(saving.waiting)):
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
    with errors_of(saving.errors, "what waited"):
        for key, values in _kept(waiting.aside).items():
            kind, _, name = key.partition(" ")
            if kind == "picture":
                saving.shown[name] = values
            else:
                saving.complete(name, values, covered)
    saving.save_panels()
    after = saving.result(before.seconds + time.monotonic() - start, before.notes)
    return replace(after, made=before.made + after.made, errors=before.errors + after.errors)


def _kept(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as file:
            arrays = dict(file)
        path.unlink()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ImageError(f"lost what was kept in {path}: {error}", "run it again") from error
    return arrays


def _set_aside(saving: _Saving, folder: Path) -> Path:
    """Keep the maps that wait, and small pictures of the others, in a file."""
    path = folder / f"{secrets.token_hex(8)}.npz"
    kept: dict[str, Any] = {f"picture {name}": values for name, values in saving.shown.items()}
    kept |= {f"map {name}": values for name, values in saving.waiting.items()}
    files.write(path, lambda file: np.savez(file, **kept))
    saving.shown.clear()
    return path


def origin(predictor: Predictor, job: Job, names: Sequence[str]) -> dict[str, str]:
    """Where maps come from, as written into their file."""
    recipes = [prompted(predictor.recipes[name], job.prompt) for name in names]
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
        if tasks.find(recipe.task).unit_length:
            text[f"{before}Axes"] = predictor.plan.axes
    return text
