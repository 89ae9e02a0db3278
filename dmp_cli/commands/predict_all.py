"""`dmp predict-all`: all maps of each image, from one backbone and one reading."""

from typing import Annotated

import typer

from dmp_cli import tasks
from dmp_cli.commands import options as opt
from dmp_cli.commands.run import run
from dmp_cli.commands.run_options import RunOptions, with_run_options


@with_run_options
def predict_all(
    options: RunOptions,
    inputs: opt.Inputs = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="LIST",
            help="Only these, with commas.",
            autocompletion=opt.complete_tasks,
            rich_help_panel=opt.FILES,
        ),
    ] = None,
    exr_per_task: Annotated[
        bool,
        typer.Option(
            "--exr-per-task",
            help="An EXR for each task instead of one with a layer for each.",
            rich_help_panel=opt.FILES,
        ),
    ] = False,
) -> None:
    """Predict all maps of images: each is read and encoded once; one EXR holds all its layers.

    dmp predict-all photos/ -o out/

    dmp predict-all 'shots/**/*.exr' -o out/ --format exr --exr-layout blender
    """
    names = tuple(
        row.name for row in tasks.find_several(list(tasks.TASKS) if only is None else only)
    )
    run(options.plan(names, merged=not exr_per_task), inputs or [], options)
