"""What is made of all maps of a run: a page of thumbnails, and movies."""

import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from dmp_cli import __version__
from dmp_cli.commands.report import Talk, count, shown
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.errors import ImageError
from dmp_cli.jobs import SIDE_BY_SIDE, Glance, Job, Result
from dmp_cli.outputs.sheet import Page, Row
from dmp_cli.plan import Plan
from dmp_cli.weights import Recipe

PAGE = "contact-sheet.html"


def on_page(
    results: Iterable[Result], output: Path, plan: Plan, chosen: list[Recipe]
) -> Iterator[Result]:
    """The same results, each put on the page OUT/contact-sheet.html as it passes."""
    first, look = chosen[0], plan.output
    facts = {
        "Model": first.model, "Settings": first.settings, "Depth range": str(look.range),
        "Normals": plan.axes, "Made by": f"dmp {__version__}",
    }  # fmt: skip
    with Page(output / PAGE, output.resolve().name, plan.tasks, facts) as page:
        for result in results:
            if result.done:
                page.add(_row(result))
            yield result


def _row(result: Result) -> Row:
    job, glance = result.job, result.glance or Glance({})
    name = job.name if job.frame is None else f"{job.name} {job.frame + 1}"
    pictures = {task for task, form in result.made if form == "png"} - {SIDE_BY_SIDE}
    links = {task: job.targets[task, "png"] for task in pictures}
    return Row(
        name, glance.pictures, links, glance.captions, glance.classes,
        result.notes, "\n".join(result.errors),
    )  # fmt: skip


def movies(todo: list[Job], names: Iterable[str], options: RunOptions, talk: Talk) -> int:
    """Make an mp4 of the pictures of each clip and each folder; returns how many failed."""
    from dmp_cli import mapfiles
    from dmp_cli.inputs import clip
    from dmp_cli.outputs import movie

    failed = 0
    by_folder = {job.targets[task, "png"].parent: job for job in todo for task in names}
    for task in names:
        pictures = (job.targets[task, "png"] for job in todo)
        there = [path for path in pictures if path.exists()]
        for folder, members in movie.sequences(there).items():
            job = by_folder[folder]
            base = options.output / "sequence" if folder == options.output else folder
            target = base.with_name(f"{base.name}.{task}.mp4")
            try:
                rate = options.fps or (24 if job.frame is None else clip.describe(job.source).rate)
                movie.write(target, members, Fraction(rate), mapfiles.text(members[0]))
            except ImageError as error:
                talk.fail(f"failed: {shown(target)}: {error}")
                failed += 1
                continue
            talk.note(f"{shown(target)}: {count(len(members), 'picture')}")
            _tell(job, task, target, talk)
    return failed


def _tell(job: Job, task: str, target: Path, talk: Talk) -> None:
    source = job.source if job.frame is not None else job.source.parent
    made = {"task": task, "format": "mp4", "path": str(target)}
    record = {"input": str(source), "status": "done", "outputs": [made]}
    talk.output(json.dumps(record) if talk.as_json else str(target))
