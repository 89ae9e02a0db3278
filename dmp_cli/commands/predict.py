"""`dmp predict`: one or several maps of each image."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import jobs, tasks
from dmp_cli.catalogue import load
from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, count, follow
from dmp_cli.errors import UsageError
from dmp_cli.plan import Plan, Settings
from dmp_cli.weights import Recipe, completed, recipes, stands_in_for


def predict(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="depth, normals, segmentation, albedo, shading; with commas.",
            autocompletion=opt.complete_tasks,
        ),
    ],
    output: opt.Output,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Files, folders, quoted patterns; - for a list."),
    ] = None,
    files_from: opt.FilesFrom = None,
    null: opt.Null = False,
    recursive: opt.Recursive = True,
    formats: opt.Formats = "png",
    keep_suffix: opt.KeepSuffix = False,
    max_pixels: opt.MaxPixels = 100_000_000,
    dry_run: opt.DryRun = False,
    model: opt.Model = None,
    weights: opt.Weights = None,
    steps: opt.Steps = None,
    sampler: opt.Sampler = None,
    spacing: opt.Spacing = None,
    prediction: opt.Prediction = None,
    final: opt.Final = None,
    prompt: opt.Prompt = None,
    guidance: opt.Guidance = None,
    size: opt.Size = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    batch: opt.Batch = "auto",
    colormap: opt.Colormap = "Spectral",
    invert: opt.Invert = False,
    range_: opt.Range = "auto",
    normals: opt.Normals = "opengl",
    classes: opt.Classes = None,
    json: opt.Json = False,
    print0: opt.Print0 = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    progress: opt.Progress = True,
) -> None:
    """Predict maps of images: a file per task and image, at the size of the image.

    dmp predict depth photos/ -o out/

    dmp predict depth,normals 'shots/*/*.jpg' -o out/ --format png,npy

    find . -name '*.png' -print0 | dmp predict depth - -0 -o out/
    """
    talk = Talk(quiet, verbose, progress, json, "\0" if print0 else "\n")
    settings = Settings(
        steps=steps, sampler=sampler, spacing=spacing, prediction=prediction, final=final,
        size=size, prompt=prompt, guidance=guidance,
    )  # fmt: skip
    _check_order(task, inputs or [])
    plan = Plan(
        tasks=tuple(row.name for row in tasks.find_several(task)),
        model=model, weights=weights, settings=settings, device=device, dtype=dtype,
        batch=_batch(batch), max_pixels=max_pixels, axes=normals, classes=classes,
        formats=_formats(formats), colormap=_colormap(colormap), invert=invert,
        range=opt.parse_range(range_),
    )  # fmt: skip
    found = _inputs(inputs or [], files_from, "\0" if null else "\n", output, talk, recursive)
    todo = jobs.plan_targets(found, output, plan.tasks, plan.formats, keep_suffix)
    chosen = recipes(plan)
    if dry_run:
        for job in todo:
            for path in job.targets.values():
                talk.output(str(path))
        return
    run(plan, chosen, todo, output, talk)


def run(plan: Plan, chosen: list[Recipe], todo: list[jobs.Job], output: Path, talk: Talk) -> None:
    """Check device and output folder before a model is loaded, then run the plan and follow it."""
    from dmp_cli import files
    from dmp_cli.device import choose

    first = chosen[0]
    choose(plan.device, plan.dtype)
    files.check_writable(output)
    talk.detail(f"{count(len(todo), 'image')}; backbone {first.backbone}")
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
    from dmp_cli.engines import local

    follow(local.run(plan, todo, talk.note), len(todo), talk)


def _check_order(task: str, inputs: list[str]) -> None:
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


def _inputs(
    inputs: list[str],
    files_from: str | None,
    separator: str,
    output: Path,
    talk: Talk,
    recursive: bool,
) -> list[jobs.Input]:
    if files_from is None and inputs == ["-"]:
        files_from = "-"
    elif bool(inputs) == bool(files_from):
        raise UsageError("give either inputs or --files-from", "dmp predict depth photos/ -o out/")
    if files_from is None:
        return jobs.find(inputs, output, talk.note, recursive, tuple(tasks.TASKS))
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as error:
        raise UsageError(f"{files_from}: cannot be read: {error.strerror}") from error
    lines = data.decode("utf-8", "surrogateescape").split(separator)
    names = lines if separator == "\0" else [line.removesuffix("\r") for line in lines]
    return jobs.from_list(names, output, talk.note, tuple(tasks.TASKS))


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in formats if word not in jobs.EXTENSIONS]
    if unknown or not formats:
        raise UsageError(
            f"unknown format {', '.join(unknown) or text!r}", f"known: {', '.join(jobs.EXTENSIONS)}"
        )
    return formats


def _batch(text: str) -> int:
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch {text}: must be a number from 1 on, or auto")
    return int(text)


def _colormap(name: str) -> str:
    from dmp_cli.colour import COLORMAPS

    names = {known.lower(): known for known in COLORMAPS} | {"gray": "grey"}
    if name.lower() not in names:
        raise UsageError(f"unknown colour map {name!r}", f"known: {', '.join(COLORMAPS)}")
    return names[name.lower()]
