"""What `dmp bench` prints: figures as lines, or as one JSON object."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dmp_cli
from dmp_cli.files import in_words

if TYPE_CHECKING:
    from dmp_cli.bench.figures import Figures

_WIDTH = 79
_LABEL = 26  # characters


def record(figures: "Figures", failed: Mapping[str, str]) -> dict[str, Any]:
    """All figures by name, what follows from them, and what failed. Seconds, bytes, shares."""
    from dmp_cli.bench.advice import advice, bottleneck

    made = figures.pipeline
    facts = {"dmp": dmp_cli.__version__, **asdict(figures)}
    facts["pipeline"] |= {
        "images_per_second": made.rate,
        "maps_per_second": made.maps / made.seconds,
    }
    facts["stages"]["unet_step"] = _step(figures)
    facts |= {"bottleneck": bottleneck(figures), "advice": advice(figures), "failed": dict(failed)}
    return facts


def lines(figures: "Figures") -> Iterator[str]:
    """The same to be read, within 80 columns."""
    yield from _what(figures)
    yield from _start(figures)
    yield from _stages(figures)
    yield from _pipeline(figures)
    yield from _advice(figures)


def _step(figures: "Figures") -> float:
    """Seconds of an image and a call of the UNet."""
    return figures.stages.seconds["unet"] / sum(figures.run.calls.values())


def _row(label: str, value: str) -> str:
    wrapped = textwrap.wrap(value, _WIDTH - _LABEL - 2) or [""]
    rest = (" " * (_LABEL + 2) + line for line in wrapped[1:])
    return "\n".join([f"  {label:<{_LABEL}}{wrapped[0]}", *rest])


def _what(figures: "Figures") -> Iterator[str]:
    here, run = figures.machine, figures.run
    device = f"{here.device} {here.device_name}".strip()
    calls = sorted(set(run.calls.values()))
    steps = " or ".join(map(str, calls)) + (" step" if calls == [1] else " steps")
    yield "what"
    yield _row("machine", f"{here.processor}, {_many(here.cores, 'core')}, torch {here.torch}")
    how = f"{run.dtype}, batches of {run.batch}{', low memory' if run.low_memory else ''}"
    yield _row("network", f"{device}, {how}, {_many(here.threads, 'thread')}")
    yield _row("model", f"{run.model}: {', '.join(run.tasks)}; {steps}")
    yield _row("files", f"{', '.join(run.formats)}; {run.readers} readers, {run.writers} writers")


def _start(figures: "Figures") -> Iterator[str]:
    start = figures.start
    yield "\nbefore the first map, seconds"
    yield _row("import torch", f"{start.imports:8.2f}")
    yield _row("load the model", f"{start.load:8.2f}")
    yield _row("first image", f"{start.first_image:8.2f}")


def _stages(figures: "Figures") -> Iterator[str]:
    from dmp_cli.bench.advice import share
    from dmp_cli.bench.figures import STAGES

    stages, run = figures.stages, figures.run
    yield f"\nstages of an image, one by one ({_many(stages.images, 'image')})"
    calls = sum(run.calls.values())
    for name in STAGES:
        more = f"   {calls} x {_ms(_step(figures))}" if name == "unet" and calls > 1 else ""
        spent = stages.seconds[name]
        yield _row(run.title(name), f"{_ms(spent)} {share(figures, name):6.1%}{more}")
    yield _row("together", _ms(sum(stages.seconds.values())))


def _pipeline(figures: "Figures") -> Iterator[str]:
    made, memory = figures.pipeline, figures.memory
    yield f"\na run ({_many(made.images, 'image')} in {made.seconds:.1f} s)"
    yield _row("images/s, maps/s", f"{made.rate:.3g}, {made.maps / made.seconds:.3g}")
    yield _row("an image, p50 and p95", f"{_ms(made.p50).strip()}, {_ms(made.p95).strip()}")
    idle = "unknown: it drew once" if made.idle is None else f"{made.idle:.1%} of the time"
    yield _row("device waits for images", idle)
    yield _row("processor, an image", f"{_ms(made.cpu).strip()} of a core")
    device = "" if memory.device is None else f"; {in_words(memory.device)} on the device"
    host = "unknown" if memory.host is None else in_words(memory.host)
    yield _row("memory at most", f"{host}{device}")


def _advice(figures: "Figures") -> Iterator[str]:
    from dmp_cli.bench.advice import advice, bottleneck

    yield f"\nbottleneck: {figures.run.title(bottleneck(figures))}"
    for text in advice(figures):
        yield textwrap.fill(text, _WIDTH, initial_indent="- ", subsequent_indent="  ")


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:9.1f} ms" if seconds < 10 else f"{seconds:9.2f} s "
