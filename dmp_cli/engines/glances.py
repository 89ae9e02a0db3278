"""Glances: what a contact sheet shows of an image whose maps are files already."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmp_cli import images, mapfiles, maps, storage, tasks
from dmp_cli.errors import ImageError
from dmp_cli.host import Host
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Glance, Job
from dmp_cli.outputs import export, legend, panels
from dmp_cli.outputs.sheet import INPUT
from dmp_cli.tasks import Task

Array = NDArray[Any]


def completed(host: Host, clips: Clips, job: Job, glance: Glance) -> Glance:
    """The glance with the input and those maps of a job that it lacks, read from their files.

    What cannot be read is left out: the page then says that there is no map.
    """
    side = host.plan.output.thumbnail
    pictures, captions, classes = dict(glance.pictures), dict(glance.captions), glance.classes
    for name in (INPUT, *host.plan.tasks):
        if name in pictures:
            continue
        try:
            if name == INPUT:
                pixels = _input(host, clips, job)
            else:
                pixels, words, seen = _map(host, job, tasks.find(name))
                captions |= {name: words} if words else {}
                classes = seen or classes
        except ImageError:
            continue
        pictures[name] = panels.thumbnail(pixels, side)
    return Glance(pictures, captions, classes)


def caption(text: Mapping[str, str]) -> str:
    """The range of a depth picture in words, by the text in it; "" for one without."""
    if "near" not in text:
        return ""
    near, far = (float(text[key].split()[0]) for key in ("near", "far"))
    return f"{near:.3g} to {far:.3g} m"


def _input(host: Host, clips: Clips, job: Job) -> Array:
    with storage.fetched(job.source) as file:
        source = file if job.frame is None else clips.frame(job.source, job.frame)
        shown = host.prepare(source).shown
    if shown is None:
        raise ImageError("no picture of the input was asked for")
    return shown


def _map(host: Host, job: Job, task: Task) -> tuple[Array, str, dict[int, float]]:
    """Pixels to look at, a caption, and the classes that it shows; ImageError if there is none."""
    paths = {form: path for (name, form), path in job.targets.items() if name == task.name}
    if "png" in paths and not task.labels:
        with storage.fetched(paths["png"]) as file:
            return _picture(file), caption(mapfiles.text(file)), {}
    if not paths:
        raise ImageError(f"{task.name}: no file of it")
    with storage.fetched(next(iter(paths.values()))) as file:
        values = maps.stored(file, task)
    if task.unit_length:
        values = _turned(values, host.plan.axes)
    small = images.resize(values, panels.lowered(*values.shape[:2]), nearest=task.labels)
    view = export.view(host.plan.output, export.span(task, values))
    picture = task.preview(small, replace(view, ids="color"))
    return picture.pixels, caption(picture.text), legend.seen(values) if task.labels else {}


def _picture(path: Path) -> Array:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path}: cannot be read: {error}") from error


def _turned(vectors: Array, axes: str) -> Array:
    """Normals in opengl as they are in other axes."""
    turned = np.empty_like(vectors)
    for i, (column, sign) in enumerate(tasks.parse_axes(axes)):
        turned[..., column] = sign * vectors[..., i]
    return turned
