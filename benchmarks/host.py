"""How fast dmp is beside the network: `python benchmarks/host.py FOLDER [--images 600] [--tiny N]`.

Whole runs of `dmp predict` in processes of their own, of all tasks and of one, but with a stand-in
for the network: it gives at once what the bundled model drew of a photograph, in several variants,
so that the maps compress as real ones do. What is left is to find, read, hash, decode, resize,
encode, write, put down in the manifest and report. FOLDER keeps the drawings and the inputs; prints
Markdown tables.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
PHOTO = Path(__file__).parent.parent / "examples" / "coffee.jpg"
VARIANTS = 8  # so that neither caches nor the table of colours have seen all of an image before
BATCH = 8
SIZE = 512
EVERY = 10_000  # images between two looks at the memory


# What goes in -----------------------------------------------------------------------------


def photo(side: int) -> Image.Image:
    """The middle of a photograph, as a square."""
    with Image.open(PHOTO) as image:
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        square = image.convert("RGB").crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def drawings(folder: Path) -> Path:
    """What the bundled model draws of that photograph, float32 [3, 512, 512] for each task."""
    path = folder / "drawings.npz"
    if not path.exists():
        from dmp_cli.predict import Predictor
        from dmp_cli.tasks import TASKS

        network = Predictor(tuple(TASKS), model="demo", size=SIZE)
        drawn = network.draw([network.host.prepare(photo(SIZE))], tuple(TASKS))[0]
        np.savez(path, **{name: np.moveaxis(drawn[name], -1, 0) for name in TASKS})
    return path


def inputs(folder: Path, count: int, side: int) -> Path:
    """A tree of `count` JPEGs of `side` pixels: hard links to a few, a thousand a folder."""
    root = folder / f"{count}-of-{side}"
    if root.exists():
        return root
    making = root.with_suffix(".part")
    shutil.rmtree(making, ignore_errors=True)
    image = photo(SIZE + VARIANTS)
    making.mkdir(parents=True)
    for index in range(VARIANTS):
        piece = image.crop((index, index, SIZE + index, SIZE + index)).resize((side, side))
        piece.save(making / f".{index}.jpg", quality=92)
    for index in range(count):
        path = making / f"{index // 1000:03d}" / f"image-{index:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        os.link(making / f".{index % VARIANTS}.jpg", path)
    return making.rename(root)


# What is measured -------------------------------------------------------------------------


@dataclass
class Timers:
    """CPU seconds of each stage, without those of the stages within it; and what was seen."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    images: int = 0
    first: tuple[float, float] = (0.0, 0.0)  # time and CPU seconds when the first was recorded
    last: tuple[float, float] = (0.0, 0.0)
    memory: list[float] = field(default_factory=list)  # MB at every so many images
    _local: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def around(self, owner: Any, name: str, stage: str) -> None:
        """Time a function of a module, or of an object."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **how: Any) -> Any:
            with self._within(stage):
                return function(*args, **how)

        # type.__setattr__ for a class; object's, since rows of the task table are frozen
        put = type.__setattr__ if isinstance(owner, type) else object.__setattr__
        put(owner, name, timed)

    @contextmanager
    def _within(self, stage: str) -> Iterator[None]:
        stack: list[float] = self._local.__dict__.setdefault("stack", [])
        stack.append(0.0)
        start = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - start
            inner = stack.pop()
            if stack:
                stack[-1] += spent
            with self._lock:
                self.seconds[stage] += spent - inner

    def install(self) -> None:
        """Put timers around the stages of dmp."""
        from dmp_cli import digests, files, images, manifest, resume, tasks
        from dmp_cli.commands import report
        from dmp_cli.outputs import export, writers

        self.around(digests, "stamp", "hash")
        self.around(images, "read", "read")
        self.around(images, "fit", "fit")
        self.around(images, "resize", "decode")
        for row in tasks.TASKS.values():
            self.around(row, "decode", f"decode {row.name}")
            self.around(row, "preview", "look")
        self.around(export, "remarks", "look")
        self.around(export, "span", "look")
        self.around(writers, "_save_png", "encode")
        self.around(files, "write", "write")
        self.around(resume, "record", "record")
        self.around(report.Talk, "output", "report")
        append = manifest.Manifest.append

        def counted(book: Any, kind: str, record: Any) -> None:
            append(book, kind, record)
            if kind == "input":
                self._count()

        type.__setattr__(manifest.Manifest, "append", counted)
        self.around(manifest.Manifest, "append", "record")

    def _count(self) -> None:
        self.last = time.time(), time.process_time()
        self.first = self.first if self.images else self.last
        if self.images % EVERY == 0:
            self.memory.append(_rss())
        self.images += 1


def _rss() -> float:
    """MB of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@dataclass
class StandIn:
    """What an engine takes for a network (engines.steps.Network)."""

    host: Any
    variants: list[dict[str, Array]]
    batch: int = BATCH
    at_once: int = 1
    drawn: int = 0

    def draw(self, batch: Sequence[Any], names: Sequence[str]) -> list[dict[str, Array]]:
        """The next variants; memory as the network leaves it: [3, h, w] seen as [h, w, 3]."""
        found = []
        for _ in batch:
            variant = self.variants[self.drawn % len(self.variants)]
            found.append({name: variant[name] for name in names})
            self.drawn += 1
        return found

    def cuts(self, prompt: str) -> bool:
        """No prompt is too long."""
        del prompt
        return False


def variants(path: Path, side: int) -> list[dict[str, Array]]:
    """Drawings of `side` pixels, each moved and a little darker than the one before."""
    with np.load(path) as file:
        drawn = {name: file[name][:, :: SIZE // side, :: SIZE // side] for name in file}
    return [
        {
            name: np.moveaxis(np.roll(planes, index * side // VARIANTS, 2) - index / 400, 0, -1)
            for name, planes in drawn.items()
        }
        for index in range(VARIANTS)
    ]


def child(words: list[str], path: Path, side: int, started: float) -> None:
    """One command in this process; its figures go to standard output as JSON."""
    from dmp_cli import cli, host
    from dmp_cli.engines import local

    timers = Timers()
    timers.install()

    def load(plan: Any, *_: object, **__: object) -> StandIn:
        completed = host.completed(plan).ran_on("none", "fp32")
        known = dict.fromkeys(plan.tasks, "0" * 64)
        object.__setattr__(completed, "digests", known)
        return StandIn(completed, variants(path, side))

    local.load = load
    sys.argv = ["dmp", *words]
    report, sys.stdout = sys.stdout, Path(os.devnull).open("w")
    code: Any = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    if timers.images < 2:
        raise SystemExit(f"{timers.images} images were recorded: no rate is to be had")
    count = timers.images - 1
    wall, cpu = (timers.last[i] - timers.first[i] for i in range(2))
    figures = {
        "images": timers.images, "rate": count / wall, "cpu": cpu / count, "cores": cpu / wall,
        "start": timers.first[0] - started, "memory": timers.memory, "last": _rss(),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "stages": {name: s / timers.images for name, s in timers.seconds.items()},
    }  # fmt: skip
    print(json.dumps(figures), file=report)
    sys.exit(code)


# Printing ---------------------------------------------------------------------------------


def run(folder: Path, count: int, side: int, tasks: str) -> dict[str, Any]:
    """A whole run in a process of its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["predict", tasks, str(inputs(folder, count, side)), "-o", str(out), "-q"]
    words += ["--model", "demo", "--size", str(side)]
    command = [sys.executable, __file__, str(folder), "--side", str(side), "--child", *words]
    ran = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "T0": str(time.time())}
    )
    shutil.rmtree(out)
    figures: dict[str, Any] = json.loads(ran.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=600, help="of 512x512")
    parser.add_argument("--tiny", type=int, default=0, help="of 64x64")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="a record for each run, no table")
    parser.add_argument("--side", type=int, default=SIZE, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.child:
        child(given.child, given.folder / "drawings.npz", given.side, float(os.environ["T0"]))
        return
    drawings(given.folder)
    from dmp_cli.tasks import TASKS

    rows = [(given.images, SIZE, ",".join(TASKS))] * given.turns if given.images else []
    rows += [(given.tiny, 64, "depth"), (given.tiny, 64, ",".join(TASKS))] if given.tiny else []
    found = [(row, run(given.folder, *row)) for row in rows]
    if given.json:
        for _, one in found:
            print(json.dumps(one))
    else:
        _print_runs(found)


def _print_runs(found: list[tuple[tuple[int, int, str], dict[str, Any]]]) -> None:
    print("| images | size | tasks | images/s | CPU ms an image | cores | first image, s |"
          " MB at the first | every 10,000 | last | peak |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|")
    for (count, side, tasks), one in found:
        memory = " ".join(f"{value:.0f}" for value in one["memory"][1:])
        print(
            f"| {count} | {side}x{side} | {len(tasks.split(','))} | {one['rate']:.1f} | "
            f"{one['cpu'] * 1e3:.1f} | {one['cores']:.2f} | {one['start']:.1f} | "
            f"{one['memory'][0]:.0f} | {memory} | {one['last']:.0f} | {one['peak']:.0f} |"
        )
    stages = sorted({name for _, one in found for name in one["stages"]})
    print("\nCPU ms an image, by stage\n\n| images | " + " | ".join(stages) + " | the rest |")
    print("|---:" * (len(stages) + 2) + "|")
    for (count, _, _), one in found:
        each = [one["stages"].get(name, 0) * 1e3 for name in stages]
        rest = one["cpu"] * 1e3 - sum(each)
        print(f"| {count} | " + " | ".join(f"{ms:.2f}" for ms in each) + f" | {rest:.2f} |")


if __name__ == "__main__":
    main()
