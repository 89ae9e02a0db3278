"""Options of `dmp train`."""

from pathlib import Path
from typing import Annotated

import typer

from dmp_cli.commands.options import FILES, RUN, complete_tasks

COURSE, LORA, DATA, WATCH = "How it learns", "The LoRA", "Data", "What it shows and keeps"
USE = "How maps are predicted with it (without a flag, as the model says; kept in the LoRA)"
SCHEDULES, PRECISIONS = ("cosine", "constant"), ("auto", "no", "fp16", "bf16")
LOSSES = ("latents", "map")

TaskName = Annotated[
    str,
    typer.Argument(metavar="TASK", help="What the maps are: a name that dmp tasks shows.",
                   autocompletion=complete_tasks),
]  # fmt: skip
Data = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="Folder with images/ and a folder of maps named as TASK."),
]
Output = Annotated[
    Path,
    typer.Option("-o", "--output", help="Folder for the LoRA; run again, it goes on there.",
                 rich_help_panel=FILES),
]  # fmt: skip
Backbone = Annotated[
    Path | None,
    typer.Option(help="Stable Diffusion folder in place of the model's.", metavar="FOLDER",
                 rich_help_panel=FILES),
]  # fmt: skip
Init = Annotated[
    Path | None,
    typer.Option(help="LoRA to start from; its rank and targets stay.", metavar="FILE",
                 rich_help_panel=FILES),
]  # fmt: skip
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Begin anew: delete the checkpoints of an earlier run.",
                 rich_help_panel=FILES),
]  # fmt: skip
Name = Annotated[
    str | None,
    typer.Option(help="Of the model in OUT/weights.toml; else that of the folder.",
                 rich_help_panel=FILES),
]  # fmt: skip

Steps = Annotated[int, typer.Option(help="Steps of the optimizer.", rich_help_panel=COURSE)]
Batch = Annotated[
    int, typer.Option(help="Images in one pass of one process.", rich_help_panel=COURSE)
]
Accumulate = Annotated[
    int,
    typer.Option(help="Passes in one step: --batch 2 --accumulate 4 trains as --batch 8.",
                 rich_help_panel=COURSE),
]  # fmt: skip
LearningRate = Annotated[float, typer.Option("--lr", "--learning-rate", rich_help_panel=COURSE)]
Schedule = Annotated[
    str,
    typer.Option(help="Of the learning rate: cosine, constant.", rich_help_panel=COURSE,
                 autocompletion=lambda: SCHEDULES),
]  # fmt: skip
Warmup = Annotated[
    int, typer.Option(help="Steps in which the learning rate rises.", rich_help_panel=COURSE)
]
WeightDecay = Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=COURSE)]
Clip = Annotated[
    float, typer.Option(help="Largest norm of the gradient; 0: any.", rich_help_panel=COURSE)
]
Seed = Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=COURSE)]
Prediction = Annotated[
    str | None,
    typer.Option(help="What the network learns to say: v_prediction, epsilon, sample.",
                 rich_help_panel=COURSE),
]  # fmt: skip
Timesteps = Annotated[
    str,
    typer.Option(help="The t to draw from: uniform, a range 900-999, or a list 499,999.",
                 rich_help_panel=COURSE),
]  # fmt: skip
MinSnr = Annotated[
    float | None,
    typer.Option(help="Weigh the loss by min-SNR with this gamma, such as 5.", metavar="GAMMA",
                 rich_help_panel=COURSE),
]  # fmt: skip

Loss = Annotated[
    str,
    typer.Option(help="Of the network's output (latents), or of the decoded map (map).",
                 rich_help_panel=COURSE, autocompletion=lambda: LOSSES),
]  # fmt: skip

Rank = Annotated[int | None, typer.Option(help="4 unless stated.", rich_help_panel=LORA)]
Targets = Annotated[
    str | None,
    typer.Option(help="all, or some of self, cross, to_q, to_k, to_v, to_out, with commas.",
                 rich_help_panel=LORA),
]  # fmt: skip

Size = Annotated[
    int | None,
    typer.Option(help="Side in pixels to train at; else as the model says.", rich_help_panel=DATA),
]
Flip = Annotated[
    bool | None,
    typer.Option("--flip/--no-flip", help="Mirror half of the pairs; else where the task allows.",
                 show_default=False, rich_help_panel=DATA),
]  # fmt: skip
Captions = Annotated[
    bool,
    typer.Option("--captions/--no-captions", help="Prompt with the texts of metadata.jsonl.",
                 rich_help_panel=DATA),
]  # fmt: skip
DropPrompt = Annotated[
    float,
    typer.Option(help="How often a prompt is left empty, where there are prompts.",
                 rich_help_panel=DATA),
]  # fmt: skip
Scale = Annotated[
    float | None,
    typer.Option(help="Metres per unit of the depth picture: beyond it, depth is cut.",
                 rich_help_panel=DATA),
]  # fmt: skip
Normals = Annotated[
    str | None,
    typer.Option(help="Axes that the network is to draw: opengl, directx, opencv.",
                 rich_help_panel=DATA),
]  # fmt: skip
Unit = Annotated[
    float,
    typer.Option(help="Metres per step of depth files in whole numbers.", rich_help_panel=DATA),
]
Axes = Annotated[
    str, typer.Option(help="Of the normals in the files of DATA.", rich_help_panel=DATA)
]
SkipMissing = Annotated[
    bool,
    typer.Option("--skip-missing", help="Leave out images without a map, maps without an image.",
                 rich_help_panel=DATA),
]  # fmt: skip
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder to keep the latents in: encoded once, then read.", metavar="FOLDER",
                 rich_help_panel=DATA),
]  # fmt: skip
CacheLatents = Annotated[
    bool, typer.Option("--cache-latents", help="The same in OUT/cache.", rich_help_panel=DATA)
]

Prompt = Annotated[
    str | None,
    typer.Option(help="Of every pair (with --captions, of those without), and of predictions.",
                 rich_help_panel=USE),
]  # fmt: skip
Guidance = Annotated[
    float | None, typer.Option(help="Strength of the prompt; 1: none.", rich_help_panel=USE)
]
SamplingSteps = Annotated[
    int | None, typer.Option(help="Calls of the network per map.", rich_help_panel=USE)
]
Sampler = Annotated[
    str | None, typer.Option(help="ddim, oracle, onepass.", rich_help_panel=USE)
]  # fmt: skip
Spacing = Annotated[
    str | None, typer.Option(help="Of the steps: leading, trailing.", rich_help_panel=USE)
]
Final = Annotated[
    str | None,
    typer.Option(help="What the last step leaves (z), or its estimate (y0).", rich_help_panel=USE),
]
Timestep = Annotated[
    int | None, typer.Option(help="Of onepass: the t of its call.", rich_help_panel=USE)
]

Device = Annotated[
    str,
    typer.Option(help="auto, cuda, mps, cpu.", rich_help_panel=RUN,
                 autocompletion=lambda: ("auto", "cuda", "mps", "cpu")),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option("--mixed-precision", help="no, fp16, bf16; auto: fp16 on CUDA, else no.",
                 rich_help_panel=RUN, autocompletion=lambda: PRECISIONS),
]  # fmt: skip
Checkpointing = Annotated[
    bool,
    typer.Option("--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=RUN),
]  # fmt: skip
Workers = Annotated[int, typer.Option(help="Threads that read.", rich_help_panel=RUN)]

CheckpointEvery = Annotated[int, typer.Option(help="Steps.", rich_help_panel=WATCH)]
Keep = Annotated[int, typer.Option(help="Checkpoints to keep.", rich_help_panel=WATCH)]
Validation = Annotated[
    Path | None,
    typer.Option(help="Another folder of pairs, to measure on.", metavar="DATA",
                 rich_help_panel=WATCH),
]  # fmt: skip
HoldOut = Annotated[
    int, typer.Option(help="Measure on so many pairs of DATA instead.", rich_help_panel=WATCH)
]
ValidateEvery = Annotated[int, typer.Option(help="Steps.", rich_help_panel=WATCH)]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Numbers and pictures to OUT/tensorboard.",
                 rich_help_panel=WATCH),
]  # fmt: skip
Json = Annotated[
    bool, typer.Option("--json", help="Print a JSON record instead of the path.",
                       rich_help_panel="Output")
]  # fmt: skip
