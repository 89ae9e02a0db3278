"""`dmp weights path`: where the weights lie."""

import typer

from dmp_cli.commands import options as opt
from dmp_cli.commands import weights_options as own
from dmp_cli.errors import ModelError


def path(
    model: own.Model = None,
    task: own.Task = None,
    tiny_decoder: own.TinyDecoder = False,
    dtype: own.Dtype = "auto",
    weights: opt.Weights = None,
) -> None:
    """Print the folder of imported weights; with MODEL, where its backbone and its LoRAs lie.

    With --task or --tiny-decoder, but without MODEL, it is the one that a run takes. No server is
    asked.
    """
    from dmp_cli.sources import remedy
    from dmp_cli.store import home

    if model is None and task is None and not tiny_decoder:
        typer.echo(home())
        return
    chosen = own.choose(model, task, weights).of_run(tiny_decoder)
    for part in chosen.parts:
        if part.source and not part.here:
            if not part.source.repo:
                raise ModelError(part.absent, remedy(part.source))
            raise ModelError(
                f"{part.source}: {part.absent} is not on this machine",
                f"run: {part.source.repository.command}",
            )
    for found in own.places(chosen, own.half(dtype, chosen.backbone.source)):
        typer.echo(found)
