"""Packs scenes into one array of network pictures: uint8 [N, 6, S, S, 3], the image first.

`python recipes/demo/pack.py SCENES OUT.npy [SIZE]`
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dmp_cli import images, maps
from dmp_cli.tasks import TASKS, Coding, unit_vectors

SCALE = 8.0


def picture(scenes: Path, size: int, name: str) -> np.ndarray:
    """[6, S, S, 3] of one scene: the image and what the network is to draw for each task."""
    shape = (size, size)
    rows = [images.fit(images.read(scenes / "images" / name, 10**7).rgb, shape)]
    for task in TASKS.values():
        values = maps.read(scenes / task.name / name, task)
        if task.name == "depth":
            values = np.where(values == 0, np.float32(SCALE), values)
        values = images.resize(values, shape, nearest=task.labels)
        values = unit_vectors(values) if task.unit_length else values
        drawn = task.encode(values, Coding(scale=SCALE))
        rows.append(np.rint(np.clip(drawn / 2 + 0.5, 0, 1) * 255).astype(np.uint8))
    return np.stack(rows)


def main(scenes: str, out: str, size: str = "128") -> None:
    folder = Path(scenes)
    names = sorted(path.name for path in (folder / "images").glob("*.png"))
    side = int(size)
    packed = np.lib.format.open_memmap(
        out + ".part", "w+", np.uint8, (len(names), len(TASKS) + 1, side, side, 3)
    )
    with ProcessPoolExecutor() as pool:
        rows = pool.map(partial(picture, folder, side), names, chunksize=32)
        for index, row in enumerate(rows):
            packed[index] = row
    packed.flush()
    Path(out + ".part").rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
