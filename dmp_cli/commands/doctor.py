"""`dmp doctor`: what dmp finds on this machine."""

import json as json_
import os
import platform
from importlib.metadata import version
from typing import Annotated

import typer

from dmp_cli import __version__
from dmp_cli.commands import options as opt
from dmp_cli.weights import Source

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
        "dtype": placement.dtype_name,
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


def _memory(available: tuple[int, int] | None) -> str:
    if available is None:
        return "unknown"
    return f"{available[0] / 2**30:.1f} GiB free of {available[1] / 2**30:.1f}"


def _models(weights: str | None) -> dict[str, str]:
    """The weights files that are read, the stores, and which model has which tasks."""
    from dmp_cli import catalogue
    from dmp_cli.weights import hub_cache, sources, store

    table = catalogue.load(weights)
    facts = {
        "weights files": ", ".join(map(str, catalogue.files(weights))),
        "store": str(store()),
        "Hub cache": str(hub_cache()),
    }
    for model in table["models"]:
        found = sources(table, model)
        shown = [f"{task}{_state(files)}" for task, files in found.items()]
        facts[f"model {model}"] = ", ".join(shown) or "no source for its weights"
    return facts


def _state(files: list[Source]) -> str:
    """What keeps a task from running at once."""
    absent = [str(file.path) for file in files if file.path and not file.path.exists()]
    if absent:
        return f" (missing: {absent[0]})"
    return " (from the Hub)" if any(file.repo for file in files) else ""


def _host_memory() -> tuple[int, int] | None:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page
    except (ValueError, OSError, AttributeError):
        return None
