"""A LoRA on its backbone, on one or several processes: a step, a checkpoint, a validation."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from dmp_cli import __version__, adapters, header, lora
from dmp_cli.backbone import Backbone
from dmp_cli.data import Pair
from dmp_cli.device import DTYPES, Placement, choose
from dmp_cli.diffusion import sample
from dmp_cli.errors import ImageError, ModelError, UsageError
from dmp_cli.lora import Matrices
from dmp_cli.networks.text_encoder import TextEncoder
from dmp_cli.predict import Predictor, sampling
from dmp_cli.train import checkpoints, objective, result
from dmp_cli.train.checkpoints import State
from dmp_cli.train.draws import Draw
from dmp_cli.train.feed import Batches, Feed
from dmp_cli.train.job import Job
from dmp_cli.train.preparation import RANK, Files
from dmp_cli.train.settings import Training
from dmp_cli.train.validation import Judged, judge, summed_up

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of AdamW, as in the official code
_LOOK = 4  # pairs of a validation that are shown as pictures


def accelerator_of(training: Training) -> Accelerator:
    """Accelerate on the device and in the precision asked for.

    ResourceError for a device that is not there, UsageError for a precision it does not have.
    """
    if training.device.startswith("cuda:"):
        raise UsageError(
            f"--device {training.device}: one device is chosen from outside",
            f"CUDA_VISIBLE_DEVICES={training.device[5:]} dmp train ... --device cuda",
        )
    device = choose(training.device).device.type
    precision = training.precision
    if precision == "auto":
        precision = "fp16" if device == "cuda" else "no"
    if precision == "fp16" and device != "cuda":
        raise UsageError(f"--mixed-precision fp16 is not for {device}", "use no, or bf16")
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=training.course.accumulate,
    )


def _open(job: Job, files: Files, accelerator: Accelerator) -> Backbone:
    """The backbone of a job where accelerate runs, in its precision."""
    precision = accelerator.mixed_precision
    dtype = DTYPES["fp32" if precision == "no" else precision]
    placement = Placement(accelerator.device, dtype, "chosen by accelerate")
    backbone = Backbone.load(files.folder, placement, [job.recipe.prompt], files.variant)
    if job.training.checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    return backbone


class Trainer:
    """The networks of a job, and what changes while it runs: the LoRA and its optimizer."""

    def __init__(
        self, job: Job, files: Files, accelerator: Accelerator, settings: Mapping[str, Any],
        checkpoint: Path | None,
    ) -> None:  # fmt: skip
        """Load everything; ModelError for a backbone, LoRA or checkpoint that is not valid."""
        self.job, self.accelerator = job, accelerator
        self.whole = True  # no update of the LoRA was begun and not finished
        self._files, self._settings, self._course = files, settings, job.training.course
        self._backbone = _open(job, files, accelerator)
        processes = accelerator.num_processes, accelerator.process_index
        self.feed = Feed(job, files, self._backbone, *processes)
        self._encoder = None  # of captions: too many of them to be embedded beforehand
        if self._course.captions:
            self._encoder = TextEncoder(files.folder, files.variant, accelerator.device)
        self._targets, matrices = self._matrices(checkpoint)
        self._rank = _rank(matrices)
        self._parameters = adapters.add(self._backbone.unet, job.task.name, matrices)
        optimizer = torch.optim.AdamW(
            self._parameters, betas=_BETAS, eps=_EPSILON, weight_decay=self._course.weight_decay
        )
        self._unet, self._optimizer = accelerator.prepare(self._backbone.unet, optimizer)
        if checkpoint:
            self._restore(checkpoint)

    @property
    def where(self) -> str:
        """Device and precision."""
        precision = self.accelerator.mixed_precision
        return f"{self.accelerator.device} in {'fp32' if precision == 'no' else precision}"

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self._parameters)

    def _matrices(self, checkpoint: Path | None) -> tuple[str, Matrices]:
        """(targets, matrices) to begin with: of the checkpoint, of --init, or new ones."""
        start = checkpoint / checkpoints.LORA if checkpoint else self._files.init
        shapes, asked = self._backbone.shapes, self._course.targets
        if start is None:
            chosen = lora.chosen(shapes, asked or "all")
            rank = self._course.rank or RANK
            return asked or "all", adapters.random(chosen, rank, self._course.seed)
        matrices = lora.read(start, shapes)
        targets = header.read(start).get("targets", "all")
        rank = self._course.rank or _rank(matrices)
        if rank < _rank(matrices):
            raise UsageError(f"--rank {rank}: {start} has rank {_rank(matrices)}: it can only grow")
        if asked and lora.chosen(shapes, asked).keys() != matrices.keys():
            raise UsageError(f"--targets {asked}: {start} has {targets}")
        return targets, adapters.grown(matrices, rank, self._course.seed)

    def _restore(self, checkpoint: Path) -> None:
        held = checkpoints.load_optimizer(checkpoint)
        try:
            self._optimizer.load_state_dict(held["optimizer"])
            if self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(held["scaler"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{checkpoint}: its optimizer does not fit: {error}", "begin anew with --fresh"
            ) from error

    # A step -------------------------------------------------------------------------------

    def step(self, step: int, batches: Batches) -> float:
        """Train on the samples of a step, counted from 0; the mean loss of all processes.

        ModelError if it is not finite, before the LoRA is changed. `whole` is False while it is.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = objective.learning_rate(step, self._course)
        seen = []
        for part in range(self._course.accumulate):
            drawn, stacked = next(batches)
            with self.accelerator.accumulate(self._unet):
                losses = self._losses(drawn, stacked)
                seen.append(self._gathered(step, part, losses.detach()))
                self.accelerator.backward(losses.mean())
                if self.accelerator.sync_gradients:
                    self._clip(step)
                    self.whole = False
                self._optimizer.step()
                self._optimizer.zero_grad()
        self.whole = True
        return float(torch.cat(seen).mean())

    def _losses(self, drawn: Sequence[Draw], stacked: Tensor) -> Tensor:
        words, dtype = self._words(drawn), self._backbone.placement.dtype

        def predict(z: Tensor, t: Tensor | int) -> Tensor:
            output: Tensor = self._unet(z.to(dtype), t, encoder_hidden_states=words).sample
            return output.float()

        if self._course.loss == "map":
            return self._losses_of_map(predict, stacked)
        return objective.losses(
            predict, self.feed.latents(stacked),
            torch.tensor([one.t for one in drawn], device=self.accelerator.device),
            self._files.schedule, self.job.recipe.prediction, self._course.min_snr,
        )  # fmt: skip

    def _losses_of_map(
        self, predict: Callable[[Tensor, Tensor | int], Tensor], stacked: Tensor
    ) -> Tensor:
        """Of the map as it is predicted: all steps and the decoder are in the gradient."""
        image, truth = stacked.to(self.accelerator.device).unbind(1)
        latents = sample(
            predict, self.feed.encode(image), self._files.schedule, sampling(self.job.recipe)
        )
        drawn = self._backbone.decode(latents, chunk=len(latents)).float()
        if self.job.recipe.bright == "near":
            drawn, truth = -drawn, -truth
        return objective.map_losses(drawn, truth, self.job.task.metres)

    def _words(self, drawn: Sequence[Draw]) -> Tensor:
        pairs = self.job.pairs
        texts = ["" if one.empty else self.job.prompt(pairs[one.pair]) for one in drawn]
        if self._encoder is None:
            return self._backbone.words(texts)
        return self._encoder(texts).to(self._backbone.placement.dtype)

    def _gathered(self, step: int, part: int, losses: Tensor) -> Tensor:
        """The losses of all processes; ModelError names the images whose loss is not finite."""
        every: Tensor = self.accelerator.gather(losses)
        finite = torch.isfinite(every).tolist()
        if not all(finite):
            drawn = self.feed.of_pass(step, part)
            bad = [self.job.pairs[one.pair] for one, good in zip(drawn, finite, strict=True)
                   if not good]  # fmt: skip
            raise self._diverged(step, "loss", bad)
        return every

    def _clip(self, step: int) -> None:
        largest = self._course.clip or float("inf")
        norm = self.accelerator.clip_grad_norm_(self._parameters, largest)
        # in fp16 the scaler of gradients leaves such a step out and goes on with a smaller scale
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            raise self._diverged(step, "gradient", self.feed.of_step(step))

    def _diverged(self, step: int, what: str, pairs: Sequence[Pair]) -> ModelError:
        names = ", ".join(sorted({str(pair.image) for pair in pairs}))
        remedy = "use a smaller --learning-rate, or --mixed-precision no"
        if step:  # a run that goes on keeps its settings: only a new one can have others
            last = checkpoints.path_of(self.job.training.output, step)
            remedy += f", in a new run from here:\n--init {last} -o OTHER"
        return ModelError(
            f"step {step + 1}: the {what} is not finite, on {names}",
            f"`dmp data check` looks at the data; if it is good, {remedy}",
        )

    # What it leaves -----------------------------------------------------------------------

    def packed(self) -> bytes:
        """The LoRA file as it stands."""
        matrices = adapters.matrices(self._backbone.unet, self.job.task.name)
        return result.packed(matrices, self._entries())

    def _entries(self) -> dict[str, Any]:
        recipe = self.job.recipe
        source = recipe.backbone
        folder = source.path.name if source.path and not source.packaged else None
        settings = asdict(self._course) | dict(self._settings)
        return result.declared(recipe, self.job.task) | {
            "rank": self._rank,
            "targets": self._targets,
            "backbone": folder or source,  # a whole path says something of this machine
            "backbone_sha256": self._files.unet,
            "version": __version__,
            "data": f"{len(self.job.pairs)} pairs of {self.job.training.data.absolute().name}",
            "training": json.dumps(settings),
        }

    def save(self, step: int, seconds: float) -> Path:
        """Write a checkpoint after `step` steps; ResourceError if it cannot be.

        The other processes do not wait for the main one: it may be the only one that is left.
        """
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            held = {
                "optimizer": self._optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            state = State(step, seconds, self._settings)
            training = self.job.training
            checkpoints.save(training.output, state, self.packed(), held, training.keep)
        return checkpoints.path_of(self.job.training.output, step)

    def validate(self, stop: Callable[[], int]) -> tuple[dict[str, float], list[Judged]]:
        """(metrics, pairs with pictures) of the pairs held out, each process taking its share."""
        predictor = Predictor.around(self._backbone, self.job.recipe)
        own = range(self.accelerator.process_index, len(self.job.held),
                    self.accelerator.num_processes)  # fmt: skip
        judged: list[Judged] = []
        for index in own:
            if stop():
                break
            pair, look = self.job.held[index], index < _LOOK and self.job.training.tensorboard
            try:
                judged.append(
                    judge(predictor, pair, self.job.task, self.job.training.reading, look)
                )
            except ImageError as error:
                if str(error).startswith(str(pair.image)) or str(pair.target) in str(error):
                    raise
                raise ImageError(f"{pair.image}: {error}", error.hint) from error
        every: list[Judged] = gather_object(judged)
        return summed_up(every), [one for one in every if one.pictures]

    def agreed(self, number: int) -> int:
        """The largest of what the processes say: all do the same then, and wait for each other."""
        every: Tensor = self.accelerator.gather(
            torch.tensor([number], device=self.accelerator.device)
        )
        return int(every.max())


def _rank(matrices: Matrices) -> int:
    return len(next(iter(matrices.values()))[0])
