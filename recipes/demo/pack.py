"""Packs scenes into one array of network pictures: uint8 [N, 6, S, S, 3], the image first.

`python recipes/demo/pack.py SCENES OUT.npy [SIZE]`; the pictures are those that `dmp train` takes.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dmp_cli import data
from dmp_cli.maps import Reading
from dmp_cli.tasks import TASKS, Coding

MULTIPLE = 4  # pixels per latent


def picture(fit: data.Fit, pairs: tuple[data.Pair, ...]) -> np.ndarray:
    """[6, S, S, 3] of one scene: the image and what the network is to draw for each task."""
    rows = []
    for task, pair in zip(TASKS.values(), pairs, strict=True):
        image, drawn = data.load(pair, task, Coding(), fit, Reading())
        rows += [] if rows else [image]
        rows.append(np.rint(np.clip(drawn / 2 + 0.5, 0, 1) * 255).astype(np.uint8))
    return np.stack(rows)


def main(scenes: str, out: str, size: str = "128") -> None:
    found = list(zip(*(data.pairs(Path(scenes), task) for task in TASKS.values()), strict=True))
    side = int(size)
    packed = np.lib.format.open_memmap(
        out + ".part", "w+", np.uint8, (len(found), len(TASKS) + 1, side, side, 3)
    )
    with ProcessPoolExecutor() as pool:
        fit = data.Fit(side, MULTIPLE)
        for index, row in enumerate(pool.map(partial(picture, fit), found, chunksize=32)):
            packed[index] = row
    packed.flush()
    Path(out + ".part").rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
