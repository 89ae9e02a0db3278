"""What every command that predicts does: inputs, checks, the engine, and its results followed."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dmp_cli import jobs, marks, shards, signals, storage, tasks, urls
from dmp_cli.commands import night, parse, pulse, texts
from dmp_cli.commands.night import Run
from dmp_cli.commands.pages import PAGE, gathered, make, on_page
from dmp_cli.commands.report import Talk, Tally, count, follow, shown
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.errors import ImageError, UsageError
from dmp_cli.outputs import sheet
from dmp_cli.plan import ENGINES, Plan
from dmp_cli.prompts import Found
from dmp_cli.weights import recipes

if TYPE_CHECKING:  # it needs Pillow, which takes time that `dmp --help` has not
    from dmp_cli.resume import Left


def run(plan: Plan, inputs: list[str], options: RunOptions) -> None:
    """Find the inputs, then predict them as planned, or print what would be written."""
    parse.fps(options.fps, options.video)
    shard = parse.shard(options.shard, plan.output, options.video)
    parse.one_of("--engine", options.engine, ENGINES)
    parse.ray_address(options.ray_address, options.engine)
    pulse.interval()
    if options.video:
        _check_video(plan)
    talk = options.talk()
    with signals.heeded() as stop:
        items = list(frames(_inputs(inputs, options, talk), talk))
        every = jobs.plan_targets(
            items, options.output, plan.tasks, plan.output, options.keep_suffix
        )
        check_foreign(plan, every, options)
        movies = jobs.plan_movies(every, options.output, plan.tasks) if options.video else []
        todo = _part(every, shard, talk)
        here = Run(plan, recipes(plan), options, talk, stop, shard)
        _predict(here, texts.find(todo, options), movies)


def _predict(run: Run, found: Found, movies: list[jobs.Movie]) -> None:
    """Do what is left of the jobs, and make the movies of what is there then."""
    if run.options.dry_run:
        left = night.dry(run, found)
        if left.kept:
            total = count(len(found.jobs), "image")
            run.talk.note(f"{len(left.kept)} of {total} there already")
        _tell_targets(left.todo, movies, run.talk)
        return
    rest = night.left(run, found)
    if not rest.left.todo:
        night.write_labels(run, if_missing=True)
    tally = Tally(len(found.jobs))
    pictures = _there(rest.left) if movies else set()  # else 100,000 paths are held for nobody
    with night.results(run, rest, tally) as made:
        results = gathered(made, pictures) if movies else made
        if run.plan.output.thumbnail:
            results = on_page(results, run.options.output, run.plan, run.chosen, found.jobs)
        failed = follow(results, tally, run.talk)
    night.tell_end(run, tally)
    failed += make(movies, pictures, run.plan, run.options.fps, run.talk)
    if failed:
        raise typer.Exit(3)


def _there(left: "Left") -> set[Path]:
    """The pictures that were there before, of jobs that lack something else too."""
    partly = (*left.todo, *(job for job, _ in left.failed))
    made = chain((job.targets for job in left.kept), (job.there for job in partly))
    return {path for files in made for (_, form), path in files.items() if form == "png"}


def _part(every: list[jobs.Job], shard: shards.Shard | None, talk: Talk) -> list[jobs.Job]:
    todo = shards.part(every, shard)
    if shard:
        number, among = shard
        talk.note(f"part {number} of {among}: {len(todo)} of {count(len(every), 'image')}")
    return todo


def _tell_targets(todo: list[jobs.Job], movies: list[jobs.Movie], talk: Talk) -> None:
    for job in todo:
        for path in dict.fromkeys(job.targets.values()):
            talk.output(urls.shown(path))
    for movie in movies:
        talk.output(urls.shown(movie.target))


def check_foreign(plan: Plan, todo: list[jobs.Job], options: RunOptions) -> None:
    """UsageError if the legend or the contact sheet would replace a file that dmp did not write."""
    files = []
    if any(tasks.find(name).labels for name in plan.tasks):
        files += [options.output / name for name in marks.LEGENDS]
    if options.contact_sheet:
        files += sheet.pages(options.output / PAGE, len(todo))
    for path in filter(marks.foreign, files):
        raise UsageError(
            f"{urls.shown(path)} would be overwritten, and dmp did not write it",
            "move it, or choose another -o",
        )


def _check_video(plan: Plan) -> None:
    from dmp_cli.inputs import clip

    if "png" not in plan.output.formats:
        raise UsageError("--video is made of pictures", "add png to --format")
    clip.require(writing=True)


def frames(found: Iterable[jobs.Input], talk: Talk) -> Iterator[jobs.Input]:
    """The inputs, and of each clip its frames; one that cannot be read fails in its turn."""
    for item in found:
        if item.path.suffix.lower() not in jobs.CLIPS:
            yield item
            continue
        from dmp_cli.inputs import clip

        try:
            with storage.fetched(item.path) as file:
                known = clip.describe(file)
            frames, notes = known.frames, known.notes
        except ImageError:  # its first frame is asked for, and fails as any other input
            frames, notes = 1, ()
        for text in notes:
            talk.note(f"{shown(item.path)}: {text}")
        for index in range(frames):
            yield jobs.Input(item.path, item.below, index)


def check_order(task: str, inputs: list[str]) -> None:
    """Words in the wrong place are told as such, not as files that are missing."""
    if Path(task).exists() and task not in tasks.TASKS:
        raise UsageError(
            f"{task} is a file or folder", "the task comes first: dmp predict TASK ..."
        )
    stray = [text for text in inputs if text in tasks.TASKS and not Path(text).exists()]
    if stray:
        raise UsageError(
            f"{stray[0]} is a task, not a file", f"join tasks with commas: {task},{stray[0]}"
        )


def _inputs(inputs: list[str], options: RunOptions, talk: Talk) -> list[jobs.Input]:
    files_from, output = options.files_from, options.output
    if files_from is None and inputs == ["-"]:
        files_from = "-"
    elif bool(inputs) == bool(files_from):
        raise UsageError("give either inputs or --files-from", "dmp predict depth photos/ -o out/")
    if files_from is None:
        return jobs.find(inputs, output, talk.note, options.recursive, tuple(tasks.TASKS))
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else _list(Path(files_from))
    except OSError as error:
        raise UsageError(f"{files_from}: cannot be read: {error.strerror}") from error
    separator = "\0" if options.null else "\n"
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if "\0" in text and not options.null:
        raise UsageError("the list is separated by NUL", "add -0")
    if options.null and "\0" not in text and "\n" in text.rstrip("\n"):
        raise UsageError("the list is separated by ends of lines", "leave out -0")
    lines = text.split(separator)
    names = lines if options.null else [line.removesuffix("\r") for line in lines]
    return jobs.from_list(names, output, talk.note, tuple(tasks.TASKS))


def _list(path: Path) -> bytes:
    """The bytes of a list; UsageError for a device, which may have no end."""
    with path.open("rb") as file:
        device = path.is_block_device() or path.is_char_device()
        if device and not file.isatty():
            raise UsageError(f"{path}: a device, not a list", "name a file, or - for a pipe")
        return file.read()
