"""`dmp eval`: how far predicted maps are from the truth."""

import json as json_
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from tqdm import tqdm

from dmp_cli import __version__, tasks
from dmp_cli.commands import options as opt
from dmp_cli.commands import parse
from dmp_cli.commands.report import Talk, count, shown
from dmp_cli.commands.scores import Scores, lines, record
from dmp_cli.errors import NoInputError, ResourceError, UsageError
from dmp_cli.metrics import ALIGNMENTS

if TYPE_CHECKING:
    from dmp_cli.answers import Answer
    from dmp_cli.evaluate import How, Run
    from dmp_cli.matching import Match, Matched

COUNTED, BESIDE = "What counts", "What else is shown"
R = TypeVar("R")

Prediction = Annotated[
    Path, typer.Argument(metavar="PRED", help="Predicted map, or folder of such.")
]
Truth = Annotated[
    Path, typer.Argument(metavar="TRUTH", help="True map, folder of such, or root of a data set.")
]
OfTask = Annotated[
    str,
    typer.Option("--task", "-t", help="What the maps are: a name that dmp tasks shows.",
                 autocompletion=opt.complete_tasks),
]  # fmt: skip
Align = Annotated[
    str,
    typer.Option(help="Fit predicted depth to the truth of its image first: none, scale, or affine "
                 "(scale and shift).", rich_help_panel=COUNTED,
                 autocompletion=lambda: ALIGNMENTS),
]  # fmt: skip
Limits = Annotated[
    str,
    typer.Option("--range", metavar="LO,HI", rich_help_panel=COUNTED,
                 help="Metres of true depth that count; auto: all above 0."),
]  # fmt: skip
Mask = Annotated[
    Path | None,
    typer.Option(help="What is not black counts: one file for all images, or a folder.",
                 rich_help_panel=COUNTED),
]  # fmt: skip
SkipMissing = Annotated[
    bool,
    typer.Option(
        "--skip-missing", help="Accept truths without a prediction.", rich_help_panel=COUNTED
    ),
]
Unit = Annotated[
    float,
    typer.Option(help="Metres per step of true depth in whole numbers.", rich_help_panel=opt.FILES),
]
Axes = Annotated[
    str,
    typer.Option(help='Axes of true normals: opengl, directx, opencv, or letters like "-x y z".',
                 rich_help_panel=opt.FILES, autocompletion=lambda: tuple(tasks.AXES)),
]  # fmt: skip
PredUnit = Annotated[
    float,
    typer.Option(help="Metres per step of predicted depth in whole numbers.",
                 rich_help_panel=opt.FILES),
]  # fmt: skip
PredAxes = Annotated[
    str,
    typer.Option(help="Axes of predicted normals.", rich_help_panel=opt.FILES,
                 autocompletion=lambda: tuple(tasks.AXES)),
]  # fmt: skip
Baseline = Annotated[
    bool,
    typer.Option("--baseline", help="Also what the best constant answer gives.",
                 rich_help_panel=BESIDE),
]  # fmt: skip
Images = Annotated[
    Path | None,
    typer.Option(help="Also what these images themselves give, for albedo and shading.",
                 rich_help_panel=BESIDE),
]  # fmt: skip
Worst = Annotated[
    int, typer.Option(help="How many of the worst images to name.", min=0, rich_help_panel=BESIDE)
]
Csv = Annotated[
    Path | None,
    typer.Option(help="File for the numbers of each image.", rich_help_panel=opt.TALK),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of the table.",
                 rich_help_panel=opt.TALK),
]  # fmt: skip


def evaluate(
    prediction: Prediction,
    truth: Truth,
    task: OfTask,
    align: Align = "none",
    range_: Limits = "auto",
    mask: Mask = None,
    skip_missing: SkipMissing = False,
    unit: Unit = 0.001,
    axes: Axes = "opengl",
    pred_unit: PredUnit = 0.001,
    pred_axes: PredAxes = "opengl",
    baseline: Baseline = False,
    images: Images = None,
    worst: Worst = 5,
    csv: Csv = None,
    json: Json = False,
    quiet: opt.Quiet = False,
    progress: opt.Progress = True,
) -> None:
    """Compare predicted maps with the truth, file by file. Loads no model.

    dmp eval out/ data/depth --task depth

    dmp eval out/ data/ -t depth --align affine --range 0.1,10 --csv depth.csv

    dmp eval out/ data/ -t albedo --images data/images --json
    """
    from dmp_cli import matching
    from dmp_cli.evaluate import write_csv

    talk = Talk(quiet, progress=progress)
    how = _how(task, align, range_, (unit, axes), (pred_unit, pred_axes))
    if images and how.task.measured != "light":
        raise UsageError(f"--images does not go with {task}: it is for albedo and shading")
    matched = matching.find(prediction, truth, how.task, mask, images)
    _tell(matched, skip_missing, talk)
    if csv:
        _check_csv(csv)
    kind = "image" if images else "constant" if baseline else ""
    run, answer = _compare(matched.matches, how, kind, talk)
    files = {"prediction": prediction, "truth": truth, "mask": mask, "images": images}
    if run.rows:
        scores = Scores(run, answer, worst, _settings(how, files), matched.missing)
        talk.output(json_.dumps(record(scores)) if json else "\n".join(lines(scores)))
    if run.rows and csv:
        write_csv(csv, run.rows)
    if run.failed or (matched.missing and not skip_missing):
        raise typer.Exit(3)
    if not run.rows:
        raise NoInputError("no pixel of any truth counts", "check --range, --mask and --unit")


def _settings(how: "How", files: dict[str, Path | None]) -> dict[str, Any]:
    """What a number depends on, for the record."""
    return {
        "dmp": __version__,
        **{name: path and str(path) for name, path in files.items()},
        "align": how.align,
        "range": how.limits,
        "unit": how.truth.unit,
        "axes": how.truth.axes,
        "pred_unit": how.prediction.unit,
        "pred_axes": how.prediction.axes,
    }


def _how(
    name: str, align: str, limits: str, truth: tuple[float, str], prediction: tuple[float, str]
) -> "How":
    """What was asked for, checked before a file is opened."""
    from dmp_cli import maps
    from dmp_cli.evaluate import How

    task = tasks.find(name)
    if align not in ALIGNMENTS:
        raise UsageError(f"unknown alignment {align!r}", f"known: {', '.join(ALIGNMENTS)}")
    metres = parse.metres(limits)
    if task.measured != "depth" and (metres or align != "none"):
        raise UsageError(f"--align and --range do not go with {task.name}: they are for depth")
    readings = maps.Reading(*prediction), maps.Reading(*truth)
    for reading in readings:
        maps.check(reading)
    return How(task, align, metres, *readings)


def _check_csv(csv: Path) -> None:
    """ResourceError before the work is done, not after it."""
    from dmp_cli.files import check_writable

    if csv.is_dir():
        raise ResourceError(f"{csv} cannot be written: it is a folder", "choose another --csv")
    try:
        check_writable(csv.parent)
    except ResourceError as error:
        why = f"{csv} cannot be written: {error}"
        raise ResourceError(why, "choose another --csv") from error


def _tell(matched: "Matched", accepted: bool, talk: Talk) -> None:
    """What has no counterpart."""
    if matched.by_name:
        talk.note("no folders agree: files are matched by their names alone")
    if matched.spare:
        talk.note(f"without a truth, left out: {_some(matched.spare)}")
    if matched.missing and accepted:
        talk.note(f"without a prediction, left out: {_some(matched.missing)}")
    elif matched.missing:
        talk.fail(f"no prediction for {_some(matched.missing)}; --skip-missing accepts that")


def _some(paths: tuple[Path, ...]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return f"{', '.join(map(shown, paths[:5]))}{more}"


def _compare(
    todo: "tuple[Match, ...]", how: "How", kind: str, talk: Talk
) -> "tuple[Run, Answer | None]":
    """Each match, and the trivial answer of a kind ("constant", "image" or ""), in order."""
    from dmp_cli import answers
    from dmp_cli import evaluate as ev

    run, notes = ev.Run(how.task), Counter[str]()
    answer = answers.IMAGE if kind == "image" else None
    hidden = None if talk.progress and not talk.quiet else True
    total = len(todo) * (2 if kind == "constant" else 1)
    bar = tqdm(total=total, unit="map", file=sys.stderr, disable=hidden, dynamic_ncols=True)
    with bar:
        if kind == "constant":
            sums = _each(lambda match: ev.sums_of(match, how), todo, bar)
            answer = answers.constant(how.task, sums)
        for compared in _each(lambda match: ev.compare(match, how, answer), todo, bar):
            run.add(compared)
            notes.update(compared.notes)
            if compared.error:
                talk.fail(f"failed: {compared.error}")
    for note, often in notes.items():
        talk.note(f"{often} of {count(len(todo), 'map')}: {note}")
    for hint in dict.fromkeys(one.hint for one in run.failed if one.hint):
        talk.fail(f"hint: {hint}")
    if run.failed:
        talk.fail(f"{len(run.failed)} of {count(len(todo), 'map')} failed")
    return run, answer


def _each(
    function: "Callable[[Match], R]", todo: "tuple[Match, ...]", bar: "tqdm[NoReturn]"
) -> Iterator[R]:
    """`function` of each match in order, on a few threads, with few waiting."""
    from dmp_cli.engines.stream import ordered_map

    workers = min(os.cpu_count() or 1, 4)
    for result in ordered_map(function, todo, workers, ahead=2 * workers):
        yield result
        bar.update()
