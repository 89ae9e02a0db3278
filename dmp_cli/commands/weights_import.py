"""`dmp weights import`: LoRA files of others into the store."""

import json as json_
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmp_cli.commands import options as opt
from dmp_cli.commands.report import Talk, plain, shown
from dmp_cli.errors import DmpError, UsageError
from dmp_cli.plan import FINALS, PREDICTIONS, SAMPLERS, SPACINGS

if TYPE_CHECKING:
    from dmp_cli.importing.run import Imported

MODEL, USE = "Model", "How it is to be used (else as the file, then as the model says)"
_DIGITS = 8  # of a sha256 in the table
_WIDEST = 60  # characters of a licence

Paths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATH...", help="LoRA files, folders of them, or .zip files."),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch the folder that the authors of the paper published on "
                 "Google Drive; needs gdown."),
]  # fmt: skip
FolderUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Another Google Drive folder, with --download.")
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model to put the files into; a new name makes a new one. "
                 "Without it: dmp, or dmp-paper for the official files that need a prompt.",
                 rich_help_panel=MODEL),
]  # fmt: skip
Task = Annotated[
    str | None,
    typer.Option(help="Of a single file, if its name does not say.", rich_help_panel=MODEL,
                 autocompletion=opt.complete_tasks),
]  # fmt: skip
Backbone = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|ORG/NAME[@REV]", rich_help_panel=MODEL,
                 help="Stable Diffusion of the model; without it, for a new one: that of dmp."),
]  # fmt: skip
License = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Of the files; without it, as they or a README.md beside "
                 "them say.", rich_help_panel=MODEL),
]  # fmt: skip
Summary = Annotated[
    str | None, typer.Option(help="One line about the model.", rich_help_panel=MODEL)
]
Prompt = Annotated[
    str | None, typer.Option(help="Text that guides the network.", rich_help_panel=USE)
]
Guidance = Annotated[
    float | None, typer.Option(help="Strength of the prompt; 1: none.", rich_help_panel=USE)
]
Prediction = Annotated[
    str | None,
    typer.Option(help=f"What it was trained to predict: {', '.join(PREDICTIONS)}.",
                 rich_help_panel=USE, autocompletion=lambda: PREDICTIONS),
]  # fmt: skip
Scale = Annotated[
    float | None, typer.Option(help="Metres per unit of the depth picture.", rich_help_panel=USE)
]
Normals = Annotated[
    str | None,
    typer.Option(help='Axes that the network draws: opengl, directx, opencv, or "-x y z".',
                 rich_help_panel=USE, autocompletion=lambda: ("opengl", "directx", "opencv")),
]  # fmt: skip
Classes = Annotated[
    str | None,
    typer.Option(help="Classes that it can tell apart: names or ids with commas.",
                 metavar="LIST", rich_help_panel=USE),
]  # fmt: skip
Steps = Annotated[
    int | None, typer.Option(help="Calls of the network per map.", rich_help_panel=USE)
]
Sampler = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(SAMPLERS)}.", rich_help_panel=USE,
                 autocompletion=lambda: SAMPLERS),
]  # fmt: skip
Spacing = Annotated[
    str | None,
    typer.Option(help=f"Of the steps: {', '.join(SPACINGS)}.", rich_help_panel=USE,
                 autocompletion=lambda: SPACINGS),
]  # fmt: skip
Final = Annotated[
    str | None,
    typer.Option(help="What the last step leaves (z), or its estimate (y0).", rich_help_panel=USE,
                 autocompletion=lambda: FINALS),
]  # fmt: skip
Size = Annotated[
    int | None,
    typer.Option(help="Short side in pixels that the network sees; 0: as it is.",
                 rich_help_panel=USE),
]  # fmt: skip
Timestep = Annotated[
    int | None, typer.Option(help="Of onepass: the t of its call.", rich_help_panel=USE)
]


def import_(
    paths: Paths = None,
    download: Download = False,
    folder_url: FolderUrl = None,
    model: Model = None,
    task: Task = None,
    backbone: Backbone = None,
    license: License = None,
    summary: Summary = None,
    prediction: Prediction = None,
    prompt: Prompt = None,
    guidance: Guidance = None,
    scale: Scale = None,
    normals: Normals = None,
    classes: Classes = None,
    steps: Steps = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    final: Final = None,
    size: Size = None,
    timestep: Timestep = None,
    weights: opt.Weights = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record a file.", rich_help_panel=opt.TALK)
    ] = False,
    quiet: opt.Quiet = False,
) -> None:
    """Take LoRA files of others: check and convert them, and keep them in the store.

    Tasks are told from the names of files and folders. Of pickles only tensors are read. If one
    file is refused, none is taken.

    dmp weights import ~/Downloads/DMP*.zip

    dmp weights import lora.safetensors --task depth --model mine --backbone sd15/
    """
    from dmp_cli.importing import drive, run, wishes
    from dmp_cli.importing.wishes import Wish

    if bool(paths) == download:
        why = "--download fetches what to import" if paths else "nothing to import"
        raise UsageError(why, "give a file, a folder or a .zip, or --download, and not both")
    if folder_url and not download:
        raise UsageError("--folder-url is the folder of --download", "add --download")
    url = folder_url or drive.OFFICIAL
    drive.check_url(url)
    given = {
        "prediction": prediction, "prompt": prompt, "guidance": guidance, "scale": scale,
        "normals": normals, "classes": classes, "steps": steps, "sampler": sampler,
        "spacing": spacing, "final": final, "size": size, "timestep": timestep,
    }  # fmt: skip
    settings = {key: value for key, value in given.items() if value is not None}
    wish = Wish(model, task, backbone, license, summary, weights, settings)
    talk = Talk(quiet, as_json=json)
    if backbone and "repo" in wishes.backbone(backbone):
        talk.note(f"--backbone {backbone}: taken as a repository of the Hub")
    if download:
        talk.note(f"fetching {url}")
    _tell(run.run(paths or [], wish, url if download else None), weights, talk)


def _tell(done: "list[Imported]", weights: str | None, talk: Talk) -> None:
    if not talk.quiet:
        for line in _table(done):
            typer.echo(line, err=True)
    for one in done:
        for note in one.notes:
            talk.note(f"{shown(Path(one.file))}: {note}")
        talk.output(json_.dumps(asdict(one), default=str) if talk.as_json else str(one.path))
    for line in _next(done, weights):
        talk.note(line)


def _table(done: "list[Imported]") -> Iterator[str]:
    """What went where, within 80 columns unless names are long; below each row, from where."""
    head = ("task", "model", "rank", "parameters", "dtype", "sha256", "licence")
    rows = [
        (one.task, ", ".join((one.model, *one.also)), one.rank, f"{one.parameters:,}", one.dtype,
         one.sha256[:_DIGITS], _short(one.license))
        for one in done
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    yield line(head)
    for one, row in zip(done, rows, strict=True):
        yield line(row)
        yield f"  from {shown(Path(one.file))}"


def _short(text: str) -> str:
    """A text of a file of others in a cell of a table."""
    words = plain(" ".join(text.split()))
    return words if len(words) <= _WIDEST else f"{words[: _WIDEST - 3]}..."


def _next(done: "list[Imported]", weights: str | None) -> list[str]:
    """The commands to type next: what uses the files, and before it what fetches the backbone."""
    from dmp_cli import catalogue
    from dmp_cli.importing import run
    from dmp_cli.weights import resolve

    names = [name for one in done for name in (*one.also, one.model)]
    model = "dmp" if "dmp" in names else names[0]
    tasks = list(dict.fromkeys(one.task for one in done if model in (one.model, *one.also)))
    words = ["dmp predict", ",".join(tasks), "photos/ -o out/"]
    try:
        taken = resolve(catalogue.load(weights), tasks)[0].model
    except DmpError:  # as it may be for $DMP_MODEL; then the model has to be named
        taken = ""
    words += [] if taken == model else ["--model", model]
    words += ["--weights", weights] if weights else []
    lines = [f"next: {' '.join(words)}"]
    if run.backbone_missing(model, weights):
        lines.insert(0, f"the backbone is not here yet; to fetch it: dmp weights pull {model}")
    return lines
