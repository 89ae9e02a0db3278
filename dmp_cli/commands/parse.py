"""The words of options -> values; what makes no sense is refused with what is known."""

import os
import re

from dmp_cli import shards
from dmp_cli.errors import UsageError
from dmp_cli.plan import FORMATS, RANGES, Output
from dmp_cli.shards import Shard


def one_of(flag: str, word: str, words: tuple[str, ...]) -> str:
    """`word`, if it is one of `words`; else UsageError with the list."""
    if word not in words:
        raise UsageError(f"{flag} {word}: unknown", f"known: {', '.join(words)}")
    return word


def metres(text: str) -> tuple[float, float] | None:
    """`LO,HI` in metres; None for `auto`; UsageError if it is neither."""
    return None if text == "auto" else _metres(text, "auto")


def depth_range(text: str) -> str | tuple[float, float]:
    """A word of RANGES, or `LO,HI` in metres; UsageError if it is neither."""
    return text if text in RANGES else _metres(text, ", ".join(RANGES))


def _metres(text: str, words: str) -> tuple[float, float]:
    try:
        near, far = (float(word) for word in text.split(","))
    except ValueError:
        near = far = 0.0
    if not 0 <= near < far < float("inf"):
        raise UsageError(f"--range {text}: must be {words}, or two metres, LO,HI with LO below HI")
    return near, far


def formats(text: str) -> tuple[str, ...]:
    """Formats with commas, each once; UsageError with the list if one is unknown."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    unknown = [word for word in found if word not in FORMATS]
    if unknown or not found:
        raise UsageError(
            f"unknown format {', '.join(unknown) or repr(text)}", f"known: {', '.join(FORMATS)}"
        )
    return found


def batch(text: str) -> int:
    """A number of images from 1 on; 0 for `auto`."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch {text}: must be a number from 1 on, or auto")
    return int(text)


def colormap(name: str) -> str:
    """The name of a colour map as it is spelled; UsageError if there is none such."""
    from dmp_cli.colour import COLORMAPS

    names = {known.lower(): known for known in COLORMAPS} | {"gray": "grey"}
    if name.lower() not in names:
        raise UsageError(f"unknown colour map {name!r}", f"known: {', '.join(COLORMAPS)}")
    return names[name.lower()]


def depth_unit(metres: float | None, span: str) -> float:
    """Metres of a step of 16-bit depth; UsageError if it is no length, or the range sets it."""
    if metres is None:
        return Output.depth_unit
    if span != "auto":
        raise UsageError(
            f"--depth-unit {metres:g}: with --range {span} the range decides what a step is",
            "leave out one of them",
        )
    if not 1e-9 <= metres <= 1e6:
        raise UsageError(f"--depth-unit {metres:g}: must be metres from 1e-9 to 1e6")
    return metres


def exposure(stops: float) -> float:
    """Stops; UsageError for what is no number."""
    if not abs(stops) <= 32:
        raise UsageError(f"--exposure {stops:g}: must be stops from -32 to 32")
    return stops


def fps(number: float | None, video: bool) -> float | None:
    """Pictures a second; UsageError unless above 0, or if no movie is made."""
    if number is not None and not video:
        raise UsageError(f"--fps {number:g}: there is no movie without --video", "add --video")
    if number is not None and not 0 < number < 1000:
        raise UsageError(f"--fps {number:g}: must be above 0 and below 1000")
    return number


def background(text: str) -> tuple[int, int, int]:
    """A colour as images.parse_background takes it; the plain names need no image library."""
    plain = {"white": (255, 255, 255), "black": (0, 0, 0)}
    if text in plain:
        return plain[text]
    from dmp_cli.images import parse_background

    return parse_background(text)


def ray_address(text: str | None, engine: str) -> None:
    """UsageError for an address without the engine that it is for."""
    if text is not None and engine != "ray":
        raise UsageError(f"--ray-address {text}: is for --engine ray", "add --engine ray")


def devices(text: str, device: str, dtype: str, engine: str) -> tuple[str, ...]:
    """The devices of a run over several, each as device.py names it, or `all` alone.

    UsageError for what is no device, and beside options that say otherwise.
    """
    if engine != "local":
        raise UsageError(f"--devices {text}: --engine {engine} finds its devices itself",
                         "leave out one of them")  # fmt: skip
    if device != "auto":
        raise UsageError(f"--devices {text} and --device {device}", "leave out one of them")
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return ("all",)
    names = tuple(f"cuda:{int(word)}" if word.isdecimal() else word for word in words)
    for word, name in zip(words, names, strict=True):
        if not re.fullmatch(r"cpu|mps|cuda:\d+", name):
            raise UsageError(f"--devices {text}: {word!r} is no device",
                             "give all alone, or numbers of CUDA devices, as 0,1")  # fmt: skip
    if dtype == "auto" and len({name.partition(":")[0] for name in names}) > 1:
        raise UsageError(
            f"--devices {text}: by themselves these take different precisions, and so would "
            "the maps of one run", "name one: --dtype fp32"
        )  # fmt: skip
    return names


def shard(text: str | None, look: Output, video: bool) -> Shard | None:
    """The part of the inputs that a run takes; UsageError if something needs all of them."""
    found = shards.parse(text, os.environ)
    if found and (look.range == "run" or look.thumbnail or video):
        what = "--video" if video else "--contact-sheet" if look.thumbnail else "--range run"
        raise UsageError(
            f"--shard {text}: {what} needs all inputs, and a part does not have them",
            "name the range: --range LO,HI" if what == "--range run" else f"leave out {what}; "
            "once all parts are done, the command without --shard makes it",
        )  # fmt: skip
    return found
