"""`dmp data check`: what a training set holds. The app takes the other verbs of `dmp data` too."""

import json as json_
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from dmp_cli import tasks
from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, count

if TYPE_CHECKING:
    from dmp_cli.maps import Reading
    from dmp_cli.survey import Content, Measured, Report, TaskReport

_SHOWN = 20  # faults; the rest is counted
_CLASSES = 6
_SIZES = 4
_WIDTH = 80

app = typer.Typer(help="Make or check a training set.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of images and maps: see docs/data.md.")
]
Names = Annotated[
    str | None,
    typer.Option("--tasks", metavar="LIST", autocompletion=opt.complete_tasks,
                 help="Tasks to look for, with commas; without it, all that have maps."),
]  # fmt: skip
Unit = Annotated[float, typer.Option(help="Metres per step of depth in whole numbers.")]
Axes = Annotated[
    str,
    typer.Option(help='Of the normals: opengl, directx, opencv, or letters such as "-x y z".',
                 autocompletion=lambda: ("opengl", "directx", "opencv")),
]  # fmt: skip
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object.", rich_help_panel=opt.TALK),
]


@app.command("check")
def check(
    folder: Folder,
    names: Names = None,
    unit: Unit = 0.001,
    axes: Axes = "opengl",
    json: Json = False,
    quiet: opt.Quiet = False,
    progress: opt.Progress = True,
) -> None:
    """Read each image and map of a training set and say what is there and what is wrong.

    Exits with 0 if dmp train can use all of it, with 3 if not.

    dmp data check rooms/

    dmp data check rooms/ --tasks depth,normals --unit 0.00025 --axes opencv
    """
    from dmp_cli import maps, survey

    talk = Talk(quiet, progress=progress)
    how = maps.Reading(unit, axes)
    maps.check(how)
    rows = tasks.find_several(names) if names else tuple(tasks.TASKS.values())
    content = survey.find(folder, rows, every=bool(names))
    found = survey.report(content, _measured(content, how, talk))
    if json:
        talk.output(json_.dumps({"folder": str(folder), **found.plain()}))
    else:
        talk.output("\n".join(_lines(found)))
    for note in found.notes:
        talk.note(note)
    if found.faults:
        raise typer.Exit(3)


def _measured(content: "Content", how: "Reading", talk: Talk) -> Iterator["Measured"]:
    """Every image with its maps, in order, on a few threads, with few waiting."""
    from dmp_cli import survey
    from dmp_cli.engines.stream import ordered_map

    hidden = None if talk.progress and not talk.quiet else True
    workers = min(os.cpu_count() or 1, 8)
    total = len(content.samples)
    with tqdm(
        total=total, unit="image", file=sys.stderr, disable=hidden, dynamic_ncols=True
    ) as bar:
        for one in ordered_map(
            lambda sample: survey.measure(sample, content, how),
            content.samples, workers, ahead=2 * workers,
        ):  # fmt: skip
            yield one
            bar.update()


# What is printed --------------------------------------------------------------------------


def _lines(found: "Report") -> Iterator[str]:
    yield ", ".join([count(found.images, "image"), *_sizes(found.sizes)])
    yield f"{count(found.captions, 'caption')}"
    for name, one in found.tasks.items():
        yield ""
        yield from _task(name, one)
    yield ""
    for line in found.faults[:_SHOWN]:
        yield f"fault: {line}"
    more = len(found.faults) - _SHOWN
    if more > 0:
        yield f"and {count(more, 'more fault')}; --json names all"
    if not found.faults:
        yield "all of it can be used"


def _task(name: str, one: "TaskReport") -> Iterator[str]:
    kinds = ", ".join(f"{number} {kind}" for kind, number in one.kinds.items())
    yield f"{name}, {one.unit}: {count(one.maps, 'map')}" + (f" ({kinds})" if kinds else "")
    lacks = {"cannot be used": one.refused, "missing": one.missing}
    rows = {
        "faults": [f"{number} {what}" for what, number in lacks.items() if number],
        "sizes": _sizes(one.sizes),
        "values": [f"{key} {round(value, 4):.4g}" for key, value in one.range.items()],
        "classes": _classes(one.classes),
        "pixels": [f"{key} {_percent(value)}" for key, value in one.shares.items()],
    }
    for title, items in rows.items():
        text = ", ".join(item.replace(" ", "\xa0") for item in items)  # lines break between items
        lines = wrap(text, _WIDTH, initial_indent=f"  {title:<9}", subsequent_indent=" " * 11)
        yield from (line.replace("\xa0", " ") for line in lines)


def _sizes(sizes: Mapping[str, int]) -> list[str]:
    """The most frequent sizes, with their number where there are several."""
    if len(sizes) == 1:
        return list(sizes)
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    shown = [f"{number} of {size}" for size, number in ordered[:_SIZES]]
    more = len(ordered) - _SIZES
    return [*shown, f"{more} other sizes"] if more > 0 else shown


def _classes(classes: Mapping[str, float]) -> list[str]:
    shown = [f"{name} {_percent(share)}" for name, share in list(classes.items())[:_CLASSES]]
    more = len(classes) - _CLASSES
    return [*shown, f"{more} more"] if more > 0 else shown


def _percent(share: float) -> str:
    """`0%` is none at all."""
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%" if share else "0%"
