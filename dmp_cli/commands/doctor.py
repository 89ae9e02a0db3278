"""`dmp doctor`: what dmp finds on this machine."""

import json as json_
import os
import platform
from importlib.metadata import version
from typing import Annotated

import typer

from dmp_cli import __version__
from dmp_cli.commands import options as opt
from dmp_cli.inventory import Part

_PACKAGES = ("torch", "diffusers", "peft", "transformers", "huggingface-hub", "numpy", "pillow")


def doctor(
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    weights: opt.Weights = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show versions, the device and dtype that a run would take, memory, and where weights lie.

    Exits as a run would if the device asked for is not there, or the weights file is not valid.
    """
    from dmp_cli.device import choose, memory

    placement = choose(device, dtype)
    facts = {
        "dmp": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: version(name) for name in _PACKAGES},
        "device": f"{placement.device} ({placement.reason})",
        "dtype": _dtype(dtype, placement.device.type, placement.dtype_name),
        "memory": _memory(_host_memory()),
        "device memory": _memory(memory(placement.device)),
        **_models(weights),
    }
    if json:
        typer.echo(json_.dumps(facts))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}{value}")


def _dtype(asked: str, device: str, found: str) -> str:
    from dmp_cli.device import multiplies_bf16

    by = multiplies_bf16()
    if asked != "auto" or device != "cpu" or not by:
        return found
    return f"{found}; bf16 for a large network, as Stable Diffusion is (the CPU has {by})"


def _memory(available: tuple[int, int] | None) -> str:
    if available is None:
        return "unknown"
    return f"{available[0] / 2**30:.1f} GiB free of {available[1] / 2**30:.1f}"


def _models(weights: str | None) -> dict[str, str]:
    """The weights files that are read, the stores, and what is here of each model."""
    from dmp_cli import catalogue, hub, store
    from dmp_cli.inventory import parts_of

    table = catalogue.load(weights)
    facts = {
        "weights files": ", ".join(map(str, catalogue.files(weights))),
        "store": str(store.home()),
        "Hub cache": str(hub.cache()),
    }
    for model in table["models"]:
        parts = parts_of(table, model, weights)
        facts[f"model {model}"] = ", ".join(f"{part.name}{_state(part)}" for part in parts)
    return facts


def _state(part: Part) -> str:
    """What keeps a part of a model from being used at once."""
    if part.here:
        return ""
    if part.source is None:
        return " (no source)"
    return " (not fetched)" if part.source.repo else f" (missing: {part.source})"


def _host_memory() -> tuple[int, int] | None:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    except (ValueError, OSError, AttributeError):
        return None
