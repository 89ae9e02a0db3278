"""`dmp weights list`: what there is of each model."""

import json as json_
import re
from itertools import groupby
from typing import Annotated

import typer

from dmp_cli.commands import options as opt
from dmp_cli.files import in_words
from dmp_cli.inventory import Part, parts_of


def list_(
    weights: opt.Weights = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List backbones and LoRAs of all models: licence, source, size, whether they are here.

    A size says that it is here. A star marks what a run takes that names no model. No server is
    asked.
    """
    from dmp_cli import catalogue

    parts = parts_of(catalogue.load(weights), weights=weights)
    if json:
        typer.echo(json_.dumps([_record(part) for part in parts]))
        return
    for model, own in groupby(parts, lambda part: part.model):
        rows = list(own)
        typer.echo(f"{model} (licence: {rows[0].license})")
        for part in rows:
            name = part.name + (" *" if part.taken else "")
            other = "" if part.license == rows[0].license else f" (licence: {part.license})"
            typer.echo(f"  {name:<15} {_here(part):>9}  {_source(part)}{other}")


def _here(part: Part) -> str:
    if part.source and part.source.made:
        return "made"
    return in_words(part.bytes or 0) if part.here else "no"


def _source(part: Part) -> str:
    """The source in words, a commit by its first digits."""
    if part.source is None:
        return "none: to be imported"
    return re.sub("@([0-9a-f]{12})[0-9a-f]{28}$", r"@\1", str(part.source))


def _record(part: Part) -> dict[str, object]:
    return {
        "model": part.model,
        "part": part.name,
        "license": part.license,
        "source": str(part.source) if part.source else None,
        "bytes": part.bytes,
        "here": part.here,
        "absent": part.absent or None,
        "default": part.taken,
    }
