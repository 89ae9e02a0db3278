"""Which batches a process gets: read ahead by threads, from the files or from the cache."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dmp_cli.backbone import Backbone
from dmp_cli.data import Fit, Pair
from dmp_cli.tasks import Coding
from dmp_cli.train.draws import Chances, Draw, draws
from dmp_cli.train.job import Job
from dmp_cli.train.latents import Cache, Pictures, stream
from dmp_cli.train.preparation import Files

Batches = Iterator[tuple[tuple[Draw, ...], Tensor]]  # of latents.stream


class Feed:
    """The samples of a job, as process `process` of `processes` takes them."""

    def __init__(
        self, job: Job, files: Files, backbone: Backbone, processes: int = 1, process: int = 0
    ) -> None:
        self._job, self._backbone = job, backbone
        self._course = job.training.course
        self._processes, self._process = processes, process
        self._chances = Chances(
            self._course.seed, len(job.pairs), self.images, files.timesteps, job.flips,
            self._course.drop_prompt if job.prompted else 0.0,
        )  # fmt: skip
        pictures = Pictures(
            job.pairs, job.task,
            Coding(job.recipe.scale, job.recipe.normals, bright=job.recipe.bright),
            Fit(job.recipe.size, backbone.multiple), job.training.reading,
        )  # fmt: skip
        folder = job.training.cache
        vae = f"{files.vae} {backbone.placement.dtype_name}"
        self._cache = Cache(folder, pictures, vae) if folder else None
        self._read: Callable[[int, bool], Tensor] = self._cache or pictures

    @property
    def images(self) -> int:
        """Samples of a step, all processes together."""
        return self._course.batch * self._course.accumulate * self._processes

    def fill(self) -> Iterator[tuple[int, int]]:
        """Fill the cache, if there is one, yielding (done, all) of this process."""
        if self._cache is None:
            return
        mirrored = (False, True) if self._job.flips else (False,)
        every = [(index, flip) for index in range(len(self._job.pairs)) for flip in mirrored]
        own = every[self._process :: self._processes]
        for done in self._cache.fill(own, self.encode, self._job.training.workers):
            yield done, len(own)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures [B, 3, h, w] in [-1, 1]."""
        return self._backbone.encode(pictures)

    def batches(self, first: int) -> Batches:
        """The batches of this process from step `first` on, `accumulate` of them a step."""
        return stream(self._read, self._own(first), self._course.batch, self._job.training.workers)

    def _own(self, first: int) -> Iterator[Draw]:
        for step in range(first, self._course.steps):
            for part in range(self._course.accumulate):
                passed = self.of_pass(step, part)
                start = self._process * self._course.batch
                yield from passed[start : start + self._course.batch]

    def of_pass(self, step: int, part: int) -> list[Draw]:
        """The samples of all processes in pass `part` of a step, process after process."""
        each = self._course.batch * self._processes
        return draws(step, self._chances)[part * each : (part + 1) * each]

    def of_step(self, step: int) -> list[Pair]:
        """The pairs of a step, of all processes."""
        return [self._job.pairs[one.pair] for one in draws(step, self._chances)]

    def latents(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """(y, x), map and image, [B, C, h, w] each, of what `batches` gives."""
        if self._cache is None:
            encoded = self.encode(stacked.flatten(0, 1))
            stacked = encoded.view(*stacked.shape[:2], *encoded.shape[1:])
        x, y = stacked.to(self._backbone.placement.device).unbind(1)
        return y, x
