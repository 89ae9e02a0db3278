"""What every command that predicts does: inputs, checks, the engine, and its results followed."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from dmp_cli import jobs, marks, tasks
from dmp_cli.catalogue import load
from dmp_cli.commands import fetch, parse, texts
from dmp_cli.commands.pages import PAGE, gathered, make, on_page
from dmp_cli.commands.report import Talk, count, follow, shown
from dmp_cli.commands.run_options import RunOptions
from dmp_cli.errors import ImageError, UsageError
from dmp_cli.outputs import sheet
from dmp_cli.plan import Plan
from dmp_cli.weights import Recipe, completed, recipes, stands_in_for


def run(plan: Plan, inputs: list[str], options: RunOptions) -> None:
    """Find the inputs, then predict them as planned, or print what would be written."""
    parse.fps(options.fps, options.video)
    if options.video:
        _check_video(plan)
    talk = options.talk()
    items = list(_frames(_inputs(inputs, options, talk), talk))
    todo = jobs.plan_targets(items, options.output, plan.tasks, plan.output, options.keep_suffix)
    _check_foreign(plan, todo, options)
    movies = jobs.plan_movies(todo, options.output, plan.tasks) if options.video else []
    chosen = recipes(plan)
    found = texts.find(todo, options)
    if options.dry_run:
        for job in todo:
            for path in dict.fromkeys(job.targets.values()):
                talk.output(str(path))
        for movie in movies:
            talk.output(str(movie.target))
        return
    _prepare(plan, chosen, options, talk)
    todo = texts.complete(found, plan, options, talk)
    _predict(plan, chosen, todo, movies, options, talk)


def _check_foreign(plan: Plan, todo: list[jobs.Job], options: RunOptions) -> None:
    """UsageError if the legend or the contact sheet would replace a file that dmp did not write."""
    files = []
    if any(tasks.find(name).labels for name in plan.tasks):
        files += [options.output / name for name in marks.LEGENDS]
    if options.contact_sheet:
        files += sheet.pages(options.output / PAGE, len(todo))
    for path in filter(marks.foreign, files):
        raise UsageError(
            f"{path} would be overwritten, and dmp did not write it",
            "move it, or choose another -o",
        )


def _check_video(plan: Plan) -> None:
    from dmp_cli.inputs import clip

    if "png" not in plan.output.formats:
        raise UsageError("--video is made of pictures", "add png to --format")
    clip.require(writing=True)


def _prepare(plan: Plan, chosen: list[Recipe], options: RunOptions, talk: Talk) -> None:
    """Check what can be before a model is loaded, and fetch what is not on this machine.

    First what is known without torch, which takes seconds to import.
    """
    from dmp_cli import files

    backbone, loras = chosen[0].backbone, [recipe.lora for recipe in chosen]
    half = fetch.half_of(plan.device, plan.dtype)
    fetch.ready(backbone, loras, half, options.offline)
    files.check_writable(options.output)
    from dmp_cli.device import choose

    placement = choose(plan.device, plan.dtype)
    fetch.fetch([backbone, *loras], placement.dtype_name == "fp16", talk)
    _write_labels(plan, chosen, options.output, talk)


def _predict(
    plan: Plan,
    chosen: list[Recipe],
    todo: list[jobs.Job],
    movies: list[jobs.Movie],
    options: RunOptions,
    talk: Talk,
) -> None:
    """Run the plan, follow it, and make the movies of what it made."""
    _tell_model(plan, chosen, talk)
    talk.detail(f"{count(len(todo), 'image')}; backbone {chosen[0].backbone}")
    from dmp_cli.engines import local

    pictures: set[Path] = set()
    results = gathered(local.run(plan, todo, talk.note, options.output), pictures)
    if plan.output.thumbnail:
        results = on_page(results, options.output, plan, chosen)
    failed = follow(results, len(todo), talk)
    failed += make(movies, pictures, plan, options.fps, talk)
    if failed:
        raise typer.Exit(3)


def _tell_model(plan: Plan, chosen: list[Recipe], talk: Talk) -> None:
    first = chosen[0]
    for recipe in map(completed, chosen) if talk.verbose else ():
        talk.detail(f"{recipe.task}: {recipe.lora}, {recipe.settings}")
    if first.backbone.made:
        talk.note(f"model {first.model} has random weights: its maps mean nothing")
    missing = stands_in_for(load(plan.weights), first.model, plan.model)
    if missing:
        talk.note(
            f"model {missing} has no weights here: taking {first.model} "
            f"({first.summary}). docs/weights.md says how to get those of {missing}"
        )
    talk.note(f"loading model {first.model}")


def _write_labels(plan: Plan, chosen: list[Recipe], output: Path, talk: Talk) -> None:
    """Say beside the maps what their class ids mean."""
    for recipe in chosen:
        if tasks.find(recipe.task).labels:
            from dmp_cli.classes import parse_classes
            from dmp_cli.outputs import legend

            table, picture = legend.write(output, parse_classes(plan.classes or recipe.classes))
            talk.detail(f"class ids: {table}, {picture}")


def _frames(found: Iterable[jobs.Input], talk: Talk) -> Iterator[jobs.Input]:
    """The inputs, and of each clip its frames; one that cannot be read fails in its turn."""
    for item in found:
        if item.path.suffix.lower() not in jobs.CLIPS:
            yield item
            continue
        from dmp_cli.inputs import clip

        try:
            known = clip.describe(item.path)
            frames, notes = known.frames, known.notes
        except ImageError:  # its first frame is asked for, and fails as any other input
            frames, notes = 1, ()
        for text in notes:
            talk.note(f"{shown(item.path)}: {text}")
        for index in range(frames):
            yield jobs.Input(item.path, item.below, index)


def _inputs(inputs: list[str], options: RunOptions, talk: Talk) -> list[jobs.Input]:
    files_from, output = options.files_from, options.output
    if files_from is None and inputs == ["-"]:
        files_from = "-"
    elif bool(inputs) == bool(files_from):
        raise UsageError("give either inputs or --files-from", "dmp predict depth photos/ -o out/")
    if files_from is None:
        return jobs.find(inputs, output, talk.note, options.recursive, tuple(tasks.TASKS))
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as error:
        raise UsageError(f"{files_from}: cannot be read: {error.strerror}") from error
    separator = "\0" if options.null else "\n"
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if "\0" in text and not options.null:
        raise UsageError("the list is separated by NUL", "add -0")
    lines = text.split(separator)
    names = lines if options.null else [line.removesuffix("\r") for line in lines]
    return jobs.from_list(names, output, talk.note, tuple(tasks.TASKS))
