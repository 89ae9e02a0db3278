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
from dmp_cli import digests, files, images, storage, tasks
from dmp_cli.catalogue import DECODER
from dmp_cli.digests import Stamp
from dmp_cli.engines import glances
from dmp_cli.engines.steps import Item, Room, line, without_limit
from dmp_cli.errors import ImageError
from dmp_cli.host import Array, Host, Prepared
from dmp_cli.jobs import SIDE_BY_SIDE, Glance, Job, Result
from dmp_cli.outputs import export, legend, panels, writers
from dmp_cli.outputs.sheet import INPUT
from dmp_cli.tasks import Task
from dmp_cli.urls import url_of
from dmp_cli.weights import prompted


@dataclass(frozen=True)
class Waiting:
    """A result some of whose files wait for what the whole run covers.

    `aside` is an .npz with the maps, and the small pictures of the others.
    """

    result: Result
    span: export.Span | None
    aside: Path
    pixels: int  # at full size


@dataclass
class _Saving:
    """The files of one job on their way."""

    host: Host
    job: Job
    shown: dict[str, Array] = field(default_factory=dict)  # small pictures, by task
    made: list[tuple[str, str]] = field(default_factory=list)
    errors: list[ImageError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: list[tuple[str, export.Layer]] = field(default_factory=list)
    waiting: dict[str, Array] = field(default_factory=dict)  # maps
    span: export.Span | None = None
    captions: dict[str, str] = field(default_factory=dict)
    classes: dict[int, float] = field(default_factory=dict)
    stamps: dict[Path, Stamp] = field(default_factory=dict)

    def add(self, name: str, values: Array) -> None:
        """Write a map in all formats that can be written by now; one that fails stops no other."""
        task, look = tasks.find(name), self.host.plan.output
        self.notes += export.remarks(task, values)
        covered = export.span(task, values) if self._ranged(task) else None
        if (name, "exr") in self.job.targets:
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
        look = self.host.plan.output
        formats = {"png", "png16", "tiff16"} & {*look.formats}
        return task.metres and bool(look.thumbnail or look.side_by_side or formats)

    def complete(self, name: str, values: Array, covered: export.Span | None) -> None:
        """Write what waited, now that the span of the run is known."""
        self._show(name, values, covered)
        for form in self.host.plan.output.formats:
            if export.waits(tasks.find(name), form, self.host.plan.output):
                self._save(name, form, values, covered)

    def _save(self, name: str, form: str, values: Array, covered: export.Span | None) -> None:
        path, look = self.job.targets.get((name, form)), self.host.plan.output
        if path is None:  # it is there already
            return
        text = origin(self.host, self.job, [name])
        shown = export.view(look, covered)
        with errors_of(self.errors, name):
            self.notes += export.save(path, form, tasks.find(name), values, shown, text)
            self._wrote(path, [(name, form)])

    def _show(self, name: str, values: Array, covered: export.Span | None) -> None:
        look, task = self.host.plan.output, tasks.find(name)
        if not (look.thumbnail or look.side_by_side):
            return
        small = images.resize(values, panels.lowered(*values.shape[:2]), nearest=task.labels)
        picture = task.preview(small, replace(export.view(look, covered), ids="color"))
        self.shown[name] = picture.pixels
        if caption := glances.caption(picture.text):
            self.captions[name] = caption
        if task.labels:
            self.classes = legend.seen(values)

    def save_layers(self) -> None:
        """Write the EXR files: one for each task, or one for all."""
        by_path: dict[Path, list[tuple[str, export.Layer]]] = {}
        for name, layer in self.layers:
            by_path.setdefault(self.job.targets[name, "exr"], []).append((name, layer))
        for path, named in by_path.items():
            names, layers = [name for name, _ in named], [layer for _, layer in named]
            text = origin(self.host, self.job, names)
            with errors_of(self.errors, "exr"):
                export.save_exr(path, layers, self.host.plan.output, text)
                self._wrote(path, [(name, "exr") for name in names])

    def save_panels(self) -> None:
        """Write the picture of the input beside its maps, if it was asked for."""
        path = self.job.targets.get((SIDE_BY_SIDE, "png"))
        if not path or len(self.shown) < 2:
            return
        order = [name for name in (INPUT, *self.host.plan.tasks) if name in self.shown]
        with errors_of(self.errors, SIDE_BY_SIDE):
            picture = panels.side_by_side([(name, self.shown[name]) for name in order])
            writers.write_png(path, picture, origin(self.host, self.job, order[1:]))
            self._wrote(path, [(SIDE_BY_SIDE, "png")])

    def _wrote(self, path: Path, keys: Sequence[tuple[str, str]]) -> None:
        """Stamp a file that was just renamed to its name."""
        try:
            self.stamps[path] = _stamp(path)
        except OSError as error:
            why = f"{path} is gone again: {error.strerror}"
            raise ImageError(why, "run it again", again=True) from error
        self.made += keys

    def result(self, seconds: float, notes: tuple[str, ...]) -> Result:
        """What became of the job so far."""
        glance = None
        if side := self.host.plan.output.thumbnail:
            small = {name: panels.thumbnail(picture, side) for name, picture in self.shown.items()}
            glance = Glance(small, self.captions, self.classes)
        return Result(
            self.job,
            tuple(self.made),
            tuple(map(line, self.errors)),
            any(error.again for error in self.errors),
            (*notes, *self.notes),
            seconds,
            glance,
            stamps=self.stamps,
            device=self.host.device,
            dtype=self.host.dtype,
        )


def _stamp(path: Path) -> Stamp:
    if url_of(path) is None:
        return digests.stamp(path)
    size, sha256 = storage.uploaded(path)
    return Stamp(size, 0, sha256)  # its time is the bucket's, and nobody asks for it


@contextmanager
def errors_of(errors: list[ImageError], name: str) -> Iterator[None]:
    """What fails here is a line of the result; the rest of the image goes on."""
    try:
        yield
    except ImageError as error:
        errors.append(error)
    except MemoryError:
        why = f"{name}: not enough memory for a map of this size"
        errors.append(ImageError(why, again=True))


def write(host: Host, folder: Path, item: Item, room: Room = without_limit) -> Result | Waiting:
    """Item -> its files, and the result of the job. ResourceError if no file could be written.

    What waits for the span of the run goes to `folder` meanwhile. While maps are held at full
    size, they are within `room`.
    """
    if item.prepared is None:
        return Result(
            item.job, errors=(item.error,), again=item.again, seconds=item.seconds, read=item.read
        )
    with room(item.prepared.height * item.prepared.width):
        return _written(host, folder, item, item.prepared)


def _written(host: Host, folder: Path, item: Item, prepared: Prepared) -> Result | Waiting:
    start = time.monotonic()
    saving = _Saving(host, item.job)
    if prepared.shown is not None:
        saving.shown[INPUT] = prepared.shown
    for task, drawn in item.drawn.items():
        with errors_of(saving.errors, task):
            saving.add(task, host.finish(task, drawn, prepared))
    saving.save_layers()
    aside = None
    if saving.waiting:
        with errors_of(saving.errors, ", ".join(saving.waiting)):
            aside = _set_aside(saving, folder)
    else:
        saving.save_panels()
    result = saving.result(item.seconds + time.monotonic() - start, prepared.notes)
    result = replace(result, read=item.read)
    pixels = prepared.height * prepared.width
    return Waiting(result, saving.span, aside, pixels) if aside else result


def finish(
    host: Host,
    covered: export.Span | None,
    waiting: Waiting | Result,
    room: Room = without_limit,
) -> Result:
    """Write what waited for the span of the whole run, within `room`."""
    if isinstance(waiting, Result):
        return waiting
    with room(waiting.pixels):
        return _finished(host, covered, waiting)


def _finished(host: Host, covered: export.Span | None, waiting: Waiting) -> Result:
    start = time.monotonic()
    before = waiting.result
    saving = _Saving(host, before.job)
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
    return replace(
        after,
        made=before.made + after.made,
        errors=before.errors + after.errors,
        again=before.again or after.again,
        stamps={**before.stamps, **after.stamps},
        device=before.device,
        read=before.read,
    )


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


def origin(host: Host, job: Job, names: Sequence[str]) -> dict[str, str]:
    """Where maps come from, as written into their file."""
    recipes = [prompted(host.recipes[name], job.prompt) for name in names]
    frame = "" if job.frame is None else f" frame {job.frame + 1}"
    text = {
        "Software": f"dmp {dmp_cli.__version__}",
        "Task": ",".join(names),
        "Model": recipes[0].model,
        "Backbone": str(recipes[0].backbone),
        "Source": job.source.name + frame,
    }
    if recipes[0].decoder:
        text["Tiny-Decoder"] = str(recipes[0].decoder)
        text["Tiny-Decoder-SHA256"] = host.digests[DECODER]
    for recipe in recipes:
        before = "" if len(recipes) == 1 else f"{recipe.task}."
        settings = f"{recipe.settings} dtype={host.dtype!r}"
        text[f"{before}Weights-SHA256"] = host.digests[recipe.task]
        text[f"{before}Settings"] = settings
        if tasks.find(recipe.task).unit_length:
            text[f"{before}Axes"] = host.plan.axes
    return text
