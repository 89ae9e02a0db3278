"""`dmp bench` without its words: load, warm up, two passes -> figures."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dmp_cli import catalogue, weights
from dmp_cli.bench import machine
from dmp_cli.bench.clock import Clock
from dmp_cli.bench.figures import NETWORK, Figures, Run, Stages, Start
from dmp_cli.bench.passes import BACKBONE, Failed, Serial, Supply, pipeline
from dmp_cli.engines import local
from dmp_cli.plan import Plan
from dmp_cli.predict import Predictor

_FIRST = 1 / 3  # of the time, for the first pass


def measure(
    plan: Plan,
    supply: Supply,
    seconds: float,
    imports: float,
    note: Callable[[str], None],
    failed: Failed,
) -> Figures:
    """Load the network of a plan and measure it with the jobs of `supply` for some seconds.

    It takes longer where one batch a pass does. `imports` is what importing took; `failed` is told
    of each input that fails. Raises what loading raises, and ImageError if all inputs fail.
    """
    begun = time.perf_counter()
    network = local.load(plan, note)
    load = time.perf_counter() - begun
    device, told = network.placement.device, _Told(failed)
    machine.forget_peak(device)
    note("warming up")
    first = _warm(network, supply, told)
    begun = time.perf_counter()
    note(f"measuring stage by stage, {max(seconds * _FIRST, first * network.batch):.0f} s or so")
    stages = _stages(network, supply, told, seconds * _FIRST)
    left, each = seconds - (time.perf_counter() - begun), stages.of(NETWORK)
    note(f"measuring a run, {max(left, each * network.batch):.0f} s or so")
    made, bad = pipeline(network, supply, left, each)
    told.add(bad)
    start = Start(imports, load, first)
    here = machine.describe(device)
    return Figures(here, _run(network), start, stages, made, machine.peaks(device))


@dataclass
class _Told:
    """The inputs that failed, each told once."""

    failed: Failed
    paths: set[Path] = field(default_factory=set)

    def add(self, new: Mapping[Path, str]) -> None:
        for path in new.keys() - self.paths:
            self.failed(path, new[path])
        self.paths |= new.keys()


def _warm(network: Predictor, supply: Supply, told: _Told) -> float:
    """Draw an image, and a batch: some is done once for each shape. Seconds of the first."""
    took = []
    for images in (1, network.batch) if network.batch > 1 else (1,):
        start = time.perf_counter()
        serial = _timed(network, supply.out)
        serial.run(iter(supply.jobs(images)))
        network.batch = min(network.batch, serial.network.batch)  # memory may not be enough
        told.add(serial.failed)
        took.append(time.perf_counter() - start)
    return took[0]


def _stages(network: Predictor, supply: Supply, told: _Told, seconds: float) -> Stages:
    """The first pass; what failed in it is left out of the second."""
    serial = _timed(network, supply.out)
    serial.run(supply.endless(), seconds)
    told.add(serial.failed)
    supply.drop(told.paths)
    return serial.stages()


def _timed(network: Predictor, folder: Path) -> Serial:
    clock = Clock(partial(machine.settle, network.placement.device))
    watched = network.through(lambda backbone: clock.around(backbone, BACKBONE))
    return Serial(watched, clock, folder)


def _run(network: Predictor) -> Run:
    plan, where = network.plan, network.placement
    recipes = network.recipes
    first = next(iter(recipes.values()))
    has = weights.has_tiny_decoder(catalogue.load(plan.weights)["models"][first.model])
    return Run(
        model=first.model,
        tasks=plan.tasks,
        settings={task: recipe.settings for task, recipe in recipes.items()},
        calls={
            task: 1 if recipe.sampler == "onepass" else recipe.steps
            for task, recipe in recipes.items()
        },
        dtype=where.dtype_name,
        device_asked=plan.device,
        dtype_asked=plan.dtype,
        batch=network.batch,
        readers=plan.readers,
        writers=plan.writers,
        formats=plan.output.formats,
        low_memory=plan.low_memory,
        tiny_decoder=bool(first.decoder) if has else None,
    )
