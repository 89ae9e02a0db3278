"""Options that commands share."""

from pathlib import Path
from typing import Annotated

import typer

from dmp_cli import plan, urls
from dmp_cli.plan import (
    DTYPES,
    ENGINES,
    EXR_COMPRESSIONS,
    EXR_LAYOUTS,
    FINALS,
    FORMATS,
    PREDICTIONS,
    SAMPLERS,
    SEG_FORMATS,
    SPACINGS,
)

MODEL = "Model (without a flag, as its entry in weights.toml says)"
RUN, FILES, LOOKS, TALK = "How to run", "Files", "Looks", "Output"
RESUME = "Going on, and giving up"
THUMBNAIL = 400  # pixels of the long side on a contact sheet
CAPTIONER = "Salesforce/blip-image-captioning-large"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def complete_tasks(incomplete: str) -> list[str]:
    """Names of tasks for the shell, after the last comma too."""
    from dmp_cli.tasks import TASKS

    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in TASKS if name not in before.split(",")]


def complete_models() -> list[str]:
    """Names of models for the shell."""
    from dmp_cli.catalogue import load

    return list(load()["models"])


def _colormaps() -> tuple[str, ...]:
    from dmp_cli.colour import COLORMAPS

    return COLORMAPS


Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT...", help="Files, folders, quoted patterns, s3:// or gs://; - for a list."
    ),
]
Output = Annotated[
    Path,
    typer.Option("-o", "--output", help="Folder for the maps; s3:// and gs:// too.",
                 metavar="FOLDER", parser=urls.folder, rich_help_panel=FILES),
]  # fmt: skip
FilesFrom = Annotated[
    str | None,
    typer.Option(help="File with a list of inputs, one a line; - for standard input.",
                 metavar="FILE", rich_help_panel=FILES),
]  # fmt: skip
Null = Annotated[
    bool,
    typer.Option("-0", "--null", help="Lists are separated by NUL.", rich_help_panel=FILES),
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive/--no-recursive", help="Look into folders of folders.",
                 rich_help_panel=FILES),
]  # fmt: skip
Formats = Annotated[
    str,
    typer.Option("--format", metavar="LIST", rich_help_panel=FILES,
                 autocompletion=lambda: FORMATS,
                 help="With commas: png (8 bits, to look at), png16, tiff16 (16-bit data), exr, "
                 "tiff, npy (float data)."),
]  # fmt: skip
ExrLayout = Annotated[
    str,
    typer.Option(help=f"Names of channels in EXR, by the program that they are for: "
                 f"{_names(EXR_LAYOUTS)}.", rich_help_panel=FILES,
                 autocompletion=lambda: EXR_LAYOUTS),
]  # fmt: skip
ExrCompression = Annotated[
    str,
    typer.Option(help=f"Of EXR, lossless: {_names(EXR_COMPRESSIONS)}.", rich_help_panel=FILES,
                 autocompletion=lambda: EXR_COMPRESSIONS),
]  # fmt: skip
ContactSheet = Annotated[
    bool,
    typer.Option("--contact-sheet", rich_help_panel=FILES,
                 help="Write OUT/contact-sheet.html, all images beside their maps."),
]  # fmt: skip
SideBySide = Annotated[
    bool,
    typer.Option("--side-by-side", rich_help_panel=FILES,
                 help="Write a picture of each image beside its maps."),
]  # fmt: skip
Video = Annotated[
    bool,
    typer.Option("--video", rich_help_panel=FILES,
                 help="Make an mp4 of the pictures of each clip or folder."),
]  # fmt: skip
Fps = Annotated[
    float | None,
    typer.Option(help="Pictures a second with --video; without it, as the clip, or 24.",
                 rich_help_panel=FILES),
]  # fmt: skip
Background = Annotated[
    str,
    typer.Option(help="Behind transparent pixels: white, black, #rrggbb, or R,G,B.",
                 metavar="COLOUR", rich_help_panel=FILES),
]  # fmt: skip
Exposure = Annotated[
    float,
    typer.Option(help="Stops, for EXR and HDR inputs.", metavar="STOPS", rich_help_panel=FILES),
]  # fmt: skip
KeepSuffix = Annotated[
    bool,
    typer.Option("--keep-suffix", help="Write a.jpg.depth.png instead of a.depth.png.",
                 rich_help_panel=FILES),
]  # fmt: skip
MaxPixels = Annotated[int, typer.Option(help="Refuse larger images.", min=1, rich_help_panel=FILES)]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be written; load nothing.",
                 rich_help_panel=FILES),
]  # fmt: skip

Offline = Annotated[
    bool,
    typer.Option("--offline", help="Ask no server; also $HF_HUB_OFFLINE.", rich_help_panel=MODEL),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Name of a model in weights.toml.",
        envvar="DMP_MODEL",
        rich_help_panel=MODEL,
        autocompletion=complete_models,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Weights file that adds to the packaged one; also $DMP_WEIGHTS.",
                 metavar="FILE", rich_help_panel=MODEL),
]  # fmt: skip
Steps = Annotated[
    int | None, typer.Option(help="Calls of the network per map.", rich_help_panel=MODEL)
]
Sampler = Annotated[
    str | None,
    typer.Option(help=_names(SAMPLERS) + ".", rich_help_panel=MODEL,
                 autocompletion=lambda: SAMPLERS),
]  # fmt: skip
Spacing = Annotated[
    str | None,
    typer.Option(help=f"Of the steps: {_names(SPACINGS)}.", rich_help_panel=MODEL,
                 autocompletion=lambda: SPACINGS),
]  # fmt: skip
Fast = Annotated[
    bool,
    typer.Option("--fast", rich_help_panel=MODEL,
                 help="One call per map: --steps 1 --spacing trailing --final y0; a onepass model "
                 "stays as it is."),
]  # fmt: skip
TinyDecoder = Annotated[
    bool,
    typer.Option("--tiny-decoder", rich_help_panel=MODEL,
                 help="Draw with the model's tiny decoder in place of the VAE's: faster, other "
                 "maps."),
]  # fmt: skip
Prediction = Annotated[
    str | None,
    typer.Option(help=f"What the network predicts: {_names(PREDICTIONS)}.",
                 rich_help_panel=MODEL, autocompletion=lambda: PREDICTIONS),
]  # fmt: skip
Final = Annotated[
    str | None,
    typer.Option(help="Take what the last step leaves (z, official) or its estimate (y0).",
                 rich_help_panel=MODEL, autocompletion=lambda: FINALS),
]  # fmt: skip
Prompt = Annotated[
    str | None, typer.Option(help="Text that guides the network.", rich_help_panel=MODEL)
]
PromptFrom = Annotated[
    str | None,
    typer.Option(help="A text for each image, which wins over --prompt: txt, for the .txt beside "
                 "it, or a column of metadata.jsonl, such as text.",
                 metavar="txt|COLUMN", rich_help_panel=MODEL,
                 autocompletion=lambda: ("txt", "text")),
]  # fmt: skip
Caption = Annotated[
    bool,
    typer.Option("--caption", rich_help_panel=MODEL,
                 help="Caption each image that has no text from --prompt-from, and prompt with "
                 "that; kept in OUT/captions.jsonl."),
]  # fmt: skip
CaptionModel = Annotated[
    str,
    typer.Option(help="Repository or folder of the captioning model.", metavar="NAME",
                 rich_help_panel=MODEL),
]  # fmt: skip
Guidance = Annotated[
    float | None,
    typer.Option(help="Strength of the prompt; 1: none.", rich_help_panel=MODEL),
]
Size = Annotated[
    int | None,
    typer.Option(help="Short side in pixels that the network sees; 0: as it is.",
                 rich_help_panel=MODEL),
]  # fmt: skip

Checksum = Annotated[
    bool,
    typer.Option("--checksum", rich_help_panel=RESUME,
                 help="Tell what is done by hashes of inputs and outputs, not by size and time."),
]  # fmt: skip
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Predict also what is done.", rich_help_panel=RESUME),
]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", rich_help_panel=RESUME,
                 help="Try again what failed before, though nothing of it is changed."),
]  # fmt: skip
MaxErrors = Annotated[
    int | None,
    typer.Option(help="End after so many failed inputs of this run, and what is in flight.",
                 metavar="N", min=1, rich_help_panel=RESUME),
]  # fmt: skip
FailFast = Annotated[
    bool,
    typer.Option(
        "--fail-fast",
        help="End after the first failed input, and what is in flight.",
        rich_help_panel=RESUME,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(help="Only a part of the inputs, the same every time: 2/8 is the second of "
                 "eight; auto: by SLURM_ARRAY_TASK_ID, or RANK and WORLD_SIZE.",
                 metavar="I/N|auto", rich_help_panel=RUN),
]  # fmt: skip
Devices = Annotated[
    str | None,
    typer.Option(help="Several devices, a process each: all, or CUDA numbers, as 0,1.",
                 metavar="all|LIST", rich_help_panel=RUN),
]  # fmt: skip
Engine = Annotated[
    str,
    typer.Option(help="What runs it: local, or ray for a cluster.", metavar="local|ray",
                 rich_help_panel=RUN, autocompletion=lambda: ENGINES),
]  # fmt: skip
RayAddress = Annotated[
    str | None,
    typer.Option(help="Of the cluster with --engine ray; without it, $RAY_ADDRESS, or a cluster "
                 "of this machine for this run.", metavar="ADDRESS", rich_help_panel=RUN),
]  # fmt: skip

Device = Annotated[
    str,
    typer.Option(help="auto, cuda, cuda:N, mps, cpu.", rich_help_panel=RUN,
                 autocompletion=lambda: ("auto", "cuda", "mps", "cpu")),
]  # fmt: skip
Dtype = Annotated[
    str,
    typer.Option(help=f"{_names(DTYPES)}; auto: fp16 on CUDA, bf16 for a large network on a CPU "
                 "that multiplies it, else fp32.", rich_help_panel=RUN,
                 autocompletion=lambda: DTYPES),
]  # fmt: skip
Batch = Annotated[
    str, typer.Option(help="Images at once, or auto.", metavar="N|auto", rich_help_panel=RUN)
]
LowMemory = Annotated[
    bool,
    typer.Option("--low-memory", rich_help_panel=RUN,
                 help="One image at once, unless --batch says otherwise; on CUDA, of encoder, UNet "
                 "and decoder only what computes is on the device; elsewhere, freed memory goes "
                 "back. Slower; with equal --batch, equal maps."),
]  # fmt: skip
Readers = Annotated[
    int,
    typer.Option(help="Threads that read images.", metavar="N", min=1, max=256,
                 rich_help_panel=RUN),
]  # fmt: skip
Writers = Annotated[
    int,
    typer.Option(help="Threads that write maps.", metavar="N", min=1, max=256,
                 rich_help_panel=RUN),
]  # fmt: skip

Colormap = Annotated[
    str,
    typer.Option(help="Of depth pictures: Spectral, inferno, turbo, viridis, magma, grey.",
                 rich_help_panel=LOOKS, autocompletion=_colormaps),
]  # fmt: skip
Invert = Annotated[
    bool,
    typer.Option("--invert", help="Give the far end the first colour.", rich_help_panel=LOOKS),
]
Range = Annotated[
    str,
    typer.Option("--range", metavar="auto|image|run|LO,HI", rich_help_panel=LOOKS,
                 help="Metres that depth pictures and 16 bits span: of each image, of the whole "
                 "run, or from LO to HI; auto: pictures of each image, 16 bits by --depth-unit."),
]  # fmt: skip
DepthUnit = Annotated[
    float | None,
    typer.Option(help=f"Metres of a step of 16-bit depth ({plan.Output.depth_unit}), with "
                 "--range auto.", metavar="METRES", rich_help_panel=LOOKS),
]  # fmt: skip
SegFormat = Annotated[
    str,
    typer.Option(help="Segmentation as png: class ids with a palette, bare ids, or colours.",
                 metavar="palette|ids|color", rich_help_panel=LOOKS,
                 autocompletion=lambda: SEG_FORMATS),
]  # fmt: skip
Normals = Annotated[
    str,
    typer.Option(
        help="Axes of normals maps: opengl (X right, Y up, Z to the viewer), directx (Y down), "
        "opencv (Y down, Z away).", rich_help_panel=LOOKS,
        autocompletion=lambda: ("opengl", "directx", "opencv")),
]  # fmt: skip
Classes = Annotated[
    str | None,
    typer.Option(help="Segmentation classes to tell apart: all, bedroom, or ids and names; "
                 "without it, those that the model knows.",
                 metavar="all|bedroom|LIST", rich_help_panel=LOOKS),
]  # fmt: skip

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON record an input instead of paths.",
                 rich_help_panel=TALK),
]  # fmt: skip
Print0 = Annotated[bool, typer.Option("--print0", help="End paths with NUL.", rich_help_panel=TALK)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=TALK)]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say what is chosen and why.", rich_help_panel=TALK)
]
Progress = Annotated[
    bool,
    typer.Option("--progress/--no-progress", help="Bar on standard error, if it is a terminal.",
                 rich_help_panel=TALK),
]  # fmt: skip
