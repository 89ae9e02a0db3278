"""The two passes of `dmp bench`: stage by stage, and a run as any other."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from dmp_cli import jobs, tasks
from dmp_cli.bench.clock import Clock, Instead
from dmp_cli.bench.figures import NETWORK, STAGES, Pipeline, Stages
from dmp_cli.engines import flow, saving, steps, stream
from dmp_cli.engines.steps import Item, Network
from dmp_cli.errors import ImageError
from dmp_cli.host import Drawn, Host, Prepared
from dmp_cli.inputs.video import Clips
from dmp_cli.jobs import Input, Job, Result
from dmp_cli.outputs import export
from dmp_cli.plan import Plan

BACKBONE = {"encode": "encode", "predict": "unet", "decode": "decode"}  # method -> stage
_MOST = 100_000  # jobs that are laid out for the second pass
_HEADROOM = 3  # times as many as the first pass would do in that time

NONE = "no image could be predicted"

Failed = Callable[[Path, str], None]


@dataclass
class Supply:
    """Jobs for the inputs, round and round, each with files of its own in `out`."""

    inputs: Sequence[Input]
    out: Path
    plan: Plan
    given: int = 0

    def jobs(self, count: int) -> list[Job]:
        """The next jobs; of a clip, the next frames."""
        numbers = range(self.given, self.given + count)
        self.given += count
        inputs = [self._named(number) for number in numbers]
        look = self.plan.output
        return jobs.plan_targets(inputs, self.out, self.plan.tasks, look, keep_suffix=True)

    def _named(self, number: int) -> Input:
        item = self.inputs[number % len(self.inputs)]
        return replace(item, below=Path(f"{number:07d}{item.path.suffix}"))

    def endless(self) -> Iterator[Job]:
        """Job after job."""
        while True:
            yield from self.jobs(len(self.inputs))

    def drop(self, paths: set[Path]) -> None:
        """Leave out inputs that failed. ImageError if none is left."""
        self.inputs = [item for item in self.inputs if item.path not in paths]
        if not self.inputs:
            raise ImageError(NONE)


def readable(host: Host, supply: Supply, failed: Failed) -> None:
    """Read inputs until one can be read, and drop those before it. ImageError if there is none."""
    bad: set[Path] = set()
    with closing(Clips(host.plan.max_pixels)) as clips:
        for job in supply.jobs(len(supply.inputs)):
            item = steps.read(host, clips, job)
            if item.prepared:
                break
            failed(job.source, item.error)
            bad.add(job.source)
    supply.drop(bad)


# Stage by stage ---------------------------------------------------------------------------


@dataclass
class Serial:
    """Images through the stages in one thread, each stage timed by itself."""

    network: Network  # whose backbone is timed by the clock
    clock: Clock
    folder: Path
    taken: int = 0
    images: int = 0  # of those, the ones that were predicted
    failed: dict[Path, str] = field(default_factory=dict)

    def run(self, todo: Iterator[Job], seconds: float = float("inf")) -> None:
        """Job after job, in batches as a run has them, for so long, a whole batch at least."""
        host, batch = self.network.host, self.network.batch
        end = time.perf_counter() + seconds

        def going_on(_: Job) -> bool:
            return self.taken < batch or time.perf_counter() < end

        with closing(Clips(host.plan.max_pixels)) as clips:
            going = takewhile(going_on, todo)
            items = (self._read(clips, job) for job in going)
            key = partial(steps.key, host)
            for group in stream.batches(items, key, lambda: self.network.batch, 4 * batch):
                for item in self.clock.timed("draw", steps.draw, self.network, group):
                    self._write(item)

    def _read(self, clips: Clips, job: Job) -> Item:
        self.taken += 1
        return self.clock.timed("read", steps.read, self.network.host, clips, job)

    def _write(self, item: Item) -> None:
        maps: dict[str, Any] = {}
        host, clock = self.network.host, self.clock

        def finish(task: str, drawn: Drawn, image: Prepared) -> Any:
            maps[task] = clock.timed("resize", host.finish, task, drawn, image)
            return maps[task]

        shown: Any = Instead(host, {"finish": finish})
        result = clock.timed("save", saving.write, shown, self.folder, item)
        if isinstance(result, saving.Waiting):
            raise TypeError("a run that is measured has nothing that waits for its end")
        for name, values in maps.items():
            self._look(name, values)
        if result.errors:
            self.failed[result.job.source] = result.errors[0]
        else:
            self.images += 1
        remove(result)

    def _look(self, name: str, values: Any) -> None:
        """Colour and quantise a map once more: within writing it has no call of its own."""
        look, row = self.network.host.plan.output, tasks.find(name)
        shown = export.view(look, None)
        makes = {"png": row.preview, "png16": row.pack, "tiff16": row.pack}
        for form in look.formats:
            if form in makes:
                self.clock.timed("look", makes[form], values, shown)

    def stages(self) -> Stages:
        """Seconds of an image, by stage. What is left of drawing and saving are stages too.

        ImageError if there was no image.
        """
        if not self.images:
            raise ImageError(NONE)
        spent = self.clock.seconds
        network = sum(spent[name] for name in NETWORK if name != "copy")
        rest = {
            "copy": spent["draw"] - network,
            "write": spent["save"] - spent["resize"] - spent["look"],
        }
        each = {name: max(rest.get(name, spent[name]), 0.0) / self.images for name in STAGES}
        return Stages(self.images, each)


# A run as any other -----------------------------------------------------------------------


class Meter:
    """A network, and when it drew."""

    def __init__(self, network: Network) -> None:
        self._network, self.host, self.at_once = network, network.host, network.at_once
        self.spans: list[tuple[float, float]] = []

    @property
    def batch(self) -> int:
        """As the network has it."""
        return self._network.batch

    @batch.setter
    def batch(self, images: int) -> None:
        self._network.batch = images

    def draw(self, batch: Sequence[Prepared], names: Sequence[str]) -> list[dict[str, Drawn]]:
        """As the network does."""
        start = time.perf_counter()
        drawn = self._network.draw(batch, names)
        self.spans.append((start, time.perf_counter()))
        return drawn

    def cuts(self, prompt: str) -> bool:
        """As the network says."""
        return self._network.cuts(prompt)

    @property
    def idle(self) -> float | None:
        """The share of the time from its first drawing to its last in which it drew nothing."""
        if len(self.spans) < 2:
            return None
        drawing, last = 0.0, self.spans[0][0]
        for start, end in sorted(self.spans):  # two may be drawn at once
            drawing += max(end - max(start, last), 0.0)
            last = max(end, last)
        return 1 - drawing / (last - min(self.spans)[0])


def pipeline(
    network: Network, supply: Supply, seconds: float, each: float
) -> tuple[Pipeline, dict[Path, str]]:
    """A run of so many seconds, of one batch at least, and what failed in it.

    `each` is how long the network takes for an image. ImageError if all failed.
    """
    meter = Meter(network)
    end = time.perf_counter() + seconds
    count = int(_HEADROOM * max(seconds, 0) / max(each, 1e-4)) + 4 * network.batch
    todo = supply.jobs(min(count, _MOST))
    taken: list[float] = []
    failed: dict[Path, str] = {}
    maps = 0
    start, cpu = time.perf_counter(), time.process_time()

    def over() -> bool:
        return bool(meter.spans) and time.perf_counter() > end

    for result in flow.stream(meter, todo, supply.out, over):
        if result.errors:
            failed[result.job.source] = result.errors[0]
        else:
            taken.append(result.seconds)
            maps += len(result.maps)
        remove(result)
    if not taken:
        raise ImageError(NONE)
    spent, worked = time.perf_counter() - start, time.process_time() - cpu
    p50, p95 = (float(value) for value in np.percentile(taken, (50, 95)))
    return Pipeline(len(taken), maps, spent, p50, p95, meter.idle, worked / len(taken)), failed


def remove(result: Result) -> None:
    """Delete what was written: a minute of maps may be more than the disk has room for."""
    for path in result.written:
        path.unlink(missing_ok=True)
