"""Which pair, mirrored or not, at which t, with which prompt: a function of seed and step alone.

Nothing is kept between steps, so a run that is resumed draws what it would have drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dmp_cli.tasks import Array

_ORDER, _CHANCE = 0, 1  # kinds of streams of random numbers below one seed


@dataclass(frozen=True)
class Draw:
    """One sample of a step."""

    pair: int
    flip: bool
    t: int
    empty: bool  # its prompt is left out


@dataclass(frozen=True)
class Chances:
    """What the draws of a run depend on."""

    seed: int
    pairs: int
    images: int  # in one step, of all processes
    timesteps: Sequence[int]
    flip: bool
    drop: float  # how often a prompt is left out


def draws(step: int, of: Chances) -> list[Draw]:
    """The samples of a step, counted from 0. Each pair comes once before any comes again."""
    random = np.random.default_rng([of.seed, _CHANCE, step])
    ts = random.integers(len(of.timesteps), size=of.images)
    flips = random.random(of.images) < 0.5
    empty = random.random(of.images) < of.drop
    return [
        Draw(
            _pair(step * of.images + i, of),
            bool(flips[i]) and of.flip,
            int(of.timesteps[ts[i]]),
            bool(empty[i]),
        )
        for i in range(of.images)
    ]


def _pair(position: int, of: Chances) -> int:
    epoch, place = divmod(position, of.pairs)
    return int(_order(of.seed, epoch, of.pairs)[place])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, pairs: int) -> Array:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(pairs)
