"""`dmp bench`: how fast this machine is with images and a model of the user, and why."""

import json as json_
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from dmp_cli import jobs, signals, tasks
from dmp_cli.commands import bench_report, fetch
from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, shown
from dmp_cli.commands.run import frames
from dmp_cli.commands.run_options import RunOptions, with_run_options
from dmp_cli.errors import UsageError
from dmp_cli.plan import Plan
from dmp_cli.weights import beside, recipes

if TYPE_CHECKING:  # they need numpy and torch, which take time that `dmp --help` has not
    from dmp_cli.bench.figures import Figures

_LEAST, _MOST = 0.1, 86_400.0  # seconds
_OPTIONS = {
    "recursive", "formats", "exr_layout", "exr_compression", "max_pixels", "exposure", "model",
    "weights", "offline", "steps", "sampler", "spacing", "prediction", "final", "fast",
    "tiny_decoder", "prompt", "guidance", "size", "device", "dtype", "batch", "low_memory",
    "readers", "writers", "quiet",
}  # fmt: skip


@partial(with_run_options, only=_OPTIONS)
def bench(
    options: RunOptions,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Files, folders, quoted patterns, URLs."),
    ] = None,
    task: Annotated[
        str,
        typer.Option("--task", "--tasks", metavar="LIST", help="With commas, or all.",
                     autocompletion=opt.complete_tasks, rich_help_panel=opt.FILES),
    ] = "depth",
    seconds: Annotated[
        float,
        typer.Option(help="To measure, once the model is loaded and warm.", metavar="SECONDS",
                     rich_help_panel=opt.RUN),
    ] = 60.0,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=opt.TALK)
    ] = False,
) -> None:  # fmt: skip
    """Measure this machine with images and a model of yours, in about a minute.

    Each stage by itself, then a run as any other; images are taken again if they are too few.

    The maps go to a temporary folder and are deleted.

    dmp bench photos/ --model demo

    dmp bench photos/ --tasks all --fast --json
    """
    if not _LEAST <= seconds <= _MOST:
        raise UsageError(f"--seconds {seconds:g}: must be from {_LEAST:g} to {_MOST:g}")
    if not inputs:
        raise UsageError("give images to measure with", "dmp bench photos/")
    names = tuple(
        row.name for row in tasks.find_several(list(tasks.TASKS) if task == "all" else task)
    )
    talk, failed = options.talk(), dict[str, str]()
    with signals.heeded(), TemporaryDirectory(prefix="dmp-bench-") as folder:
        here = replace(options, output=Path(folder))
        figures = _measured(here, here.plan(names), inputs, seconds, _telling(talk, failed))
    if json:
        talk.output(json_.dumps(bench_report.record(figures, failed)))
    else:
        talk.output("\n".join(bench_report.lines(figures)))
    if failed:
        raise typer.Exit(3)


def _telling(talk: Talk, failed: dict[str, str]) -> Callable[[Path, str], None]:
    """What tells of an input that failed, and keeps why."""

    def tell(path: Path, why: str) -> None:
        failed[shown(path)] = why
        talk.fail(f"failed: {shown(path)}: {why}")

    return tell


def _measured(
    options: RunOptions, plan: Plan, inputs: list[str], seconds: float,
    failed: Callable[[Path, str], None],
) -> "Figures":  # fmt: skip
    """Find inputs and model, refuse what is not there before torch is loaded, and measure."""
    talk, out = options.talk(), options.output
    found = jobs.find(inputs, out, talk.note, options.recursive, tuple(tasks.TASKS))
    chosen = recipes(plan)
    backbone, others = chosen[0].backbone, beside(chosen)
    fetch.ready(backbone, others, fetch.half_of(plan.device, plan.dtype), options.offline)
    from dmp_cli.bench.passes import Supply, readable
    from dmp_cli.host import Host

    supply = Supply(list(frames(found, talk)), out, plan)
    readable(Host(plan, {recipe.task: recipe for recipe in chosen}), supply, failed)
    talk.note(f"loading model {chosen[0].model}")
    start = time.perf_counter()
    from dmp_cli.bench.measure import measure
    from dmp_cli.device import choose

    imports = time.perf_counter() - start
    half = choose(plan.device, plan.dtype).dtype_name == "fp16"
    fetch.fetch([backbone, *others], half, talk)
    return measure(plan, supply, seconds, imports, talk.note, failed)
