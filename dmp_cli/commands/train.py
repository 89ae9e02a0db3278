"""`dmp train`: a LoRA for a task from pairs of image and map."""

import json as json_
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

from dmp_cli.commands import options as opt
from dmp_cli.commands import train_options as own
from dmp_cli.commands.report import Talk, count
from dmp_cli.errors import DmpError, UsageError
from dmp_cli.sources import Source
from dmp_cli.tasks import find

if TYPE_CHECKING:
    from dmp_cli.train import events as ev
    from dmp_cli.train.settings import Training

_QUIET_SECONDS = 60  # between lines where there is no bar


def train(
    task: own.TaskName,
    data: own.Data,
    output: own.Output,
    backbone: own.Backbone = None,
    init: own.Init = None,
    fresh: own.Fresh = False,
    name: own.Name = None,
    model: opt.Model = None,
    weights: opt.Weights = None,
    offline: opt.Offline = False,
    steps: own.Steps = 50_000,
    batch: own.Batch = 8,
    accumulate: own.Accumulate = 1,
    learning_rate: own.LearningRate = 1e-4,
    schedule: own.Schedule = "cosine",
    warmup: own.Warmup = 0,
    weight_decay: own.WeightDecay = 1e-2,
    clip: own.Clip = 1.0,
    seed: own.Seed = 0,
    prediction: own.Prediction = None,
    timesteps: own.Timesteps = "uniform",
    min_snr: own.MinSnr = None,
    loss: own.Loss = "latents",
    rank: own.Rank = None,
    targets: own.Targets = None,
    size: own.Size = None,
    flip: own.Flip = None,
    captions: own.Captions = False,
    drop_prompt: own.DropPrompt = 0.1,
    scale: own.Scale = None,
    normals: own.Normals = None,
    unit: own.Unit = 0.001,
    axes: own.Axes = "opengl",
    skip_missing: own.SkipMissing = False,
    cache: own.Cache = None,
    cache_latents: own.CacheLatents = False,
    prompt: own.Prompt = None,
    guidance: own.Guidance = None,
    sampling_steps: own.SamplingSteps = None,
    sampler: own.Sampler = None,
    spacing: own.Spacing = None,
    final: own.Final = None,
    timestep: own.Timestep = None,
    device: own.Device = "auto",
    mixed_precision: own.Precision = "auto",
    gradient_checkpointing: own.Checkpointing = False,
    workers: own.Workers = 2,
    checkpoint_every: own.CheckpointEvery = 500,
    keep: own.Keep = 2,
    validation: own.Validation = None,
    hold_out: own.HoldOut = 0,
    validate_every: own.ValidateEvery = 1000,
    tensorboard: own.TensorBoard = False,
    json: own.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    progress: opt.Progress = True,
) -> None:
    """Train a LoRA for TASK on the pairs of DATA. The defaults are those of the paper's code.

    Stopped by Ctrl-C or SIGTERM, it writes a checkpoint; the same command goes on from there.

    dmp train depth data/ -o my-depth/

    dmp train depth data/ -o my-depth/ --hold-out 20 --tensorboard --cache-latents

    accelerate launch -m dmp_cli train depth data/ -o my-depth/
    """
    from dmp_cli.maps import Reading
    from dmp_cli.plan import Settings
    from dmp_cli.train.settings import Course, Training

    if cache and cache_latents:
        raise UsageError("--cache and --cache-latents cannot be used together")
    course = Course(
        steps=steps, batch=batch, accumulate=accumulate, learning_rate=learning_rate,
        schedule=schedule, warmup=warmup, weight_decay=weight_decay, clip=clip, seed=seed,
        rank=rank, targets=targets, timesteps=timesteps, min_snr=min_snr, flip=flip,
        captions=captions, drop_prompt=drop_prompt, loss=loss,
    )  # fmt: skip
    settings = Settings(
        steps=sampling_steps, sampler=sampler, spacing=spacing, prediction=prediction, final=final,
        timestep=timestep, size=size, prompt=prompt, guidance=guidance,
    )  # fmt: skip
    training = Training(
        task=task, data=data, output=output, course=course, model=model, weights=weights,
        backbone=backbone, settings=settings, scale=scale, normals=normals,
        reading=Reading(unit, axes), skip_missing=skip_missing, init=init, name=name,
        device=device, precision=mixed_precision, checkpointing=gradient_checkpointing,
        workers=workers, cache=output / "cache" if cache_latents else cache,
        checkpoint_every=checkpoint_every, keep=keep, fresh=fresh, validation=validation,
        hold_out=hold_out, validate_every=validate_every, tensorboard=tensorboard,
    )  # fmt: skip
    run(training, Talk(quiet, verbose, progress, json), offline)


def run(training: "Training", talk: Talk, offline: bool = False) -> None:
    """Check all that can be without torch, then train and tell of it."""
    from dmp_cli import files
    from dmp_cli.commands import fetch
    from dmp_cli.train.job import job_of

    speaks = not int(os.environ.get("RANK", "0"))  # one of several processes
    if not speaks:
        talk = Talk(quiet=True, progress=False)
    job = job_of(training)
    files.check_writable(training.output)
    recipe = job.recipe
    half = training.precision == "fp16"
    start = [Source(path=training.init)] if training.init else []
    fetch.ready(recipe.backbone, start, half, offline)
    if speaks:
        fetch.fetch([recipe.backbone], half, talk)
    talk.note(
        f"{count(len(job.pairs), 'pair')} for {job.task.name}; backbone {recipe.backbone}; "
        f"the model will be called {job.model}"
    )
    talk.detail(f"for predictions: {recipe.settings}")
    if recipe.backbone.made:
        talk.note("the backbone has random weights: maps of this LoRA mean nothing")
    from dmp_cli.train import loop

    shown = _Shown(talk, training, speaks)
    try:
        shown.follow(loop.run(job))
    except DmpError as error:
        error.hint = "\n".join(filter(None, (error.hint, shown.kept())))
        raise
    finally:
        shown.close()


class _Shown:
    """What the user sees of a run: a bar on a terminal, else a line now and then."""

    def __init__(self, talk: Talk, training: "Training", speaks: bool) -> None:
        self._talk, self._training, self._speaks = talk, training, speaks
        self._live = sys.stderr.isatty() and talk.progress and not talk.quiet
        self._bar: Any = None
        self._said = time.monotonic()
        self._first = self._images = self._seen = 0
        self._began, self._loss = time.monotonic(), 0.0
        self._measured: dict[str, float] = {}
        self._checkpoint: Path | None = None

    def kept(self) -> str:
        """What is not lost, for an error."""
        return f"the last checkpoint is {self._checkpoint}" if self._checkpoint else ""

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def follow(self, events: "Iterable[ev.Event]") -> None:
        """Show events until there are no more."""
        from dmp_cli.train import events as ev

        for event in events:
            match event:
                case ev.Begun():
                    self._begun(event)
                case ev.Cached(done, total):
                    self._cached(done, total)
                case ev.Stepped():
                    self._stepped(event)
                case ev.Saved(_, path):
                    self._checkpoint = path
                    self._talk.detail(f"wrote {path}")
                case ev.Validated(step, numbers):
                    self._validated(step, dict(numbers))
                case ev.Stopped():
                    self._stopped(event)
                case ev.Finished():
                    self._finished(event)

    def _begun(self, event: "ev.Begun") -> None:
        self._checkpoint, self._first, self._images = event.resumed, event.step, event.images
        held = f", {event.held_out} held out" if event.held_out else ""
        self._talk.note(
            f"on {event.where}: {event.parameters:,} parameters, {event.images} images a step, "
            f"{event.steps} steps{held}"
        )
        if event.resumed:
            self._talk.note(f"going on from {event.resumed}")
        self._began = time.monotonic()

    def _advance(self, done: int, total: int, unit: str, words: str) -> None:
        """Move the bar, a new one for another unit; without one say a line once in a while."""
        if self._live:
            if self._bar is None or self._bar.unit != unit:
                self.close()
                self._bar = tqdm(
                    total=total, initial=done, unit=unit, desc=f"{unit}s", file=sys.stderr,
                    dynamic_ncols=True,
                    bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
                )  # fmt: skip
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._said > _QUIET_SECONDS:
            self._said = time.monotonic()
            self._talk.note(f"{unit} {done} of {total}" + (f": {words}" if words else ""))

    def _cached(self, done: int, total: int) -> None:
        if self._bar is not None or done < total:  # else all was there already
            self._advance(done, total, "latent", "")
        self._began = time.monotonic()

    def _stepped(self, event: "ev.Stepped") -> None:
        self._seen += 1
        self._loss += (event.loss - self._loss) / min(self._seen, 50)  # a mean of about the last 50
        speed = self._seen * event.images / max(time.monotonic() - self._began, 1e-6)
        words = f"loss {self._loss:.4f}, lr {event.rate:.1e}, {speed:.1f} images/s"
        self._advance(event.step, self._training.course.steps, "step", words)

    def _validated(self, step: int, numbers: dict[str, float]) -> None:
        self._measured = numbers
        shown = [name for name in find(self._training.task).metrics if name in numbers]
        words = ", ".join(f"{name} {numbers[name]:.4g}" for name in shown)
        self._talk.note(f"step {step}: {words or 'nothing to measure: no pixel has a truth'}")

    def _stopped(self, event: "ev.Stopped") -> None:
        self.close()
        where = f" {self._checkpoint} is written;" if self._checkpoint else ""
        if self._speaks:
            same = "the same command" + (" without --fresh" if self._training.fresh else "")
            self._talk.fail(f"stopped after step {event.step}:{where} {same} goes on from there")
        raise typer.Exit(128 + event.signal)

    def _finished(self, event: "ev.Finished") -> None:
        self.close()
        if not self._speaks:
            return
        if self._talk.as_json:
            record = {
                "task": self._training.task, "lora": str(event.lora),
                "weights": str(event.weights), "model": event.model, "steps": event.step,
                "loss": event.loss, "validation": self._measured, "seconds": event.seconds,
            }  # fmt: skip
            self._talk.output(json_.dumps(record))
        else:
            self._talk.output(str(event.lora))
        taken = f"{event.step} steps in {event.seconds:.0f} s"
        self._talk.note(taken if event.loss is not None else f"nothing left to do: {taken}")
        self._talk.note(
            f"try it: dmp predict {self._training.task} IMAGES -o maps --weights {event.weights} "
            f"--model {event.model}"
        )
