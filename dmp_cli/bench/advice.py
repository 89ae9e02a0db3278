"""What figures say: which stage holds up the rest, and what would change it on this machine."""

import math

from dmp_cli.bench.figures import NETWORK, READING, WRITING, Figures

_IDLE = 0.1  # share of the time from which on the device waits for the processor
_BUSY = 0.9  # share of the cores from which on more threads are of no use
_MUCH = 0.2  # share of an image in the network from which on a part is worth a remark
_LONG = 10  # images whose time loading takes
_MOST = 3


def bottleneck(figures: Figures) -> str:
    """The stage, by its name in STAGES, that takes longest of what holds up the rest."""
    if not _waits(figures):
        return figures.stages.largest
    side = READING if _reads(figures) else WRITING
    return max(side, key=lambda name: figures.stages.seconds[name])


def advice(figures: Figures) -> list[str]:
    """One to three sentences on what to change; the numbers in them are of what was measured."""
    if _waits(figures):
        found = [_host(figures)]
    else:
        found = [_steps(figures), _device(figures), _dtype(figures), _decoder(figures)]
    said = [text for text in (*found, _load(figures)) if text]
    return said[:_MOST] or [_nothing(figures)]


def share(figures: Figures, stage: str) -> float:
    """What part a stage has of an image's time in all stages."""
    seconds = figures.stages.seconds
    return seconds[stage] / max(sum(seconds.values()), 1e-9)


def _waits(figures: Figures) -> bool:
    return (figures.pipeline.idle or 0.0) >= _IDLE


def _reads(figures: Figures) -> bool:
    """Whether it is reading that the device waits for, and not writing."""
    stages, run = figures.stages, figures.run
    return stages.of(READING) / run.readers >= stages.of(WRITING) / run.writers


def _host(figures: Figures) -> str:
    """What to change where the processor holds up the device."""
    stages, run, here = figures.stages, figures.run, figures.machine
    reads = _reads(figures)
    needed = stages.of(READING if reads else WRITING)
    who, threads = ("readers", run.readers) if reads else ("writers", run.writers)
    waits = f"the device waits {figures.pipeline.idle or 0:.0%} of the time for {who}"
    busy = figures.pipeline.cpu * figures.pipeline.rate / here.cores
    wanted = math.ceil(needed / max(stages.of(NETWORK), 1e-9))
    more = min(max(wanted, threads + 1), here.cores)
    if busy < _BUSY and more > threads:
        return f"{waits}: --{who} {more}"
    host = stages.of(READING + WRITING)
    return (
        f"{waits}: reading and writing take {seconds(host)} of a core an image, so that "
        f"{here.cores} cores do at most {here.cores / host:.3g} images/s; share the images among "
        "machines (--shard), or give smaller ones"
    )


def _steps(figures: Figures) -> str:
    """What --fast would save."""
    calls = figures.run.calls
    unet = figures.stages.seconds["unet"]
    part = unet / max(figures.stages.of(NETWORK), 1e-9)
    spared = sum(count - 1 for count in calls.values())
    if not spared or part < _MUCH:
        return ""
    saved = unet * spared / sum(calls.values())
    most = max(calls.values())
    return (
        f"the UNet is {part:.0%} of the network's time: --fast (one step instead of {most}) would "
        f"save about {seconds(saved)} an image; its maps differ, docs/performance.md"
    )


def _decoder(figures: Figures) -> str:
    """What --tiny-decoder would spare, if the model has one."""
    part = figures.stages.seconds["decode"] / max(figures.stages.of(NETWORK), 1e-9)
    if figures.run.tiny_decoder is not False or part < _MUCH:
        return ""
    return (
        f"the VAE's decoder is {part:.0%} of the network's time: --tiny-decoder draws with a small "
        "one instead; its maps differ, and of the packaged models only demo was tried with one, "
        "docs/performance.md"
    )


def _device(figures: Figures) -> str:
    """What to do about an accelerator that is not used."""
    here, run = figures.machine, figures.run
    if here.device != "cpu" or run.device_asked != "auto":
        return ""
    if here.idle_gpu:
        return (
            f"there is an NVIDIA driver, but torch {here.torch} is built without CUDA: "
            "install one that has it"
        )
    part = figures.stages.of(NETWORK) / max(sum(figures.stages.seconds.values()), 1e-9)
    return (
        f"no accelerator found: the network, {part:.0%} of an image's time, runs on "
        f"{here.threads} threads of the processor; a GPU would shorten that part"
    )


def _dtype(figures: Figures) -> str:
    """What to do where float32 was asked for; by itself dmp takes what is faster."""
    here, run = figures.machine, figures.run
    if run.dtype_asked != "fp32" or (here.device == "cpu" and not here.bf16):
        return ""
    where, less = (here.device, "fp16")
    if here.device == "cpu":
        where, less = f"a processor with {here.bf16}", "bf16"
    return f"fp32 was asked for on {where}: dmp bench --dtype {less} tells what that gains"


def _load(figures: Figures) -> str:
    start = figures.start.imports + figures.start.load
    images = start * figures.pipeline.rate
    if images < _LONG:
        return ""
    return (
        f"starting takes {seconds(start)}, as long as {images:.0f} images: give many images to one "
        "run"
    )


def _nothing(figures: Figures) -> str:
    idle = figures.pipeline.idle
    busy = "all the time" if idle is None else f"{1 - idle:.0%} of the time"
    return f"the device is busy {busy}: of the options, only a smaller --size makes it faster"


def seconds(number: float) -> str:
    """`1.93 s`, `12 ms`."""
    return f"{number * 1000:.3g} ms" if number < 0.1 else f"{number:.3g} s"
