"""`dmp predict`: one or several maps of each image."""

from typing import Annotated

import typer

from dmp_cli import tasks
from dmp_cli.commands import options as opt
from dmp_cli.commands.run import check_order, run
from dmp_cli.commands.run_options import RunOptions, with_run_options


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
    check_order(task, inputs or [])
    names = tuple(row.name for row in tasks.find_several(task))
    run(options.plan(names), inputs or [], options)
