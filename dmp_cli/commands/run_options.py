"""The options that all commands share which predict: a dataclass, and what makes it a command."""

import inspect
from collections.abc import Callable, Container
from copy import copy
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

from dmp_cli.commands import options as opt
from dmp_cli.commands import parse
from dmp_cli.commands.report import Talk
from dmp_cli.plan import (
    EXR_COMPRESSIONS,
    EXR_LAYOUTS,
    SEG_FORMATS,
    Output,
    Plan,
    Settings,
    device_name,
)


@dataclass(frozen=True)
class RunOptions:
    """What was asked of a run, in the order in which `--help` shows it."""

    output: opt.Output
    files_from: opt.FilesFrom = None
    null: opt.Null = False
    recursive: opt.Recursive = True
    formats: opt.Formats = "png"
    keep_suffix: opt.KeepSuffix = False
    exr_layout: opt.ExrLayout = "flat"
    exr_compression: opt.ExrCompression = "zip"
    contact_sheet: opt.ContactSheet = False
    side_by_side: opt.SideBySide = False
    video: opt.Video = False
    fps: opt.Fps = None
    max_pixels: opt.MaxPixels = 100_000_000
    background: opt.Background = "white"
    exposure: opt.Exposure = 0.0
    dry_run: opt.DryRun = False
    model: opt.Model = None
    weights: opt.Weights = None
    offline: opt.Offline = False
    steps: opt.Steps = None
    sampler: opt.Sampler = None
    spacing: opt.Spacing = None
    prediction: opt.Prediction = None
    final: opt.Final = None
    fast: opt.Fast = False
    tiny_decoder: opt.TinyDecoder = False
    prompt: opt.Prompt = None
    prompt_from: opt.PromptFrom = None
    caption: opt.Caption = False
    caption_model: opt.CaptionModel = opt.CAPTIONER
    guidance: opt.Guidance = None
    size: opt.Size = None
    device: opt.Device = "auto"
    dtype: opt.Dtype = "auto"
    batch: opt.Batch = "auto"
    low_memory: opt.LowMemory = False
    readers: opt.Readers = 2
    writers: opt.Writers = 2
    shard: opt.Shard = None
    devices: opt.Devices = None
    engine: opt.Engine = "local"
    ray_address: opt.RayAddress = None
    checksum: opt.Checksum = False
    overwrite: opt.Overwrite = False
    retry_failed: opt.RetryFailed = False
    max_errors: opt.MaxErrors = None
    fail_fast: opt.FailFast = False
    colormap: opt.Colormap = "Spectral"
    invert: opt.Invert = False
    range: opt.Range = "auto"
    depth_unit: opt.DepthUnit = None
    normals: opt.Normals = "opengl"
    classes: opt.Classes = None
    seg_format: opt.SegFormat = "palette"
    json: opt.Json = False
    print0: opt.Print0 = False
    quiet: opt.Quiet = False
    verbose: opt.Verbose = False
    progress: opt.Progress = True

    def talk(self) -> Talk:
        """How much is to be said, and how."""
        end = "\0" if self.print0 else "\n"
        return Talk(self.quiet, self.verbose, self.progress, self.json, end)

    def each_device(self) -> tuple[str, ...]:
        """The devices of --devices; none without it. UsageError as parse.devices."""
        if self.devices is None:
            return ()
        return parse.devices(self.devices, self.device, self.dtype, self.engine)

    def plan(self, tasks: tuple[str, ...], merged: bool = False) -> Plan:
        """The plan for these tasks; UsageError for an option that makes no sense."""
        settings = Settings(
            steps=self.steps, sampler=self.sampler, spacing=self.spacing,
            prediction=self.prediction, final=self.final, size=self.size, prompt=self.prompt,
            guidance=self.guidance, fast=self.fast, tiny_decoder=self.tiny_decoder,
        )  # fmt: skip
        output = Output(
            formats=parse.formats(self.formats), colormap=parse.colormap(self.colormap),
            invert=self.invert, range=parse.depth_range(self.range),
            depth_unit=parse.depth_unit(self.depth_unit, self.range),
            seg_format=parse.one_of("--seg-format", self.seg_format, SEG_FORMATS),
            exr_layout=parse.one_of("--exr-layout", self.exr_layout, EXR_LAYOUTS),
            exr_compression=parse.one_of(
                "--exr-compression", self.exr_compression, EXR_COMPRESSIONS),
            merged=merged, side_by_side=self.side_by_side,
            thumbnail=opt.THUMBNAIL if self.contact_sheet else 0,
        )  # fmt: skip
        first = next(iter(self.each_device()), device_name(self.device))
        return Plan(
            tasks=tasks, model=self.model, weights=self.weights, settings=settings,
            device="cuda" if first == "all" else first, dtype=self.dtype,
            batch=parse.batch(self.batch), low_memory=self.low_memory,
            max_pixels=self.max_pixels, axes=self.normals, classes=self.classes,
            background=parse.background(self.background),
            exposure=parse.exposure(self.exposure), output=output,
            readers=self.readers, writers=self.writers,
        )  # fmt: skip


def _unlisted(annotation: Any) -> Any:
    """An annotated option as one that `--help` does not list."""
    kind, option = get_args(annotation)
    unlisted = copy(option)
    unlisted.hidden = True
    return Annotated[kind, unlisted]


def with_run_options(
    command: Callable[..., None], hidden: Container[str] = (), only: Container[str] | None = None
) -> Callable[..., None]:
    """`command(..., options: RunOptions)` as a command that has each field as an option.

    Fields that are `hidden` are not in its `--help`: those that it refuses by name. With `only`,
    the others are no options and have their defaults; the output is then the command's to say.
    """
    rows = [row for row in fields(RunOptions) if only is None or row.name in only]
    unsaid: dict[str, Any] = {} if only is None or "output" in only else {"output": Path()}
    own = [
        row.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for row in inspect.signature(command).parameters.values()
        if row.name != "options"
    ]
    spread = [
        inspect.Parameter(
            row.name, inspect.Parameter.KEYWORD_ONLY,
            annotation=_unlisted(row.type) if row.name in hidden else row.type,
            default=inspect.Parameter.empty if row.default is MISSING else row.default,
        )
        for row in rows
    ]  # fmt: skip

    @wraps(command)
    def run(**given: Any) -> None:
        asked = {row.name: given.pop(row.name) for row in rows}
        command(**given, options=RunOptions(**asked, **unsaid))

    run.__signature__ = inspect.Signature([*own, *spread])  # type: ignore[attr-defined]
    return run
