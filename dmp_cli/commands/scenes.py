"""`dmp data scenes`: invented scenes with exact maps, to train and measure on."""

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, count

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the data set.")]
Seed = Annotated[int, typer.Option(min=0, help="Which scenes: the same seed, the same bytes.")]
Size = Annotated[int, typer.Option(min=16, max=4096, help="Width and height in pixels.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes; 0: one for each core.", rich_help_panel=opt.RUN)
]


def scenes(
    out: Out,
    number: Annotated[int, typer.Option("--count", min=1, help="How many scenes.")],
    seed: Seed = 0,
    size: Size = 256,
    workers: Workers = 0,
    quiet: opt.Quiet = False,
    progress: opt.Progress = True,
) -> None:
    """Make lit rooms and yards with exact maps of all five tasks, and captions.

    A scene that is there is not made again, so a larger --count adds scenes, and a run that was
    cut off goes on.

    dmp data scenes train --count 5000 --seed 1
    """
    from dmp_cli.scenes.write import Order, write

    talk = Talk(quiet, progress=progress)
    # so that the workers are sent home
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hidden = None if progress and not quiet else True
    start, made = time.monotonic(), 0
    bar = tqdm(total=number, unit="scene", file=sys.stderr, disable=hidden, dynamic_ncols=True)
    try:
        with bar:
            for _ in write(out, Order(number, seed, size), workers):
                made += 1
                bar.update()
    except KeyboardInterrupt:
        talk.fail(f"interrupted at {made} of {count(number, 'scene')}; run it again to go on")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    talk.note(f"{count(number, 'scene')} in {time.monotonic() - start:.1f} s")
    talk.output(str(out))
