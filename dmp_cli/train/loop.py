"""A training run from beginning to end, as a stream of events."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dmp_cli.device import out_of_memory
from dmp_cli.errors import ImageError, ModelError, ResourceError
from dmp_cli.train import checkpoints, journal, result
from dmp_cli.train.checkpoints import State
from dmp_cli.train.events import (
    Begun,
    Cached,
    Event,
    Finished,
    Saved,
    Stepped,
    Stopped,
    Validated,
)
from dmp_cli.train.feed import Batches
from dmp_cli.train.job import Job
from dmp_cli.train.journal import Journal
from dmp_cli.train.objective import learning_rate
from dmp_cli.train.preparation import deciding, files_of, starting_point
from dmp_cli.train.stopping import asked_to_stop
from dmp_cli.train.trainer import Trainer, accelerator_of
from dmp_cli.train.validation import require_measurable


def run(job: Job) -> Iterator[Event]:
    """Train, from the last checkpoint on if there is one; it begins when the first event is taken.

    ModelError for a backbone, LoRA or checkpoint that is not valid, or a loss that is not finite;
    ImageError for a pair that cannot be used, at once if it is one to measure on; UsageError for
    settings that are not those of the checkpoint; ResourceError for a full disk, or memory that
    ran out. The checkpoints that are there stay as they are; of a run that fails in the middle one
    of its last whole step is written.
    """
    if job.training.tensorboard:
        journal.require_tensorboard()
    result.quoted(str(job.training.output))  # or only what is written at the end would be refused
    result.inline(job.recipe.backbone)
    with _memory():
        trainer, state, checkpoint = _open(job)
        yield Begun(
            state.step, job.training.course.steps, len(job.pairs), len(job.held),
            trainer.feed.images, trainer.parameters, trainer.where, checkpoint,
        )  # fmt: skip
        with asked_to_stop() as stop:
            yield from _Run(trainer, stop, time.monotonic() - state.seconds).events(state.step)


def _open(job: Job) -> tuple[Trainer, State, Path | None]:
    """Everything loaded, where the run stands, and the checkpoint that says so."""
    accelerator = accelerator_of(job.training)
    precision = accelerator.mixed_precision
    with accelerator.main_process_first():  # it fetches what the others then find
        files = files_of(job, precision == "fp16")
    settings = deciding(job, files, accelerator.num_processes, precision)
    if accelerator.is_main_process:
        checkpoints.sweep(job.training.output)
    checkpoint, state = starting_point(job, settings)
    if accelerator.is_main_process and state.step < job.training.course.steps:
        for pair in job.held:  # or it would end the run at its first validation
            require_measurable(pair, job.task, job.training.reading)
    return Trainer(job, files, accelerator, settings, checkpoint), state, checkpoint


class _Run:
    """The loop itself. `_done` steps are whole, `_saved` of them are in a checkpoint."""

    def __init__(self, trainer: Trainer, stop: Callable[[], int], began: float) -> None:
        self._trainer, self._stop, self._began = trainer, stop, began
        self._training, self._main = trainer.job.training, trainer.accelerator.is_main_process
        self._loss: float | None = None
        self._stopped = False
        self._done = self._saved = 0

    def events(self, first: int) -> Iterator[Event]:
        self._done = self._saved = first
        output, steps = self._training.output, self._training.course.steps
        if first < steps:
            yield from self._fill(first)
        if self._stopped:
            return
        if self._training.fresh and self._main:  # only now: nothing is left to be refused
            checkpoints.clear(output)
        log = Journal(output, first, self._training.tensorboard) if self._main else None
        try:
            if first == steps:
                self._write()
            yield from self._steps(first, steps, log)
            if not self._stopped:
                lora, weights = output / checkpoints.LORA, output / result.WEIGHTS
                name = self._trainer.job.model
                yield Finished(lora, weights, name, steps, self._loss, self._seconds())
        finally:
            if log:
                log.close()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _fill(self, first: int) -> Iterator[Event]:
        for done, total in self._trainer.feed.fill():
            yield Cached(done, total)
            if self._stop():
                break
        signal = self._trainer.agreed(self._stop())
        if signal:
            self._stopped = True
            yield Stopped(first, signal)

    def _steps(self, first: int, steps: int, log: Journal | None) -> Iterator[Event]:
        lost = first and self._due(first) and log is not None and not log.validated
        if self._trainer.agreed(int(lost)):  # the run was cut off between checkpoint and log
            yield from self._validate(first, log)
        batches = self._trainer.feed.batches(first)
        try:
            for step in range(first, steps):
                yield from self._step(step, batches, log)
                if self._stopped:
                    return
        except (ModelError, ImageError, RuntimeError, MemoryError) as error:
            if isinstance(error, ModelError | ImageError) or _out_of_memory(error):
                yield from self._rescue()
            raise

    def _step(self, step: int, batches: Batches, log: Journal | None) -> Iterator[Event]:
        course = self._training.course
        self._loss = self._trainer.step(step, batches)
        rate, done = learning_rate(step, course), step + 1
        self._done = done
        signal = self._trainer.agreed(self._stop())
        if log:
            log.write(done, {"loss": self._loss, "lr": rate, "seconds": self._seconds()})
        yield Stepped(done, self._loss, rate, self._trainer.feed.images)
        last = done == course.steps
        if signal or last or done % self._training.checkpoint_every == 0:
            yield self._save()
        if last:  # before a validation that may fail
            self._write()
        if signal and not last:
            self._stopped = True
            yield Stopped(done, signal)
        elif self._due(done):
            yield from self._validate(done, log)

    def _save(self) -> Saved:
        path = self._trainer.save(self._done, self._seconds())
        self._saved = self._done
        return Saved(self._done, path)

    def _rescue(self) -> Iterator[Event]:
        """Keep the steps since the last checkpoint, unless an update was broken off half-way."""
        if self._done > self._saved and self._trainer.whole:
            yield self._save()

    def _due(self, done: int) -> bool:
        """Whether there is a validation after so many steps."""
        last = done == self._training.course.steps
        return bool(self._trainer.job.held) and (last or done % self._training.validate_every == 0)

    def _validate(self, done: int, log: Journal | None) -> Iterator[Event]:
        numbers, shown = self._trainer.validate(self._stop)
        if self._trainer.agreed(self._stop()):  # it was cut short
            return
        if log:
            log.write(done, numbers, "validation/")
            for index, one in enumerate(shown):
                log.show(done, f"validation/{index}", list(one.pictures))
        yield Validated(done, numbers)

    def _write(self) -> None:
        job = self._trainer.job
        if self._main:
            summary = f"{job.task.name}, trained by dmp on {len(job.pairs)} pairs"
            result.write(
                self._training.output, self._trainer.packed(), job.recipe, job.model, summary
            )
        self._trainer.accelerator.wait_for_everyone()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out and the device is there still: after AcceleratorError it is not."""
    return out_of_memory(error) and not isinstance(error, torch.AcceleratorError)


@contextmanager
def _memory() -> Iterator[None]:
    """Memory that ran out, or a device that was lost, as the user is told of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        if out_of_memory(error):
            raise ResourceError(
                f"out of memory: {first}",
                "use a smaller --batch and more --accumulate (half and twice: the same training), "
                "--gradient-checkpointing, or --cache-latents",
            ) from error
        if isinstance(error, torch.AcceleratorError):
            raise ResourceError(f"the accelerator failed: {first}", "run it again") from error
        raise
