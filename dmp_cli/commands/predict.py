"""`dmp predict`: one or several maps of each image."""

from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import tasks
from dmp_cli.commands import options as opt
from dmp_cli.commands.run import run
from dmp_cli.commands.run_options import RunOptions, with_run_options
from dmp_cli.errors import UsageError


@with_run_options
def predict(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="depth, normals, segmentation, albedo, shading; with commas.",
            autocompletion=opt.complete_tasks,
        ),
    ],
    options: RunOptions,
    inputs: opt.Inputs = None,
) -> None:
    """Predict maps of images: a file per task and image, at the size of the image.

    dmp predict depth photos/ -o out/

    dmp predict depth,normals 'shots/*/*.jpg' -o out/ --format png,npy

    find . -name '*.png' -print0 | dmp predict depth - -0 -o out/
    """
    _check_order(task, inputs or [])
    names = tuple(row.name for row in tasks.find_several(task))
    run(options.plan(names), inputs or [], options)


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
