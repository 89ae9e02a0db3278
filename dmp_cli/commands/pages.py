"""What is made of all maps of a run: a page of thumbnails, and movies."""

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from dmp_cli import __version__, storage, urls
from dmp_cli.commands.report import Talk, count, shown
from dmp_cli.errors import ImageError
from dmp_cli.jobs import SIDE_BY_SIDE, Glance, Job, Movie, Result
from dmp_cli.outputs.sheet import Page, Row
from dmp_cli.plan import Plan
from dmp_cli.weights import Recipe

if TYPE_CHECKING:  # they need Pillow, which takes time that `dmp --help` has not
    from dmp_cli.host import Host
    from dmp_cli.inputs.video import Clips

PAGE = "contact-sheet.html"


def on_page(
    results: Iterable[Result], output: Path, plan: Plan, chosen: list[Recipe], every: Iterable[Job]
) -> Iterator[Result]:
    """The same results, each put on the page OUT/contact-sheet.html as it passes.

    What was there already is shown by its files. The rows stand in the order of `every` job of the
    run, whatever the order of the results.
    """
    from dmp_cli.host import completed
    from dmp_cli.inputs.video import Clips

    first, look, host = chosen[0], plan.output, completed(plan)
    places = {(job.source, job.frame): place for place, job in enumerate(every)}
    facts = {
        "Model": first.model, "Settings": first.settings, "Depth range": str(look.range),
        "Normals": plan.axes, "Made by": f"dmp {__version__}",
    }  # fmt: skip
    with (
        closing(Clips(plan.max_pixels)) as clips,
        Page(output / PAGE, output.resolve().name, plan.tasks, facts) as page,
    ):
        for result in results:
            if result.done:
                place = places[result.job.source, result.job.frame]
                page.add(_row(_with_glance(result, host, clips)), place)
            yield result


def _with_glance(result: Result, host: "Host", clips: "Clips") -> Result:
    """The result as it stands on the page: with all maps of its image that are there."""
    from dmp_cli.engines import glances

    job = result.job
    there = job.targets if result.kept and not result.errors else job.there
    if not there:
        return result
    glance = glances.completed(
        host, clips, replace(job, targets=there), result.glance or Glance({})
    )
    whole = replace(job, targets={**job.targets, **there})
    return replace(result, job=whole, made=(*result.made, *there), glance=glance)


def _row(result: Result) -> Row:
    job, glance = result.job, result.glance or Glance({})
    name = job.name if job.frame is None else f"{job.name} {job.frame + 1}"
    pictures = {task for task, form in result.made if form == "png"} - {SIDE_BY_SIDE}
    links = {task: job.targets[task, "png"] for task in pictures}
    return Row(
        name, glance.pictures, links, glance.captions, glance.classes,
        result.notes, "\n".join(result.errors),
    )  # fmt: skip


def gathered(results: Iterable[Result], pictures: set[Path]) -> Iterator[Result]:
    """The same results; the pictures that they made are put into `pictures` as they pass."""
    for result in results:
        if result.done:
            pictures.update(result.job.targets[key] for key in result.made if key[1] == "png")
        yield result


def make(
    movies: Iterable[Movie], made: Collection[Path], plan: Plan, fps: float | None, talk: Talk
) -> int:
    """Make the movies, each of those of its pictures that this run made; returns how many failed.

    Without `fps`, that of a clip has its rate, another 24 pictures a second.
    """
    failed = 0
    for movie in movies:
        start = time.monotonic()
        pictures = [path for path in movie.pictures if path in made]
        error = _encode(movie, pictures, plan, fps)
        left_out = len(movie.pictures) - len(pictures)
        notes = [f"{count(left_out, 'picture')} left out, which could not be made"]
        record = _record(movie, error, notes if left_out else [], time.monotonic() - start)
        if error:
            talk.fail(f"failed: {shown(movie.target)}: {error}")
            failed += 1
        else:
            talk.note(f"{shown(movie.target)}: {count(len(pictures), 'picture')}")
        if talk.as_json:
            talk.output(json.dumps(record))
        elif not error:
            talk.output(urls.shown(movie.target))
    return failed


def _encode(movie: Movie, pictures: list[Path], plan: Plan, fps: float | None) -> str:
    """Write the movie; returns why it could not be."""
    from dmp_cli.outputs.movie import in_order, write

    try:
        rate = Fraction(fps or (_rate(movie.source) if movie.is_clip else 24))
        text = _tags(movie, pictures[0], plan) if pictures else {}
        write(movie.target, in_order(pictures), rate, text)
    except ImageError as error:
        return f"{error}; {error.hint}" if error.hint else str(error)
    return ""


def _rate(source: Path) -> Fraction:
    from dmp_cli.inputs import clip

    with storage.fetched(source) as file:
        return Fraction(clip.describe(file).rate)


def _tags(movie: Movie, picture: Path, plan: Plan) -> dict[str, str]:
    """What a picture says of itself, without what is true of that picture alone."""
    from dmp_cli import mapfiles

    with storage.fetched(picture) as file:
        text = mapfiles.text(file)
    if plan.output.range in ("auto", "image"):
        text = {key: value for key, value in text.items() if key not in ("near", "far")}
    return {**text, "Source": Path(os.path.abspath(movie.source)).name}


def _record(movie: Movie, error: str, notes: list[str], seconds: float) -> dict[str, object]:
    """With the keys that the record of an input has."""
    made = {"task": movie.task, "format": "mp4", "path": urls.shown(movie.target)}
    return {
        "input": urls.shown(movie.source),
        "status": "failed" if error else "done",
        "outputs": [] if error else [made],
        "errors": [error] if error else [],
        "notes": notes,
        "seconds": round(seconds, 4),
    }
