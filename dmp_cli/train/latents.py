"""Pairs as the training takes them: pictures read from files, or latents from a cache on disk."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dmp_cli import data, files
from dmp_cli.data import Fit, Pair
from dmp_cli.engines.stream import ordered_map
from dmp_cli.errors import ImageError
from dmp_cli.maps import Reading
from dmp_cli.tasks import Array, Coding, Task
from dmp_cli.train.draws import Draw

_VERSION = 1  # of what an entry holds: to be raised when the same pair gives other latents
Encode = Callable[[Tensor], Tensor]  # Backbone.encode


@dataclass(frozen=True)
class Pictures:
    """Reads a pair as the network's pictures, cut to a square in the middle."""

    pairs: Sequence[Pair]
    task: Task
    coding: Coding
    fit: Fit
    reading: Reading

    def __call__(self, index: int, flip: bool) -> Tensor:
        """Image and map [2, 3, h, w] float32 in [-1, 1], `flip` mirrored. ImageError names a file.

        Their sides are `fit.size`; with size 0 nothing is cut.
        """
        rgb, drawn = data.load(self.pairs[index], self.task, self.coding, self.fit, self.reading)
        both = np.stack([rgb.astype(np.float32) / np.float32(127.5) - 1, drawn])
        if self.fit.size:
            both = _middle(both)
        if flip:
            both = both[:, :, ::-1]
        return torch.from_numpy(np.ascontiguousarray(both.transpose(0, 3, 1, 2)))


def _middle(pictures: Array) -> Array:
    """The square in the middle of [2, h, w, 3]."""
    height, width = pictures.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[:, top : top + side, left : left + side]


@dataclass(frozen=True)
class Cache:
    """Latents of pairs in a folder, a file for each, named by the hash of all that it depends on.

    So one folder can serve several runs, and a file that was made from another image, with other
    settings or by another VAE is never taken for this one.
    """

    folder: Path
    pictures: Pictures
    vae: str  # sha256 of its weights, and the dtype it runs in
    _paths: dict[tuple[int, bool], Path] = field(default_factory=dict)  # those looked up before

    def __call__(self, index: int, flip: bool) -> Tensor:
        """Latents of image and map [2, C, h, w] float32. ImageError if the file is damaged."""
        path = self.path(index, flip)
        try:
            return load(path.read_bytes())["latents"]
        except (OSError, SafetensorError, KeyError) as error:
            raise ImageError(
                f"{path}: cannot be read from the cache: {error}",
                "delete it, then run the same command again",
            ) from error

    def path(self, index: int, flip: bool) -> Path:
        """The file of a pair's latents, there or not."""
        if (index, flip) not in self._paths:
            self._paths[index, flip] = self.folder / self._name(index, flip)
        return self._paths[index, flip]

    def _name(self, index: int, flip: bool) -> str:
        pair = self.pictures.pairs[index]
        files = [(str(path.resolve()), *_state(path)) for path in (pair.image, pair.target)]
        how = [asdict(part) for part in
               (self.pictures.coding, self.pictures.fit, self.pictures.reading)]  # fmt: skip
        key = json.dumps([_VERSION, files, self.pictures.task.name, how, self.vae, flip])
        return f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.safetensors"

    def fill(
        self, wanted: Iterable[tuple[int, bool]], encode: Encode, workers: int
    ) -> Iterator[int]:
        """Make what is not there yet of (pair, flip), and yield how many are done, again and again.

        ImageError names the first file that cannot be used; what was made until then stays.
        """
        done = 0
        absent = []
        for index, flip in wanted:
            if self.path(index, flip).exists():
                done += 1
            else:
                absent.append((index, flip))
        yield done
        for what, pictures in zip(
            absent,
            ordered_map(lambda item: self.pictures(*item), absent, workers, 2 * workers),
            strict=True,
        ):
            files.write_bytes(self.path(*what), save({"latents": encode(pictures).cpu()}))
            done += 1
            yield done


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change of a file."""
    try:
        found = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


def stream(
    read: Callable[[int, bool], Tensor], draws: Iterable[Draw], batch: int, workers: int
) -> Iterator[tuple[tuple[Draw, ...], Tensor]]:
    """Batches in order, read ahead by threads: the draws and their [B, 2, ...].

    ImageError if pictures of one batch differ in shape, which they do only with size 0.
    """
    ahead = 2 * batch + workers
    read_ahead = ordered_map(lambda one: (one, read(one.pair, one.flip)), draws, workers, ahead)
    while group := list(islice(read_ahead, batch)):
        shapes = {tuple(pictures.shape) for _, pictures in group}
        if len(shapes) > 1:
            raise ImageError(
                f"images of different sizes in one batch: {', '.join(map(str, sorted(shapes)))}",
                "give a --size, or use --batch 1",
            )
        yield tuple(one for one, _ in group), torch.stack([pictures for _, pictures in group])
